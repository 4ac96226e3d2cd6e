#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
#
# A driver's test, with Python's standard library only: a copy engine (I/OAT, 8086:2021) copies memory
# by DMA, and a copy to where nothing is mapped is an error of the device. Runs under `iommu run`, and
# on a machine with such a device.

import ctypes, fcntl, glob, mmap, os, struct, time

ENGINE = "/sys/bus/pci/devices/0000:e0:04.0"
PAGE = 4096


def ioctl(file, number, layout, *values):
    """Makes a call whose argument is a structure, and returns the structure as it is afterwards."""
    argument = bytearray(struct.pack(layout, *values))
    fcntl.ioctl(file, number, argument)
    return struct.unpack(layout, argument)


class Engine:
    def __init__(self):
        assert open(ENGINE + "/vendor").read() == "0x8086\n"
        (node,) = glob.glob(ENGINE + "/vfio-dev/vfio*")
        self.iommu = os.open("/dev/iommu", os.O_RDWR)
        self.device = os.open("/dev/vfio/devices/" + os.path.basename(node), os.O_RDWR)
        ioctl(self.device, 0x3B76, "IIiI", 16, 0, self.iommu, 0)  # VFIO_DEVICE_BIND_IOMMUFD
        self.space = ioctl(self.iommu, 0x3B81, "III", 12, 0, 0)[2]  # IOMMU_IOAS_ALLOC
        ioctl(self.device, 0x3B77, "III", 12, 0, self.space)  # VFIO_DEVICE_ATTACH_IOMMUFD_PT
        config, self.registers = (
            ioctl(self.device, 0x3B6C, "IIIIQQ", 32, 0, region, 0, 0, 0)[5]  # GET_REGION_INFO
            for region in (7, 0))
        os.pwrite(self.device, b"\x06\x00", config + 4)  # memory space, bus master

    def page(self):
        """A page of memory, and the address that the device has for it."""
        memory = mmap.mmap(-1, PAGE)
        here = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        there = ioctl(self.iommu, 0x3B85, "IIIIQQQ", 40, 6, self.space, 0, here, PAGE, 0)[6]
        return memory, there

    def write(self, offset, layout, value):
        os.pwrite(self.device, struct.pack(layout, value), self.registers + offset)

    def read(self, offset, layout):
        size = struct.calcsize(layout)
        return struct.unpack(layout, os.pread(self.device, size, self.registers + offset))[0]

    def copy(self, source, destination):
        """Copies a page; returns what the device says of errors."""
        chain, place = self.page()
        chain[64:104] = struct.pack("IIQQQQ", PAGE, 8, source, destination, place + 64, 0)
        self.write(0x84, "B", 0x20)  # reset
        while self.read(0x84, "B") & 0x20:
            time.sleep(0.001)
        self.write(0xA8, "I", self.read(0xA8, "I"))
        self.write(0x80, "H", 8)
        for offset, value in (0x98, place), (0x90, place + 64):  # completion, chain
            self.write(offset, "I", value & 0xFFFFFFFF)
            self.write(offset + 4, "I", value >> 32)
        self.write(0x86, "H", 1)
        while self.read(0x88, "Q") & 7 == 0:  # at work
            time.sleep(0.001)
        return self.read(0xA8, "I")


engine = Engine()
(source, from_), (destination, to) = engine.page(), engine.page()
source[:] = os.urandom(PAGE)
assert engine.copy(from_, to) == 0 and source[:] == destination[:]
error = engine.copy(from_, 0x7000_0000_0000)
assert error == 0x02, f"a write to nowhere: error {error:#x}"  # destination address
print("2 tests passed")
