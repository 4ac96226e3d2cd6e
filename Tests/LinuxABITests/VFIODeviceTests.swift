// SPDX-License-Identifier: Apache-2.0
//
// MODEL C, J1: the device node's commands by their bytes: access before the bind, who may bind,
// what is said of regions and interrupts, and what close takes back.

import CLinuxABI
import Foundation
import IOMMU
import SoftwareIOMMU
import TestSupport
import Testing
import VFIO

@testable import LinuxABI

/// Every command of a device, and one that no file knows.
private let allCommands: [UInt32] = Array(0x3b64...0x3b7f) + [0x3bff, 0, .max]

@Suite(.timeLimit(.minutes(10))) struct VFIODeviceTests {
  let rig: EngineRig

  init() throws { rig = try EngineRig() }

  @Test("C4: before the bind every command but BIND is EINVAL, and so are read, write and mmap")
  func accessBeforeBind() {
    for command in allCommands where command != VFIO_DEVICE_BIND_IOMMUFD {
      #expect(rig.caller.ioctl(rig.file, command, at: 0x2000) == -EINVAL, "\(command)")
    }
    #expect(rig.read(0x88, as: UInt64.self) == nil)
    #expect(rig.config(0, as: UInt32.self) == nil)
    #expect(rig.config(4, UInt16(6)) == -Int(EINVAL))
    #expect(throws: IOMMUError.self) {
      try rig.file.checkMap(
        MapRequest(offset: EngineRig.regionBase, length: 4096, isWritable: false))
    }
    #expect(!rig.vfio.isBound)
  }

  private func bind(
    _ file: any OpenFile, fd: Int32, argsz: UInt32 = 16, flags: UInt32 = 0
  ) -> (result: Int32, id: UInt32) {
    var bind = vfio_device_bind_iommufd()
    bind.argsz = argsz
    bind.flags = flags
    bind.iommufd = fd
    let result = rig.caller.ioctl(file, VFIO_DEVICE_BIND_IOMMUFD, &bind)
    return (result, bind.out_devid)
  }

  @Test("C1: BIND checks size, flags, then the descriptor: EINVAL, EBADF, EBADFD")
  func bindErrors() {
    #expect(bind(rig.file, fd: rig.iommufd, argsz: 15).result == -EINVAL)
    #expect(bind(rig.file, fd: rig.iommufd, flags: 2).result == -EINVAL)
    #expect(bind(rig.file, fd: -1).result == -EINVAL)
    #expect(bind(rig.file, fd: 999).result == -EBADF)
    #expect(bind(rig.file, fd: rig.devicefd).result == -EBADFD)
    #expect(bind(rig.file, fd: rig.caller.add(CountingSignal())).result == -EBADFD)
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_BIND_IOMMUFD, at: 0x10) == -EFAULT)
    #expect(!rig.vfio.isBound)
    let good = bind(rig.file, fd: rig.iommufd)
    #expect(good.result == 0)
    #expect(good.id != 0)
  }

  @Test("C1: a device is bound once: again by the same file or by another open is EINVAL")
  func bindTwice() throws {
    let second = try rig.node.open(flags: 2, by: rig.caller)
    #expect(bind(rig.file, fd: rig.iommufd).result == 0)
    #expect(bind(rig.file, fd: rig.iommufd).result == -EINVAL)
    #expect(bind(rig.file, fd: 999).result == -EINVAL, "the check comes before the descriptor")
    #expect(bind(second, fd: rig.iommufd).result == -EINVAL)
    #expect(bind(second, fd: 999).result == -EBADF)
    second.close()
    #expect(rig.vfio.isBound, "closing a file that never bound changes nothing")
    rig.caller.close(rig.devicefd)
    let third = try rig.node.open(flags: 2, by: rig.caller)
    #expect(bind(third, fd: rig.iommufd).result == 0)
  }

  @Test("C1: a bind whose id cannot be written back is undone")
  func bindUndone() throws {
    // The last 16 bytes of the arena are readable; a caller that faults on the way out.
    let caller = DeafCaller(rig.caller)
    rig.caller.put(UInt32(16), at: 0x2000)
    rig.caller.put(UInt32(0), at: 0x2004)
    rig.caller.put(rig.iommufd, at: 0x2008)
    #expect(throws: IOMMUError.self) {
      try rig.file.ioctl(VFIO_DEVICE_BIND_IOMMUFD, argument: 0x2000, by: caller)
    }
    #expect(!rig.vfio.isBound)
    #expect(!rig.group.group.isOwned)
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_GET_INFO, at: 0x2000) == -EINVAL)
    #expect(rig.bind() == 0)
  }

  @Test("C6: group node and device node exclude each other: EBUSY")
  func exclusion() throws {
    let node = VFIOGroupNode(group: rig.group)
    let group = try node.open(flags: 2, by: rig.caller)
    #expect(throws: IOMMUError.self) { try node.open(flags: 2, by: rig.caller) }
    #expect(rig.bind() == -EBUSY)
    group.close()
    #expect(rig.bind() == 0)
    #expect(throws: IOMMUError.self) { try node.open(flags: 2, by: rig.caller) }
    rig.caller.close(rig.devicefd)
    try node.open(flags: 2, by: rig.caller).close()
  }

  @Test("D1: attach to what is not there is ENOENT; size and flags EINVAL; detach always works")
  func attachErrors() {
    rig.bind()
    #expect(rig.attach(4242) == -ENOENT)
    var attach = vfio_device_attach_iommufd_pt()
    attach.argsz = 11
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) == -EINVAL)
    attach.argsz = 16
    attach.flags = 2
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) == -EINVAL)
    attach.argsz = 15
    attach.flags = VFIO_DEVICE_ATTACH_PASID
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) == -EINVAL)
    #expect(rig.detach() == 0, "not attached: nothing to do, as on Linux")
    var detach = vfio_device_detach_iommufd_pt()
    detach.argsz = 7
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach) == -EINVAL)
    detach.argsz = 12
    detach.flags = 2
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach) == -EINVAL)
    detach.argsz = 11
    detach.flags = VFIO_DEVICE_DETACH_PASID
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach) == -EINVAL)
  }

  @Test("J1: GET_INFO: PCI with reset, 9 regions, 5 interrupts; argsz under 16 is EINVAL")
  func info() {
    rig.bind()
    var info = vfio_device_info()
    info.argsz = 15
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_GET_INFO, &info) == -EINVAL)
    info = vfio_device_info()
    info.argsz = 24
    info.cap_offset = 77
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_GET_INFO, &info) == 0)
    #expect(info.flags == VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET)
    #expect(info.num_regions == 9)
    #expect(info.num_irqs == 5)
    #expect(info.cap_offset == 0)
    info.argsz = 16
    info.cap_offset = 77
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_GET_INFO, &info) == 0)
    #expect(info.cap_offset == 77, "nothing is written past argsz")
  }

  @Test("J1: GET_REGION_INFO: BAR 0 and config are read-write without mmap, the rest is empty")
  func regions() {
    rig.bind()
    let sizes: [UInt32: UInt64] = [0: 16384, 7: 4096]
    for index in UInt32(0)..<8 {
      var info = vfio_region_info()
      info.argsz = 32
      info.index = index
      #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_GET_REGION_INFO, &info) == 0)
      #expect(info.size == sizes[index] ?? 0)
      #expect(info.flags == (sizes[index] == nil ? 0 : 3))
      #expect(info.offset == 1 << 45 | UInt64(index) << 40)
    }
    for index in [8, 9, 100, UInt32.max] {
      var info = vfio_region_info()
      info.argsz = 32
      info.index = index
      #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_GET_REGION_INFO, &info) == -EINVAL)
    }
    var info = vfio_region_info()
    info.argsz = 31
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_GET_REGION_INFO, &info) == -EINVAL)
  }

  @Test("J1: GET_IRQ_INFO: INTx, one of MSI, one resizable MSI-X vector, error and request")
  func interruptInfo() {
    rig.bind()
    let expected: [(count: UInt32, flags: UInt32)] = [(1, 7), (1, 9), (1, 1), (1, 9), (1, 9)]
    for (index, wanted) in expected.enumerated() {
      var info = vfio_irq_info()
      info.argsz = 16
      info.index = UInt32(index)
      #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_GET_IRQ_INFO, &info) == 0)
      #expect(info.count == wanted.count, "\(index)")
      #expect(info.flags == wanted.flags, "\(index)")
    }
    var info = vfio_irq_info()
    info.argsz = 16
    info.index = 5
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_GET_IRQ_INFO, &info) == -EINVAL)
    info.index = 2
    info.argsz = 15
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_GET_IRQ_INFO, &info) == -EINVAL)
  }

  @Test("J1: SET_IRQS: a bad header is EINVAL, missing data EFAULT, no such action ENOTTY")
  func setInterruptErrors() {
    rig.bind()
    let none = VFIO_IRQ_SET_DATA_NONE
    let events = VFIO_IRQ_SET_DATA_EVENTFD
    let trigger = VFIO_IRQ_SET_ACTION_TRIGGER
    let mask = VFIO_IRQ_SET_ACTION_MASK
    #expect(rig.setIRQs(flags: none | trigger, index: 2, count: 1, argsz: 19) == -EINVAL)
    #expect(rig.setIRQs(flags: none | trigger, index: 5, count: 1) == -EINVAL)
    #expect(rig.setIRQs(flags: none | trigger | 0x40, index: 2, count: 1) == -EINVAL)
    #expect(rig.setIRQs(flags: none | trigger, index: 2, start: 1, count: 0) == -EINVAL)
    #expect(rig.setIRQs(flags: none | trigger, index: 2, count: 2) == -EINVAL)
    #expect(rig.setIRQs(flags: none | trigger, index: 2, start: 1, count: .max) == -EINVAL)
    #expect(rig.setIRQs(flags: none | events | trigger, index: 2, count: 1) == -EINVAL)
    #expect(rig.setIRQs(flags: trigger, index: 2, count: 1) == -EINVAL)
    #expect(rig.setIRQs(flags: events | trigger, index: 2, count: 1, argsz: 23) == -EINVAL)
    #expect(rig.setIRQs(flags: none | mask, index: 2, count: 1) == -ENOTTY)
    #expect(rig.setIRQs(flags: none | mask | trigger, index: 2, count: 1) == -ENOTTY)
    #expect(rig.setIRQs(flags: none, index: 2, count: 1) == -ENOTTY)
    #expect(rig.setIRQs(flags: none | trigger, index: 0, count: 1) == -EINVAL, "not enabled")
    #expect(rig.setIRQs(flags: none | trigger, index: 2, count: 1) == -EINVAL, "not enabled")
    // Data that runs out of the caller's memory.
    let edge = rig.caller.arena.byteCount - 20
    for (offset, value) in zip(0..., [24, events | trigger, 2, 0, 1] as [UInt32]) {
      rig.caller.put(value, at: edge + UInt64(offset) * 4)
    }
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_SET_IRQS, at: edge) == -EFAULT)
  }

  @Test("J1: SET_IRQS arms, triggers by loopback, removes by -1, tears down by count 0")
  func setInterrupts() {
    rig.bind()
    let none = VFIO_IRQ_SET_DATA_NONE
    let flags = VFIO_IRQ_SET_DATA_BOOL
    let events = VFIO_IRQ_SET_DATA_EVENTFD
    let trigger = VFIO_IRQ_SET_ACTION_TRIGGER
    let signal = CountingSignal()
    #expect(rig.setIRQs(flags: events | trigger, index: 2, count: 1, data: [999]) == -EBADF)
    #expect(
      rig.setIRQs(flags: events | trigger, index: 2, count: 1, data: [rig.devicefd]) == -EINVAL)
    #expect(rig.setIRQs(flags: none | trigger, index: 2, count: 0) == -EINVAL, "still off")
    #expect(rig.config(0x83, as: UInt8.self) == 0, "MSI-X is off")
    #expect(rig.arm(signal) == 0)
    #expect(rig.config(0x83, as: UInt8.self) == 0x80, "MSI-X is on")
    #expect(rig.iommu.interrupts.count == 1)
    #expect(rig.setIRQs(flags: none | trigger, index: 2, count: 1) == 0)
    #expect(signal.count == 1)
    #expect(rig.setIRQs(flags: flags | trigger, index: 2, count: 1, data: [1], argsz: 21) == 0)
    #expect(signal.count == 2)
    #expect(rig.setIRQs(flags: flags | trigger, index: 2, count: 1, data: [0], argsz: 21) == 0)
    #expect(signal.count == 2)
    #expect(rig.setIRQs(flags: events | trigger, index: 2, count: 1, data: [-1]) == 0)
    #expect(rig.iommu.interrupts.count == 0)
    #expect(rig.setIRQs(flags: none | trigger, index: 2, count: 1) == 0, "nobody hears it")
    #expect(signal.count == 2)
    #expect(rig.setIRQs(flags: none | trigger, index: 2, count: 0) == 0)
    #expect(rig.config(0x83, as: UInt8.self) == 0)
    #expect(rig.setIRQs(flags: events | trigger, index: 2, count: 0) == -34, "ERANGE")
  }

  @Test("J1: the error and request notices are set, triggered and removed singly")
  func notices() {
    rig.bind()
    let none = VFIO_IRQ_SET_DATA_NONE
    let flags = VFIO_IRQ_SET_DATA_BOOL
    let events = VFIO_IRQ_SET_DATA_EVENTFD
    let trigger = VFIO_IRQ_SET_ACTION_TRIGGER
    for index in [UInt32(3), 4] {
      let signal = CountingSignal()
      let fd = rig.caller.add(signal)
      #expect(rig.setIRQs(flags: none | trigger, index: index, count: 1) == -EINVAL)
      #expect(
        rig.setIRQs(flags: flags | trigger, index: index, count: 1, data: [1], argsz: 21) == 0)
      #expect(rig.setIRQs(flags: events | trigger, index: index, count: 1, data: [fd]) == 0)
      #expect(rig.setIRQs(flags: none | trigger, index: index, count: 1) == 0)
      #expect(signal.count == 1)
      #expect(
        rig.setIRQs(flags: events | trigger, index: index, count: 1, data: [-2]) == -EINVAL)
      #expect(rig.setIRQs(flags: events | trigger, index: index, count: 0) == -EINVAL)
      #expect(rig.setIRQs(flags: none | trigger, index: index, count: 0) == 0)
      #expect(rig.setIRQs(flags: none | trigger, index: index, count: 1) == -EINVAL)
    }
  }

  @Test("J1: hot reset is ENODEV on a root bus; features and unknown commands are ENOTTY")
  func otherCommands() {
    rig.bind()
    var hot = vfio_pci_hot_reset_info()
    hot.argsz = 11
    #expect(
      rig.caller.ioctl(rig.file, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &hot) == -EINVAL)
    hot.argsz = 12
    #expect(
      rig.caller.ioctl(rig.file, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &hot) == -ENODEV)
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_PCI_HOT_RESET, &hot) == -ENODEV)
    hot.count = 1
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_PCI_HOT_RESET, &hot) == -EINVAL)
    func feature(_ flags: UInt32, argsz: UInt32 = 8) -> Int32 {
      rig.caller.put(argsz, at: 0x2000)
      rig.caller.put(flags, at: 0x2004)
      return rig.caller.ioctl(rig.file, VFIO_DEVICE_FEATURE, at: 0x2000)
    }
    let none = VFIO_DEVICE_FEATURE_DMA_BUF
    #expect(feature(VFIO_DEVICE_FEATURE_GET | none) == -ENOTTY)
    #expect(feature(VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET | none) == -EINVAL)
    #expect(feature(VFIO_DEVICE_FEATURE_PROBE | 0x30000 | none) == -ENOTTY)
    #expect(feature(0x8_0000) == -EINVAL)
    #expect(feature(VFIO_DEVICE_FEATURE_GET | none, argsz: 7) == -EINVAL)
    // What no device here has: a token, bus mastering by a feature, DMA-bufs.
    for number in [
      VFIO_DEVICE_FEATURE_PCI_VF_TOKEN, VFIO_DEVICE_FEATURE_BUS_MASTER, none,
      VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2, 13, 0xFFFF,
    ] {
      for action in [
        VFIO_DEVICE_FEATURE_GET, VFIO_DEVICE_FEATURE_SET, VFIO_DEVICE_FEATURE_PROBE,
      ] { #expect(feature(action | number, argsz: 64) == -ENOTTY) }
    }
    for command in [VFIO_DEVICE_IOEVENTFD, VFIO_MIG_GET_PRECOPY_INFO, 0x3b64, 0x3bff, 0] {
      #expect(rig.caller.ioctl(rig.file, command, at: 0x2000) == -ENOTTY)
    }
  }

  @Test("L: bad pointers are EFAULT in every command with a structure")
  func badPointers() {
    rig.bind()
    let commands = [
      VFIO_DEVICE_GET_INFO, VFIO_DEVICE_GET_REGION_INFO, VFIO_DEVICE_GET_IRQ_INFO,
      VFIO_DEVICE_SET_IRQS, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, VFIO_DEVICE_PCI_HOT_RESET,
      VFIO_DEVICE_FEATURE, VFIO_DEVICE_BIND_IOMMUFD, VFIO_DEVICE_ATTACH_IOMMUFD_PT,
      VFIO_DEVICE_DETACH_IOMMUFD_PT,
    ]
    // BIND_IOMMUFD looks at the size first, as the commands of /dev/iommu: a good one here.
    let end = rig.caller.arena.byteCount - 4
    rig.caller.put(UInt32(16), at: end)
    for command in commands {
      for address in [0, 0xFFE, end, .max, .max - 3] as [UInt64] {
        #expect(rig.caller.ioctl(rig.file, command, at: address) == -EFAULT, "\(command)")
      }
    }
  }

  @Test("C4: close takes everything back: binding, interrupts, access, group")
  func close() throws {
    try rig.connect()
    let signal = CountingSignal()
    #expect(rig.arm(signal) == 0)
    #expect(rig.group.group.isOwned)
    rig.caller.close(rig.devicefd)
    #expect(!rig.vfio.isBound)
    #expect(!rig.group.group.isOwned)
    #expect(rig.iommu.interrupts.count == 0)
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_GET_INFO, at: 0x2000) == -EINVAL)
    #expect(rig.read(0x88, as: UInt64.self) == nil)
  }

  @Test("C1: the device's id names it in the context, and closing the context first is allowed")
  func contextClosedFirst() throws {
    try rig.connect()
    rig.caller.close(rig.iommufd)
    #expect(rig.system.contextCount == 1, "the bound device keeps it")
    #expect(rig.read(0x08, as: UInt8.self) == 0x33)
    rig.caller.close(rig.devicefd)
    #expect(rig.system.contextCount == 0)
  }
}

/// Reads the caller's memory, but nothing can be written to it.
private final class DeafCaller: Caller {
  private let caller: LocalCaller
  init(_ caller: LocalCaller) { self.caller = caller }

  func copyIn(
    from address: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) throws(IOMMUError) {
    try caller.copyIn(from: address, into: buffer)
  }
  func copyOut(_ buffer: UnsafeRawBufferPointer, to address: UInt64) throws(IOMMUError) {
    throw IOMMUError(.badAddress, "this caller's memory is read-only")
  }
  func memory() throws(IOMMUError) -> any MemorySource { try caller.memory() }
  func fileMemory(
    descriptor: Int32
  ) throws(IOMMUError) -> (source: any MemorySource, size: UInt64) {
    try caller.fileMemory(descriptor: descriptor)
  }
  func openFile(descriptor: Int32) throws(IOMMUError) -> (any OpenFile)? {
    try caller.openFile(descriptor: descriptor)
  }
  func eventFD(descriptor: Int32) throws(IOMMUError) -> any EventSignal {
    try caller.eventFD(descriptor: descriptor)
  }
  func install(_ file: any OpenFile, closeOnExec: Bool) throws(IOMMUError) -> Int32 {
    try caller.install(file, closeOnExec: closeOnExec)
  }
  var userID: UInt32 { caller.userID }
  var processID: Int32 { caller.processID }
  var maySetResourceLimits: Bool { caller.maySetResourceLimits }
  func memoryOwner() throws(IOMMUError) -> (owner: MemoryOwner, right: LockingRight) {
    caller.memoryOwner()
  }
}
