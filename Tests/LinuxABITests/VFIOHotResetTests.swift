// SPDX-License-Identifier: Apache-2.0
//
// J1: hot reset by the bytes of its commands: whom it would hit, who may do it, what it does.
// Three functions are below one port: two of one group, one of another; a fourth is on a root bus.

import CLinuxABI
import Foundation
import IOMMU
import SoftDevices
import SoftwareIOMMU
import TestSupport
import Testing
import VFIO

@testable import LinuxABI

@Suite(.timeLimit(.minutes(10))) struct VFIOHotResetTests {
  let system = IOMMUSystem()
  let caller: LocalCaller
  let functions: [PCIFunction]
  let nodes: [VFIODeviceNode]
  let iommufd: Int32

  init() throws {
    let iommu = SoftwareIOMMU(name: "dmar0", memory: system.memory, events: system.events)
    caller = try LocalCaller()
    let bus = PCIBus(port: RequesterID(bus: 0xE0, device: 5, function: 0))
    let shared = system.addGroup()
    let other = system.addGroup()
    let alone = system.addGroup()
    var functions: [PCIFunction] = []
    let places: [(UInt8, UInt8, DeviceGroup, PCIBus?)] = [
      (0xE1, 0, shared, bus), (0xE1, 1, shared, bus), (0xE1, 2, other, bus),
      (0xE0, 4, alone, nil),
    ]
    for (number, function, group, bus) in places {
      let address = RequesterID(bus: number, device: 0, function: function)
      let device = try system.addDevice(
        name: "\(address)", requester: address, driver: iommu, group: group)
      functions.append(
        PCIFunction(
          device: device, model: CopyEngine(),
          upstream: SoftwareIOMMUBus(iommu: iommu, requester: address), bus: bus))
    }
    self.functions = functions
    let groups = [shared, other, alone].map { VFIOGroup(group: $0) }
    nodes = zip(functions, [0, 0, 1, 2]).enumerated().map { index, place in
      VFIODeviceNode(
        device: VFIODevice(index: UInt32(index), function: place.0, group: groups[place.1]))
    }
    iommufd = caller.add(try IOMMUNode(system: system).open(flags: 2, by: caller))
  }

  private func open(_ index: Int, bindTo context: Int32? = nil) throws -> (
    file: any OpenFile, fd: Int32, id: UInt32
  ) {
    let file = try nodes[index].open(flags: 2, by: caller)
    let fd = caller.add(file)
    var bind = vfio_device_bind_iommufd()
    bind.argsz = 16
    bind.iommufd = context ?? iommufd
    #expect(caller.ioctl(file, VFIO_DEVICE_BIND_IOMMUFD, &bind) == 0)
    return (file, fd, bind.out_devid)
  }

  private struct Info: Equatable {
    var result: Int32
    var flags: UInt32
    var count: UInt32
    /// Bus, device and function, and id.
    var entries: [[UInt32]]
  }

  private func info(_ file: any OpenFile, argsz: UInt32 = 12 + 8 * 8) -> Info {
    caller.put(argsz, at: 0x2000)
    caller.put(UInt32(0x55), at: 0x2004)
    caller.put(UInt32(0), at: 0x2008)
    let result = caller.ioctl(file, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, at: 0x2000)
    let count = caller.get(UInt32.self, at: 0x2008)
    let entries = (0..<UInt64(result == 0 ? count : 0)).map { index in
      [
        UInt32(caller.get(UInt8.self, at: 0x2012 + index * 8)),
        UInt32(caller.get(UInt8.self, at: 0x2013 + index * 8)),
        caller.get(UInt32.self, at: 0x200C + index * 8),
      ]
    }
    return Info(
      result: result, flags: caller.get(UInt32.self, at: 0x2004), count: count,
      entries: entries)
  }

  private func reset(
    _ file: any OpenFile, fds: [Int32] = [], argsz: UInt32 = 12, flags: UInt32 = 0
  ) -> Int32 {
    caller.put(argsz, at: 0x3000)
    caller.put(flags, at: 0x3004)
    caller.put(UInt32(fds.count), at: 0x3008)
    for (index, fd) in fds.enumerated() { caller.put(fd, at: 0x300C + UInt64(index) * 4) }
    return caller.ioctl(file, VFIO_DEVICE_PCI_HOT_RESET, at: 0x3000)
  }

  /// What a function's own register keeps until it is reset.
  private func mark(_ index: Int) throws {
    let value: [UInt8] = [1, 2, 3, 4]
    _ = try value.withUnsafeBytes { try functions[index].write(.config, at: 0x48, from: $0) }
  }

  private func isMarked(_ index: Int) -> Bool {
    functions[index].config.value(at: 0x48) == 0x0403_0201
  }

  @Test("J1: hot reset on a root bus is ENODEV; argsz is checked before, flags and count too")
  func rootBus() throws {
    let file = try open(3).file
    #expect(info(file).result == -ENODEV)
    #expect(info(file, argsz: 11).result == -EINVAL)
    #expect(reset(file) == -ENODEV)
    #expect(reset(file, argsz: 11) == -EINVAL)
    #expect(reset(file, flags: 1) == -EINVAL)
    #expect(reset(file, fds: [iommufd]) == -EINVAL, "no group fds with a device's own node")
    #expect(caller.ioctl(file, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, at: 0x10) == -EFAULT)
    #expect(caller.ioctl(file, VFIO_DEVICE_PCI_HOT_RESET, at: 0x10) == -EFAULT)
  }

  @Test("J1: hot-reset info lists all functions below the port, by device id of the context")
  func neighbours() throws {
    let (file, _, id) = try open(0)
    let first = info(file)
    #expect(first.result == 0)
    #expect(first.count == 3)
    #expect(
      first.entries == [[0xE1, 0, id], [0xE1, 1, 0], [0xE1, 2, .max]],
      "bound; of an owned group; nobody's")
    #expect(first.flags == VFIO_PCI_HOT_RESET_FLAG_DEV_ID)
    let third = try open(2)
    let all = info(file)
    #expect(all.entries == [[0xE1, 0, id], [0xE1, 1, 0], [0xE1, 2, third.id]])
    #expect(
      all.flags == VFIO_PCI_HOT_RESET_FLAG_DEV_ID | VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED)
    // Another context's.
    caller.close(third.fd)
    let second = caller.add(try IOMMUNode(system: system).open(flags: 2, by: caller))
    let foreign = try open(2, bindTo: second)
    #expect(info(file).entries.last == [0xE1, 2, .max])
    #expect(
      info(foreign.file).entries == [
        [0xE1, 0, .max], [0xE1, 1, .max], [0xE1, 2, foreign.id],
      ])
  }

  @Test("J1: hot-reset info without room is ENOSPC and says the count")
  func room() throws {
    let file = try open(0).file
    for argsz: UInt32 in [12, 12 + 8 * 2, 12 + 8 * 3 - 1] {
      #expect(
        info(file, argsz: argsz) == Info(result: -ENOSPC, flags: 0, count: 3, entries: []))
    }
    #expect(info(file, argsz: 12 + 8 * 3).result == 0)
  }

  @Test("J1: a hot reset needs every function below the port to be the context's: EINVAL")
  func rights() throws {
    let file = try open(0).file
    try mark(0)
    try mark(1)
    #expect(reset(file) == -EINVAL, "the third is nobody's")
    let second = caller.add(try IOMMUNode(system: system).open(flags: 2, by: caller))
    let foreign = try open(2, bindTo: second)
    #expect(reset(file) == -EINVAL, "the third is another context's")
    #expect(reset(foreign.file) == -EINVAL)
    #expect(isMarked(0) && isMarked(1), "what is refused resets nothing")
    caller.close(foreign.fd)
    let third = try open(2)
    try mark(2)
    #expect(reset(file) == 0)
    #expect(!isMarked(0) && !isMarked(1) && !isMarked(2))
    #expect(reset(third.file) == 0)
  }

  @Test("J1: a hot reset keeps the header, and ends the DMA of all functions")
  func effect() throws {
    let file = try open(0).file
    let third = try open(2).file
    for file in [file, third] {
      let command: [UInt8] = [6, 0]
      _ = try command.withUnsafeBytes {
        try file.write(at: EngineRig.configBase | 4, from: $0)
      }
    }
    #expect(reset(file) == 0)
    #expect(functions[0].config.value(at: 4) & 0xFFFF == 6)
    #expect(functions[2].config.value(at: 4) & 0xFFFF == 6)
    // CHANSTS: halted, as after power-on.
    var status: UInt64 = 0
    _ = try withUnsafeMutableBytes(of: &status) {
      try third.read(at: EngineRig.regionBase | 0x88, into: $0)
    }
    #expect(status == 3)
  }

  @Test("J1: a function below the port that vfio-pci has not got is in the way: EINVAL")
  func strayFunction() throws {
    let bus = try #require(functions[0].bus)
    let iommu = SoftwareIOMMU(name: "dmar1", memory: system.memory, events: system.events)
    let address = RequesterID(bus: 0xE1, device: 0, function: 7)
    let device = try system.addDevice(
      name: "\(address)", requester: address, driver: iommu, group: system.addGroup())
    let stray = PCIFunction(
      device: device, model: CopyEngine(),
      upstream: SoftwareIOMMUBus(iommu: iommu, requester: address), bus: bus)
    let file = try open(0).file
    _ = try open(2)
    #expect(info(file).entries.last == [0xE1, 7, .max])
    #expect(info(file).flags == VFIO_PCI_HOT_RESET_FLAG_DEV_ID)
    #expect(reset(file) == -EINVAL)
    withExtendedLifetime(stray) {}
  }
}
