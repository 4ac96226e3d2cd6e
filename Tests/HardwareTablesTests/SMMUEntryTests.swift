// SPDX-License-Identifier: Apache-2.0
//
// Stream table entries and context descriptors of an SMMUv3: Arm SMMUv3 (IHI 0070), sections
// 5.2 and 5.4.

import Testing

@testable import HardwareTables

extension SMMUCapabilities {
  /// Both stages, both formats, HTTU 2, Hyp, ATS, PRI, wide ASIDs and VMIDs, CD2L, two-level
  /// stream tables; 32 bits of StreamID and 20 of SubstreamID; FWB, STT, RIL; OAS 48, all
  /// granules.
  static let full = SMMUCapabilities(
    idr0: 0x080D_168F, idr1: 0x520, idr3: 0x700, idr5: 0x75)

  /// With other values in fields of the registers.
  static func with(
    idr0: (clear: UInt32, set: UInt32) = (0, 0), idr1: (clear: UInt32, set: UInt32) = (0, 0),
    idr3: (clear: UInt32, set: UInt32) = (0, 0), idr5: (clear: UInt32, set: UInt32) = (0, 0)
  ) -> SMMUCapabilities {
    SMMUCapabilities(
      idr0: full.idr0 & ~idr0.clear | idr0.set, idr1: full.idr1 & ~idr1.clear | idr1.set,
      idr3: full.idr3 & ~idr3.clear | idr3.set, idr5: full.idr5 & ~idr5.clear | idr5.set)
  }
  static func without(idr0 bit: UInt32) -> SMMUCapabilities { with(idr0: (1 << bit, 0)) }
}

@Suite("B9: entries of SMMUv3") struct SMMUEntryTests {
  /// Config 7, S1Fmt 1, S1CDMax 8; S1DSS 2; VMID 1234h, 40 bits from level 1 of 4 KiB, S2PS 5,
  /// S2AA64, S2R.
  static let nested = Words8(
    0x4000_0000_1234_501F, 0x2, 0x040D_0058_0000_1234, 0x5678_9000, 0, 0, 0, 0)

  /// Bits that are cleared, then set, in the words of a good entry.
  struct Bad<Reason: Sendable>: Sendable {
    var reason: Reason
    var smmu = SMMUCapabilities.full
    var clear: [Int: UInt64]
    var set: [Int: UInt64]

    init(
      _ reason: Reason, _ smmu: SMMUCapabilities = .full, clear: [Int: UInt64] = [:],
      set: [Int: UInt64] = [:]
    ) {
      self.reason = reason
      self.smmu = smmu
      self.clear = clear
      self.set = set
    }

    func words(_ good: Words8) -> Words8 {
      var words = good
      for (index, bits) in clear { words[index] &= ~bits }
      for (index, bits) in set { words[index] |= bits }
      return words
    }
  }

  typealias BadSTE = Bad<SMMUStreamTableEntry.Illegality>

  static let sizeField: UInt64 = 0x3F << 32
  static let levelField: UInt64 = 3 << 38
  static let aarch64: UInt64 = 1 << 51
  /// Config 5: stage 1 alone.
  static let stage1: UInt64 = 0x4

  static let illegal: [BadSTE] =
    [
      BadSTE(.notValid, clear: [0: 1]),
      BadSTE(.stage1NotSupported, .without(idr0: 1)),
      BadSTE(.stage2NotSupported, .without(idr0: 0)),
      BadSTE(.splitStageATS, clear: [0: stage1], set: [1: 2 << 28]),
      BadSTE(.splitStageATS, set: [1: 2 << 28, 2: 1 << 57]),
      BadSTE(.splitStageATS, .with(idr0: (0, 1 << 11)), set: [1: 2 << 28]),
      BadSTE(.fullATSWithStall, set: [1: 1 << 28, 2: 1 << 57]),
      BadSTE(.permissionTableATS, .with(idr3: (0, 1 << 15)), set: [1: 3 << 28, 2: 1 << 57]),
      BadSTE(
        .permissionTableATS, .with(idr3: (0, 1 << 15)), clear: [0: stage1],
        set: [1: 3 << 28 | 2 << 30]),
      BadSTE(.streamWorld, clear: [0: stage1], set: [1: 1 << 30]),
      BadSTE(.streamWorld, clear: [0: stage1], set: [1: 3 << 30]),
      BadSTE(.stage1StallDisabled, .with(idr0: (0, 1 << 24)), set: [1: 1 << 27]),
      BadSTE(.contextCount, set: [0: 0x1D << 59]),
      BadSTE(.contextTableFormat, .without(idr0: 19)),
      BadSTE(.contextTableFormat, .without(idr0: 19), clear: [0: 0x30], set: [0: 0x20]),
      BadSTE(.contextTableRange, set: [0: 1 << 48]),
      BadSTE(.contextTableRange, clear: [0: stage1], set: [0: 1 << 55]),
      BadSTE(.writeBackWithAArch32, clear: [2: aarch64], set: [1: 1 << 25]),
    ] + illegalStage2

  static let illegalStage2: [BadSTE] = [
    BadSTE(.stage2StallNotSupported, .with(idr0: (0, 1 << 24)), set: [2: 1 << 57]),
    BadSTE(.stage2StallForced, .with(idr0: (0, 2 << 24))),
    BadSTE(.stage2Format, .without(idr0: 3)),
    BadSTE(.stage2Format, .without(idr0: 2), clear: [2: aarch64]),
    BadSTE(.stage2HardwareUpdate, .with(idr0: (0xC0, 0)), set: [2: 1 << 56]),
    BadSTE(.stage2HardwareUpdate, .with(idr0: (0xC0, 0)), set: [2: 1 << 55]),
    BadSTE(.stage2HardwareUpdate, clear: [2: aarch64], set: [2: 1 << 56]),
    BadSTE(.stage2DirtyUpdate, .with(idr0: (0xC0, 0x40)), set: [2: 1 << 55]),
    BadSTE(.stage2TableUpdate, .with(idr0: (0, 0xC0)), set: [2: 1 << 59]),
    BadSTE(.stage2Granule, set: [2: 3 << 46]),
    BadSTE(.stage2Granule, .with(idr5: (0x10, 0))),
    BadSTE(.stage2Granule, .with(idr5: (0x40, 0)), set: [2: 1 << 46]),
    BadSTE(.stage2Granule, .with(idr5: (0x20, 0)), set: [2: 2 << 46]),
    BadSTE(.stage2TableRange, set: [3: 1 << 48]),
    // S2PS of 40 bits; OAS of 52 bits, which only 64 KiB has without DS.
    BadSTE(.stage2TableRange, clear: [2: 7 << 48], set: [2: 2 << 48, 3: 1 << 40]),
    BadSTE(.stage2TableRange, .with(idr5: (7, 6)), set: [2: 6 << 48, 3: 1 << 48]),
    BadSTE(.stage2TableRange, clear: [2: aarch64], set: [3: 1 << 40]),
    BadSTE(.stage2Size, clear: [2: sizeField], set: [2: 15 << 32]),
    BadSTE(.stage2Size, clear: [2: sizeField], set: [2: 49 << 32]),
    BadSTE(.stage2Size, .with(idr3: (1 << 9, 0)), clear: [2: sizeField], set: [2: 40 << 32]),
    BadSTE(.stage2Size, clear: [2: sizeField], set: [2: 1 << 46 | 48 << 32]),
    BadSTE(.stage2Size, .with(idr5: (7, 2)), clear: [2: sizeField], set: [2: 23 << 32]),
    // 40 bits from level 2 are 19 bits; 31 bits from level 0 are none; level 3 without STT.
    BadSTE(.stage2StartLevel, clear: [2: levelField]),
    BadSTE(.stage2StartLevel, clear: [2: sizeField | levelField], set: [2: 0xA1 << 32]),
    BadSTE(.stage2StartLevel, .with(idr3: (1 << 9, 0)), set: [2: levelField]),
    BadSTE(.stage2StartLevel, .with(idr5: (7, 3)), clear: [2: levelField], set: [2: 2 << 38]),
    BadSTE(.stage2StartLevel, clear: [2: aarch64 | levelField], set: [2: 2 << 38]),
    BadSTE(.stage2Endianness, .with(idr0: (0, 2 << 21)), set: [2: 1 << 52]),
    BadSTE(.stage2Endianness, .with(idr0: (0, 3 << 21))),
    BadSTE(.vmidWidth, .without(idr0: 18)),
  ]

  @Test("B9: what makes a stream table entry ILLEGAL (5.2.2)", arguments: illegal)
  func illegalEntry(bad: BadSTE) {
    let entry = SMMUStreamTableEntry(bad.words(Self.nested))
    #expect(entry.illegality(bad.smmu) == bad.reason)
  }

  @Test("B9: the cases have every reason, and each comes before those that are after it")
  func order() {
    let all = SMMUStreamTableEntry.Illegality.allCases
    #expect(Set(Self.illegal.map(\.reason)) == Set(all))
    // A VMID that is too wide is the last of all.
    for bad in Self.illegal where bad.reason != .vmidWidth {
      var smmu = bad.smmu
      smmu.idr0 &= ~(1 << 18)
      let entry = SMMUStreamTableEntry(bad.words(Self.nested))
      #expect(entry.illegality(smmu) == bad.reason)
    }
  }

  @Test("B9: stream table entries that are legal")
  func legal() {
    let smmu = SMMUCapabilities.full
    #expect(SMMUStreamTableEntry(Self.nested).illegality(smmu) == nil)
    // Where traffic does not pass nothing else counts; for bypass stages do not.
    for config: UInt64 in 0...4 {
      let words = Words8(1 | config << 1 | 0x1F << 59 | 1 << 55, ~0, ~0, ~0, 0, 0, 0, 0)
      #expect(SMMUStreamTableEntry(words).illegality(smmu) == nil, "\(config)")
    }
    // Stage 1 alone with EL2, where stage 2's fields do not count.
    let hypervisor = Words8(0x1234_504B, 2 << 30 | 1 << 28, 0xFFFF, 0, 0, 0, 0, 0)
    #expect(SMMUStreamTableEntry(hypervisor).illegality(.without(idr0: 18)) == nil)
    // 64 KiB from level 2: 42 bits; 16 KiB from level 2: 40 bits; AArch32: 32 bits, level 1.
    for third: UInt64 in [
      0x040D_4056_0000_0001, 0x040D_8058_0000_0001, 0x0400_0040_0000_0001,
    ] {
      var words = Self.nested
      words[2] = third
      #expect(SMMUStreamTableEntry(words).illegality(smmu) == nil)
    }
    // 52 bits with DS: level -1 of 4 KiB.
    let large = SMMUCapabilities.with(idr5: (7, 0x86))
    var words = Self.nested
    words[2] = 0x040E_000C_0000_0001
    words[3] = 0x000F_0000_0000_000C
    #expect(SMMUStreamTableEntry(words).illegality(large) == nil)
  }

  struct Walk: Sendable {
    /// S2TG, S2SL0, S2T0SZ, OAS; with S2DS.
    var fields: [UInt64]
    var isLarge = false
    var isLegal: Bool
  }

  @Test(
    "B9: start levels of stage 2, by granule and size (DDI 0487, D8.2)",
    arguments: [
      Walk(fields: [0, 2, 20, 4], isLegal: true), Walk(fields: [0, 2, 22, 3], isLegal: false),
      Walk(fields: [0, 0, 30, 5], isLegal: true), Walk(fields: [0, 0, 29, 5], isLegal: false),
      Walk(fields: [0, 3, 39, 5], isLegal: true), Walk(fields: [0, 3, 38, 5], isLegal: false),
      Walk(fields: [0, 1, 33, 5], isLegal: true), Walk(fields: [0, 1, 34, 5], isLegal: false),
      Walk(fields: [2, 0, 35, 5], isLegal: true), Walk(fields: [2, 0, 34, 5], isLegal: false),
      Walk(fields: [2, 1, 24, 5], isLegal: true), Walk(fields: [2, 1, 23, 5], isLegal: false),
      Walk(fields: [2, 2, 16, 5], isLegal: true), Walk(fields: [2, 2, 24, 2], isLegal: false),
      Walk(fields: [2, 3, 16, 5], isLegal: false),
      Walk(fields: [2, 3, 12, 6], isLarge: true, isLegal: true),
      Walk(fields: [2, 3, 16, 5], isLarge: true, isLegal: false),
      Walk(fields: [1, 0, 31, 5], isLegal: true), Walk(fields: [1, 0, 30, 5], isLegal: false),
      Walk(fields: [1, 1, 18, 5], isLegal: true), Walk(fields: [1, 1, 17, 5], isLegal: false),
      Walk(fields: [1, 2, 16, 5], isLegal: true), Walk(fields: [1, 2, 22, 3], isLegal: false),
      Walk(fields: [1, 3, 16, 5], isLegal: false),
    ])
  func startLevels(walk: Walk) {
    let smmu = SMMUCapabilities.with(
      idr5: (7, UInt32(walk.fields[3]) | (walk.isLarge ? 0x80 : 0)))
    var words = Self.nested
    words[2] = 0x040E_0000_0000_0001
    words[2] |= walk.fields[0] << 46 | walk.fields[1] << 38 | walk.fields[2] << 32
    words[3] = walk.isLarge ? 8 : 0
    let illegality = SMMUStreamTableEntry(words).illegality(smmu)
    #expect(illegality == (walk.isLegal ? nil : .stage2StartLevel))
  }

  @Test("B9: fields of a stream table entry are where 5.2 has them")
  func fields() {
    let entry = SMMUStreamTableEntry(Self.nested)
    #expect(entry.isValid && entry.config == 7 && entry.contextTableFormat == 1)
    #expect(entry.contextTable == 0x1234_5000 && entry.contextCountShift == 8)
    #expect(entry.defaultSubstream == 2 && entry.vmid == 0x1234 && entry.stage2Size == 24)
    #expect(entry.stage2StartLevel == 1 && entry.stage2Granule == .size4KiB)
    #expect(entry.stage2OutputWidth == 48 && entry.stage2Table == 0x5678_9000)
    let flags: [(Int, UInt64, KeyPath<SMMUStreamTableEntry, Bool>)] = [
      (0, 0, \.isValid), (1, 18, \.responsesHavePASID), (1, 19, \.mergesEvents),
      (1, 25, \.forcesWriteBack), (1, 27, \.disablesStage1Stall), (2, 51, \.stage2IsAArch64),
      (2, 52, \.stage2IsBigEndian), (2, 53, \.stage2IgnoresAccessFlag),
      (2, 54, \.protectsWalks),
      (2, 55, \.stage2UpdatesDirty), (2, 56, \.stage2UpdatesAccessFlag),
      (2, 57, \.stage2Stalls),
      (2, 58, \.stage2Records), (2, 59, \.stage2UpdatesTables),
      (3, 3, \.stage2HasLargeAddresses),
    ]
    for (word, bit, flag) in flags {
      var words = Words8()
      words[word] = 1 << bit
      let entry = SMMUStreamTableEntry(words)
      #expect(entry[keyPath: flag])
      #expect(flags.filter { entry[keyPath: $0.2] }.count == 1)
    }
    let other = SMMUStreamTableEntry(
      Words8(0, 0xB000_0000, 0x0000_8000_0000_0000, 4, 0, 0, 0, 0))
    #expect(other.ats == 3 && other.streamWorld == 2 && other.stage2Granule == .size16KiB)
    #expect(other.stage2StartLevel == 4)
  }

  // MARK: Context descriptors

  /// Both halves of 48 bits and 4 KiB, IPS 5, AA64, R, A, ASID ABCDh.
  static let context = Words8(
    0xABCD_6205_8090_0010, 0x1111_0000, 0x2222_0000, 0xFF, 0, 0, 0, 0)
  typealias BadCD = Bad<SMMUContextDescriptor.Illegality>

  static let illegalContexts: [BadCD] = [
    BadCD(.notValid, clear: [0: 1 << 31]),
    BadCD(.abortRequired, .with(idr0: (0, 1 << 26)), clear: [0: 1 << 46]),
    BadCD(.stallNotSupported, .with(idr0: (0, 1 << 24)), set: [0: 1 << 44]),
    BadCD(.stallForced, .with(idr0: (0, 2 << 24))),
    BadCD(.endianness, .with(idr0: (0, 2 << 21)), set: [0: 1 << 15]),
    BadCD(.endianness, .with(idr0: (0, 3 << 21))),
    BadCD(.format, .without(idr0: 3)),
    BadCD(.format, .without(idr0: 2), clear: [0: 1 << 41]),
    BadCD(.hardwareUpdate, .with(idr0: (0xC0, 0)), set: [0: 1 << 43]),
    BadCD(.hardwareUpdate, .with(idr0: (0xC0, 0x40)), set: [0: 1 << 42]),
    BadCD(.hardwareUpdate, .with(idr0: (0, 0xC0)), set: [1: 1 << 3]),
    BadCD(.asidWidth, .without(idr0: 12)),
    BadCD(.size, clear: [0: 0x3F], set: [0: 15]),
    BadCD(.size, clear: [0: 0x3F], set: [0: 49]),
    BadCD(.size, clear: [0: 0x3F0000], set: [0: 15 << 16]),
    BadCD(.size, .with(idr3: (1 << 9, 0)), clear: [0: 0x3F], set: [0: 40]),
    BadCD(.size, clear: [0: 0x3F], set: [0: 48 | 1 << 6]),
    BadCD(.granule, set: [0: 3 << 6]),
    BadCD(.granule, clear: [0: 3 << 22]),
    BadCD(.granule, .with(idr5: (0x40, 0)), set: [0: 1 << 6]),
    BadCD(.granule, .with(idr5: (0x20, 0)), clear: [0: 3 << 22], set: [0: 1 << 22]),
    BadCD(.tableRange, set: [1: 1 << 48]),
    BadCD(.tableRange, set: [2: 1 << 51]),
    BadCD(.tableRange, clear: [0: 7 << 32], set: [1: 1 << 32]),
    BadCD(.tableRange, clear: [0: 1 << 41], set: [1: 1 << 40]),
  ]

  @Test("B9: what makes a context descriptor ILLEGAL (5.4.2)", arguments: illegalContexts)
  func illegalContext(bad: BadCD) {
    let entry = SMMUStreamTableEntry(Words8(0xB, 0, 0, 0, 0, 0, 0, 0))
    let context = SMMUContextDescriptor(bad.words(Self.context))
    #expect(context.illegality(entry, bad.smmu) == bad.reason)
  }

  @Test("B9: what a context descriptor may be depends on its entry")
  func contextOfEntry() {
    let reasons = Set(Self.illegalContexts.map(\.reason)).union([.stallDisabled])
    #expect(reasons == Set(SMMUContextDescriptor.Illegality.allCases))
    func check(_ ste: Words8, _ smmu: SMMUCapabilities = .full, set: [Int: UInt64] = [:])
      -> SMMUContextDescriptor.Illegality?
    {
      let words = BadCD(.notValid, set: set).words(Self.context)
      return SMMUContextDescriptor(words).illegality(SMMUStreamTableEntry(ste), smmu)
    }
    let plain = Words8(0xB, 0, 0, 0, 0, 0, 0, 0)
    #expect(check(plain) == nil)
    // S1STALLD; a stage 2 of AArch32 below AArch64.
    #expect(check(Words8(0xB, 1 << 27, 0, 0, 0, 0, 0, 0), set: [0: 1 << 44]) == .stallDisabled)
    #expect(check(Words8(0xF, 0, 0, 0, 0, 0, 0, 0)) == .format)
    #expect(check(Self.nested) == nil)
    // EL2 has one half, no ASID.
    let hypervisor = Words8(0xB, 2 << 30, 0, 0, 0, 0, 0, 0)
    #expect(check(hypervisor, .without(idr0: 12), set: [0: 0x3F << 16, 2: 1 << 51]) == nil)
    // A half whose walks are disabled may be anything, but for EL2.
    #expect(check(plain, set: [0: 1 << 14 | 0x3F, 1: 1 << 51]) == nil)
    #expect(check(plain, set: [0: 1 << 30 | 0x3F << 16, 2: 1 << 51]) == nil)
    #expect(check(hypervisor, set: [0: 1 << 14 | 0x3F]) == .size)
    // 52 bits of virtual address with 64 KiB and VAX.
    let wide = SMMUCapabilities.with(idr5: (0, 1 << 10))
    let large = BadCD(.notValid, clear: [0: 0x3F], set: [0: 12 | 1 << 6]).words(Self.context)
    let entry = SMMUStreamTableEntry(plain)
    #expect(SMMUContextDescriptor(large).illegality(entry, wide) == nil)
    #expect(SMMUContextDescriptor(large).illegality(entry, .full) == .size)
  }

  @Test("B9: fields of a context descriptor are where 5.4 has them")
  func contextFields() {
    let context = SMMUContextDescriptor(Self.context)
    #expect(context.size(.low) == 16 && context.size(.high) == 16)
    #expect(context.granule(.low) == .size4KiB && context.granule(.high) == .size4KiB)
    #expect(context.table(.low) == 0x1111_0000 && context.table(.high) == 0x2222_0000)
    #expect(context.outputWidth == 48 && context.asid == 0xABCD)
    #expect(context.memoryAttributes == 0xFF)
    let flags: [(Int, UInt64, KeyPath<SMMUContextDescriptor, Bool>)] = [
      (0, 15, \.isBigEndian), (0, 31, \.isValid), (0, 35, \.ignoresAccessFlag),
      (0, 36, \.writableIsNotExecutable), (0, 37, \.userWritableIsNotExecutable),
      (0, 40, \.keepsPrivilegedFromUserPages), (0, 41, \.isAArch64), (0, 42, \.updatesDirty),
      (0, 43, \.updatesAccessFlag), (0, 44, \.stalls), (0, 45, \.records), (0, 46, \.aborts),
      (0, 47, \.isPrivateASID), (1, 3, \.updatesTables), (2, 58, \.hasLargeAddresses),
    ]
    for (word, bit, flag) in flags {
      var words = Words8()
      words[word] = 1 << bit
      let context = SMMUContextDescriptor(words)
      #expect(context[keyPath: flag])
      #expect(flags.filter { context[keyPath: $0.2] }.count == 1)
    }
    let halves = SMMUContextDescriptor(Words8(1 << 14 | 1 << 39, 2, 0, 0, 0, 0, 0, 0))
    #expect(halves.disablesWalks(.low) && !halves.disablesWalks(.high))
    #expect(!halves.ignoresTopByte(.low) && halves.ignoresTopByte(.high))
    #expect(halves.disablesTableAttributes(.low) && !halves.disablesTableAttributes(.high))
  }
}
