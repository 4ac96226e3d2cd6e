// SPDX-License-Identifier: Apache-2.0
//
// MODEL B4 with DMA: what a device reaches in a space that follows a VM, while slots change.

import Glibc
import IOMMU
import PageTables
import Synchronization
import Testing

@testable import SoftwareIOMMU

@Suite("B4: DMA into a VM's memory slots", .serialized)
struct GuestMemoryTests {
  let system = IOMMUSystem()
  let iommu: SoftwareIOMMU
  let context: Context
  let guest = VirtualMachine(name: "VM 1")
  let port: DMAPort

  init() {
    iommu = SoftwareIOMMU(name: "dmar0", memory: system.memory, events: system.events)
    context = Context(system: system)
    port = iommu.port(for: Bench.device)
  }

  private func register() throws -> Binding {
    let device = try system.addDevice(
      name: "device", requester: Bench.device, driver: iommu, group: system.addGroup())
    let binding = try context.register(device)
    let ioas = try context.allocateIOAS()
    try binding.group.attach(to: ioas)
    try context.follow(guest, in: ioas)
    return binding
  }

  private func set(
    _ address: UInt64, pages: UInt64, of memory: LocalMemory, flags: MemorySlot.Flags = []
  ) throws(IOMMUError) {
    try guest.setMemorySlot(
      MemorySlot(
        number: 0, guestAddress: address, byteCount: pages * 4096, userAddress: 0, flags: flags),
      of: memory)
  }

  @Test(
    "B4: a device reaches guest memory by guest-physical address; read-only slots only to read")
  func reach() throws {
    let binding = try register()
    let memory = try LocalMemory(byteCount: 4 << 20)
    try set(0x4000_0000, pages: 1024, of: memory)
    try port.store(UInt64(7), at: IOVA(0x4000_0000 + 0x12_3450))
    #expect(memory[0x12_3450] == 7)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(0x4040_0000)) }
        == .notPresent)
    try set(0, pages: 0, of: memory)
    try set(0x8000_0000, pages: 1024, of: memory, flags: .readOnly)
    #expect(try port.load(IOVA(0x8012_3450), as: UInt64.self) == 7)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(0x8012_3450)) }
        == .permission)
    #expect(throws: IOMMUError.self, "the interrupt window") {
      try guest.setMemorySlot(
        MemorySlot(
          number: 1, guestAddress: 0xFEE0_0000, byteCount: 4096, userAddress: 0), of: memory)
    }
    withExtendedLifetime(binding.id) {}
  }

  @Test("G2, B4: after a slot is deleted or moved no DMA reaches it by its old address")
  func changes() throws {
    let binding = try register()
    let memory = try LocalMemory(byteCount: 8 * 4096)
    try set(0x10_0000, pages: 8, of: memory)
    let device = DeviceThread { [port] in try? port.store(UInt8(1), at: IOVA(0x10_0000)) }
    for round in 0..<60 {
      device.wait()
      // Away; aside, so that the old place is a later page's; or gone.
      switch round % 3 {
      case 0: try set(0x20_0000, pages: 8, of: memory)
      case 1: try set(0xF_F000, pages: 8, of: memory)
      default: try set(0, pages: 0, of: memory)
      }
      memory[0] = 0
      device.wait(rounds: 2)
      #expect(memory[0] == 0)
      try set(0x10_0000, pages: 8, of: memory)
      device.wait(rounds: 2)
      #expect(memory[0] == 1)
    }
    device.wait()
    guest.close()
    memory[0] = 0
    device.wait(rounds: 2)
    #expect(memory[0] == 0)
    device.stop()
    withExtendedLifetime(binding.id) {}
  }
}
