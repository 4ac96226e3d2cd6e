// SPDX-License-Identifier: Apache-2.0
//
// Two stages: a user's table, written entry by entry into memory that a parent maps.

import PageTables

/// The memory of a user's tables, at physical addresses: raw, so that what is measured is the walk.
struct UserMemory: TableMemory {
  private let words: UnsafeMutablePointer<UInt64>
  private let count: UInt64
  /// Where it begins.
  private let start: UInt64

  init(bytes: UInt64, at start: UInt64) {
    count = bytes / 8
    self.start = start
    // Lives as long as the process: benchmarks end with it.
    words = .allocate(capacity: Int(count))
    words.initialize(repeating: 0, count: Int(count))
  }

  @inline(__always)
  func load(_ address: UInt64) throws(TableMemoryFault) -> UInt64 {
    let index = (address &- start) >> 3
    guard index < count else { throw .unreachable }
    return words[Int(truncatingIfNeeded: index)]
  }

  /// Not atomic: one thread walks here, and nobody writes.
  @inline(__always)
  func compareExchange(
    _ address: UInt64, expected: UInt64, desired: UInt64
  ) throws(TableMemoryFault) -> Bool {
    let index = Int(truncatingIfNeeded: (address &- start) >> 3)
    guard index < count else { throw .unreachable }
    guard words[index] == expected else { return false }
    words[index] = desired
    return true
  }
}

/// What is measured of two stages.
public struct NestedOperations {
  /// As `TableOperations.walk`, through both.
  public let walk: () throws -> UInt64
}

/// A user's table and its parent, both as deep as `levels` says and with the smallest leaves.
@inline(__always)
func nestedOperations<First: PageTableFormat, Second: PageTableFormat>(
  _ first: First.Type, _ second: Second.Type, levels: Int
) throws -> NestedOperations {
  let granule: UInt64 = 1 << UInt64(First.granuleShift)
  let tables: UInt64 = 64
  let parent = Parent(PageTable<Second>(levels: levels))
  var gather = TableGather()
  try parent.table.map(
    IOVA(0), to: PhysicalAddress(granule), length: (tables + pageCount) * granule,
    permissions: .readWrite, gather: &gather)
  let memory = UserMemory(bytes: tables * granule, at: granule)
  guard let root = TableRoot<First>(address: 0, levels: levels, configuration: .init()) else {
    throw WalkFault(.addressWidth)
  }
  try fill(memory, root, from: tables)
  let addresses = walkedAddresses(granuleShift: First.granuleShift)
  return NestedOperations { try twoStageWalks(root, parent.table.root, memory, addresses) }
}

/// A parent that a closure keeps.
private final class Parent<Format: PageTableFormat> {
  var table: PageTable<Format>

  init(_ table: consuming PageTable<Format>) { self.table = table }
}

/// Writes a user's table for the walked pages.
/// - Parameter first: The granule that the first of them is mapped to; those below are tables.
private func fill<First: PageTableFormat>(
  _ memory: UserMemory, _ root: TableRoot<First>, from first: UInt64
) throws {
  let granule: UInt64 = 1 << UInt64(First.granuleShift)
  var used: UInt64 = 1
  for page in 0..<pageCount {
    let offset = base + page * granule
    var table: UInt64 = 0
    for level in stride(from: root.levels, through: 1, by: -1) {
      let index = offset >> UInt64(First.shift(level: level)) & (granule / 8 - 1)
      let place = table + granule + index * 8
      if level == 1 {
        let leaf = First.leafEntry(
          (first + page) * granule, shift: First.granuleShift, level: 1,
          permissions: .readWrite, attributes: [], root.configuration)
        _ = try memory.compareExchange(place, expected: 0, desired: leaf)
      } else {
        if try memory.load(place) == 0 {
          let entry = First.tableEntry(used * granule, level: level)
          _ = try memory.compareExchange(place, expected: 0, desired: entry)
          used += 1
        }
        table = First.address(try memory.load(place), root.configuration)
      }
    }
  }
}

@inline(never)
private func twoStageWalks<First: PageTableFormat, Second: PageTableFormat>(
  _ root: TableRoot<First>, _ parent: PageTableRoot<Second>, _ memory: UserMemory,
  _ addresses: [IOVA]
) throws(WalkFault) -> UInt64 {
  var last: UInt64 = 0
  for address in addresses {
    last = try root.walk(
      after(last, address), for: Access(.read), through: parent, in: memory
    ).physical.rawValue
  }
  return last
}
