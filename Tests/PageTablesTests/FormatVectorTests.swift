// SPDX-License-Identifier: Apache-2.0
//
// The bits of each format, written out by hand from the specifications.

import Testing

@testable import PageTables

@Suite("B: bits of page-table entries")
struct FormatVectorTests {
  @Test(
    "B: Intel second-stage leaves have R, W, PS and SNP where VT-d 9.8 puts them",
    arguments: [
      LeafVector(
        address: 0x1_2345_6000, shift: 12, level: 1, permissions: .readWrite,
        entry: 0x1_2345_6003),
      LeafVector(
        address: 0x1_2345_6000, shift: 12, level: 1, permissions: .read, entry: 0x1_2345_6001),
      LeafVector(
        address: 0x1_2345_6000, shift: 12, level: 1, permissions: .write,
        attributes: .forceSnoop, entry: 0x1_2345_6802),
      LeafVector(
        address: 0x1_2340_0000, shift: 21, level: 2, permissions: .readWrite,
        entry: 0x1_2340_0083),
      LeafVector(
        address: 0xF_FFFF_C000_0000, shift: 30, level: 3, permissions: .read,
        attributes: .forceSnoop, entry: 0xF_FFFF_C000_0881),
    ])
  func intelLeaves(leaf: LeafVector) {
    check(leaf, IntelSecondStage.self)
  }

  @Test("B: an Intel table pointer has R and W and no PS, at every level")
  func intelTables() {
    for level in 2...5 {
      let entry = IntelSecondStage.tableEntry(0x7F12_3456_7000, level: level)
      #expect(entry == 0x7F12_3456_7003)
      #expect(!IntelSecondStage.isLeaf(entry, level: level))
      #expect(!IntelSecondStage.refuses(entry, level: level))
      #expect(IntelSecondStage.address(entry, .init()) == 0x7F12_3456_7000)
    }
  }

  @Test("B: Intel reserves PS above 1 GiB leaves and address bits below a leaf's alignment")
  func intelReserved() {
    #expect(IntelSecondStage.refuses(0x83, level: 4))
    #expect(IntelSecondStage.refuses(0x83, level: 5))
    #expect(!IntelSecondStage.refuses(0x83, level: 3))
    #expect(IntelSecondStage.refuses(0x1083, level: 2))
    #expect(IntelSecondStage.refuses(0x20_0083, level: 3))
    #expect(!IntelSecondStage.refuses(0x20_0083, level: 2))
    #expect(!IntelSecondStage.refuses(0x1083, level: 1), "PS is ignored in SS-PTE")
    #expect(!IntelSecondStage.isPresent(0x1_2345_6880), "neither R nor W: not present")
  }

  @Test(
    "B: AMD v1 leaves encode their size in next level and address (48882, 2.2.3)",
    arguments: [
      LeafVector(
        address: 0x1_2345_6000, shift: 12, level: 1, permissions: .readWrite,
        entry: 0x6000_0001_2345_6001),
      LeafVector(
        address: 0x1_2345_6000, shift: 12, level: 1, permissions: .read,
        attributes: .forceSnoop, entry: 0x3000_0001_2345_6001),
      // 8 KiB: bit 12 clear. 16 KiB: bit 12 set, 13 clear. 64 KiB: 12 to 14 set, 15 clear.
      LeafVector(
        address: 0x1_2345_6000, shift: 13, level: 1, permissions: .write,
        entry: 0x4000_0001_2345_6E01),
      LeafVector(
        address: 0x1_2345_4000, shift: 14, level: 1, permissions: .readWrite,
        entry: 0x6000_0001_2345_5E01),
      LeafVector(
        address: 0x1_2345_0000, shift: 16, level: 1, permissions: .readWrite,
        entry: 0x6000_0001_2345_7E01),
      LeafVector(
        address: 0x1_2340_0000, shift: 20, level: 1, permissions: .readWrite,
        entry: 0x6000_0001_2347_FE01),
      LeafVector(
        address: 0x1_2340_0000, shift: 21, level: 2, permissions: .readWrite,
        entry: 0x6000_0001_2340_0001),
      LeafVector(
        address: 0x1_2340_0000, shift: 22, level: 2, permissions: .readWrite,
        entry: 0x6000_0001_234F_FE01 | 0x10_0000),
      LeafVector(
        address: 0x1_4000_0000, shift: 30, level: 3, permissions: .readWrite,
        entry: 0x6000_0001_4000_0001),
      LeafVector(
        address: 0x1_0000_0000, shift: 32, level: 3, permissions: .readWrite,
        entry: 0x6000_0001_7FFF_FE01),
      LeafVector(
        address: 0x8_0000_0000_0000, shift: 51, level: 5, permissions: .readWrite,
        entry: 0x600B_FFFF_FFFF_FE01),
    ])
  func amdLeaves(leaf: LeafVector) {
    check(leaf, AMDv1.self)
  }

  @Test("B: an AMD table pointer names the level below, with IR and IW set")
  func amdTables() {
    for level in 2...6 {
      let entry = AMDv1.tableEntry(0x7F12_3456_7000, level: level)
      #expect(entry == 0x6000_7F12_3456_7001 | UInt64(level - 1) << 9)
      #expect(!AMDv1.isLeaf(entry, level: level))
      #expect(!AMDv1.refuses(entry, level: level))
      #expect(AMDv1.address(entry, .init()) == 0x7F12_3456_7000)
    }
  }

  @Test("B: AMD refuses a next level that is not below, and sizes of other levels")
  func amdReserved() {
    #expect(AMDv1.refuses(0x6000_0000_0000_1201, level: 1), "a table under level 1")
    #expect(AMDv1.refuses(0x6000_0000_0000_1601, level: 3), "level 3 points to 3")
    #expect(!AMDv1.refuses(0x6000_0000_0000_1201, level: 3), "a skipped level")
    #expect(AMDv1.refuses(0x6000_0000_0000_0E01, level: 2), "8 KiB at level 2")
    #expect(AMDv1.refuses(0x6000_0000_000F_FE01, level: 1), "2 MiB encoded at level 1")
    #expect(AMDv1.refuses(0x600F_FFFF_FFFF_FE01, level: 5), "no clear bit")
    #expect(AMDv1.refuses(0x6000_0000_0000_1001, level: 2), "2 MiB leaf off alignment")
    #expect(AMDv1.refuses(0x6000_0000_0000_0001, level: 6), "128 PiB leaf")
  }

  @Test("B: address widths and page sizes follow from the levels")
  func geometry() {
    #expect((3...5).map { IntelSecondStage.addressBits(levels: $0) } == [39, 48, 57])
    #expect((1...6).map { AMDv1.addressBits(levels: $0) } == [21, 30, 39, 48, 57, 64])
    #expect(IntelSecondStage.pageSizes(levels: 4).rawValue == 0x4020_1000)
    #expect(AMDv1.pageSizes(levels: 1).rawValue == 0x1F_F000)
    #expect(AMDv1.pageSizes(levels: 6).rawValue == 0xF_FFFF_FFFF_F000)
  }
}
