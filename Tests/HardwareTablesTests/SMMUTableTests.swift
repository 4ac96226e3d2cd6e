// SPDX-License-Identifier: Apache-2.0
//
// Lookups in an SMMUv3's stream and context tables: Arm SMMUv3 (IHI 0070), sections 3.3, 5.1,
// 5.3, 6.3.24, 6.3.25.

import PageTables
import Testing

@testable import HardwareTables

@Suite("B9: lookups in SMMUv3's tables") struct SMMUTableTests {
  @Test("B9: STRTAB_BASE and its configuration (6.3.24, 6.3.25)")
  func registers() {
    let linear = SMMUStreamTable(base: 0x1234_5678, configuration: 8, smmu: .full)
    // Aligned to 2^8 entries of 64 bytes.
    #expect(linear.address == 0x1234_4000 && linear.sizeShift == 8 && linear.split == nil)
    // RA, bit 62, is no address.
    let levels = SMMUStreamTable(
      base: 0x4000_0000_1234_5678, configuration: 0x1_0210, smmu: .full)
    #expect(levels.address == 0x1234_5000 && levels.sizeShift == 16 && levels.split == 8)
    let reserved = SMMUStreamTable(base: 0, configuration: 0x1_0050, smmu: .full)
    #expect(reserved.split == 6)
    let single = SMMUStreamTable(base: 0, configuration: 0x1_0210, smmu: .without(idr0: 27))
    #expect(single.split == nil)
  }

  static let bypass = Words8(0x9, 0, 0, 0, 0, 0, 0, 0)

  @Test("B9: a linear stream table")
  func linear() throws {
    let table = SMMUStreamTable(address: 0x10_0000, sizeShift: 8, smmu: .full)
    var memory = FakeMemory()
    memory.write(Self.bypass, at: 0x10_3FC0)
    #expect(try table.entry(stream: 0xFF, in: memory).config == 4)
    #expect(throws: SMMUFault.badStreamID) { try table.entry(stream: 0x100, in: memory) }
    #expect(throws: SMMUFault.badStreamTableEntry) { try table.entry(stream: 1, in: memory) }
    memory.faults[0x10_3FF8] = .unreachable
    #expect(throws: SMMUFault.streamTableFetch(address: 0x10_3FC0)) {
      try table.entry(stream: 0xFF, in: memory)
    }
    // SIDSIZE bounds it too.
    let narrow = SMMUStreamTable(
      address: 0, sizeShift: 8, smmu: .with(idr1: (0x3F, 4)))
    #expect(throws: SMMUFault.badStreamID) { try narrow.entry(stream: 16, in: memory) }
  }

  @Test("B9: a two-level stream table, by the span of its descriptors (5.1)")
  func twoLevels() throws {
    let table = SMMUStreamTable(address: 0x10_0000, sizeShift: 16, split: 8, smmu: .full)
    var memory = FakeMemory()
    // Stream 1234h: descriptor 12h, entry 34h; span 7 has 64 of them.
    memory.words[0x10_0090] = 0x20_0007
    memory.write(Self.bypass, at: 0x20_0D00)
    #expect(try table.entry(stream: 0x1234, in: memory).config == 4)
    #expect(throws: SMMUFault.badStreamTableEntry) {
      try table.entry(stream: 0x123F, in: memory)
    }
    #expect(throws: SMMUFault.badStreamID) { try table.entry(stream: 0x1240, in: memory) }
    // No span, one that is wider than SPLIT, reserved ones.
    for span: UInt64 in [0, 6, 10, 12, 31] {
      memory.words[0x10_0090] = 0x20_0000 | span
      #expect(throws: SMMUFault.badStreamID) { try table.entry(stream: 0x1234, in: memory) }
    }
    // The pointer is aligned to the span.
    memory.words[0x10_0090] = 0x20_0FC7
    #expect(try table.entry(stream: 0x1234, in: memory).config == 4)
    memory.faults[0x10_0090] = .corrupted
    #expect(throws: SMMUFault.streamTableFetch(address: 0x10_0090)) {
      try table.entry(stream: 0x1234, in: memory)
    }
  }

  /// Stage 1 alone, two levels of 4 KiB, 2^17 descriptors.
  static let entry = SMMUStreamTableEntry(
    Words8(0x8800_0000_0030_001B, 2, 0, 0, 0, 0, 0, 0))

  @Test("B9: what becomes of a transaction, with and without a substream")
  func outcomes() throws {
    let smmu = SMMUCapabilities.full
    func outcome(_ first: UInt64, dss: UInt64 = 0, _ substream: UInt32?) throws(SMMUFault)
      -> SMMUStreamTableEntry.Outcome
    {
      try SMMUStreamTableEntry(Words8(first, dss, 0, 0, 0, 0, 0, 0))
        .outcome(substream: substream, smmu)
    }
    #expect(try outcome(0x1, 5) == .abort)
    for first: UInt64 in [0x9, 0xD] {
      #expect(try outcome(first, nil) == .bypassStage1)
      #expect(throws: SMMUFault.badSubstreamID(5)) { try outcome(first, 5) }
    }
    // S1CDMax 0.
    #expect(try outcome(0xB, nil) == .context(0))
    #expect(throws: SMMUFault.badSubstreamID(0)) { try outcome(0xB, 0) }
    // S1CDMax 4, and S1DSS 0 to 3.
    let first: UInt64 = 0x2000_0000_0000_000B
    #expect(throws: SMMUFault.streamDisabled) { try outcome(first, nil) }
    #expect(try outcome(first, dss: 1, nil) == .bypassStage1)
    #expect(try outcome(first, dss: 2, nil) == .context(0))
    #expect(throws: SMMUFault.streamDisabled) { try outcome(first, dss: 3, nil) }
    #expect(try outcome(first, 0) == .context(0))
    #expect(throws: SMMUFault.streamDisabled) { try outcome(first, dss: 2, 0) }
    #expect(try outcome(first, dss: 2, 15) == .context(15))
    #expect(throws: SMMUFault.badSubstreamID(16)) { try outcome(first, 16) }
    // Without substreams in the SMMU, S1CDMax does not count.
    let none = SMMUCapabilities.with(idr1: (0x7C0, 0))
    #expect(try Self.entry.outcome(substream: nil, none) == .context(0))
  }

  @Test("B9: context tables of one level and of two (5.3)")
  func contexts() throws {
    var memory = FakeMemory()
    // 12345h: descriptor 48Dh and entry 5 with 4 KiB; 48h and 345h with 64 KiB.
    memory.words[0x30_2468] = 0x40_0001
    memory.write(SMMUEntryTests.context, at: 0x40_0140)
    #expect(try Self.entry.context(0x12345, .full, in: memory).asid == 0xABCD)
    var large = Self.entry
    large.words[0] ^= 0x30
    memory.words[0x30_0240] = 0x50_FFF1
    memory.write(SMMUEntryTests.context, at: 0x50_D140)
    #expect(try large.context(0x12345, .full, in: memory).asid == 0xABCD)
    var linear = Self.entry
    linear.words[0] &= ~0x30
    memory.write(SMMUEntryTests.context, at: 0x30_0140)
    #expect(try linear.context(5, .full, in: memory).asid == 0xABCD)
    #expect(throws: SMMUFault.badContextDescriptor) {
      try linear.context(6, .full, in: memory)
    }
    // Level 1 descriptors that are not valid, or point out of range.
    for descriptor: UInt64 in [0x40_0000, 0x0001_0000_0000_0001] {
      memory.words[0x30_2468] = descriptor
      #expect(throws: SMMUFault.badSubstreamID(0x12345)) {
        try Self.entry.context(0x12345, .full, in: memory)
      }
    }
  }

  @Test("B9: context tables that cannot be read: F_CD_FETCH, F_TRANSLATION")
  func unreadable() {
    for (place, fetched) in [(UInt64(0x30_2468), UInt64(0x30_2468)), (0x40_0140, 0x40_0140)] {
      let reasons: [(TableMemoryFault, SMMUFault)] = [
        (.unreachable, .contextFetch(address: fetched)),
        (.corrupted, .contextFetch(address: fetched)),
        (FakeMemory.untranslated, .contextTranslation(address: fetched)),
      ]
      for (reason, fault) in reasons {
        var memory = FakeMemory()
        memory.words[0x30_2468] = 0x40_0001
        memory.faults[place] = reason
        #expect(throws: fault) { try Self.entry.context(0x12345, .full, in: memory) }
      }
    }
  }
}
