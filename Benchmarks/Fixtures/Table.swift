// SPDX-License-Identifier: Apache-2.0
//
// One table of a format, of pages that lie one off their addresses: no leaf can be larger than one.

import PageTables

/// How many pages walks and dirty reads have.
public let pageCount: UInt64 = 1024
/// Where they begin: in reach of three levels.
let base: UInt64 = 1 << 36

/// What is measured of a table.
public struct TableOperations {
  /// Walks to each page, each walk beginning when the one before it has ended, as an access waits
  /// for its own.
  public let walk: () throws -> UInt64
  /// The same, where a processor may overlap one walk with the next.
  public let overlappingWalk: () throws -> UInt64
  /// Maps and unmaps one page, as often as told.
  public let mapAndUnmap: (_ count: Int) throws -> Void
  public let mapGibibyte: () throws -> Void
  public let unmapGibibyte: () -> Void
  /// Bytes of the dirty leaves among the walked pages: every eighth of them.
  public let readDirty: () -> UInt64
  /// The bytes of the tables in use, and of all that is held for them, by the fewest that a
  /// radix tree of this format can have for what `mapGibibyte` maps.
  public let overhead: () -> (tables: Double, held: Double)
}

/// A table that closures share.
private final class Table<Format: PageTableFormat> {
  var table: PageTable<Format>
  var gather = TableGather()

  init(_ table: consuming PageTable<Format>) { self.table = table }
}

@inline(__always)
func tableOperations<Format: PageTableFormat>(
  _ format: Format.Type, levels: Int, isFilled: Bool
) throws -> TableOperations {
  let state = Table(PageTable<Format>(levels: levels, keepsDirty: isFilled))
  let addresses = walkedAddresses(granuleShift: Format.granuleShift)
  let granule: UInt64 = 1 << UInt64(Format.granuleShift)
  let gibibyte = 1 << 30 / granule
  if isFilled {
    try map(state, pages: pageCount)
    state.table.setMarking(true)
    for (index, address) in addresses.enumerated() {
      _ = try state.table.root.walk(address, marking: index % 8 == 0 ? .write : .read)
    }
    state.table.setMarking(false)
  }
  return TableOperations(
    walk: { try walks(state.table.root, addresses) },
    overlappingWalk: { try overlappingWalks(state.table.root, addresses) },
    mapAndUnmap: {
      for _ in 0..<$0 {
        try map(state, pages: 1)
        unmap(state, pages: 1)
      }
    },
    mapGibibyte: { try map(state, pages: gibibyte) },
    unmapGibibyte: { unmap(state, pages: gibibyte) },
    readDirty: {
      var bytes: UInt64 = 0
      state.table.readDirty(
        first: base, last: base + pageCount * granule - 1, clear: false, gather: &state.gather
      ) { bytes &+= $1 }
      return bytes
    },
    overhead: {
      let entries = granule / 8
      var (least, count) = (UInt64(state.table.rootPages), gibibyte)
      for _ in 1..<state.table.root.levels {
        count = (count + entries - 1) / entries
        least += count
      }
      let bytes = Double(least * granule)
      return (
        Double(state.table.pageCount) * Double(granule) / bytes,
        Double(state.table.footprint) / bytes
      )
    })
}

private func map<Format: PageTableFormat>(_ state: Table<Format>, pages: UInt64) throws {
  let granule: UInt64 = 1 << UInt64(Format.granuleShift)
  try state.table.map(
    IOVA(base), to: PhysicalAddress(base + granule), length: pages * granule,
    permissions: .readWrite, gather: &state.gather)
}

private func unmap<Format: PageTableFormat>(_ state: Table<Format>, pages: UInt64) {
  state.table.unmap(
    IOVA(base), length: pages << UInt64(Format.granuleShift), gather: &state.gather)
  state.table.free(&state.gather)
}

/// An address in each of the pages, in an order that no prefetcher knows.
func walkedAddresses(granuleShift: Int) -> [IOVA] {
  (0..<pageCount).map {
    IOVA(base + ($0 * 517 % pageCount) << UInt64(granuleShift) + $0 % 512 * 8)
  }
}

// The functions that `Benchmarks/instructions` looks at.

@inline(never)
private func walks<Format: PageTableFormat>(
  _ root: PageTableRoot<Format>, _ addresses: [IOVA]
) throws(WalkFault) -> UInt64 {
  var last: UInt64 = 0
  for address in addresses {
    last = try root.walk(after(last, address), for: .read).physical.rawValue
  }
  return last
}

@inline(never)
private func overlappingWalks<Format: PageTableFormat>(
  _ root: PageTableRoot<Format>, _ addresses: [IOVA]
) throws(WalkFault) -> UInt64 {
  var sum: UInt64 = 0
  for address in addresses {
    sum &+= try root.walk(address, for: .read).physical.rawValue
  }
  return sum
}

/// An address that is known only once the last result is: of 60 bits at most.
@inline(__always)
func after(_ last: UInt64, _ address: IOVA) -> IOVA { IOVA(address.rawValue &+ last >> 60) }
