// SPDX-License-Identifier: Apache-2.0
//
// A user's table on a parent: what both allow, which of them failed, and how many entries are
// fetched.

import Testing

@testable import PageTables

@Suite("B5: two-stage walks")
struct TwoStageTests {
  /// The user's tables at 0x1000 to 0x4000 and page at 0x9000, which the parent keeps 0x100000
  /// higher.
  static func parent<Format: PageTableFormat>(
    _ format: Format.Type, levels: Int, keepsDirty: Bool = false,
    tables: Permissions = .readWrite, page: Permissions = [.read, .write, .execute]
  ) throws -> PageTable<Format> {
    var table = PageTable<Format>(levels: levels, keepsDirty: keepsDirty)
    var gather = TableGather()
    try table.map(
      IOVA(0x1000), to: PhysicalAddress(0x10_1000), length: 0x4000, permissions: tables,
      gather: &gather)
    try table.map(
      IOVA(0x9000), to: PhysicalAddress(0x10_9000), length: 0x1000, permissions: page,
      gather: &gather)
    return table
  }

  static func first() -> (TableRoot<IntelFirstStage>, Words) {
    let words = Words()
    words.words = [
      0x10_1000: 0x2007, 0x10_2000: 0x3007, 0x10_3000: 0x4007, 0x10_4000: 0x9007,
    ]
    return (TableRoot(address: 0x1000, levels: 4, configuration: X86Switches())!, words)
  }

  @Test("B5: every table and the page go through the parent")
  func both() throws {
    let (root, words) = Self.first()
    let parent = try Self.parent(IntelSecondStage.self, levels: 4)
    let found = try root.walk(
      IOVA(0x123), for: Access(.write), through: parent.root, in: words)
    #expect(found.physical.rawValue == 0x10_9123 && found.leafShift == 12)
    #expect(words.word(0x10_4000) == 0x9067, "marked where the parent says")
  }

  @Test("B5: 24 entries are fetched with 4 levels each, and no more")
  func fetches() throws {
    let (root, words) = Self.first()
    let parent = try Self.parent(IntelSecondStage.self, levels: 4)
    let tables = Words()
    func copy(_ address: UInt64, _ level: Int) {
      for index in 0..<512 {
        let entry = TablePage<IntelSecondStage>(address: address).load(index)
        tables.words[address + UInt64(index) * 8] = entry
        if entry != 0, !IntelSecondStage.isLeaf(entry, level: level) {
          copy(IntelSecondStage.address(entry, .init()), level - 1)
        }
      }
    }
    copy(parent.root.page.address, 4)
    let second = TableRoot<IntelSecondStage>(
      address: parent.root.page.address, levels: 4, configuration: .init())!
    // The second time nothing is left to mark.
    for _ in 0..<2 {
      words.loads = 0
      tables.loads = 0
      let found = try root.walk(
        IOVA(0x123), for: Access(.write), through: second, tables: tables, in: words)
      #expect(found.physical.rawValue == 0x10_9123)
    }
    #expect(words.loads == 4 && tables.loads == 20)
  }

  @Test("B5: rights are those of both stages, the leaf the smaller")
  func rights() throws {
    let (root, words) = Self.first()
    let parent = try Self.parent(ArmStage2<Granule4KiB>.self, levels: 4, page: .read)
    let found = try root.walk(IOVA(0), for: Access(.read), through: parent.root, in: words)
    #expect(found.rights == [.userRead, .privilegedRead])
    let refused = fault {
      try root.walk(IOVA(0x123), for: Access(.write), through: parent.root, in: words)
    }
    #expect(refused?.reason == .permission && refused?.stage == .second)
    #expect(refused?.ipa == 0x9123 && refused?.isTableFetch == false)
    words.words[0x10_3000] = 0x87
    var wide = try Self.parent(AMDv1.self, levels: 4)
    var gather = TableGather()
    try wide.map(
      IOVA(0x10000), to: PhysicalAddress(0x30000), length: 0x10000, permissions: .read,
      gather: &gather)
    let large = try root.walk(
      IOVA(0x1_2345), for: Access(.read), through: wide.root, in: words)
    #expect(large.physical.rawValue == 0x3_2345 && large.leafShift == 16)
  }

  @Test("B5: a table out of the parent's reach: second stage, its address, the level fetched")
  func tableFetch() throws {
    for level in 1...4 {
      let (root, words) = Self.first()
      let parent = try Self.parent(IntelSecondStage.self, levels: 4)
      guard level < 4 else {
        let away = TableRoot<IntelFirstStage>(
          address: 0x7000, levels: 4, configuration: X86Switches())!
        let found = fault {
          try away.walk(IOVA(0), for: Access(.read), through: parent.root, in: words)
        }
        #expect(found?.stage == .second && found?.tableLevel == 4 && found?.ipa == 0x7000)
        continue
      }
      words.words[UInt64(0x10_0000 + (4 - level) << 12)] = 0x7007
      let found = fault {
        try root.walk(IOVA(0x8), for: Access(.read), through: parent.root, in: words)
      }
      #expect(found?.reason == .notPresent && found?.level == 1)
      #expect(found?.stage == .second && found?.isTableFetch == true)
      #expect(found?.tableLevel == UInt8(level) && found?.ipa == 0x7000)
      #expect(found?.isMarking == false)
    }
  }

  @Test("B5: marks in a table that the parent lets only be read: an implicit write")
  func implicitWrite() throws {
    let (root, words) = Self.first()
    let parent = try Self.parent(IntelSecondStage.self, levels: 4, tables: .read)
    let found = fault {
      try root.walk(IOVA(0), for: Access(.read), through: parent.root, in: words)
    }
    #expect(found?.reason == .permission && found?.stage == .second)
    #expect(found?.isMarking == true && found?.tableLevel == 4 && found?.ipa == 0x1000)
    // All marked already: reading is enough.
    for (place, entry) in words.words { words.words[place] = entry | 0x60 }
    _ = try root.walk(IOVA(0), for: Access(.write), through: parent.root, in: words)
  }

  /// RISC-V: tables at 0x1000 to 0x3000 in a parent that says what `bits` do of them.
  static func riscv(leaf: UInt64 = 0xDF, parentBits: UInt64) -> (user: Words, parent: Words) {
    let (user, parent) = (Words(), Words())
    user.words = [
      0x10_1000: 0x2 << 10 | 1, 0x10_2000: 0x3 << 10 | 1, 0x10_3000: 0x9 << 10 | leaf,
    ]
    parent.words = [0x4000: 0x8 << 10 | 1, 0x8000: 0xA << 10 | 1]
    for page in 1...3 as ClosedRange<UInt64> {
      parent.words[0xA000 + page * 8] = (0x100 + page) << 10 | parentBits
    }
    parent.words[0xA000 + 9 * 8] = 0x109 << 10 | 0xDF
    return (user, parent)
  }

  static func walk(
    _ tables: (user: Words, parent: Words), sade: Bool, gade: Bool
  ) throws -> Translation {
    let first = TableRoot<RISCVFirstStage>(
      address: 0x1000, levels: 3, configuration: RISCVSwitches(updates: sade))!
    let second = TableRoot<RISCVSecondStage>(
      address: 0x4000, levels: 3, configuration: RISCVSwitches(updates: gade))!
    return try first.walk(
      IOVA(0x123), for: Access(.read), through: second, tables: tables.parent,
      in: tables.user)
  }

  @Test("B5: RISC-V reads entries from tables that its parent lets only be read, with SADE too")
  func riscvReadOnly() throws {
    // V, R, U, A; D is clear, and W too: nothing is to be marked.
    for (sade, gade) in [(false, false), (false, true), (true, false), (true, true)] {
      let tables = Self.riscv(parentBits: 0x53)
      let found = try Self.walk(tables, sade: sade, gade: gade)
      #expect(found.physical.rawValue == 0x10_9123 && tables.parent.stores.isEmpty)
    }
    // Until an entry has to be marked: an implicit write.
    let tables = Self.riscv(leaf: 0x1F, parentBits: 0x53)
    let found = fault { try Self.walk(tables, sade: true, gade: true) }
    #expect(found?.reason == .permission && found?.stage == .second)
    #expect(found?.isMarking == true && found?.tableLevel == 1 && found?.ipa == 0x3000)
  }

  @Test("B5: RISC-V with SADE fetches entries as writes where it may (reference model)")
  func riscvFetches() throws {
    // V, R, W, U, A: D is clear.
    var tables = Self.riscv(parentBits: 0x57)
    _ = try Self.walk(tables, sade: false, gade: false)
    _ = try Self.walk(tables, sade: false, gade: true)
    #expect(tables.parent.stores.isEmpty)
    _ = try Self.walk(tables, sade: true, gade: true)
    #expect(tables.parent.stores.count == 3 && tables.parent.word(0xA008) & 0xFF == 0xD7)
    tables = Self.riscv(parentBits: 0x57)
    let found = fault { try Self.walk(tables, sade: true, gade: false) }
    #expect(found?.reason == .dirtyFlag && found?.stage == .second)
    #expect(found?.tableLevel == 3 && found?.ipa == 0x1000 && found?.isMarking == false)
    // What may not be read at all is a fault whatever else it allows: X alone.
    tables = Self.riscv(parentBits: 0xD9)
    let unread = fault { try Self.walk(tables, sade: true, gade: true) }
    #expect(unread?.reason == .permission && unread?.tableLevel == 3)
  }

  @Test("I1: what a device writes through two stages is dirty in the parent, and so are marks")
  func parentDirty() throws {
    let (root, words) = Self.first()
    var parent = try Self.parent(AMDv1.self, levels: 3, keepsDirty: true)
    parent.setMarking(true)
    func dirty() -> [UInt64] {
      var found: [UInt64] = []
      var gather = TableGather()
      parent.readDirty(first: 0, last: .max, clear: true, gather: &gather) { first, _ in
        found.append(first)
      }
      return found
    }
    let read = try root.walk(IOVA(0), for: Access(.read), through: parent.root, in: words)
    #expect(!read.permissions.contains(.write))
    // 0x3000 is in the leaf of 8 KiB at 0x2000.
    #expect(dirty() == [0x1000, 0x2000, 0x4000], "accessed bits were set there")
    _ = try root.walk(IOVA(0), for: Access(.write), through: parent.root, in: words)
    #expect(dirty() == [0x4000, 0x9000])
    let again = try root.walk(IOVA(0), for: Access(.write), through: parent.root, in: words)
    #expect(again.permissions == .readWrite)
    #expect(dirty() == [0x9000])
  }
}
