// SPDX-License-Identifier: Apache-2.0
//
// What a user may give of a hardware entry, and the layouts of IOMMU_GET_HW_INFO:
// include/uapi/linux/iommufd.h.

import Testing

@testable import HardwareTables

@Suite("B13: tables that users own") struct NestedTableTests {
  // MARK: IOMMU_HWPT_DATA_VTD_S1

  static let parent = Words8(0x1234_5000 | 0x8 | 0x80 | 1, 0x0180_0077, 0, 0, 0, 0, 0, 0)

  @Test("B13: a first stage of VT-d is nested over the parent's entry")
  func intel() throws {
    let table = IntelNestedTable(decoding: 7, 0xABC_D000, 57)
    let words = try table.entry(parent: Self.parent, .all)
    #expect(words == Words8(0x1234_50C9, 0x0180_0077, 0x0ABC_D095, 0, 0, 0, 0, 0))
    let entry = try IntelPASIDEntry(decoding: words, .all)
    #expect(entry.translation == .nested && entry.firstStageLevels == 5)
    // WPE is there only with SRE; the reserved field is not looked at.
    let users = IntelNestedTable(decoding: 4, 0x5FFF, 0xFFFF_FFFF_0000_0030)
    #expect(try users.entry(parent: Self.parent, .all)[2] == 0x5000)
  }

  struct BadIntel: Sendable {
    var flags: UInt64 = 0
    var width: UInt32 = 48
    var unit = IntelCapabilities.all
  }

  @Test(
    "B13: EINVAL for a first stage that the unit has not",
    arguments: [
      BadIntel(width: 0), BadIntel(width: 39), BadIntel(width: 52), BadIntel(width: 64),
      BadIntel(width: 57, unit: .with(IntelCapabilities.full, capability: 0xE00)),
      BadIntel(flags: 1, unit: .fullBut(.supervisorRequests)),
      BadIntel(flags: 2, unit: .fullBut(.extendedAccessed)),
    ])
  func badIntel(bad: BadIntel) {
    let table = IntelNestedTable(
      flags: .init(rawValue: bad.flags), table: 0, addressWidth: bad.width)
    #expect(throws: NestedTableError.invalid) { try table.check(bad.unit) }
    #expect(throws: NestedTableError.invalid) {
      try table.entry(parent: Self.parent, bad.unit)
    }
  }

  // MARK: IOMMU_HWPT_DATA_ARM_SMMUV3

  /// Config 6 with EATS as the device has it.
  static let stage2 = SMMUStreamTableEntry(
    Words8(0xD, 1 << 28, 0x040D_0058_0000_1234, 0x5678_9000, 0, 0, 0, 0))

  @Test("B13: a stage 1 of SMMUv3 is nested over the parent's entry")
  func smmu() throws {
    let user = try SMMUNestedEntry(
      decoding: Words2(0x4000_0000_1234_501B, 0x1000_00FE | 1 << 27))
    #expect(user.isValid && user.configuration == .stage1 && user.enablesATS)
    let entry = user.entry(parent: Self.stage2)
    #expect(
      entry.words
        == Words8(
          0x4000_0000_1234_501F, 0x1808_00FE, 0x040D_0058_0000_1234, 0x5678_9000, 0, 0, 0, 0))
    #expect(entry.illegality(.full) == nil)
  }

  @Test("B13: bypass is the parent's entry, abort and V = 0 are none")
  func smmuOthers() throws {
    // ATS goes with stage 1 only.
    let bypass = try SMMUNestedEntry(decoding: Words2(0x9, 1 << 28))
    #expect(bypass.configuration == .bypass && !bypass.enablesATS)
    #expect(bypass.entry(parent: Self.stage2) == Self.stage2)
    let abort = try SMMUNestedEntry(decoding: Words2(0x1, 0))
    #expect(abort.isValid && abort.configuration == .abort)
    #expect(abort.entry(parent: Self.stage2).words == Words8(1, 0, 0, 0, 0, 0, 0, 0))
    // Where V is clear nothing else is looked at.
    let invalid = try SMMUNestedEntry(decoding: Words2(~1, ~0))
    #expect(!invalid.isValid && invalid.configuration == .abort && !invalid.enablesATS)
    #expect(invalid.words == Words2())
  }

  @Test("B13: EIO for every bit that is not the user's, for other Configs and other EATS")
  func badSMMU() throws {
    let allowed = [
      Set([0, 1, 2, 3]).union(4...51).union(59...63),
      Set(0...7).union([27, 28, 29]),
    ]
    for word in 0..<2 {
      for bit in 0..<64 where !allowed[word].contains(bit) {
        var words = Words2(0xB, 0)
        words[word] |= 1 << UInt64(bit)
        #expect(throws: NestedTableError.ioError) { try SMMUNestedEntry(decoding: words) }
      }
    }
    for config: UInt64 in [1, 2, 3, 6, 7] {
      #expect(throws: NestedTableError.ioError) {
        try SMMUNestedEntry(decoding: Words2(config << 1 | 1, 0))
      }
    }
    for ats: UInt64 in 2...3 {
      #expect(throws: NestedTableError.ioError) {
        try SMMUNestedEntry(decoding: Words2(0xB, ats << 28))
      }
    }
  }

  // MARK: IOMMU_HWPT_DATA_AMD_GUEST

  @Test("B13: a guest's tables of AMD are nested over the parent's entry")
  func amd() throws {
    // PPR, GIoV, GV, GLX 2 and the GCR3 table; what else is set is not the user's.
    let user = try AMDNestedEntry(
      decoding: Words4(
        0x7ED0_0000_0000_0003, 0x8000_19F7_0001_4321, 0x2040_0000_0000_6573, ~0), .full)
    #expect(user.guestDomain == 0x4321)
    let parent = AMDDeviceTableEntry(
      Words4(0x6000_0000_1234_5803, 0x0000_0001_0000_0005, 0x1, 0))
    let entry = user.entry(parent: parent, domain: 0x77)
    #expect(
      entry.words
        == Words4(0x7ED0_0000_1234_5803, 0x8000_1801_0001_0077, 0x0040_0000_0000_0001, 0))
    #expect(entry.guestCR3Table == 0x0008_0001_8000_F000)
    try entry.check(.full)
    // Without V and GV it is nested all the same.
    let none = try AMDNestedEntry(decoding: Words4(0, 0, 0, 0), .full)
    #expect(none.entry(parent: parent, domain: 5).words[0] == 0x6080_0000_1234_5803)
  }

  @Test("B13: EINVAL and EOPNOTSUPP for a guest's entry, in Linux's order")
  func badAMD() throws {
    func decode(
      _ low: UInt64, third: UInt64 = 0, _ iommu: AMDCapabilities = .full
    ) throws(NestedTableError) {
      _ = try AMDNestedEntry(decoding: Words4(low, 0, third, 0), iommu)
    }
    let gcr3: UInt64 = 1 << 58
    let good = gcr3 | 1 << 55 | 1
    try decode(good)
    for bit: UInt64 in [9, 11, 12, 51] {
      #expect(throws: NestedTableError.invalid) { try decode(good | 1 << bit) }
    }
    // No GCR3 table counts with both V and GV.
    #expect(throws: NestedTableError.invalid) { try decode(good & ~gcr3) }
    try decode(1)
    try decode(1 << 55)
    for mode: UInt64 in 2...3 {
      #expect(throws: NestedTableError.invalid) { try decode(good, third: mode << 54) }
    }
    #expect(throws: NestedTableError.invalid) { try decode(good | 3 << 56) }
    let fourLevels = AMDCapabilities(rawValue: AMDCapabilities.full.rawValue & ~(3 << 12))
    #expect(throws: NestedTableError.notSupported) {
      try decode(good, third: 1 << 54, fourLevels)
    }
    #expect(throws: NestedTableError.invalid) {
      try decode(good | 3 << 56, third: 1 << 54, fourLevels)
    }
    try decode(good, third: 1 << 54)
  }

  @Test("B13: the errors are Linux's numbers")
  func errors() {
    #expect(NestedTableError.ioError.rawValue == 5 && NestedTableError.invalid.rawValue == 22)
    #expect(NestedTableError.notSupported.rawValue == 95)
  }

  // MARK: IOMMU_GET_HW_INFO

  @Test("B13: what is told of the hardware, as in memory")
  func information() {
    let intel = IntelHardwareInformation(
      capability: 0x1111, extended: 0x2222, hasReadOnlyErratum: true)
    #expect(intel.words == SIMD3(1, 0x1111, 0x2222))
    #expect(IntelHardwareInformation(decoding: intel.words) == intel)
    #expect(intel.capabilities.extended == 0x2222 && intel.capabilities.capability == 0x1111)

    let arm = SMMUHardwareInformation(
      idr: SIMD8(0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0xFF, 0xFF), iidr: 0x20, aidr: 0x21)
    #expect(
      arm.words
        == Words8(
          0, 0x11_0000_0010, 0x13_0000_0012, 0x15_0000_0014, 0x21_0000_0020, 0, 0, 0))
    #expect(SMMUHardwareInformation(decoding: arm.words) == arm)
    #expect(
      arm.capabilities == SMMUCapabilities(idr0: 0x10, idr1: 0x11, idr3: 0x13, idr5: 0x15))

    let amd = AMDHardwareInformation(efr: 0x53, efr2: 0x99)
    #expect(amd.words == Words2(0x53, 0x99))
    #expect(AMDHardwareInformation(decoding: amd.words) == amd)
    #expect(amd.capabilities.has(.prefetch))
  }
}
