// SPDX-License-Identifier: Apache-2.0
//
// MODEL B3: a process's own page table as an object of a context: made, attached, refused,
// destroyed.

import IOMMU
import PageTables
import SoftwareIOMMU
import SystemPackage
import Testing

@Suite struct SharedTableTests {
  let system = IOMMUSystem()
  let iommu: SoftwareIOMMU
  let context: Context
  let requester = RequesterID(bus: 0, device: 1, function: 0)

  init() {
    iommu = SoftwareIOMMU(
      name: "dmar0", configuration: .init(pasidBits: 8), memory: system.memory,
      events: system.events)
    context = Context(system: system)
  }

  private func device() throws -> PhysicalDevice {
    try system.addDevice(
      name: "\(requester)", requester: requester, driver: iommu, group: system.addGroup())
  }

  @Test(
    "B3: a process's table is attached with a PASID and without, replaced, detached, destroyed")
  func life() throws {
    let holder = DeviceHolder(try context.register(device()))
    let shared = try context.allocateSharedHWPT(for: holder.id, process: OwnProcess())
    let buffer = try LocalMemory(byteCount: 4096)
    let address = buffer.withUnsafeMutableBytes { UInt64(UInt(bitPattern: $0.baseAddress)) }
    let port = iommu.port(for: requester, pasid: PASID(rawValue: 3))
    #expect(throws: DMAFault.self) { try port.store(UInt8(1), at: IOVA(address)) }
    try holder.attach(3, to: shared)
    try port.store(UInt8(1), at: IOVA(address))
    #expect(buffer[0] == 1)
    #expect(errno { try context.destroy(shared) } == .resourceBusy)
    // Without a PASID too; and then to a space of one's own, and back.
    let plain = iommu.port(for: requester)
    try holder.attach(to: shared)
    try plain.store(UInt8(2), at: IOVA(address + 1))
    #expect(buffer[1] == 2)
    let table = try context.allocateHWPT(
      for: holder.id, from: context.allocateIOAS(), attributes: .pasid)
    try holder.attach(to: table)
    #expect(throws: DMAFault.self) { try plain.store(UInt8(3), at: IOVA(address + 1)) }
    try holder.attach(to: shared)
    try plain.store(UInt8(4), at: IOVA(address + 1))
    holder.detach()
    holder.detach(3)
    #expect(throws: DMAFault.self) { try plain.store(UInt8(5), at: IOVA(address + 1)) }
    #expect(throws: DMAFault.self) { try port.store(UInt8(5), at: IOVA(address)) }
    #expect(buffer[0] == 1 && buffer[1] == 4)
    try context.destroy(shared)
    #expect(system.memory.usedSlots == 0)
  }

  @Test(
    "B3: what only the process can do is EINVAL: invalidating, tracking, reading dirty pages")
  func refusals() throws {
    let holder = DeviceHolder(try context.register(device()))
    let shared = try context.allocateSharedHWPT(for: holder.id, process: OwnProcess())
    #expect(errno { try context.setDirtyTracking(true, of: shared) } == .invalidArgument)
    #expect(
      errno { _ = try context.readDirty(of: shared, 0...0xfff, clear: true) }
        == .invalidArgument)
    #expect(errno { _ = try context.pagingDomain(shared) } == .noSuchFileOrDirectory)
    #expect(errno { _ = try context.nestedDomain(shared) } == .noSuchFileOrDirectory)
    #expect(
      errno { _ = try context.allocateHWPT(for: holder.id, from: shared) }
        == .operationNotSupported)
    #expect(
      errno {
        try context.map(LocalMemory(byteCount: 4096), start: 0, length: 4096, into: shared)
      } == .noSuchFileOrDirectory, "it is no IOAS")
    #expect(
      errno { _ = try context.allocateSharedHWPT(for: shared, process: OwnProcess()) }
        == .noSuchFileOrDirectory)
    do {
      try context.setDirtyTracking(true, of: shared)
    } catch {
      #expect(error.description.contains("this process"))
    }
  }

  @Test(
    "B3: an IOMMU that cannot walk a CPU's table refuses, and nothing is left of the attempt")
  func unable() throws {
    let machine = TestMachine()
    let context = Context(system: machine.system)
    let holder = DeviceHolder(try context.register(machine.device(1)))
    let before = context.objectCount
    #expect(
      errno { _ = try context.allocateSharedHWPT(for: holder.id, process: OwnProcess()) }
        == .operationNotSupported)
    #expect(context.objectCount == before)
  }

  @Test("B3: a context that closes with a process's table leaves nothing")
  func closing() throws {
    do {
      let holder = DeviceHolder(try context.register(device()))
      try holder.attach(
        7, to: context.allocateSharedHWPT(for: holder.id, process: OwnProcess()))
    }
    context.close()
    #expect(context.objectCount == 0)
    #expect(system.contextCount == 0)
  }
}
