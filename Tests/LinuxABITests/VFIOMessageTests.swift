// SPDX-License-Identifier: Apache-2.0
//
// J1: SET_IRQS of MSI by its bytes, on a controller with eight messages and behind a real IOMMU:
// counts, kinds one after the other, loopback, teardown, and configuration space beside it.

import CLinuxABI
import Foundation
import IOMMU
import SoftDevices
import SoftwareIOMMU
import TestSupport
import Testing
import VFIO

@testable import LinuxABI

@Suite(.timeLimit(.minutes(10))) struct VFIOMessageTests {
  private let none = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER
  private let flags = VFIO_IRQ_SET_DATA_BOOL | VFIO_IRQ_SET_ACTION_TRIGGER
  private let events = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER

  let system = IOMMUSystem()
  let iommu: SoftwareIOMMU
  let caller: LocalCaller
  let model = EightMessages()
  let function: PCIFunction
  let file: any OpenFile

  init() throws {
    iommu = SoftwareIOMMU(name: "dmar0", memory: system.memory, events: system.events)
    caller = try LocalCaller()
    let address = RequesterID(bus: 0, device: 3, function: 0)
    let group = system.addGroup()
    let device = try system.addDevice(
      name: "\(address)", requester: address, driver: iommu, group: group)
    function = PCIFunction(
      device: device, model: model,
      upstream: SoftwareIOMMUBus(iommu: iommu, requester: address))
    let node = VFIODeviceNode(
      device: VFIODevice(index: 0, function: function, group: VFIOGroup(group: group)))
    let iommuFile = try IOMMUNode(system: system).open(flags: 2, by: caller)
    file = try node.open(flags: 2, by: caller)
    var bind = vfio_device_bind_iommufd()
    bind.argsz = 16
    bind.iommufd = caller.add(iommuFile)
    #expect(caller.ioctl(file, VFIO_DEVICE_BIND_IOMMUFD, &bind) == 0)
    var alloc = iommu_ioas_alloc()
    alloc.size = 12
    #expect(caller.ioctl(iommuFile, IOMMU_IOAS_ALLOC, &alloc) == 0)
    var attach = vfio_device_attach_iommufd_pt()
    attach.argsz = 12
    attach.pt_id = alloc.out_ioas_id
    #expect(caller.ioctl(file, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) == 0)
    config(4, UInt16(6))
  }

  private func config<T: FixedWidthInteger>(_ offset: UInt64, _ value: T) {
    withUnsafeBytes(of: value) {
      _ = try? file.write(at: EngineRig.configBase | offset, from: $0)
    }
  }

  private func config(_ offset: UInt64) -> UInt16 {
    var value: UInt16 = 0
    withUnsafeMutableBytes(of: &value) {
      _ = try? file.read(at: EngineRig.configBase | offset, into: $0)
    }
    return value
  }

  private func set(
    _ flags: UInt32, index: UInt32 = 1, start: UInt32 = 0, count: UInt32, data: [Int32] = []
  ) -> Int32 {
    for (offset, value) in zip(
      0..., [UInt32(20 + data.count * 4), flags, index, start, count])
    {
      caller.put(value, at: 0x2800 + UInt64(offset) * 4)
    }
    for (offset, value) in zip(0..., data) {
      caller.put(value, at: 0x2814 + UInt64(offset) * 4)
    }
    return caller.ioctl(file, VFIO_DEVICE_SET_IRQS, at: 0x2800)
  }

  private func raiseAll() { for vector in 0..<8 { model.port?.raise(vector: vector) } }

  @Test("J1: GET_IRQ_INFO of MSI: as many as the capability has, and not to be resized")
  func info() {
    for (index, count, flags) in [(0, 1, 7), (1, 8, 9), (2, 8, 1)] as [(UInt32, UInt32, UInt32)]
    {
      var info = vfio_irq_info()
      info.argsz = 16
      info.index = index
      #expect(caller.ioctl(file, VFIO_DEVICE_GET_IRQ_INFO, &info) == 0)
      #expect(info.count == count)
      #expect(info.flags == flags)
    }
  }

  @Test("J1: SET_IRQS of MSI: three of eight, no more while it is on, EINVAL past the end")
  func counts() {
    let signals = (0..<8).map { _ in CountingSignal() }
    let fds = signals.map { caller.add($0) }
    #expect(set(events, count: 9, data: fds + [-1]) == -EINVAL)
    #expect(set(events, start: 8, count: 1, data: [fds[0]]) == -EINVAL)
    #expect(set(none, count: 0) == -EINVAL, "it is off")
    #expect(set(events, count: 0) == -34, "ERANGE")
    #expect(set(events, count: 2, data: [fds[0], 999]) == -EBADF)
    #expect(iommu.interrupts.count == 0)
    #expect(set(events, count: 3, data: Array(fds[..<3])) == 0)
    raiseAll()
    #expect(signals.map(\.count) == [2, 2, 2, 0, 0, 0, 0, 0])
    #expect(iommu.faults.count == 0, "the fourth of four is masked")
    config(0x60, UInt32(0))
    #expect(iommu.faults.count == 1, "nobody set it up")
    #expect(set(events, start: 3, count: 1, data: [fds[3]]) == -EINVAL)
    #expect(set(none, count: 8) == 0)
    #expect(set(flags, count: 3, data: [0x01_00_01]) == 0)
    #expect(signals.map(\.count) == [4, 3, 4, 0, 0, 0, 0, 0])
    #expect(set(events, start: 1, count: 1, data: [-1]) == 0)
    raiseAll()
    #expect(signals.map(\.count) == [6, 3, 6, 0, 0, 0, 0, 0])
    #expect(set(events, start: 1, count: 1, data: [fds[1]]) == 0)
    #expect(signals[1].count == 4, "it was pending")
    for action in [VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_UNMASK] {
      #expect(set(VFIO_IRQ_SET_DATA_NONE | action, count: 1) == -ENOTTY)
    }
    #expect(set(none, count: 0) == 0)
    #expect(iommu.interrupts.count == 0)
    #expect(set(events, count: 8, data: fds) == 0)
    raiseAll()
    #expect(signals.map(\.count) == [7, 5, 7, 1, 1, 1, 1, 1])
  }

  @Test("J1: MSI, MSI-X and INTx follow each other by way of a teardown only: EINVAL")
  func kinds() {
    let signal = CountingSignal()
    let fd = caller.add(signal)
    for index in 0..<3 as Range<UInt32> {
      #expect(set(events, index: index, count: 1, data: [fd]) == 0)
      for other in 0..<3 as Range<UInt32> where other != index {
        #expect(set(events, index: other, count: 1, data: [fd]) == -EINVAL)
        #expect(set(none, index: other, count: 1) == -EINVAL)
        #expect(set(none, index: other, count: 0) == -EINVAL)
      }
      let before = signal.count
      #expect(set(none, index: index, count: 1) == 0)
      #expect(signal.count == before + 1)
      #expect(config(0x82) & 0x8000 == (index == 2 ? 0x8000 : 0))
      #expect(function.config.contents[0x52] & 1 == (index == 1 ? 1 : 0))
      #expect(set(none, index: index, count: 0) == 0)
    }
    #expect(iommu.interrupts.count == 0)
  }

  @Test(
    "J1: a reset keeps MSI set up, and closing ends it; a device without one says so: EINVAL")
  func resetAndClose() {
    let signals = (0..<2).map { _ in CountingSignal() }
    #expect(set(events, count: 2, data: signals.map { caller.add($0) }) == 0)
    config(0x52, UInt16(0x0011))
    config(0x60, UInt32(0xFF))
    var info = vfio_device_info()
    info.argsz = 16
    #expect(caller.ioctl(file, VFIO_DEVICE_GET_INFO, &info) == 0)
    #expect(info.flags & VFIO_DEVICE_FLAGS_RESET == 0)
    #expect(caller.ioctl(file, VFIO_DEVICE_RESET, at: 0) == -EINVAL, "it has none")
    #expect(config(0x60) == 0xFF)
    function.reset()
    #expect(config(0x52) & 0x71 == 0x11, "the user's copy")
    #expect(config(0x60) == 0xFC, "masks as SET_IRQS left them")
    model.port?.raise(vector: 1)
    #expect(signals.map(\.count) == [0, 1])
    file.close()
    model.port?.raise(vector: 1)
    #expect(signals.map(\.count) == [0, 1])
    #expect(iommu.interrupts.count == 0)
  }
}

/// A function with one page of registers that do nothing, eight messages of either kind and a line.
final class EightMessages: PCIDeviceModel {
  let identity = PCIIdentity(vendor: 0x1234, device: 0x0008, classCode: 0xFF_0000)
  let bars = [BAR(index: 0, size: 8192, is64Bit: false)]
  let msix: MSIXLayout? = MSIXLayout(
    vectors: 8, tableBAR: 0, tableOffset: 0, pendingBAR: 0, pendingOffset: 0x1000)
  let msi: MSILayout? = MSILayout(vectors: 8, isMaskable: true)
  let interruptPin: UInt8 = 1
  let configRegisters: [ConfigRegister] = []
  private let function = Guarded<FunctionPort?>(nil)
  var port: FunctionPort? { function.withLock { $0 } }

  func connect(to function: FunctionPort) { self.function.withLock { $0 = function } }
  func readRegister(bar: Int, offset: UInt64, width: Int) -> UInt64 { 0 }
  func writeRegister(bar: Int, offset: UInt64, width: Int, value: UInt64) {}
  func reset() {}
  func remove() {}
  /// And nothing that resets it alone.
  let hasFunctionReset = false
}
