// SPDX-License-Identifier: Apache-2.0
//
// What a page table means, without page tables: a slow and obvious list of what is mapped.

import PageTables

/// Runs of pages that are mapped, one entry for each call of `map`.
struct TableModel {
  struct Area {
    var first: UInt64
    var length: UInt64
    var physical: UInt64
    var permissions: Permissions
    var last: UInt64 { first + (length - 1) }
  }
  private(set) var areas: [Area] = []

  func area(at address: UInt64) -> Area? {
    areas.first { $0.first <= address && address <= $0.last }
  }

  func overlaps(_ first: UInt64, _ last: UInt64) -> Bool {
    areas.contains { $0.first <= last && first <= $0.last }
  }

  mutating func map(_ area: Area) { areas.append(area) }

  mutating func remove(at index: Int) -> Area {
    let area = areas.remove(at: index)
    written = written.filter { $0 < area.first || $0 > area.last }
    return area
  }

  /// What was written since it was last asked for.
  private(set) var written: Set<UInt64> = []

  mutating func protect(at index: Int, _ permissions: Permissions) {
    areas[index].permissions = permissions
  }

  mutating func write(_ address: UInt64) { written.insert(address) }

  /// What was written in a range; clean afterwards.
  mutating func clean(_ first: UInt64, _ last: UInt64) -> Set<UInt64> {
    let found = written.filter { $0 >= first && $0 <= last }
    written.subtract(found)
    return found
  }

  /// What a walk must say.
  func walk(_ address: UInt64) -> (physical: UInt64, permissions: Permissions)? {
    guard let area = area(at: address) else { return nil }
    return (area.physical + (address - area.first), area.permissions)
  }
}
