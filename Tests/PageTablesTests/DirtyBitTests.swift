// SPDX-License-Identifier: Apache-2.0
//
// Accessed and dirty bits in the entries of every format, at every level.

import Testing

@testable import PageTables

@Suite("I1: accessed and dirty bits")
struct DirtyBitTests {
  @Test(
    "I1: A is bit 8 and D bit 9 of VT-d's entries (9.8), bits 5 and 6 of AMD's (2.2.3), 6 and 7 of RISC-V's (10.3.1)"
  )
  func places() {
    #expect(IntelSecondStage.accessedBit == 0x100 && IntelSecondStage.dirtyBit == 0x200)
    #expect(AMDv1.accessedBit == 0x20 && AMDv1.dirtyBit == 0x40)
    #expect(AMDv2.accessedBit == 0x20 && AMDv2.dirtyBit == 0x40)
    #expect(RISCVSecondStage.accessedBit == 0x40 && RISCVSecondStage.dirtyBit == 0x80)
  }

  @Test(
    "I1: reads set A, writes A and D, in leaves of every size; nothing else changes",
    arguments: Kind.allCases)
  func everyLeafSize(kind: Kind) throws {
    struct Body: TableTest {
      func run<Format: PageTableFormat>(_ format: Format.Type, levels: Int) throws {
        let sizes = Format.pageSizes(levels: levels).rawValue
        for shift in 12..<57 where sizes >> UInt64(shift) & 1 == 1 {
          var table = PageTable<Format>(levels: levels, keepsDirty: true)
          table.setMarking(true)
          var gather = TableGather()
          let size: UInt64 = 1 << UInt64(shift)
          let base = size <= table.root.last / 2 ? size : 0
          try table.map(
            IOVA(base), to: PhysicalAddress(size), length: size, permissions: .readWrite,
            gather: &gather)
          let clean = entries(table, base + size - 1)
          var cleanTable = PageTable<Format>(levels: levels, keepsDirty: true)
          try cleanTable.map(
            IOVA(base), to: PhysicalAddress(size), length: size, permissions: .readWrite,
            gather: &gather)

          let read = try table.root.walk(IOVA(base + size - 1), marking: .read)
          #expect(read.permissions == .read, "a clean leaf is walked again for the first write")
          #expect(read.physical.rawValue == 2 * size - 1)
          #expect(entries(table, base + size - 1) == marked(clean, table, writes: false))
          #expect(dirty(&table, clear: false).isEmpty)

          let write = try table.root.walk(IOVA(base + size / 2), marking: .write)
          #expect(write.permissions == .readWrite)
          #expect(
            entries(table, base + size / 2).last
              == marked(entries(cleanTable, base + size / 2), table, writes: true).last)
          #expect(dirty(&table, clear: false) == [Leaf(base, size)], "the whole leaf is dirty")
          #expect(
            try table.root.walk(IOVA(base + size / 2), marking: .read).permissions
              == .readWrite)

          #expect(dirty(&table, clear: true) == [Leaf(base, size)])
          #expect(dirty(&table, clear: true).isEmpty)
          #expect(
            entries(table, base + size - 1) == marked(clean, table, writes: false),
            "clearing leaves A")
          #expect(table.unmap(IOVA(base), length: size, gather: &gather) == size)
          table.free(&gather)
          #expect(table.pageCount == table.rootPages, "marks in tables do not keep them")
        }
      }

      private func marked<Format: PageTableFormat>(
        _ entries: [UInt64], _ table: borrowing PageTable<Format>, writes: Bool
      ) -> [UInt64] {
        entries.enumerated().map { depth, entry in
          Format.marked(
            entry, level: table.root.levels - depth, writes: writes, table.root.configuration)
        }
      }
    }
    try kind.run(Body())
  }

  @Test("I1: what the leaf does not allow does not make it dirty", arguments: Kind.allCases)
  func refused(kind: Kind) throws {
    struct Body: TableTest {
      func run<Format: PageTableFormat>(_ format: Format.Type, levels: Int) throws {
        var table = PageTable<Format>(levels: levels, keepsDirty: true)
        table.setMarking(true)
        var gather = TableGather()
        let granule: UInt64 = 1 << UInt64(Format.granuleShift)
        try table.map(
          IOVA(granule), to: PhysicalAddress(5 * granule), length: granule, permissions: .read,
          gather: &gather)
        let clean = entries(table, granule)
        #expect(reason { try table.root.walk(IOVA(granule), marking: .write) } == .permission)
        #expect(
          reason { try table.root.walk(IOVA(2 * granule), marking: .write) } == .notPresent)
        #expect(dirty(&table, clear: false).isEmpty)
        #expect(entries(table, granule).last == clean.last)
      }
    }
    try kind.run(Body())
  }

  @Test("I1: dirty leaves are told in order, by range, and gathered where they are cleared")
  func ranges() throws {
    var table = PageTable<AMDv1>(levels: 4, keepsDirty: true)
    table.setMarking(true)
    var gather = TableGather()
    // 4 KiB, 16 KiB (4 entries) and 2 MiB side by side.
    try table.map(
      IOVA(0x1F_B000), to: PhysicalAddress(0x3F_B000), length: 0x20_5000,
      permissions: .readWrite, gather: &gather)
    for iova in [0x1F_B008, 0x1F_D000, 0x30_0000] as [UInt64] {
      _ = try table.root.walk(IOVA(iova), marking: .write)
    }
    let all = [Leaf(0x1F_B000, 0x1000), Leaf(0x1F_C000, 0x4000), Leaf(0x20_0000, 0x20_0000)]
    #expect(dirty(&table, clear: false) == all)
    #expect(dirty(&table, 0x1F_C000...0x1F_CFFF, clear: false) == [all[1]], "a part of a leaf")
    #expect(dirty(&table, 0x1F_F000...0x1F_FFFF, clear: true) == [all[1]], "its last entry")
    #expect(
      dirty(&table, 0...UInt64.max, clear: true, gathers: 0x1F_B000...0x3F_FFFF)
        == [all[0], all[2]])
    #expect(dirty(&table, clear: true).isEmpty)
  }

  @Test("I1: a table that was not made for it marks nothing")
  func unmarked() throws {
    var table = PageTable<IntelSecondStage>(levels: 4)
    table.setMarking(true)
    #expect(!table.root.isMarking)
    var keeps = PageTable<IntelSecondStage>(levels: 4, keepsDirty: true)
    #expect(!keeps.root.isMarking, "off at first")
    keeps.setMarking(true)
    #expect(keeps.root.isMarking)
    keeps.setMarking(false)
    #expect(!keeps.root.isMarking)
  }
}

struct Leaf: Equatable {
  let first: UInt64
  let length: UInt64
  init(_ first: UInt64, _ length: UInt64) { (self.first, self.length) = (first, length) }
}

/// The entries on the way to an address, the leaf last.
private func entries<Format: PageTableFormat>(
  _ table: borrowing PageTable<Format>, _ address: UInt64
) -> [UInt64] {
  var entries: [UInt64] = []
  let root = table.root.table
  var page = table.root.page
  for level in (1...root.levels).reversed() {
    let entry = page.load(root.index(address, level: level))
    entries.append(entry)
    if !Format.isPresent(entry) || Format.isLeaf(entry, level: level) { break }
    page = TablePage(address: Format.address(entry, root.configuration))
  }
  return entries
}

private func dirty<Format: PageTableFormat>(
  _ table: inout PageTable<Format>, _ range: ClosedRange<UInt64> = 0...UInt64.max, clear: Bool,
  gathers: ClosedRange<UInt64>? = nil
) -> [Leaf] {
  var leaves: [Leaf] = []
  var gather = TableGather()
  table.readDirty(
    first: range.lowerBound, last: range.upperBound, clear: clear, gather: &gather
  ) { leaves.append(Leaf($0, $1)) }
  #expect(gather.isEmpty == (!clear || leaves.isEmpty))
  if let gathers { #expect(gather.first...gather.last == gathers) }
  return leaves
}
