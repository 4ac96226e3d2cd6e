// SPDX-License-Identifier: Apache-2.0
//
// Descriptors and records of VT-d: Intel Virtualization Technology for Directed I/O, revision
// 4.1, sections 6.5.2, 7.4 and 11.4.7.6.

import Testing

@testable import HardwareTables

@Suite("B9: queues of VT-d") struct IntelQueueTests {
  static func decode(
    _ low: UInt64, _ high: UInt64 = 0, isWide: Bool = true, _ unit: IntelCapabilities = .all
  ) throws(IntelDescriptorError) -> IntelInvalidation {
    try IntelInvalidation(decoding: Words4(low, high, 0, 0), isWide: isWide, unit)
  }

  @Test("B9: context-cache and PASID-cache invalidation (6.5.2.1, 6.5.2.2)")
  func caches() throws {
    #expect(try Self.decode(0x11) == .contextCache(.all))
    #expect(try Self.decode(0x1234_0021) == .contextCache(.domain(0x1234)))
    #expect(
      try Self.decode(0x0003_ABCD_1234_0031)
        == .contextCache(.device(domain: 0x1234, source: 0xABCD, functionMask: 3)))
    #expect(try Self.decode(0x1234_0007) == .pasidCache(.domain(0x1234)))
    #expect(
      try Self.decode(0x000A_BCDE_1234_0017)
        == .pasidCache(.pasid(domain: 0x1234, pasid: 0xABCDE)))
    #expect(try Self.decode(0x37) == .pasidCache(.all))
  }

  @Test("B9: IOTLB invalidation, with and without PASID (6.5.2.3, 6.5.2.4)")
  func iotlb() throws {
    #expect(
      try Self.decode(0xD2) == .iotlb(.all, drainsReads: true, drainsWrites: true))
    #expect(
      try Self.decode(0x1234_0062)
        == .iotlb(.domain(0x1234), drainsReads: false, drainsWrites: true))
    #expect(
      try Self.decode(0x1234_00B2, 0x7FFF_DEAD_F049)
        == .iotlb(
          .pages(
            domain: 0x1234, .init(address: 0x7FFF_DEA0_0000, mask: 9, leavesOnly: true)),
          drainsReads: true, drainsWrites: false))
    #expect(
      try Self.decode(0x000A_BCDE_1234_0026)
        == .pasidIOTLB(.pasid(domain: 0x1234, pasid: 0xABCDE)))
    #expect(
      try Self.decode(0x000A_BCDE_1234_0036, 0xDEAD_B001)
        == .pasidIOTLB(
          .pages(
            domain: 0x1234, pasid: 0xABCDE,
            .init(address: 0xDEAD_A000, mask: 1, leavesOnly: false))))
    // MAMV is 18; a mask beyond the address is all of it.
    #expect(throws: IntelDescriptorError.reservedField) { try Self.decode(0x32, 19) }
    #expect(
      try Self.decode(0x36, ~0xFFF | 63)
        == .pasidIOTLB(
          .pages(domain: 0, pasid: 0, .init(address: 0, mask: 63, leavesOnly: false))))
  }

  @Test("B9: device-TLB invalidation, its size in the address (6.5.2.5, 6.5.2.6)")
  func deviceTLB() throws {
    // PFSID[15:4] is in bits 63 to 52, PFSID[3:0] in bits 15 to 12.
    #expect(
      try Self.decode(0xABC0_1234_001F_D003, 0xDEAD_B000)
        == .deviceTLB(
          .init(
            source: 0x1234, physicalFunction: 0xABCD, mostPending: 31, address: 0xDEAD_B000,
            sizeShift: 12)))
    let sizes: [(UInt64, UInt64, UInt8)] = [
      (0xDEAD_A001, 0xDEAD_A000, 13), (0xDEAD_7001, 0xDEAD_0000, 16),
      (0x7FFF_FFFF_FFFF_F001, 0, 64), (0xFFFF_FFFF_FFFF_F001, 0, 64),
    ]
    for (word, address, shift) in sizes {
      #expect(
        try Self.decode(0x3, word)
          == .deviceTLB(
            .init(
              source: 0, physicalFunction: 0, mostPending: 0, address: address,
              sizeShift: shift)))
    }
    #expect(
      try Self.decode(0xABCA_BCDE_1234_D1F8, 0xDEAD_A801)
        == .pasidDeviceTLB(
          .init(
            source: 0x1234, physicalFunction: 0xABCD, mostPending: 31, address: 0xDEAD_A000,
            sizeShift: 13), pasid: 0xABCDE, isGlobal: true))
  }

  @Test("B9: interrupt entries, waits, answers (6.5.2.7 to 6.5.2.9, 7.7)")
  func others() throws {
    #expect(try Self.decode(0x4) == .interruptEntryCache(index: nil, mask: 0))
    #expect(
      try Self.decode(0x0000_1234_2800_0014) == .interruptEntryCache(index: 0x1234, mask: 5))
    #expect(
      try Self.decode(0xCAFE_F00D_0000_00E5, 0x1234_5678)
        == .wait(
          .init(
            statusAddress: 0x1234_5678, data: 0xCAFE_F00D, interrupts: false, fences: true,
            drainsPageRequests: true)))
    #expect(
      try Self.decode(0x15)
        == .wait(
          .init(
            statusAddress: nil, data: 0, interrupts: true, fences: false,
            drainsPageRequests: false)))
    #expect(
      try Self.decode(0x000A_BCDE_1234_F019, 0xAAC)
        == .pageGroupResponse(
          .init(requester: 0x1234, pasid: 0xABCDE, group: 0x155, code: 15)))
    #expect(
      try Self.decode(0x000A_BCDE_1234_0009)
        == .pageGroupResponse(.init(requester: 0x1234, pasid: nil, group: 0, code: 0)))
  }

  @Test("B9: types that are reserved, not there, or too wide")
  func types() {
    for type: UInt64 in Array(10...15) + [0] {
      #expect(throws: IntelDescriptorError.type) { try Self.decode(type) }
    }
    // Bits 11 to 9 are the type's too.
    #expect(throws: IntelDescriptorError.type) { try Self.decode(0x201) }
    for type: UInt64 in 6...9 {
      #expect(throws: IntelDescriptorError.width) { try Self.decode(type, isWide: false) }
    }
    let missing: [(UInt64, IntelCapabilities.Feature)] = [
      (3, .deviceTLB), (6, .scalableMode), (7, .scalableMode), (8, .scalableMode),
      (8, .deviceTLB), (9, .pageRequests),
    ]
    for (type, feature) in missing {
      #expect(throws: IntelDescriptorError.type) {
        try Self.decode(type, isWide: true, .fullBut(feature))
      }
    }
    // Granularities that are reserved.
    for low: UInt64 in [0x01, 0x02, 0x06, 0x16, 0x27] {
      #expect(throws: IntelDescriptorError.reservedField) { try Self.decode(low) }
    }
  }

  struct Reserved: Sendable {
    var descriptor: UInt64
    var low: [Int] = []
    var high: [Int] = []
  }

  @Test(
    "B9: reserved fields of descriptors",
    arguments: [
      Reserved(descriptor: 0x11, low: [6, 8, 12, 15, 50, 63], high: [0, 63]),
      Reserved(descriptor: 0x12, low: [8, 12, 15, 32, 63], high: [7, 11]),
      Reserved(descriptor: 0x3, low: [4, 8, 21, 31, 48, 51], high: [1, 11]),
      Reserved(descriptor: 0x4, low: [5, 8, 12, 26, 48, 63], high: [0, 63]),
      Reserved(descriptor: 0x5, low: [8, 12, 31], high: [0, 1]),
      Reserved(descriptor: 0x26, low: [6, 8, 12, 15, 52, 63], high: [7, 11]),
      Reserved(descriptor: 0x7, low: [6, 8, 12, 15, 52, 63], high: [0, 63]),
      Reserved(descriptor: 0x8, high: [1, 10]),
      Reserved(descriptor: 0x9, low: [5, 8, 52, 63], high: [0, 1, 12, 63]),
    ])
  func reserved(example: Reserved) throws {
    _ = try Self.decode(example.descriptor)
    for bit in example.low {
      #expect(throws: IntelDescriptorError.reservedField) {
        try Self.decode(example.descriptor | 1 << UInt64(bit))
      }
    }
    for bit in example.high {
      #expect(throws: IntelDescriptorError.reservedField) {
        try Self.decode(example.descriptor, 1 << UInt64(bit))
      }
    }
    for index in 2...3 {
      var words = Words4(example.descriptor, 0, 0, 0)
      words[index] = 1
      #expect(throws: IntelDescriptorError.reservedField) {
        try IntelInvalidation(decoding: words, isWide: true, .all)
      }
    }
  }

  @Test("B9: a wait drains page requests only where there are some")
  func drains() {
    #expect(throws: IntelDescriptorError.reservedField) {
      try Self.decode(0x85, isWide: true, .fullBut(.pageRequests))
    }
  }

  @Test("B9: fault recording registers (11.4.7.6)")
  func faultRecord() {
    let record = IntelFaultRecord(
      reason: IntelFaultReason.spt2.rawValue, source: 0x1234, address: 0x7FFF_DEAD_BEEF,
      isRead: true, addressType: .translationRequest, pasid: 0xABCDE, wantsExecute: true,
      isSupervisor: true)
    #expect(record.words == Words2(0x7FFF_DEAD_B000, 0xDABC_DE59_E000_1234))
    var aligned = record
    aligned.address = 0x7FFF_DEAD_B000
    #expect(IntelFaultRecord(decoding: record.words) == aligned)
    // Without a PASID there is no PRIV and no EXE.
    let plain = IntelFaultRecord(
      reason: 5, source: 1, address: 0x1000, isRead: false, wantsExecute: true,
      isSupervisor: true)
    #expect(plain.words == Words2(0x1000, 0x8000_0005_0000_0001))
    #expect(IntelFaultRecord(decoding: Words2(0, 0x7FFF_FFFF_FFFF_FFFF)) == nil)
  }
}
