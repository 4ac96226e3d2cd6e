// SPDX-License-Identifier: Apache-2.0
//
// The device model of the article "Adding a device model", compiled and driven.

import IOMMU
import PageTables
import SoftwareIOMMU
import Testing
import VFIO

private final class Doorbell: PCIDeviceModel {
  let identity = PCIIdentity(vendor: 0x1234, device: 0x0001, classCode: 0xFF_0000)
  let bars = [BAR(index: 0, size: 4096)]
  let msix: MSIXLayout? = MSIXLayout(
    vectors: 1, tableBAR: 0, tableOffset: 0x800, pendingBAR: 0, pendingOffset: 0xC00)
  let configRegisters: [ConfigRegister] = []
  private let function = Guarded<FunctionPort?>(nil)

  func connect(to function: FunctionPort) { self.function.withLock { $0 = function } }
  func readRegister(bar: Int, offset: UInt64, width: Int) -> UInt64 { 0 }
  func writeRegister(bar: Int, offset: UInt64, width: Int, value: UInt64) {
    if offset == 0 { function.withLock { $0 }?.raise(vector: 0) }
  }
  func reset() {}
  func remove() {}
}

@Suite struct DoorbellTests {
  @Test("C2: bound, a device is blocked and so are its interrupts; attached, they get through")
  func interrupts() throws {
    let system = IOMMUSystem()
    let iommu = SoftwareIOMMU(name: "dmar0", memory: system.memory, events: system.events)
    let group = system.addGroup()
    let requester = RequesterID(bus: 0, device: 5, function: 0)
    let device = try system.addDevice(
      name: "0000:00:05.0", requester: requester, driver: iommu, group: group)
    let function = PCIFunction(
      device: device, model: Doorbell(),
      upstream: SoftwareIOMMUBus(iommu: iommu, requester: requester))
    let offered = VFIODevice(index: 0, function: function, group: VFIOGroup(group: group))

    let context = Context(system: system)
    let session = offered.open()
    try session.bind(findContext: { context }, publish: { _ in })
    let counter = Counter()
    try function.interrupts.set(
      .msix, action: .trigger, start: 0, arguments: .events([.signal(counter)]), count: 1)
    func ring() throws {
      let written = try withUnsafeBytes(of: UInt32(1)) { bytes in
        try function.write(.bar(0), at: 0, from: bytes)
      }
      #expect(written == 4)
    }
    _ = try withUnsafeBytes(of: UInt16(6)) { bytes in
      try function.write(.config, at: 4, from: bytes)
    }
    try ring()
    #expect(counter.count == 0)
    #expect(iommu.faults.count == 1)
    try session.attach(to: try context.allocateIOAS(), publish: { _ in })
    try ring()
    #expect(counter.count == 1)
    try session.detach()
    try ring()
    #expect(counter.count == 1)
    session.close()
    context.close()
    #expect(system.contextCount == 0)
    #expect(iommu.interrupts.count == 0)
  }
}
