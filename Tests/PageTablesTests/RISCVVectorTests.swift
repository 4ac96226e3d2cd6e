// SPDX-License-Identifier: Apache-2.0
//
// The bits of RISC-V's entries, written out by hand: Privileged Architecture 10.4.1 (figure of
// the Sv39 entry), 11.1 (Svnapot), 12 (Svpbmt), 18.5 (G-stage).

import Testing

@testable import PageTables

@Suite("B2: bits of RISC-V page-table entries")
struct RISCVVectorTests {
  static let leaves = [
    // V, R, W, U, A, D; the page number from bit 10.
    LeafVector(
      address: 0x1_2345_6000, shift: 12, level: 1, permissions: .readWrite, entry: 0x48D1_58D7),
    LeafVector(
      address: 0x1_2345_6000, shift: 12, level: 1, permissions: [.read, .execute],
      entry: 0x48D1_585B),
    LeafVector(
      address: 0x1_2345_6000, shift: 12, level: 1, permissions: .write, entry: 0x48D1_58D7),
    LeafVector(
      address: 0xFF_FFFF_FFFF_F000, shift: 12, level: 1, permissions: .readWrite,
      entry: 0x003F_FFFF_FFFF_FCD7),
    // N, and 1000 in the low bits of the page number.
    LeafVector(
      address: 0x1_2345_0000, shift: 16, level: 1, permissions: .readWrite,
      entry: 0x8000_0000_48D1_60D7),
    LeafVector(
      address: 0x1_2340_0000, shift: 21, level: 2, permissions: .readWrite, entry: 0x48D0_00D7),
    LeafVector(
      address: 0x1_4000_0000, shift: 30, level: 3, permissions: .readWrite, entry: 0x5000_00D7),
    LeafVector(
      address: 0x80_0000_0000, shift: 39, level: 4, permissions: .readWrite,
      entry: 0x20_0000_00D7),
    LeafVector(
      address: 0x1_0000_0000_0000, shift: 48, level: 5, permissions: .read,
      entry: 0x4000_0000_0053),
  ]

  @Test(
    "B2: leaves of every size have their bits where 10.4.1 and 11.1 put them", arguments: leaves
  )
  func leaf(leaf: LeafVector) {
    check(leaf, RISCVFirstStage.self)
    check(leaf, RISCVSecondStage.self)
  }

  @Test("B2: with SADE or GADE leaves begin without A and D (Svadu)")
  func updated() {
    let leaf = LeafVector(
      address: 0x1_2345_6000, shift: 12, level: 1, permissions: .readWrite, entry: 0x48D1_5817)
    check(leaf, RISCVFirstStage.self, .init(updates: true))
    #expect(
      RISCVFirstStage.marked(leaf.entry, level: 1, writes: false, .init(updates: true))
        == 0x48D1_5857)
    #expect(
      RISCVFirstStage.marked(leaf.entry, level: 1, writes: true, .init(updates: true))
        == 0x48D1_58D7)
    #expect(RISCVFirstStage.marked(0x1, level: 2, writes: true, .init(updates: true)) == 0x1)
    #expect(RISCVFirstStage.leafDefect(0x17, level: 1, writes: false, .init()) == .accessFlag)
    #expect(RISCVFirstStage.leafDefect(0x57, level: 1, writes: false, .init()) == nil)
    #expect(RISCVFirstStage.leafDefect(0x57, level: 1, writes: true, .init()) == .dirtyFlag)
  }

  @Test("B2: U, SUM and privileged execution (10.3.1); the second stage asks for U (18.5.1)")
  func privilege() {
    func first(_ entry: UInt64, sum: Bool = false) -> Rights {
      RISCVFirstStage.rights(
        entry, level: 1, .init(updates: false, supervisorUserAccess: sum))
    }
    #expect(first(0xDF) == .user)
    #expect(first(0xDF, sum: true) == .all.subtracting(.privilegedExecute))
    #expect(first(0xCF) == .privileged)
    #expect(first(0xCF, sum: true) == .privileged)
    #expect(RISCVSecondStage.rights(0xDF, level: 1, .init()) == .all)
    #expect(RISCVSecondStage.rights(0xCF, level: 1, .init()) == [])
    check(
      LeafVector(
        address: 0x1_2345_6000, shift: 12, level: 1, permissions: .readWrite,
        attributes: .privileged, entry: 0x48D1_58C7),
      RISCVFirstStage.self, allows: [.privilegedRead, .privilegedWrite])
  }

  @Test("B2: a table pointer has V alone")
  func tables() {
    for level in 2...5 {
      let entry = RISCVFirstStage.tableEntry(0x7F12_3456_7000, level: level)
      #expect(entry == 0x1FC4_8D15_9C01)
      #expect(!RISCVFirstStage.isLeaf(entry, level: level))
      #expect(!RISCVFirstStage.refuses(entry, level: level))
      #expect(RISCVFirstStage.address(entry, .init()) == 0x7F12_3456_7000)
    }
  }

  @Test("B2: reserved: W without R, bits 60:54, PBMT 3, and A, D, U, N, PBMT in table pointers")
  func reserved() {
    for level in 1...5 {
      #expect(
        RISCVFirstStage.refuses(0x5, level: level) && RISCVFirstStage.refuses(0xD, level: level)
      )
      for bit in 54...60 as ClosedRange<UInt64> {
        #expect(RISCVFirstStage.refuses(0xDF | 1 << bit, level: level))
        #expect(RISCVSecondStage.refuses(0x1 | 1 << bit, level: level))
      }
      #expect(RISCVFirstStage.refuses(0xDF | 3 << 61, level: level))
      #expect(!RISCVFirstStage.refuses(0xDF | 1 << 61, level: level))
      #expect(!RISCVFirstStage.refuses(0xDF | 2 << 61, level: level))
      #expect(
        RISCVFirstStage.refuses(
          0xDF | 1 << 61, level: level, .init(updates: false, memoryTypes: false)))
    }
    for level in 2...5 {
      for bit in [4, 6, 7, 61, 62, 63] as [UInt64] {
        #expect(RISCVFirstStage.refuses(0x1 | 1 << bit, level: level))
      }
      for bit in [5, 8, 9] as [UInt64] {
        #expect(!RISCVFirstStage.refuses(0x1 | 1 << bit, level: level), "G and RSW")
      }
      #expect(RISCVFirstStage.refuses(0xDF | 1 << 63, level: level), "N above level 1")
    }
    #expect(RISCVFirstStage.defect(0x1, level: 1, .init()) == .notPresent)
  }

  @Test("B2: a misaligned superpage, and every Svnapot size but 64 KiB, faults (10.3.2, 11.1)")
  func misaligned() {
    for level in 2...5 {
      for bit in 0..<9 * (level - 1) {
        #expect(
          RISCVFirstStage.leafDefect(
            0xDF | 1 << UInt64(10 + bit), level: level, writes: false, .init()) == .misaligned)
      }
    }
    for size in 0...15 as ClosedRange<UInt64> {
      #expect(
        RISCVSecondStage.leafDefect(
          0xDF | 1 << 63 | size << 10, level: 1, writes: false, .init())
          == (size == 8 ? nil : .reservedBits))
    }
  }

  @Test("B2: Sv39, 48, 57 are canonical; x4 adds two bits and a root of 16 KiB (18.5)")
  func geometry() {
    #expect((3...5).map { RISCVFirstStage.addressBits(levels: $0) } == [39, 48, 57])
    #expect((3...5).map { RISCVSecondStage.addressBits(levels: $0) } == [41, 50, 59])
    #expect(RISCVFirstStage.pageSizes(levels: 3).rawValue == 0x4021_1000)
    #expect(RISCVSecondStage.pageSizes(levels: 5).rawValue == 0x1_0080_4021_1000)
    #expect(PageTable<RISCVSecondStage>(levels: 4).rootPages == 4)
    func root(_ address: UInt64) -> Bool {
      TableRoot<RISCVSecondStage>(address: address, levels: 3, configuration: .init()) != nil
    }
    #expect(root(0x4000) && !root(0x1000) && !root(1 << 56))
  }
}
