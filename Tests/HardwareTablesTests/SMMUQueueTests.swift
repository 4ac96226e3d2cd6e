// SPDX-License-Identifier: Apache-2.0
//
// Commands and records of an SMMUv3: Arm SMMUv3 (IHI 0070), sections 4, 7.3 and 8.1.

import Testing

@testable import HardwareTables

@Suite("B9: queues of SMMUv3") struct SMMUQueueTests {
  static func decode(
    _ low: UInt64, _ high: UInt64 = 0, _ smmu: SMMUCapabilities = .full
  ) throws(SMMUCommandError) -> SMMUCommand {
    try SMMUCommand(decoding: Words2(low, high), smmu)
  }

  @Test("B9: commands but CMD_TLBI_* are where section 4 has them")
  func commands() throws {
    let stream = SMMUStream(0x1234_5678, substream: 0xABCDE)
    let cases: [(UInt64, UInt64, SMMUCommand)] = [
      (0x1234_5678_ABCD_E801, 0, .prefetchConfiguration(stream)),
      (0x1234_5678_ABCD_E001, 0, .prefetchConfiguration(SMMUStream(0x1234_5678))),
      (
        0x1234_5678_ABCD_E802, 0xDEAD_B0C5,
        .prefetchAddress(stream, address: 0xDEAD_B000, size: 5, stride: 6)
      ),
      (0x1234_5678_0000_0003, 1, .invalidateStream(0x1234_5678, leaf: true)),
      (0x1234_5678_0000_0004, 3, .invalidateStreams(first: 0x1234_5670, shift: 4)),
      (0x1234_5678_0000_0004, 31, .invalidateStreams(first: 0, shift: 32)),
      (
        0x1234_5678_ABCD_E005, 0,
        .invalidateContext(stream: 0x1234_5678, substream: 0xABCDE, leaf: false)
      ),
      (0x1234_5678_0000_0006, 0, .invalidateContexts(stream: 0x1234_5678)),
      (
        0x1234_5678_ABCD_EA40, 0xDEAD_B034,
        .invalidateATC(stream, address: 0xDEAD_B000, shift: 52, isGlobal: true)
      ),
      (0x1234_5678_ABCD_E841, 0x2155, .pageGroupResponse(stream, group: 0x155, .success)),
      (0x1234_5678_ABCD_E841, 0x1001, .pageGroupResponse(stream, group: 1, .invalidRequest)),
      (0x1234_5678_ABCD_E841, 0, .pageGroupResponse(stream, group: 0, .failure)),
      (0x1234_5678_0000_1044, 0x4321, .resume(stream: 0x1234_5678, tag: 0x4321, .retry)),
      (0x1234_5678_0000_3044, 0x4321, .resume(stream: 0x1234_5678, tag: 0x4321, .retry)),
      (0x1234_5678_0000_2044, 0x4321, .resume(stream: 0x1234_5678, tag: 0x4321, .abort)),
      (0x1234_5678_0000_0044, 1, .resume(stream: 0x1234_5678, tag: 1, .terminate)),
      (0x1234_5678_0000_0045, 0, .terminateStalled(stream: 0x1234_5678)),
      (0x46, 0, .sync(.none)),
      (
        0xCAFE_F00D_0FC0_1046, 0x1234_5678,
        .sync(.interrupt(address: 0x1234_5678, data: 0xCAFE_F00D))
      ),
      (0x0FC0_2046, 0, .sync(.event)),
    ]
    for (low, high, command) in cases {
      let decoded = try Self.decode(low, high)
      #expect(decoded == command)
    }
  }

  @Test("B9: CMD_TLBI_* are where 4.4 has them")
  func invalidations() throws {
    let range = SMMUInvalidation.Range(address: 0xDEAD_B000, leaf: true)
    let cases: [(UInt64, UInt64, SMMUInvalidation)] = [
      (0x0000_1234_0000_0010, 0, .init(.guest(vmid: 0x1234))),
      (0xABCD_1234_0000_0011, 0, .init(.guestSpace(vmid: 0x1234, asid: 0xABCD))),
      (
        0xABCD_1234_0000_0012, 0xDEAD_B001,
        .init(.guestSpace(vmid: 0x1234, asid: 0xABCD), range: range)
      ),
      (0x0000_1234_0000_0013, 0xDEAD_B001, .init(.guestAddress(vmid: 0x1234), range: range)),
      (0x20, 0, .init(.hypervisor)),
      (0xABCD_0000_0000_0021, 0, .init(.hypervisorSpace(asid: 0xABCD))),
      (
        0xABCD_0000_0000_0022, 0xDEAD_B001,
        .init(.hypervisorSpace(asid: 0xABCD), range: range)
      ),
      (0x23, 0xDEAD_B001, .init(.hypervisorAddress, range: range)),
      (0x0000_1234_0000_0028, 0, .init(.bothStages(vmid: 0x1234))),
      (0x0000_1234_0000_002A, 0xDEAD_B001, .init(.stage2(vmid: 0x1234), range: range)),
      (0x30, 0, .init(.all)),
    ]
    for (low, high, invalidation) in cases {
      #expect(try Self.decode(low, high) == .invalidateTLB(invalidation))
    }
  }

  @Test("B9: ranges of CMD_TLBI_*: NUM, SCALE, TG, TTL (4.4.1)")
  func ranges() throws {
    func range(
      _ low: UInt64, _ high: UInt64, _ smmu: SMMUCapabilities = .full
    ) throws -> SMMUInvalidation.Range? {
      guard case .invalidateTLB(let result) = try Self.decode(low | 0x13, high, smmu) else {
        return nil
      }
      return result.range
    }
    #expect(
      try range(0x30_7000, 0xDEAD_B701)
        == .init(
          address: 0xDEAD_B000, granule: .size4KiB, count: 64, level: 3, leaf: true))
    #expect(
      try range(0x1000, 0x1_0C00) == .init(address: 0x1_0000, granule: .size64KiB, count: 2))
    #expect(
      try range(0, 0x4A00)
        == .init(address: 0x4000, granule: .size16KiB, count: 1, level: 2))
    // Level 1 of 16 KiB is none without DS; a granule alone is reserved.
    #expect(throws: SMMUCommandError.operand) { try range(0, 0x4900) }
    #expect(throws: SMMUCommandError.operand) { try range(0, 0x4400) }
    let large = SMMUCapabilities.with(idr5: (0, 0x80))
    #expect(try range(0, 0x4900, large)?.level == 1)
    // SCALE has six bits with DS, and 39 is the most.
    #expect(throws: SMMUCommandError.reservedBits) { try range(1 << 25, 0x4400) }
    #expect(try range(63 << 20, 0x4400, large)?.count == 1 << 39)
    // Without TG, or without RIL, there are none.
    for low: UInt64 in [0x1000, 0x10_0000] {
      #expect(throws: SMMUCommandError.reservedBits) { try range(low, 0x4000) }
    }
    #expect(throws: SMMUCommandError.reservedBits) { try range(0, 0x4200) }
    for (low, high) in [(UInt64(0x1000), UInt64(0)), (0x10_0000, 0), (0, 0x400), (0, 0x100)] {
      #expect(throws: SMMUCommandError.reservedBits) {
        try range(low, high, .with(idr3: (1 << 10, 0)))
      }
    }
    // Without stage 2 a VMID is not looked at.
    #expect(
      try Self.decode(0x0000_1234_0000_0010, 0, .without(idr0: 0))
        == .invalidateTLB(.init(.guest(vmid: 0))))
  }

  @Test("B9: CERROR_ILL for opcodes that are reserved or Secure")
  func opcodes() {
    let known: Set<UInt64> = [
      0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x10, 0x11, 0x12, 0x13, 0x20, 0x21, 0x22, 0x23,
      0x28, 0x2A, 0x30, 0x40, 0x41, 0x44, 0x45, 0x46, 0x70, 0x73,
    ]
    for opcode: UInt64 in 0...255 where !known.contains(opcode) {
      #expect(throws: SMMUCommandError.opcode) { try Self.decode(opcode) }
    }
  }

  @Test(
    "B9: CERROR_ILL for what the SMMU has not",
    arguments: [
      (SMMUCapabilities.full, [UInt64(0x07), 0x70, 0x73]),
      (
        .without(idr0: 1),
        [0x05, 0x06, 0x10, 0x11, 0x12, 0x13, 0x20, 0x21, 0x22, 0x23]
      ),
      (.without(idr0: 0), [0x28, 0x2A]), (.without(idr0: 9), [0x20, 0x21, 0x22, 0x23]),
      (.without(idr0: 10), [0x40]), (.without(idr0: 16), [0x41]),
      (.with(idr0: (0, 1 << 24)), [0x44, 0x45]),
    ])
  func unsupported(smmu: SMMUCapabilities, opcodes: [UInt64]) {
    for opcode in opcodes {
      #expect(throws: SMMUCommandError.unsupported) { try Self.decode(opcode, 0, smmu) }
    }
  }

  @Test("B9: CERROR_ILL for values that a command does not allow")
  func operands() {
    #expect(throws: SMMUCommandError.operand) { try Self.decode(0x40, 53) }
    #expect(throws: SMMUCommandError.operand) { try Self.decode(0x41, 0x3000) }
    #expect(throws: SMMUCommandError.operand) { try Self.decode(0x3046) }
  }

  @Test("B9: CERROR_ILL for SSec, and for bits that a command has not")
  func reserved() throws {
    let known: [(UInt64, high: [UInt64])] = [
      (0x01, [0]), (0x02, [10, 11]), (0x03, [1, 63]), (0x04, [5, 63]), (0x05, [1, 63]),
      (0x06, [0]), (0x10, [0]), (0x11, [0]), (0x12, [1, 7]), (0x13, [1, 7]), (0x20, [0]),
      (0x21, [0]), (0x22, [1, 7]), (0x23, [1, 7]), (0x28, [0]), (0x2A, [1, 7]), (0x30, [0]),
      (0x40, [6, 11]), (0x41, [9, 11, 14]), (0x44, [16, 63]), (0x45, [0]), (0x46, [0, 1, 56]),
    ]
    for (opcode, high) in known {
      _ = try Self.decode(opcode)
      #expect(throws: SMMUCommandError.reservedBits) { try Self.decode(opcode | 1 << 10) }
      #expect(throws: SMMUCommandError.reservedBits) { try Self.decode(opcode | 1 << 8) }
      for bit in high {
        #expect(throws: SMMUCommandError.reservedBits) { try Self.decode(opcode, 1 << bit) }
      }
    }
  }

  // MARK: Records

  @Test("B9: event records are where 7.3 has them")
  func events() {
    let access: SMMUEvent.Flags = [.privileged, .instruction, .read]
    let events: [(SMMUEvent, Words4)] = [
      (
        SMMUEvent(
          .translation, stream: 0x1234_5678, substream: 0xABCDE, flags: access.union(.stage2),
          purpose: .input, stallTag: 0x4321, address: 0x7FFF_DEAD_BEEF,
          secondAddress: 0x12_3456_7000),
        Words4(0x1234_5678_ABCD_E810, 0x0000_028E_8000_4321, 0x7FFF_DEAD_BEEF, 0x12_3456_7000)
      ),
      (
        SMMUEvent(
          .permission, stream: 1, flags: [.privileged, .tableRead], purpose: .table,
          address: 0x1000),
        Words4(0x0000_0001_0000_0013, 0x0000_1102_0000_0000, 0x1000, 0)
      ),
      (
        SMMUEvent(.access, stream: 1, flags: [.read], purpose: .input, address: 2),
        Words4(0x0000_0001_0000_0012, 0x0000_0208_0000_0000, 2, 0)
      ),
      (
        SMMUEvent(.addressSize, stream: 1, purpose: .input, stallTag: 0, address: 3),
        Words4(0x0000_0001_0000_0011, 0x0000_0200_8000_0000, 3, 0)
      ),
      (
        SMMUEvent(.badStreamID, stream: 0x99, substream: 1),
        Words4(0x0000_0099_0000_1802, 0, 0, 0)
      ),
      (
        SMMUEvent(.streamTableFetch, stream: 1, reason: 0xBEEF, secondAddress: 0x10_0048),
        Words4(0x0000_0001_0000_0003, 0xBEEF, 0, 0x10_0048)
      ),
      (SMMUEvent(.badStreamTableEntry, stream: 1), Words4(0x0000_0001_0000_0004, 0, 0, 0)),
      (SMMUEvent(.streamDisabled, stream: 1), Words4(0x0000_0001_0000_0006, 0, 0, 0)),
      (
        SMMUEvent(.translationForbidden, stream: 1, flags: [.read], address: 0x1000),
        Words4(0x0000_0001_0000_0007, 0x0000_0008_0000_0000, 0x1000, 0)
      ),
      (
        SMMUEvent(.badSubstreamID, stream: 1, substream: 0xABCDE),
        Words4(0x0000_0001_ABCD_E008, 0, 0, 0)
      ),
      (
        SMMUEvent(.contextFetch, stream: 1, substream: 2, reason: 1, secondAddress: 0x40),
        Words4(0x0000_0001_0000_2809, 1, 0, 0x40)
      ),
      (
        SMMUEvent(.badContextDescriptor, stream: 1, substream: 0),
        Words4(0x0000_0001_0000_080A, 0, 0, 0)
      ),
      (
        SMMUEvent(
          .walkAbort, stream: 1, flags: [.read, .stage2], purpose: .table, reason: 2,
          address: 0x1000, secondAddress: 0x2008),
        Words4(0x0000_0001_0000_000B, 0x0000_0188_0000_0002, 0x1000, 0x2008)
      ),
      (
        SMMUEvent(.unsupportedTransaction, stream: 1, reason: 3, address: 4),
        Words4(0x0000_0001_0000_0001, 3, 4, 0)
      ),
      (
        SMMUEvent(
          .tlbConflict, stream: 1, flags: [.stage2], purpose: .input, address: 5,
          secondAddress: 0x7000),
        Words4(0x0000_0001_0000_0020, 0x0000_0280_0000_0000, 5, 0x7000)
      ),
      (
        SMMUEvent(.configurationConflict, stream: 1, reason: 6),
        Words4(0x0000_0001_0000_0021, 6, 0, 0)
      ),
    ]
    #expect(Set(events.map(\.0.code)) == Set(SMMUEvent.Code.allCases))
    for (event, words) in events {
      #expect(event.words == words, "\(event.code)")
      #expect(SMMUEvent(decoding: words) == event)
    }
    #expect(SMMUEvent(decoding: Words4(0x05, 0, 0, 0)) == nil)
    #expect(SMMUEvent(decoding: Words4(0x10, 3 << 40, 0, 0)) == nil)
    // InD is of reads.
    let write = SMMUEvent(.translation, stream: 0, flags: [.instruction], purpose: .input)
    #expect(write.words[1] == 0x0000_0200_0000_0000)
  }

  @Test("B9: a lookup's fault is recorded as its event")
  func faults() {
    func words(_ fault: SMMUFault) -> Words4 {
      SMMUEvent(fault, stream: 0x77, substream: 5, address: 0x9000, flags: [.read]).words
    }
    #expect(words(.badStreamID) == Words4(0x0000_0077_0000_5802, 0, 0, 0))
    #expect(
      words(.streamTableFetch(address: 0x40)) == Words4(0x0000_0077_0000_5803, 0, 0, 0x40))
    #expect(words(.badStreamTableEntry) == Words4(0x0000_0077_0000_5804, 0, 0, 0))
    #expect(words(.streamDisabled) == Words4(0x0000_0077_0000_0006, 0, 0, 0))
    #expect(words(.badSubstreamID(6)) == Words4(0x0000_0077_0000_6008, 0, 0, 0))
    #expect(words(.contextFetch(address: 0x80)) == Words4(0x0000_0077_0000_5809, 0, 0, 0x80))
    #expect(words(.badContextDescriptor) == Words4(0x0000_0077_0000_580A, 0, 0, 0))
    #expect(
      words(.contextTranslation(address: 0x5040))
        == Words4(0x0000_0077_0000_5810, 0x0000_0088_0000_0000, 0x9000, 0x5000))
  }
}
