// SPDX-License-Identifier: Apache-2.0
//
// Commands and log entries of AMD's IOMMU: AMD I/O Virtualization Technology (48882), sections
// 2.4 to 2.6.

import Testing

@testable import HardwareTables

@Suite("B9: queues of AMD's IOMMU") struct AMDQueueTests {
  static func decode(
    _ low: UInt64, _ high: UInt64 = 0, _ iommu: AMDCapabilities = .full
  ) throws(AMDCommandError) -> AMDCommand {
    try AMDCommand(decoding: Words2(low, high), iommu)
  }

  @Test("B9: commands are where 2.4.1 to 2.4.9 have them")
  func commands() throws {
    #expect(
      try Self.decode(0x1000_0000_1234_5007, 0xCAFE_F00D_0000_0001)
        == .completionWait(
          .init(
            storeAddress: 0x1234_5000, data: 0xCAFE_F00D_0000_0001, interrupts: true,
            flushes: true)))
    #expect(
      try Self.decode(0x1000_0000_1234_5000, 5)
        == .completionWait(
          .init(storeAddress: nil, data: 5, interrupts: false, flushes: false)))
    #expect(
      try Self.decode(0x2000_0000_0000_1234) == .invalidateDeviceTableEntry(device: 0x1234))
    #expect(
      try Self.decode(0x3000_4321_000A_BCDE, 0xDEAD_B006)
        == .invalidatePages(
          domain: 0x4321, .init(address: 0xDEAD_B000, sizeShift: 12, pasid: 0xABCDE),
          directories: true))
    #expect(
      try Self.decode(0x4ADE_5678_1FBC_1234, 0x5004)
        == .invalidateIOTLB(
          device: 0x1234, queue: 0x5678, mostPending: 0x1F,
          .init(address: 0x5000, sizeShift: 12, pasid: 0xABCDE)))
    #expect(
      try Self.decode(0x5000_0000_0000_1234) == .invalidateInterruptTable(device: 0x1234))
    #expect(
      try Self.decode(0x600A_BCDE_0500_1234, 0x5014)
        == .prefetch(
          device: 0x1234, count: 5, .init(address: 0x5000, sizeShift: 12, pasid: 0xABCDE),
          invalidates: true))
    #expect(
      try Self.decode(0x700A_BCDE_0000_1234, 0x0000_F155_0000_0004)
        == .completePageRequest(device: 0x1234, pasid: 0xABCDE, tag: 0x155, code: 15))
    #expect(try Self.decode(0x8000_0000_0000_0000) == .invalidateAll)
  }

  @Test(
    "B9: S says that the address has a size in it (2.4.3)",
    arguments: [
      (UInt64(0xDEAD_A001), UInt64(0xDEAD_A000), UInt8(13)),
      (0xDEAD_B001, 0xDEAD_8000, 15), (0x0003_FFFF_FFFF_F001, 0, 51),
      (0x0007_FFFF_FFFF_F001, 0, 64), (0x7FFF_FFFF_FFFF_F001, 0, 64),
      (0xFFFF_FFFF_FFFF_F001, 0, 64), (0x8000_0000_0000_0001, 0x8000_0000_0000_0000, 13),
    ])
  func sizes(word: UInt64, address: UInt64, shift: UInt8) throws {
    let pages = AMDCommand.Pages(address: address, sizeShift: shift, pasid: nil)
    #expect(
      try Self.decode(0x3000_0000_0000_0000, word)
        == .invalidatePages(domain: 0, pages, directories: false))
  }

  @Test("B9: opcodes that are reserved, or not there")
  func opcodes() {
    for opcode: UInt64 in [0, 9, 10, 15] {
      #expect(throws: AMDCommandError.opcode) { try Self.decode(opcode << 60) }
    }
    let missing: [(UInt64, AMDCapabilities.Feature)] = [
      (6, .prefetch), (7, .pageRequests), (8, .invalidateAll),
    ]
    for (opcode, feature) in missing {
      #expect(throws: AMDCommandError.opcode) {
        try Self.decode(opcode << 60, 0, .fullBut(feature))
      }
    }
  }

  struct Reserved: Sendable {
    var opcode: UInt64
    var low: [Int] = []
    var high: [Int] = []
  }

  @Test(
    "B9: reserved bits of commands",
    arguments: [
      Reserved(opcode: 1, low: [52, 59]),
      Reserved(opcode: 2, low: [16, 59], high: [0, 63]),
      Reserved(opcode: 3, low: [20, 31, 48, 59], high: [3, 11]),
      Reserved(opcode: 4, high: [1, 3, 6, 11]),
      Reserved(opcode: 5, low: [16, 59], high: [0, 63]),
      Reserved(opcode: 6, low: [16, 23, 52, 59], high: [1, 3, 5, 11]),
      Reserved(opcode: 7, low: [16, 31, 52, 59], high: [0, 1, 3, 31, 48, 63]),
      Reserved(opcode: 8, low: [0, 59], high: [0, 63]),
    ])
  func reserved(example: Reserved) throws {
    _ = try Self.decode(example.opcode << 60)
    for bit in example.low {
      #expect(throws: AMDCommandError.reservedBits) {
        try Self.decode(example.opcode << 60 | 1 << UInt64(bit))
      }
    }
    for bit in example.high {
      #expect(throws: AMDCommandError.reservedBits) {
        try Self.decode(example.opcode << 60, 1 << UInt64(bit))
      }
    }
  }

  @Test("B9: GN is reserved without guest translation", arguments: [3, 4, 6, 7])
  func guest(opcode: UInt64) throws {
    _ = try Self.decode(opcode << 60, 4)
    #expect(throws: AMDCommandError.reservedBits) {
      try Self.decode(opcode << 60, 4, .fullBut(.guestTranslation))
    }
  }

  // MARK: Logs

  @Test("B9: event log entries are where 2.5.2 to 2.5.9 have them")
  func events() {
    let request: AMDEvent.Flags = [.guest, .present, .write, .permission]
    let events: [(AMDEvent, Words2)] = [
      (
        AMDEvent(.pageFault, device: 0x1234, tag: 0xABCDE, flags: request, address: 0x5678),
        Words2(0x2071_BCDE_000A_1234, 0x5678)
      ),
      (
        AMDEvent(
          .illegalDeviceTableEntry, device: 0x1234, flags: [.reservedBits, .translation],
          address: 1),
        Words2(0x1180_0000_0000_1234, 1)
      ),
      (
        AMDEvent(
          .deviceTableHardwareError, device: 0x1234, flags: [.write, .interrupt], type: 3,
          address: 0x40),
        Words2(0x3628_0000_0000_1234, 0x40)
      ),
      (
        AMDEvent(
          .pageTableHardwareError, device: 1, tag: 0x54321, flags: [.guest], type: 1,
          address: 0x48),
        Words2(0x4201_4321_0005_0001, 0x48)
      ),
      (AMDEvent(.illegalCommand, address: 0x10), Words2(0x5000_0000_0000_0000, 0x10)),
      (
        AMDEvent(.commandHardwareError, type: 2, address: 0x20),
        Words2(0x6400_0000_0000_0000, 0x20)
      ),
      (
        AMDEvent(.iotlbInvalidationTimeout, device: 0x1234, address: 0x30),
        Words2(0x7000_0000_0000_1234, 0x30)
      ),
      (
        AMDEvent(
          .invalidDeviceRequest, device: 0x1234, tag: 3, flags: [.guest, .translation],
          type: 5, address: 0x1000),
        Words2(0x8B01_0003_0000_1234, 0x1000)
      ),
    ]
    #expect(Set(events.map(\.0.code)) == Set(AMDEvent.Code.allCases))
    for (event, words) in events {
      #expect(event.words == words)
      #expect(AMDEvent(decoding: words) == event)
    }
    #expect(AMDEvent(decoding: Words2(0, 0)) == nil)
    #expect(AMDEvent(decoding: Words2(0x9000_0000_0000_0000, 0)) == nil)
  }

  @Test("B9: a lookup's fault is logged as its event")
  func faults() {
    func event(_ fault: AMDFault, pasid: UInt32? = 0xABCDE) -> AMDEvent {
      AMDEvent(
        fault, device: 0x1234, domain: 0x77, pasid: pasid, iova: 0x5000, flags: [.write])
    }
    #expect(
      event(.illegalDeviceTableEntry(reservedBits: true)).words
        == Words2(0x10A1_BCDE_000A_1234, 0x5000))
    #expect(
      event(.illegalDeviceTableEntry(reservedBits: false), pasid: nil).words
        == Words2(0x1020_0000_0000_1234, 0x5000))
    let host = AMDFault.PageFault(isGuest: false, isPresent: true, hasReservedBits: true)
    #expect(event(.pageFault(host)).words == Words2(0x20B0_0077_0000_1234, 0x5000))
    let guest = AMDFault.PageFault(isGuest: true, isPresent: false, hasReservedBits: false)
    #expect(event(.pageFault(guest)).words == Words2(0x2021_BCDE_000A_1234, 0x5000))
    #expect(
      event(.deviceTableHardwareError(address: 0x60, .masterAbort)).words
        == Words2(0x3220_0000_0000_1234, 0x60))
    #expect(
      event(.pageTableHardwareError(address: 0x68, .dataError)).words
        == Words2(0x4621_BCDE_000A_1234, 0x68))
  }
}
