// SPDX-License-Identifier: Apache-2.0
//
// The bits of Intel's first stage and AMD's guest tables, written out by hand: VT-d 9.7, Intel
// SDM volume 3 4.5 (figure 4-11), AMD64 APM volume 2 5.3.

import Testing

@testable import PageTables

@Suite("B2: bits of x86-64 page-table entries")
struct X86VectorTests {
  static let leaves = [
    LeafVector(
      address: 0x1_2345_6000, shift: 12, level: 1, permissions: .readWrite,
      entry: 0x8000_0001_2345_6007),
    LeafVector(
      address: 0x1_2345_6000, shift: 12, level: 1, permissions: [.read, .execute],
      entry: 0x1_2345_6005),
    LeafVector(
      address: 0x1_2345_6000, shift: 12, level: 1, permissions: .write,
      entry: 0x8000_0001_2345_6007),
    LeafVector(
      address: 0x1_2340_0000, shift: 21, level: 2, permissions: .readWrite,
      entry: 0x8000_0001_2340_0087),
    LeafVector(
      address: 0xF_FFFF_C000_0000, shift: 30, level: 3, permissions: [.read, .execute],
      entry: 0xF_FFFF_C000_0085),
  ]

  @Test(
    "B2: leaves have P, R/W, U/S, PS and XD where VT-d 9.7 and APM 5.3 put them",
    arguments: leaves)
  func leaf(leaf: LeafVector) {
    check(leaf, IntelFirstStage.self)
    check(leaf, AMDv2.self)
  }

  @Test(
    "B2: U/S clear is for privileged requests; what they may do goes by R/W and XD (SDM 4.6)")
  func privileged() {
    let leaf = LeafVector(
      address: 0x1_2345_6000, shift: 12, level: 1, permissions: .readWrite,
      attributes: .privileged, entry: 0x8000_0001_2345_6003)
    check(leaf, IntelFirstStage.self, allows: [.privilegedRead, .privilegedWrite])
    check(leaf, AMDv2.self, allows: [.privilegedRead, .privilegedWrite])
    func rights(_ entry: UInt64, _ switches: X86Switches = .init()) -> Rights {
      IntelFirstStage.effective(
        IntelFirstStage.rights(entry, level: 1, switches), switches)
    }
    #expect(rights(0x1) == [.privilegedRead, .privilegedExecute])
    #expect(rights(0x5) == [.userRead, .userExecute, .privilegedRead, .privilegedExecute])
    #expect(rights(0x7) == .all)
    #expect(rights(0x8000_0000_0000_0007) == .all.subtracting(.executes))
    // CR0.WP clear: privileged requests write what is read only.
    #expect(rights(0x1, .init(writeProtects: false)) == .privileged)
    // SMEP: no privileged execution of what unprivileged requests reach.
    let smep = X86Switches(writeProtects: true, preventsSupervisorExecution: true)
    #expect(rights(0x7, smep) == .all.subtracting(.privilegedExecute))
    #expect(rights(0x3, smep) == .privileged)
  }

  @Test("B2: a table pointer has P, R/W, U/S and no more, at every level")
  func tables() {
    for level in 2...5 {
      #expect(IntelFirstStage.tableEntry(0x7F12_3456_7000, level: level) == 0x7F12_3456_7007)
      #expect(!IntelFirstStage.isLeaf(0x7F12_3456_7007, level: level))
      #expect(!AMDv2.refuses(0x7F12_3456_7007, level: level))
    }
  }

  @Test("B2: reserved: PS in PML5E and PML4E, low bits of large leaves, width, XD without NXE")
  func reserved() {
    for level in 4...5 {
      #expect(IntelFirstStage.refuses(0x87, level: level))
      #expect(AMDv2.refuses(0x87, level: level))
      // Bit 8 is ignored by Intel (SDM table 4-15), and must be zero for AMD (APM 5.3.3).
      #expect(!IntelFirstStage.refuses(0x107, level: level))
      #expect(AMDv2.refuses(0x107, level: level))
    }
    #expect(!AMDv2.refuses(0x107, level: 3))
    for bit in 13..<30 as Range<UInt64> {
      #expect(IntelFirstStage.refuses(0x87 | 1 << bit, level: 3))
      #expect(IntelFirstStage.refuses(0x87 | 1 << bit, level: 2) == (bit < 21))
      #expect(!IntelFirstStage.refuses(0x87 | 1 << bit, level: 1))
    }
    // Bit 12 of a large leaf is PAT, no address.
    #expect(!IntelFirstStage.refuses(0x1087, level: 2))
    #expect(
      IntelFirstStage.address(0x1087, .init()) & ~IntelFirstStage.leafMask(0x1087, level: 2)
        == 0)
    for level in 1...5 {
      let narrow = X86Switches(writeProtects: true, physicalBits: 39)
      #expect(IntelFirstStage.refuses(0x80_0000_0007, level: level, narrow))
      #expect(!IntelFirstStage.refuses(0x40_0000_0007, level: level, narrow))
      #expect(
        !IntelFirstStage.refuses(0x7FF0_0000_0000_0007, level: level), "52 to 62: ignored")
      #expect(!IntelFirstStage.refuses(0x8000_0000_0000_0007, level: level))
      let old = X86Switches(writeProtects: true, noExecute: false)
      #expect(IntelFirstStage.refuses(0x8000_0000_0000_0007, level: level, old))
    }
  }

  @Test("I1: A is bit 5 at every level, D bit 6 of leaves, EA bit 10 where enabled (VT-d 9.7)")
  func marks() {
    #expect(IntelFirstStage.marked(0x7, level: 4, writes: true, .init()) == 0x27)
    #expect(IntelFirstStage.marked(0x7, level: 1, writes: false, .init()) == 0x27)
    #expect(IntelFirstStage.marked(0x7, level: 1, writes: true, .init()) == 0x67)
    #expect(AMDv2.marked(0x87, level: 2, writes: true, .init()) == 0xE7)
    let extended = X86Switches(writeProtects: true, extendedAccess: true)
    #expect(IntelFirstStage.marked(0x7, level: 3, writes: false, extended) == 0x427)
  }

  @Test("B2: 4 levels translate 48 bits and 5 translate 57, canonical, with three leaf sizes")
  func geometry() {
    #expect([4, 5].map { IntelFirstStage.addressBits(levels: $0) } == [48, 57])
    #expect(AMDv2.pageSizes(levels: 4).rawValue == 0x4020_1000)
    #expect(IntelFirstStage.addressExtension == .sign && AMDv2.addressExtension == .sign)
  }
}
