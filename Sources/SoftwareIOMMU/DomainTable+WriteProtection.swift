// SPDX-License-Identifier: Apache-2.0
//
// Dirty pages of a table without dirty bits (MODEL I1): what `WriteProtection` says, done to the
// table.

import IOMMU
import PageTables

extension DomainState {
  /// The pages of 4 KiB that have a byte in a range.
  static func pages(_ first: UInt64, length: UInt64) -> Range<UInt64> {
    first >> 12..<(first &+ (length &- 1)) >> 12 &+ 1
  }

  /// The pages of the leaf around a page, which is mapped.
  func leaf(_ page: UInt64) -> Range<UInt64> {
    do throws(WalkFault) {
      let shift = UInt64(try table.walk(IOVA(page << 12)).leafShift)
      let count: UInt64 = 1 << (shift &- 12)
      let first = page & ~(count &- 1)
      return first..<first &+ count
    } catch {
      return page..<page &+ 1
    }
  }

  /// Takes from leaves the right to be written, or gives it back.
  private mutating func protect(_ pages: RangeSet<UInt64>, _ permissions: Permissions) {
    // Nobody has to forget that he may do less.
    var unused = TableGather()
    for run in pages.ranges {
      let (first, last) = (run.lowerBound << 12, (run.upperBound << 12) &- 1)
      // Never refused: both permissions can be had.
      if permissions.contains(.write) {
        try? table.protect(
          first: first, last: last, permissions: permissions, gather: &unused)
      } else {
        try? table.protect(
          first: first, last: last, permissions: permissions, gather: &gather)
      }
    }
  }

  /// As `DirtyTrackingDomain`.
  mutating func setProtection(_ enabled: Bool) {
    guard let pages = protection?.set(enabled) else { return }
    protect(pages, enabled ? .read : .readWrite)
  }

  /// As `DirtyTrackingDomain`; the caller flushes before it believes the report.
  mutating func readWritten(
    _ range: ClosedRange<UInt64>, clear: Bool,
    _ report: (_ first: UInt64, _ length: UInt64) -> Void
  ) {
    let asked = range.lowerBound >> 12..<range.upperBound >> 12 &+ 1
    for run in protection?.written(in: asked) ?? [] {
      let first = leaf(run.lowerBound).lowerBound
      var page = first
      while page < run.upperBound {
        let leaf = leaf(page)
        report(leaf.lowerBound << 12, (leaf.upperBound &- leaf.lowerBound) << 12)
        page = leaf.upperBound
      }
      if clear, let pages = protection?.clean(first..<page) { protect(pages, .read) }
    }
  }

  /// A write missed.
  /// - Returns: Whether it may be tried again: the page was only protected, or somebody else's
  ///   write came first.
  mutating func letWrite(_ iova: UInt64) -> Bool {
    if protection?.isProtected(iova >> 12) == true {
      let leaf = leaf(iova >> 12)
      protection?.write(leaf)
      protect(RangeSet(leaf), .readWrite)
      return true
    }
    do throws(WalkFault) {
      return try table.walk(IOVA(iova)).permissions.contains(.write)
    } catch {
      return false
    }
  }
}
