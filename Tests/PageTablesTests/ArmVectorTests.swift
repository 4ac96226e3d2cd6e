// SPDX-License-Identifier: Apache-2.0
//
// The bits of Arm's stage 1 and stage 2 descriptors, written out by hand: DDI 0487 D8.3
// (figures of table, block and page descriptors), D8.4, D8.5, D8.7.1.

import Testing

@testable import PageTables

@Suite("B2: bits of Arm descriptors")
struct ArmVectorTests {
  @Test("B2: stage 1 with 4 KiB: pages, blocks of 2 MiB and 1 GiB, 16 contiguous entries")
  func stage1With4KiB() {
    let vectors = [
      // Valid page, AttrIndx 1, AP[1], inner shareable, AF, nG; UXN and PXN.
      LeafVector(
        address: 0x1_2345_6000, shift: 12, level: 1, permissions: .readWrite,
        entry: 0x0060_0001_2345_6F47),
      LeafVector(
        address: 0x1_2345_6000, shift: 12, level: 1, permissions: [.read, .execute],
        entry: 0x1_2345_6FC7),
      LeafVector(
        address: 0x1_2345_6000, shift: 12, level: 1, permissions: .write,
        entry: 0x0060_0001_2345_6F47),
      LeafVector(
        address: 0x1_2345_0000, shift: 16, level: 1, permissions: .readWrite,
        entry: 0x0070_0001_2345_0F47),
      LeafVector(
        address: 0x1_2340_0000, shift: 21, level: 2, permissions: .readWrite,
        entry: 0x0060_0001_2340_0F45),
      LeafVector(
        address: 0x1_2200_0000, shift: 25, level: 2, permissions: .read,
        entry: 0x0070_0001_2200_0FC5),
      LeafVector(
        address: 0x1_4000_0000, shift: 30, level: 3, permissions: .readWrite,
        entry: 0x0060_0001_4000_0F45),
      LeafVector(
        address: 0x4_0000_0000, shift: 34, level: 3, permissions: .readWrite,
        entry: 0x0070_0004_0000_0F45),
    ]
    for vector in vectors { check(vector, ArmStage1<Granule4KiB>.self) }
    let privileged = LeafVector(
      address: 0x1_2345_6000, shift: 12, level: 1, permissions: .readWrite,
      attributes: .privileged, entry: 0x0060_0001_2345_6F07)
    check(
      privileged, ArmStage1<Granule4KiB>.self, allows: [.privilegedRead, .privilegedWrite])
  }

  @Test(
    "B2: stage 1 with 16 KiB: 128 contiguous pages of 16 KiB, 32 contiguous blocks of 32 MiB")
  func stage1With16KiB() {
    let vectors = [
      LeafVector(
        address: 0x1_2345_4000, shift: 14, level: 1, permissions: .readWrite,
        entry: 0x0060_0001_2345_4F47),
      LeafVector(
        address: 0x1_2340_0000, shift: 21, level: 1, permissions: .readWrite,
        entry: 0x0070_0001_2340_0F47),
      LeafVector(
        address: 0x1_2200_0000, shift: 25, level: 2, permissions: .readWrite,
        entry: 0x0060_0001_2200_0F45),
      LeafVector(
        address: 0x1_4000_0000, shift: 30, level: 2, permissions: .readWrite,
        entry: 0x0070_0001_4000_0F45),
    ]
    for vector in vectors { check(vector, ArmStage1<Granule16KiB>.self) }
  }

  @Test("B2: stage 1 with 64 KiB: 32 contiguous entries, and 52 bits with 51:48 in bits 15:12")
  func stage1With64KiB() {
    let vectors = [
      LeafVector(
        address: 0x1_2345_0000, shift: 16, level: 1, permissions: .readWrite,
        entry: 0x0060_0001_2345_0F47),
      LeafVector(
        address: 0x1_2340_0000, shift: 21, level: 1, permissions: .readWrite,
        entry: 0x0070_0001_2340_0F47),
      LeafVector(
        address: 0x1_2000_0000, shift: 29, level: 2, permissions: .readWrite,
        entry: 0x0060_0001_2000_0F45),
      LeafVector(
        address: 0x4_0000_0000, shift: 34, level: 2, permissions: .readWrite,
        entry: 0x0070_0004_0000_0F45),
    ]
    for vector in vectors { check(vector, ArmStage1<Granule64KiB>.self) }
    typealias Format = ArmStage1<Granule64KiB>
    let wide = ArmStage1Switches(updatesAccessFlag: false, outputBits: 52)
    check(
      LeafVector(
        address: 0xF_1234_5678_0000, shift: 16, level: 1, permissions: .readWrite,
        entry: 0x0060_1234_5678_FF47), Format.self, wide)
    check(
      LeafVector(
        address: 0xA_1234_4000_0000, shift: 29, level: 2, permissions: .readWrite,
        entry: 0x0060_1234_4000_AF45), Format.self, wide)
    // A block of 4 TiB, which 48 bits do not have.
    let block = LeafVector(
      address: 0xA_0400_0000_0000, shift: 42, level: 3, permissions: .readWrite,
      entry: 0x0060_0400_0000_AF45)
    read(block, Format.self, wide)
    #expect(Format.defect(block.entry, level: 3, .init()) == .notPresent)
    #expect(Format.address(0x1234_5678_F003, .init()) == 0x1234_5678_0000)
    #expect(Format.address(0x1234_5678_F003, wide) == 0xF_1234_5678_0000)
  }

  @Test("B2: stage 2: S2AP, MemAttr 1111, XN[1]; reads and writes apart")
  func stage2() {
    let vectors = [
      LeafVector(
        address: 0x1_2345_6000, shift: 12, level: 1, permissions: .readWrite,
        entry: 0x0040_0001_2345_67FF),
      LeafVector(
        address: 0x1_2345_6000, shift: 12, level: 1, permissions: [.read, .execute],
        entry: 0x1_2345_677F),
      LeafVector(
        address: 0x1_2345_6000, shift: 12, level: 1, permissions: .write,
        entry: 0x0040_0001_2345_67BF),
      LeafVector(
        address: 0x1_2340_0000, shift: 21, level: 2, permissions: .readWrite,
        entry: 0x0040_0001_2340_07FD),
    ]
    for vector in vectors { check(vector, ArmStage2<Granule4KiB>.self) }
    typealias Format = ArmStage2<Granule4KiB>
    func executes(_ field: UInt64, xnx: Bool) -> Rights {
      var switches = ArmStage2Switches()
      switches.distinguishesExecution = xnx
      return Format.rights(0x7FF | field << 53, level: 1, switches).intersection(.executes)
    }
    // D8.4.2.3: XN[1:0].
    #expect(
      (0...3).map { executes($0, xnx: true) } == [
        .executes, .userExecute, [], .privilegedExecute,
      ])
    #expect((0...3).map { executes($0, xnx: false) } == [.executes, .executes, [], []])
  }

  @Test("B2: table descriptors are 11; a page is 11 and its 01 a translation fault")
  func types() {
    typealias Format = ArmStage1<Granule4KiB>
    for level in 2...4 {
      #expect(Format.tableEntry(0x7F12_3456_7000, level: level) == 0x7F12_3456_7003)
      #expect(!Format.isLeaf(0x7F12_3456_7003, level: level))
      #expect(!Format.refuses(0x7F12_3456_7003, level: level))
    }
    #expect(!Format.isPresent(0x7F12_3456_7002))
    #expect(Format.defect(0x401, level: 1, .init()) == .notPresent)
    #expect(Format.defect(0x401, level: 4, .init()) == .notPresent, "no blocks at level 0")
    #expect(Format.defect(0x401, level: 3, .init()) == nil)
    #expect(ArmStage1<Granule16KiB>.defect(0x401, level: 3, .init()) == .notPresent)
    #expect(ArmStage1<Granule64KiB>.defect(0x401, level: 3, .init()) == .notPresent)
    #expect(ArmStage1<Granule16KiB>.defect(0x401, level: 2, .init()) == nil)
  }

  @Test("B2: hierarchical permissions: APTable[1:0], UXNTable, PXNTable, and HPD (D8.4.1.3)")
  func hierarchy() {
    typealias Format = ArmStage1<Granule4KiB>
    func rights(_ bit: UInt64, _ switches: ArmStage1Switches = .init()) -> Rights {
      Format.rights(0x1003 | 1 << bit, level: 2, switches)
    }
    #expect(rights(59) == .all.subtracting(.privilegedExecute))
    #expect(rights(60) == .all.subtracting(.userExecute))
    #expect(rights(61) == .all.subtracting([.userRead, .userWrite]))
    #expect(rights(62) == .all.subtracting(.writes))
    #expect(rights(63) == .all, "NSTable")
    var flat = ArmStage1Switches()
    flat.ignoresTablePermissions = true
    for bit in 59...62 as ClosedRange<UInt64> { #expect(rights(bit, flat) == .all) }
  }

  @Test("B2: stage 1 permissions: AP, UXN, PXN, then WXN and PAN (tables in D8.4.1.2)")
  func permissions() {
    typealias Format = ArmStage1<Granule4KiB>
    func rights(_ bits: UInt64, _ switches: ArmStage1Switches = .init()) -> Rights {
      Format.effective(Format.rights(0x403 | bits, level: 1, switches), switches)
    }
    // AP 00: EL1 reads and writes, EL0 only executes. 01: both; EL1 never executes that.
    #expect(rights(0x00) == [.privilegedRead, .privilegedWrite, .executes])
    #expect(rights(0x40) == .all.subtracting(.privilegedExecute))
    #expect(rights(0x80) == [.privilegedRead, .executes])
    #expect(rights(0xC0) == [.privilegedRead, .userRead, .executes])
    #expect(rights(0xC0 | 1 << 53) == [.privilegedRead, .userRead, .userExecute])
    #expect(rights(0xC0 | 1 << 54) == [.privilegedRead, .userRead, .privilegedExecute])
    var wxn = ArmStage1Switches()
    wxn.neverExecutesWritable = true
    #expect(rights(0x00, wxn) == [.privilegedRead, .privilegedWrite, .userExecute])
    #expect(rights(0x40, wxn) == .all.subtracting(.executes))
    var pan = ArmStage1Switches()
    pan.preventsPrivilegedAccess = true
    #expect(rights(0xC0, pan) == [.userRead, .executes])
    #expect(rights(0x00, pan) == [.privilegedRead, .privilegedWrite, .executes])
  }

  @Test("I1: HA sets AF; HD with DBM clears AP[2], sets S2AP[1] (D8.5)")
  func marks() {
    typealias First = ArmStage1<Granule4KiB>
    typealias Second = ArmStage2<Granule4KiB>
    let dirty = ArmStage1Switches(updatesAccessFlag: true, updatesDirtyState: true)
    let dirty2 = ArmStage2Switches(updatesAccessFlag: true, updatesDirtyState: true)
    let leaf = LeafVector(
      address: 0x1_2345_6000, shift: 12, level: 1, permissions: .readWrite,
      entry: 0x0068_0001_2345_6BC7)
    check(leaf, First.self, dirty)
    let read = First.marked(leaf.entry, level: 1, writes: false, dirty)
    let written = First.marked(leaf.entry, level: 1, writes: true, dirty)
    #expect(read == 0x0068_0001_2345_6FC7 && !First.isDirty(read))
    #expect(written == 0x0068_0001_2345_6F47 && First.isDirty(written))
    #expect(First.cleaned(written) == read)
    let leaf2 = LeafVector(
      address: 0x1_2345_6000, shift: 12, level: 1, permissions: .readWrite,
      entry: 0x0048_0001_2345_637F)
    check(leaf2, Second.self, dirty2)
    let written2 = Second.marked(leaf2.entry, level: 1, writes: true, dirty2)
    #expect(written2 == 0x0048_0001_2345_67FF && Second.isDirty(written2))
    #expect(Second.cleaned(written2) == 0x0048_0001_2345_677F)
    // Without HD, DBM is ignored; HD without HA is off; tables are not marked.
    let accessed = ArmStage1Switches(updatesAccessFlag: true)
    #expect(First.marked(leaf.entry, level: 1, writes: true, accessed) == read)
    #expect(First.rights(leaf.entry, level: 1, accessed).isDisjoint(with: .writes))
    let neither = ArmStage1Switches(updatesAccessFlag: false, updatesDirtyState: true)
    #expect(First.rights(leaf.entry, level: 1, neither).isDisjoint(with: .writes))
    #expect(First.marked(0x1003, level: 2, writes: true, dirty) == 0x1003)
  }

  @Test("B2: faults: AF clear without HA, unless AFFD; outputs wider than IPS, in tables too")
  func faults() {
    typealias Format = ArmStage1<Granule4KiB>
    #expect(Format.defect(0x3, level: 1, .init()) == .accessFlag)
    #expect(Format.defect(0x3, level: 2, .init()) == nil, "tables have no AF")
    #expect(Format.defect(0x3, level: 1, .init(updatesAccessFlag: true)) == nil)
    var affd = ArmStage1Switches()
    affd.ignoresAccessFlag = true
    #expect(Format.defect(0x3, level: 1, affd) == nil)
    let narrow = ArmStage1Switches(updatesAccessFlag: false, outputBits: 36)
    for level in 1...4 {
      #expect(Format.defect(0x10_0000_0403, level: level, narrow) == .addressSize)
      #expect(Format.defect(0x8_0000_0403, level: level, narrow) == nil)
    }
    #expect(Format.defect(0x10_0000_0003, level: 1, narrow) == .addressSize, "before AF")
  }

  @Test("B2: levels and widths: TxSZ gives the start level; stage 2 concatenates up to 16")
  func geometry() {
    typealias Four = ArmStage1<Granule4KiB>
    // D8.2.1: 4 KiB: 25 bits begin at level 2, 31 at level 1, 40 and more at level 0.
    #expect(
      [25, 30, 31, 39, 40, 48].map { Four.levels(addressBits: $0) } == [2, 2, 3, 3, 4, 4])
    #expect(
      [36, 37, 47, 48].map { ArmStage1<Granule16KiB>.levels(addressBits: $0) } == [2, 3, 3, 4])
    #expect(
      [29, 30, 42, 43, 52].map { ArmStage1<Granule64KiB>.levels(addressBits: $0) }
        == [1, 2, 2, 3, 3])
    func root2(_ bits: Int, _ levels: Int, _ address: UInt64) -> Bool {
      TableRoot<ArmStage2<Granule4KiB>>(
        address: address, levels: levels, addressBits: bits, configuration: .init()) != nil
    }
    // 40 bits at level 1: two tables side by side, aligned to 8 KiB; at most 43 bits.
    #expect(root2(40, 3, 0x2000) && !root2(40, 3, 0x1000) && root2(40, 4, 0x1000))
    #expect(root2(43, 3, 0x1_0000) && !root2(43, 3, 0x8000) && !root2(44, 3, 0x10_0000))
    #expect(!root2(39, 4, 0x1000), "a level that translates nothing")
    // A root of few entries is aligned to its size, and to 64 bytes.
    func root1(_ bits: Int, _ address: UInt64) -> Bool {
      TableRoot<Four>(
        address: address, levels: 3, addressBits: bits, configuration: .init()) != nil
    }
    #expect(root1(32, 0x40) && !root1(32, 0x20) && root1(39, 0x1000) && !root1(39, 0x800))
    #expect(!root1(40, 0x1000), "stage 1 does not concatenate")
  }
}
