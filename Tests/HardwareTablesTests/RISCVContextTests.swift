// SPDX-License-Identifier: Apache-2.0
//
// Device and process contexts of a RISC-V IOMMU: RISC-V IOMMU Architecture 1.0, sections 2.1
// and 2.2.

import Testing

@testable import HardwareTables

extension RISCVCapabilities {
  /// What the tests start from: all but Sv32, END and QOSID.
  static let full: [Feature] = [
    .sv39, .sv48, .sv57, .sv39x4, .sv48x4, .sv57x4, .flatMessageTable, .updatesAccessedDirty,
    .ats, .t2gpa, .pd8, .pd17, .pd20,
  ]

  static func with(_ features: [Feature]) -> RISCVCapabilities {
    RISCVCapabilities(rawValue: features.reduce(0) { $0 | 1 << UInt64($1.rawValue) })
  }

  static func fullBut(_ feature: Feature) -> RISCVCapabilities {
    with(full.filter { $0 != feature })
  }
}

@Suite("B9: contexts of RISC-V") struct RISCVContextTests {
  /// A context that breaks nothing, and bits that are then set or cleared in its words.
  struct Case: Sendable, CustomTestStringConvertible {
    var rule: Int
    var iommu = RISCVCapabilities.with(RISCVCapabilities.full)
    var set: [Int: UInt64] = [:]
    var clear: [Int: UInt64] = [:]

    static let good = Words8(
      0x1, 0x8123_4000_0008_0000, 0xABCD_E000, 0x8000_0000_0009_0000, 0x1000_0000_0000_0055,
      0xFF, 0x12300, 0)

    var words: Words8 {
      var words = Self.good
      for (index, bits) in clear { words[index] &= ~bits }
      for (index, bits) in set { words[index] |= bits }
      return words
    }
    var testDescription: String { "rule \(rule): \(set) \(clear)" }

    func changed(_ change: (inout RISCVCapabilities) -> Void) -> Case {
      var result = self
      change(&result.iommu)
      return result
    }
  }

  static let mode: UInt64 = 0xF << 60

  static let rules: [Case] =
    [
      Case(rule: 1, set: [0: 1 << 12]), Case(rule: 1, set: [0: 1 << 23]),
      Case(rule: 1, set: [0: 1 << 32]), Case(rule: 1, set: [0: 1 << 63]),
      Case(rule: 1, set: [2: 1]), Case(rule: 1, set: [2: 1 << 11]),
      Case(rule: 1, set: [2: 1 << 32]), Case(rule: 1, set: [2: 1 << 40]),
      Case(rule: 1, set: [2: 1 << 63]), Case(rule: 1, set: [3: 1 << 44]),
      Case(rule: 1, set: [3: 1 << 59]), Case(rule: 1, set: [4: 1 << 44]),
      Case(rule: 1, set: [5: 1 << 52]), Case(rule: 1, set: [6: 1 << 52]),
      Case(rule: 1, set: [7: 1]),
      Case(rule: 2, iommu: .fullBut(.ats), set: [0: 0x2]),
      Case(rule: 2, iommu: .fullBut(.ats), set: [0: 0x4]),
      Case(rule: 2, iommu: .fullBut(.ats), set: [0: 0x40]),
      Case(rule: 3, set: [0: 0x8]), Case(rule: 4, set: [0: 0x4]),
      Case(rule: 5, set: [0: 0x42]),
      Case(rule: 6, iommu: .fullBut(.t2gpa), set: [0: 0xA]),
      Case(rule: 7, set: [0: 0xA], clear: [1: mode]),
      Case(rule: 8, iommu: .fullBut(.pd8), set: [0: 0x20, 3: 1 << 60], clear: [3: mode]),
      Case(rule: 8, iommu: .fullBut(.pd17), set: [0: 0x20, 3: 2 << 60], clear: [3: mode]),
      Case(rule: 8, iommu: .fullBut(.pd20), set: [0: 0x20, 3: 3 << 60], clear: [3: mode]),
      Case(rule: 8, set: [0: 0x20, 3: 4 << 60], clear: [3: mode]),
      Case(rule: 9, set: [3: 1 << 60], clear: [3: mode]),
      Case(rule: 9, set: [3: 7 << 60]), Case(rule: 9, set: [0: 0x800, 3: 1 << 60]),
      Case(rule: 10, iommu: .fullBut(.sv39)),
      Case(rule: 10, iommu: .fullBut(.sv48), set: [3: 9 << 60]),
      Case(rule: 10, iommu: .fullBut(.sv57), set: [3: 10 << 60]),
      Case(rule: 11, set: [0: 0x800]), Case(rule: 12, set: [0: 0x200]),
      Case(rule: 13, set: [1: 1 << 60], clear: [1: mode]), Case(rule: 13, set: [1: 3 << 60]),
      Case(rule: 14, iommu: .fullBut(.sv39x4)),
      Case(rule: 14, iommu: .fullBut(.sv48x4), set: [1: 1 << 60]),
      Case(rule: 14, iommu: .fullBut(.sv57x4), set: [1: 2 << 60]),
      Case(rule: 15).changed { $0.isGuest32Bit = true },
      Case(rule: 13, set: [1: 1 << 60]).changed { $0.isGuest32Bit = true },
      Case(rule: 16, set: [4: 2 << 60], clear: [4: mode]),
      Case(rule: 17, set: [1: 1]), Case(rule: 17, set: [1: 2]),
      Case(rule: 18, iommu: .fullBut(.updatesAccessedDirty), set: [0: 0x80]),
      Case(rule: 18, iommu: .fullBut(.updatesAccessedDirty), set: [0: 0x100]),
      Case(rule: 19, set: [0: 0x400]), Case(rule: 19).changed { $0.isBigEndian = true },
      Case(rule: 20, iommu: .with(RISCVCapabilities.full + [.sv32]), set: [0: 0x800]),
      Case(rule: 20, iommu: .with(RISCVCapabilities.full + [.sv32x4]))
        .changed { $0.isGuest32Bit = true },
      Case(
        rule: 21, iommu: .with(RISCVCapabilities.full + [.bothEndiannesses]), set: [0: 0x400]),
    ]
    + [40, 52].map { bit in
      Case(
        rule: 22, iommu: .with(RISCVCapabilities.full + [.qualityOfService]),
        set: [2: 1 << (bit + 4)]
      ).changed {
        $0.resourceIDWidth = 4
        $0.monitoringIDWidth = 4
      }
    }

  @Test("B9: every rule of 2.1.4 by its number", arguments: rules)
  func misconfiguration(broken: Case) {
    #expect(RISCVDeviceContext(broken.words).misconfiguration(broken.iommu) == broken.rule)
  }

  @Test("B9: the rules are checked in their order, and custom bits break none")
  func order() {
    for broken in Self.rules {
      var context = RISCVDeviceContext(broken.words)
      context.tc |= 0xFF00_0000
      #expect(context.misconfiguration(broken.iommu) == broken.rule)
      // Rule 19 is broken too: what is before it still counts.
      context.tc ^= 0x400
      let endianness = broken.iommu.has(.bothEndiannesses) ? 21 : 19
      if broken.rule < 19 {
        #expect(context.misconfiguration(broken.iommu) == broken.rule)
      } else if broken.rule == 20 || broken.rule == 22 {
        let first = broken.rule == 20 && endianness == 21 ? 20 : endianness
        #expect(context.misconfiguration(broken.iommu) == first)
      }
      context.tc |= 1 << 20
      #expect(context.misconfiguration(broken.iommu) == 1)
    }
  }

  @Test("B9: no rule is broken by what is allowed")
  func wellConfigured() {
    let full = RISCVCapabilities.with(RISCVCapabilities.full)
    for tc: UInt64 in [0x1, 0x3, 0x7, 0x47, 0xB, 0x11, 0x81, 0x101, 0xFF00_0001] {
      var words = Case.good
      words[0] = tc
      #expect(RISCVDeviceContext(words).misconfiguration(full) == nil, "\(tc)")
    }
    var words = Case.good
    words[0] = 0x221
    for mode: UInt64 in 0...3 {
      words[3] = mode << 60 | 0x90000
      #expect(RISCVDeviceContext(words).misconfiguration(full) == nil)
    }
    // In the base format there are no words 4 to 7.
    let base = RISCVCapabilities.fullBut(.flatMessageTable)
    #expect(RISCVDeviceContext(Case.good.lowHalf).misconfiguration(base) == nil)
    // SXL = 1 with GXL = 1, and with a GXL that can change.
    var narrow = RISCVCapabilities.with([.sv32, .sv32x4])
    narrow.isGuest32Bit = true
    let both = Words4(0x801, 0x8000_0000_0008_0000, 0, 0x8000_0000_0009_0000)
    #expect(RISCVDeviceContext(both).misconfiguration(narrow) == nil)
    var changeable = RISCVCapabilities.with([.sv32, .sv39x4])
    changeable.canChangeGuestWidth = true
    #expect(RISCVDeviceContext(both).misconfiguration(changeable) == nil)
  }

  @Test("B9: fields of a device context are where 2.1.3 has them")
  func fields() {
    let context = RISCVDeviceContext(Case.good)
    #expect(context.isValid && context.secondStageMode == 8 && context.firstStageMode == 8)
    #expect(context.guestSoftContextID == 0x1234 && context.secondStageRoot == 0x8000_0000)
    #expect(context.processSoftContextID == 0xABCDE && context.firstStageRoot == 0x9000_0000)
    #expect(context.messageTableMode == 1 && context.messageTableRoot == 0x55000)
    let fields: [(UInt64, KeyPath<RISCVDeviceContext, Bool>)] = [
      (0, \.isValid), (1, \.enablesATS), (2, \.enablesPRI), (3, \.translatesToGuest),
      (4, \.disablesTranslationFaults), (5, \.hasProcessDirectory), (6, \.responsesHavePASID),
      (7, \.updatesSecondStage), (8, \.updatesFirstStage), (9, \.hasDefaultProcess),
      (10, \.isBigEndian), (11, \.is32Bit),
    ]
    for (bit, field) in fields {
      let context = RISCVDeviceContext(Words4(1 << bit, 0, 0, 0))
      #expect(context[keyPath: field])
      #expect(fields.filter { context[keyPath: $0.1] }.count == 1)
    }
    let identifiers = RISCVDeviceContext(Words4(0, 0, 0x1230_4560_0000_0000, 0))
    #expect(identifiers.monitoringID == 0x123 && identifiers.resourceID == 0x045)
  }

  @Test("B9: addresses of interrupt files are those outside of the mask (2.1.3.6)")
  func messageAddresses() {
    let context = RISCVDeviceContext(Case.good)
    #expect(context.isMessageAddress(0x1230_0000))
    #expect(context.isMessageAddress(0x123F_FFFF))
    #expect(!context.isMessageAddress(0x1240_0000))
    var off = context
    off.msiptp = 0x55
    #expect(!off.isMessageAddress(0x1230_0000))
  }

  struct ProcessCase: Sendable {
    var rule: Int
    var ta: UInt64 = 0
    var fsc: UInt64 = 8 << 60
  }

  @Test(
    "B9: every rule of 2.2.4 by its number",
    arguments: [
      ProcessCase(rule: 1, ta: 1 << 3), ProcessCase(rule: 1, ta: 1 << 11),
      ProcessCase(rule: 1, ta: 1 << 32), ProcessCase(rule: 1, ta: 1 << 63),
      ProcessCase(rule: 1, fsc: 0x8000_1000_0000_0000),
      ProcessCase(rule: 1, fsc: 0x8800_0000_0000_0000),
      ProcessCase(rule: 2, fsc: 1 << 60), ProcessCase(rule: 2, fsc: 11 << 60),
      ProcessCase(rule: 3, fsc: 10 << 60),
    ])
  func processRules(broken: ProcessCase) {
    let context = RISCVProcessContext(Words2(broken.ta | 1, broken.fsc))
    #expect(context.misconfiguration(.fullBut(.sv57), is32Bit: false) == broken.rule)
  }

  @Test("B9: a process context of 32 bits has Sv32 only, and its fields")
  func process() {
    let context = RISCVProcessContext(Words2(0xABCD_E007, 0x8000_0000_0001_2345))
    #expect(context.isValid && context.allowsSupervisor && context.supervisorReachesUserPages)
    #expect(context.processSoftContextID == 0xABCDE && context.firstStageRoot == 0x1234_5000)
    #expect(context.misconfiguration(.with([.sv39]), is32Bit: false) == nil)
    #expect(context.misconfiguration(.with([.sv39]), is32Bit: true) == 4)
    #expect(context.misconfiguration(.with([.sv32]), is32Bit: true) == nil)
    let wide = RISCVProcessContext(Words2(1, 9 << 60))
    #expect(wide.misconfiguration(.with([.sv32]), is32Bit: true) == 2)
  }
}
