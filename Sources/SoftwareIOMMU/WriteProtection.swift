// SPDX-License-Identifier: Apache-2.0
//
// Which pages were written where hardware keeps no dirty bits: a page that may be written is
// mapped for reading alone until the first write, which misses and is let through (MODEL I1).

import PageTables

/// What a page table knows of its writable pages. Plain data; the table's lock guards it.
///
/// In pages of 4 KiB, so that the end of a 64-bit address space is a number.
struct WriteProtection: Sendable {
  /// Whether pages are protected.
  private(set) var isOn = false
  /// Pages that may be read and written, whatever their leaves allow at the moment.
  private var writable = RangeSet<UInt64>()
  /// Pages that may only be written: they cannot be protected and are always taken as written.
  private var writeOnly = RangeSet<UInt64>()
  /// Those of `writable` that were written. While protecting is on, the rest is protected.
  private var written = RangeSet<UInt64>()

  /// Pages are mapped.
  /// - Returns: What their leaves may allow now.
  mutating func map(
    _ pages: Range<UInt64>, _ permissions: Permissions
  ) -> Permissions {
    guard permissions.contains(.write) else { return permissions }
    guard permissions.contains(.read) else {
      writeOnly.insert(contentsOf: pages)
      return permissions
    }
    writable.insert(contentsOf: pages)
    return isOn ? permissions.subtracting(.write) : permissions
  }

  mutating func unmap(_ pages: Range<UInt64>) {
    writable.remove(contentsOf: pages)
    writeOnly.remove(contentsOf: pages)
    written.remove(contentsOf: pages)
  }

  /// - Returns: What is to be protected, or may be written again.
  mutating func set(_ enabled: Bool) -> RangeSet<UInt64> {
    let changed = enabled ? writable : writable.subtracting(written)
    let isChange = enabled || isOn
    isOn = enabled
    written = RangeSet()
    return isChange ? changed : RangeSet()
  }

  /// Whether a page is protected that may be written.
  func isProtected(_ page: UInt64) -> Bool {
    isOn && writable.contains(page) && !written.contains(page)
  }

  /// A leaf is written; it is no longer protected.
  mutating func write(_ leaf: Range<UInt64>) { written.insert(contentsOf: leaf) }

  /// What was written of a range, in ascending order.
  func written(in pages: Range<UInt64>) -> [Range<UInt64>] {
    guard isOn else { return [] }
    return Array(written.union(writeOnly).intersection(RangeSet(pages)).ranges)
  }

  /// Makes pages clean again.
  /// - Returns: What is to be protected.
  mutating func clean(_ pages: Range<UInt64>) -> RangeSet<UInt64> {
    let cleaned = written.intersection(RangeSet(pages))
    written.remove(contentsOf: pages)
    return cleaned
  }
}
