// SPDX-License-Identifier: Apache-2.0
//
// Root, context and PASID entries of VT-d: Intel Virtualization Technology for Directed I/O,
// revision 4.1, section 9.

import Testing

@testable import HardwareTables

extension IntelCapabilities {
  static let full: [Feature] = [
    .deviceTLB, .passThrough, .snoopControl, .memoryTypes, .nesting, .pageRequests,
    .executeRequests, .supervisorRequests, .extendedAccessed, .pasid, .scalableMode,
    .secondStageAccessedDirty, .secondStage, .firstStage, .pageWalkSnoop, .ridPASID,
  ]

  /// SAGAW has 3 to 5 levels, FS5LP is there, MAMV is 18, host addresses have 46 bits.
  static func with(
    _ features: [Feature], capability: UInt64 = 0x1012_0080_0000_0E00
  ) -> IntelCapabilities {
    IntelCapabilities(
      capability: capability, extended: features.reduce(0) { $0 | 1 << UInt64($1.rawValue) },
      hostAddressWidth: 46)
  }
  static func fullBut(_ feature: Feature) -> IntelCapabilities {
    with(full.filter { $0 != feature })
  }
  static let all = with(full)
}

@Suite("B9: entries of VT-d") struct IntelEntryTests {
  @Test("B9: a root entry has P and the context table's address (9.1)")
  func root() throws {
    let root = try IntelRootEntry(decoding: 0x1234_5001, isScalable: false, .all)
    #expect(root.contextTable == 0x1234_5000)
    #expect(throws: IntelFaultReason.lrt2) {
      try IntelRootEntry(decoding: 0x1234_5000, isScalable: false, .all)
    }
    #expect(throws: IntelFaultReason.srt2) {
      try IntelRootEntry(decoding: 0x1234_5FFE, isScalable: true, .all)
    }
    for bit: UInt64 in [1, 11, 46, 63] {
      #expect(throws: IntelFaultReason.lrt3) {
        try IntelRootEntry(decoding: 1 | 1 << bit, isScalable: false, .all)
      }
      #expect(throws: IntelFaultReason.srt3) {
        try IntelRootEntry(decoding: 1 | 1 << bit, isScalable: true, .all)
      }
    }
    #expect(throws: IntelFaultReason.lrt3) {
      try IntelRootEntry(decoding: 1, high: 1, isScalable: false, .all)
    }
  }

  @Test("B9: a legacy context entry has TT, SSPTPTR, AW and DID (9.3)")
  func context() throws {
    let entry = try IntelContextEntry(decoding: Words2(0x0000_3FFF_FFFF_F005, 0x12_3402), .all)
    #expect(entry.translation == .tableWithDeviceTLB && entry.levels == 4)
    #expect(entry.secondStageTable == 0x3FFF_FFFF_F000 && entry.domain == 0x1234)
    let other = try IntelContextEntry(decoding: Words2(0x9, 0x3), .all)
    #expect(other.translation == .passThrough && other.levels == 5)
    // Bits 70 to 67 are ignored.
    #expect(try IntelContextEntry(decoding: Words2(0x1, 0x7A), .all).levels == 4)
  }

  struct Bad: Sendable {
    var reason: IntelFaultReason
    var unit = IntelCapabilities.all
    /// Bits that are toggled in a good entry.
    var toggled: [Int: UInt64]

    init(_ reason: IntelFaultReason, _ unit: IntelCapabilities, _ toggled: [Int: UInt64]) {
      self.reason = reason
      self.unit = unit
      self.toggled = toggled
    }
    init(_ reason: IntelFaultReason, _ toggled: [Int: UInt64]) {
      self.init(reason, .all, toggled)
    }
  }

  @Test(
    "B9: what a legacy context entry must not have (LCT.2 to LCT.4)",
    arguments: [
      Bad(.lct2, [0: 1]), Bad(.lct2, [0: 1 | 1 << 4]),
      Bad(.lct3, [0: 1 << 4]), Bad(.lct3, [0: 1 << 11]), Bad(.lct3, [0: 1 << 46]),
      Bad(.lct3, [0: 1 << 63]), Bad(.lct3, [1: 1 << 7]), Bad(.lct3, [1: 1 << 24]),
      Bad(.lct3, [1: 1 << 63]), Bad(.lct4, [0: 0xC]),
      Bad(.lct4, .fullBut(.deviceTLB), [0: 0x4]),
      Bad(.lct4, .fullBut(.passThrough), [0: 0x8, 1: 1]), Bad(.lct4, [0: 0x8]),
      Bad(.lct4, [1: 2]), Bad(.lct4, [1: 6]),
      Bad(.lct4, .with(IntelCapabilities.full, capability: 0x200), [:]),
    ])
  func badContext(bad: Bad) {
    // AW is 2: four levels.
    var words = Words2(0x1234_5001, 0x0102)
    for (index, bits) in bad.toggled { words[index] ^= bits }
    #expect(throws: bad.reason) { try IntelContextEntry(decoding: words, bad.unit) }
  }

  @Test("B9: TT serves requests of a device TLB or does not (LCT.5)")
  func translationType() throws {
    for (type, serves) in [(UInt64(0), false), (1, true), (2, false)] {
      let entry = try IntelContextEntry(decoding: Words2(type << 2 | 1, 3), .all)
      try entry.check(.untranslated)
      for request in IntelRequest.allCases where request != .untranslated {
        if serves {
          try entry.check(request)
        } else {
          #expect(throws: IntelFaultReason.lct5) { try entry.check(request) }
        }
      }
    }
  }

  @Test("B9: a scalable context entry has PDTS, PASIDDIRPTR, RID_PASID, RID_PRIV (9.4)")
  func scalable() throws {
    let entry = try IntelScalableContextEntry(
      decoding: Words4(0x0000_2000_0000_0A15, 0x1A_BCDE, 0, 0), .all)
    #expect(entry.enablesDeviceTLB && !entry.enablesPASID && entry.enablesPageRequests)
    #expect(entry.directorySize == 5 && entry.directory == 0x2000_0000_0000)
    #expect(entry.ridPASID == 0xABCDE && entry.ridIsPrivileged)
    // PDTS 5: 2^12 directory entries for 64 PASIDs each.
    #expect(entry.covers(pasid: 0x3FFFF) && !entry.covers(pasid: 0x40000))
    let plain = try IntelScalableContextEntry(
      decoding: Words4(0x9, 0xABCDE, 0, 0), .fullBut(.ridPASID))
    #expect(plain.enablesPASID && plain.ridPASID == 0)
  }

  @Test(
    "B9: what a scalable context entry must not have (SCT.2, SCT.3)",
    arguments: [
      Bad(.sct2, [0: 1]), Bad(.sct3, [0: 1 << 5]), Bad(.sct3, [0: 1 << 8]),
      Bad(.sct3, [0: 1 << 46]), Bad(.sct3, [0: 1 << 63]), Bad(.sct3, [1: 1 << 21]),
      Bad(.sct3, [1: 1 << 63]), Bad(.sct3, [2: 1]), Bad(.sct3, [3: 1 << 63]),
      Bad(.sct3, .fullBut(.deviceTLB), [0: 1 << 2]),
      Bad(.sct3, .fullBut(.pasid), [0: 1 << 3]),
      Bad(.sct3, .fullBut(.pageRequests), [0: 1 << 4]),
      Bad(.sct3, .fullBut(.supervisorRequests), [1: 1 << 20]),
    ])
  func badScalable(bad: Bad) {
    var words = Words4(0x1001, 0, 0, 0)
    for (index, bits) in bad.toggled { words[index] ^= bits }
    #expect(throws: bad.reason) { try IntelScalableContextEntry(decoding: words, bad.unit) }
  }

  @Test("B9: what a scalable context entry serves (SCT.5 to SCT.9)")
  func serves() throws {
    func entry(_ low: UInt64, rid: UInt64 = 0) throws -> IntelScalableContextEntry {
      try IntelScalableContextEntry(decoding: Words4(low, rid, 0, 0), .all)
    }
    let closed = try entry(0x1, rid: 7)
    #expect(try closed.pasid(of: .untranslated, nil) == 7)
    #expect(throws: IntelFaultReason.sct5) { try closed.pasid(of: .translation, nil) }
    #expect(throws: IntelFaultReason.sct5) { try closed.pasid(of: .translated, 1) }
    #expect(throws: IntelFaultReason.sct6) { try closed.pasid(of: .untranslated, 1) }
    #expect(throws: IntelFaultReason.sct8) { try closed.pasid(of: .page, 1) }
    let open = try entry(0x1D, rid: 0x2000)
    #expect(try open.pasid(of: .translation, 0x1FFF) == 0x1FFF)
    #expect(try open.pasid(of: .page, 5) == 5)
    #expect(throws: IntelFaultReason.sct7) { try open.pasid(of: .untranslated, 0x2000) }
    #expect(throws: IntelFaultReason.sct9) { try open.pasid(of: .untranslated, nil) }
  }

  @Test("B9: a PASID directory entry has P, FPD and SMPTBLPTR (9.5)")
  func directory() throws {
    let entry = try IntelPASIDDirectoryEntry(decoding: 0x3FFF_FFFF_F003, .all)
    #expect(entry.table == 0x3FFF_FFFF_F000)
    #expect(IntelPASIDDirectoryEntry.disablesFaults(2))
    #expect(throws: IntelFaultReason.spd2) {
      try IntelPASIDDirectoryEntry(decoding: 0x1000 | 4, .all)
    }
    for bit: UInt64 in [2, 11, 46, 63] {
      #expect(throws: IntelFaultReason.spd3) {
        try IntelPASIDDirectoryEntry(decoding: 1 | 1 << bit, .all)
      }
    }
  }

  @Test("B9: a PASID table entry has its fields where 9.6 puts them")
  func pasidEntry() throws {
    // P, AW 2, SSEE, PGTT 3, SSADE; DID, PWSNP, PGSNP; SRE, ERE, FSPM 1, WPE, NXE, SMEP, EAFE.
    let entry = try IntelPASIDEntry(
      decoding: Words8(
        0x1234_52E9, 0x0180_4321, 0x0000_2ABC_D000_00F7, 0, 0, 0, 0, 0), .all)
    #expect(entry.translation == .nested && entry.domain == 0x4321)
    #expect(entry.translation.hasFirstStage && entry.translation.hasSecondStage)
    #expect(entry.secondStageTable == 0x1234_5000 && entry.secondStageLevels == 4)
    #expect(entry.secondStageHasExecute && entry.keepsSecondStageAccessedDirty)
    #expect(entry.firstStageTable == 0x2ABC_D000_0000 && entry.firstStageLevels == 5)
    #expect(entry.allowsSupervisor && entry.allowsExecute && entry.hasNoExecute)
    #expect(entry.protectsFromSupervisorWrites && entry.preventsSupervisorExecute)
    #expect(entry.keepsExtendedAccessed && entry.pageWalksSnoop && entry.pagesSnoop)
    let plain = try IntelPASIDEntry(
      decoding: Words8(0x1041, 0x0001, 0x5000, 0, 0, 0, 0, 0), .all)
    #expect(plain.translation == .firstStage && plain.firstStageLevels == 4)
    #expect(!plain.allowsSupervisor && !plain.pagesSnoop && !plain.keepsExtendedAccessed)
    #expect(throws: IntelFaultReason.spt5) {
      try plain.check(wantsExecute: true, isSupervisor: true)
    }
    #expect(throws: IntelFaultReason.spt6) {
      try plain.check(wantsExecute: false, isSupervisor: true)
    }
    try entry.check(wantsExecute: true, isSupervisor: true)
  }

  /// P, AW 2 (4 levels), PGTT 3.
  static let good = Words8(0x1234_50C9, 0x0001, 0x5000, 0, 0, 0, 0, 0)

  @Test(
    "B9: what a PASID table entry must not have (SPT.2 to SPT.4)",
    arguments: [
      Bad(.spt2, [0: 1]), Bad(.spt2, [0: 1 | 1 << 10]),
      Bad(.spt3, [0: 1 << 10]), Bad(.spt3, [0: 1 << 11]), Bad(.spt3, [0: 1 << 46]),
      Bad(.spt3, [1: 1 << 16]), Bad(.spt3, [1: 1 << 22]), Bad(.spt3, [2: 1 << 8]),
      Bad(.spt3, [2: 1 << 11]), Bad(.spt3, [2: 1 << 63]), Bad(.spt3, [3: 1]),
      Bad(.spt3, [4: 1]), Bad(.spt3, [5: 1 << 63]), Bad(.spt3, [6: 1]), Bad(.spt3, [7: 1]),
      Bad(.spt3, .fullBut(.secondStageAccessedDirty), [0: 1 << 9]),
      Bad(.spt3, .fullBut(.pageWalkSnoop), [1: 1 << 23]),
      Bad(.spt3, .fullBut(.snoopControl), [1: 1 << 24]),
      Bad(.spt3, .fullBut(.memoryTypes), [1: 1 << 25]),
      Bad(.spt3, .fullBut(.memoryTypes), [1: 1 << 63]),
      Bad(.spt3, .fullBut(.supervisorRequests), [2: 1]),
      Bad(.spt3, .fullBut(.executeRequests), [0: 1 << 5]),
      Bad(.spt3, .fullBut(.executeRequests), [2: 1 << 1]),
      Bad(.spt3, .fullBut(.executeRequests), [2: 1 << 5]),
      Bad(.spt3, .fullBut(.executeRequests), [2: 1 << 6]),
      Bad(.spt3, .fullBut(.extendedAccessed), [2: 1 << 7]),
    ])
  func badPASIDEntry(bad: Bad) {
    var words = Self.good
    for (index, bits) in bad.toggled { words[index] ^= bits }
    #expect(throws: bad.reason) { try IntelPASIDEntry(decoding: words, bad.unit) }
  }

  @Test(
    "B9: how a PASID table entry must not be programmed (SPT.4)",
    arguments: [
      // PGTT 0, 5, 7.
      Bad(.spt4, [0: 0x0C0]), Bad(.spt4, [0: 0x180]), Bad(.spt4, [0: 0x100]),
      Bad(.spt4, .fullBut(.nesting), [:]), Bad(.spt4, .fullBut(.firstStage), [:]),
      Bad(.spt4, .fullBut(.secondStage), [:]),
      Bad(.spt4, .fullBut(.firstStage), [0: 0x80]),
      Bad(.spt4, .fullBut(.secondStage), [0: 0x40]),
      Bad(.spt4, .fullBut(.passThrough), [0: 0x1C4]),
      // AW: 0 and 7, one that SAGAW has not, and pass-through with less than the widest.
      Bad(.spt4, [0: 0x8]), Bad(.spt4, [0: 0x14]),
      Bad(.spt4, .with(IntelCapabilities.full, capability: 0x0A00), [:]),
      Bad(.spt4, [0: 0x1C0]),
      // FSPM 2 and 3; 1 without FS5LP.
      Bad(.spt4, [2: 0x8]), Bad(.spt4, [2: 0xC]),
      Bad(.spt4, .with(IntelCapabilities.full, capability: 0x0E00), [2: 0x4]),
    ])
  func badProgramming(bad: Bad) {
    badPASIDEntry(bad: bad)
    // Reserved bits are looked at first.
    var words = Self.good
    for (index, bits) in bad.toggled { words[index] ^= bits }
    words[7] = 1
    #expect(throws: IntelFaultReason.spt3) { try IntelPASIDEntry(decoding: words, bad.unit) }
  }

  @Test("B9: pass-through wants AW to be the widest (9.6, AW)")
  func passThrough() throws {
    let entry = try IntelPASIDEntry(
      decoding: Words8(0x10D, 0x9, 0, 0, 0, 0, 0, 0), .all)
    #expect(entry.translation == .passThrough && entry.domain == 9)
  }
}
