// SPDX-License-Identifier: Apache-2.0
//
// Doorbell pages on their way from the carrier to the model: whose they are, and when they end.

import IOMMU
import SoftwareIOMMU
import TestSupport
import Testing
import VFIO

private final class DoorbellModel: PCIDeviceModel {
  let identity = PCIIdentity(vendor: 0x1234, device: 0x0002, classCode: 0xFF_0000)
  let bars = [BAR(index: 0, size: 16 << 10, doorbells: 0x1000..<0x3000)]
  let msix: MSIXLayout? = nil
  let configRegisters: [ConfigRegister] = []
  private let function = Guarded<FunctionPort?>(nil)
  var port: FunctionPort? { function.withLock { $0 } }

  func connect(to function: FunctionPort) { self.function.withLock { $0 = function } }
  func readRegister(bar: Int, offset: UInt64, width: Int) -> UInt64 { 0 }
  func writeRegister(bar: Int, offset: UInt64, width: Int, value: UInt64) {}
  func reset() {}
  func remove() {}
}

@Suite struct DoorbellPagesTests {
  private let model = DoorbellModel()
  let context: Context
  let device: VFIODevice

  init() throws {
    let system = IOMMUSystem()
    let group = system.addGroup()
    let physical = try system.addDevice(
      name: "0000:00:01.0", requester: RequesterID(bus: 0, device: 1, function: 0),
      driver: PlainDriver(), group: group)
    context = Context(system: system)
    device = VFIODevice(
      index: 0, function: PCIFunction(device: physical, model: model, upstream: TestBus()),
      group: VFIOGroup(group: group))
  }

  private func open(_ backing: (any DeviceMemoryBacking)?) throws -> DeviceSession {
    let session = device.open()
    if let backing { session.keepMemory(in: backing) { UInt64($0 + 1) << 40 } }
    let context = context
    try session.bind(findContext: { context }, publish: { _ in })
    return session
  }

  @Test("J1: a model has the doorbell pages of its present user, and of no other")
  func users() throws {
    #expect(model.port?.doorbells == nil)
    let first = LocalBarBacking()
    let session = try open(first)
    let pages = try #require(first.doorbells)
    #expect(model.port?.doorbells === pages)
    #expect(pages.byteCount == 0x2000)
    #expect(first.offset == 1 << 40 | 0x1000)
    pages.open()
    session.close()
    #expect(model.port?.doorbells == nil)
    #expect(!pages.isOpen)

    let second = LocalBarBacking()
    let other = try open(second)
    #expect(model.port?.doorbells === second.doorbells)
    #expect(second.doorbells !== pages)
    other.close()
  }

  @Test("J1: where nobody carries doorbell pages, each ring is a write of a register")
  func nobody() throws {
    let session = try open(nil)
    #expect(model.port != nil && model.port?.doorbells == nil)
    session.close()
  }
}
