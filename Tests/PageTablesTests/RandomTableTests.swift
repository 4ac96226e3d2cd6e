// SPDX-License-Identifier: Apache-2.0
//
// Random operations on every format, against a model that has no tables.

import FuzzSupport
import Testing

@testable import PageTables

@Suite("B: random operations against the model")
struct RandomTableTests {
  @Test(
    "B, I1: walks agree with the model after every map, refused map, unmap, protect and clean",
    arguments: Kind.allCases)
  func random(kind: Kind) throws {
    struct Body: TableTest {
      let kind: Kind

      func run<Format: PageTableFormat>(_ format: Format.Type, levels: Int) throws {
        for keepsDirty in [false, true] {
          var run = TableRun<Format>(
            levels: levels, keepsDirty: keepsDirty,
            random: Random(state: UInt64(Kind.allCases.firstIndex(of: kind)!)))
          for _ in 0..<250 { try run.step() }
          run.end()
        }
      }
    }
    try kind.run(Body(kind: kind))
  }
}

/// One table with its model.
struct TableRun<Format: PageTableFormat>: ~Copyable {
  var random: Random
  var table: PageTable<Format>
  var model = TableModel()
  var gather = TableGather()
  let keepsDirty: Bool
  /// Of addresses as offsets: the table's own width.
  let width: UInt64
  let granuleShift = UInt64(Format.granuleShift)

  let maximumPages: Int

  init(levels: Int, keepsDirty: Bool, maximumPages: Int = .max, random: Random) {
    self.random = random
    table = PageTable<Format>(
      levels: levels, maximumPages: maximumPages, keepsDirty: keepsDirty)
    self.keepsDirty = keepsDirty
    self.maximumPages = maximumPages
    width = UInt64(Format.addressBits(levels: levels))
    table.setMarking(true)
  }

  /// A length of any magnitude, at most a quarter of the table.
  private mutating func length() -> UInt64 {
    let top: UInt64 = 1 << UInt64.random(in: granuleShift...min(width - 2, 40), using: &random)
    // Small counts of odd pages, or one round size: never millions of leaves.
    let pages = UInt64.random(in: 1...64, using: &random) << granuleShift
    return Bool.random(using: &random) ? top : min(top, pages)
  }

  /// A place in the lower or upper half, in reach as a whole.
  private mutating func place(_ length: UInt64) -> UInt64 {
    let half: UInt64 = width == 64 ? 1 << 63 : 1 << (width - 1)
    let last = half - length
    let any = UInt64.random(in: 0...last, using: &random)
    // Close together in half of the cases, aligned in half of them.
    let near = Bool.random(using: &random) ? any : any & 0xFFF_FFFF
    let round: UInt64 = length & (0 &- length)
    let granule: UInt64 = 1 << granuleShift
    let low = min(near, last) & ~(Bool.random(using: &random) ? round - 1 : granule - 1)
    guard Bool.random(using: &random) else { return low }
    return table.root.table.extended(low | half)
  }

  private func probe(_ address: UInt64) {
    let found: Translation? = try? table.walk(IOVA(address))
    let expected = model.walk(address)
    #expect(found?.physical.rawValue == expected?.physical)
    if let found, let expected {
      #expect(
        found.rights.permissions(privileged: false).isSuperset(
          of: Format.granted(expected.permissions)))
      #expect(
        found.permissions == Format.granted(expected.permissions).intersection(.readWrite))
    }
  }

  /// An access as hardware does it, which marks what it uses.
  private mutating func access(_ address: UInt64) {
    let access: Permissions = Bool.random(using: &random) ? .write : .read
    let allowed = model.walk(address).map {
      Format.granted($0.permissions).isSuperset(of: access)
    }
    let reason = reason { try table.root.walk(IOVA(address), marking: access) }
    #expect(reason == (allowed == nil ? .notPresent : allowed! ? nil : .permission))
    if reason == nil, access == .write { model.write(address) }
  }

  private mutating func map() {
    let length = length()
    let first = place(length)
    // Congruent modulo a random power of two, so that leaves of all sizes form.
    let alignment: UInt64 = 1 << UInt64.random(in: granuleShift...34, using: &random)
    let physical =
      UInt64.random(in: 0..<(1 << 46), using: &random) & ~(alignment - 1)
      | first & (alignment - 1)
    // Millions of small leaves test nothing more than thousands do.
    guard length / alignment < 4096 else { return }
    let permissions: Permissions = [
      .read, .write, .readWrite, [.read, .execute], [.read, .write, .execute],
    ].randomElement(using: &random)!
    let free = !model.overlaps(first, first + (length - 1))
    do {
      try table.map(
        IOVA(first), to: PhysicalAddress(physical), length: length, permissions: permissions,
        gather: &gather)
      #expect(free)
      model.map(
        .init(first: first, length: length, physical: physical, permissions: permissions))
    } catch {
      switch error {
      case .occupied(let address):
        #expect(!free)
        #expect(model.overlaps(address.rawValue, first + (length - 1)))
      case .outOfMemory: #expect(maximumPages != .max)
      default: Issue.record("\(error)")
      }
      table.free(&gather)
    }
    #expect(table.pageCount <= max(maximumPages, table.rootPages))
    probe(first)
    probe(first + (length - 1))
    if first > 0 { probe(first - 1) }
  }

  private mutating func unmap() {
    let area = model.remove(at: Int.random(in: 0..<model.areas.count, using: &random))
    let bytes = table.unmap(IOVA(area.first), length: area.length, gather: &gather)
    #expect(bytes == area.length)
    #expect(gather.first == area.first)
    #expect(gather.last == area.last)
    table.free(&gather)
    probe(area.first)
    probe(area.last)
  }

  private mutating func protect() throws {
    let index = Int.random(in: 0..<model.areas.count, using: &random)
    let area = model.areas[index]
    let permissions: Permissions = [.read, .readWrite, [.read, .execute]].randomElement(
      using: &random)!
    // Arm's leaves that cannot be written are clean.
    clean(area.first, area.last)
    try table.protect(
      first: area.first, last: area.last, permissions: permissions, gather: &gather)
    #expect(gather.first == area.first)
    #expect(gather.last == area.last)
    table.free(&gather)
    model.protect(at: index, permissions)
    probe(area.first)
    probe(area.last)
  }

  /// Every byte written is in a dirty leaf, and every dirty leaf has one.
  private mutating func clean(_ first: UInt64, _ last: UInt64) {
    var leaves: [(first: UInt64, last: UInt64)] = []
    table.readDirty(first: first, last: last, clear: true, gather: &gather) {
      leaves.append(($0, $0 + ($1 - 1)))
    }
    if let low = leaves.first, let high = leaves.last {
      #expect(gather.first == low.first)
      #expect(gather.last == high.last)
    }
    table.free(&gather)
    if !keepsDirty { #expect(leaves.isEmpty) }
    // Leaves that stick out of the range are cleaned whole.
    let written = model.clean(
      min(first, leaves.first?.first ?? first), max(last, leaves.last?.last ?? last))
    for address in written {
      #expect(leaves.contains { $0.first <= address && address <= $0.last })
    }
    for leaf in leaves {
      #expect(written.contains { leaf.first <= $0 && $0 <= leaf.last })
    }
  }

  mutating func step() throws {
    let action = Int.random(in: 0..<12, using: &random)
    if action < 6 {
      map()
    } else if model.areas.isEmpty {
      return
    } else if action < 8 {
      unmap()
    } else if action < 9 {
      try protect()
    } else if action < 10 {
      let area = model.areas.randomElement(using: &random)!
      clean(area.first, area.last)
    }
    for area in model.areas.shuffled(using: &random).prefix(3) {
      probe(area.first)
      probe(area.last)
      probe(area.first + UInt64.random(in: 0..<area.length, using: &random))
      if keepsDirty { access(area.first + UInt64.random(in: 0..<area.length, using: &random)) }
    }
    probe(place(1 << granuleShift))
  }

  mutating func end() {
    clean(0, .max)
    let mapped = model.areas.reduce(0) { $0 + $1.length }
    #expect(table.unmap(IOVA(0), length: .max, gather: &gather) == mapped)
    table.free(&gather)
    #expect(table.pageCount == table.rootPages)
  }
}
