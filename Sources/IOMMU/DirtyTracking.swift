// SPDX-License-Identifier: Apache-2.0
//
// Dirty pages of a page table (MODEL I1): on and off, and which ones were written since the
// last look. The bits are the table's; here is what may be asked of them.

import PageTables
import SystemPackage

/// A page table that knows which of its pages were written (Linux: `iommu_dirty_ops`).
public protocol DirtyTrackingDomain: PagingDomain {
  /// Starts or stops keeping dirty bits. Starting forgets what was dirty before.
  func setDirtyTracking(_ enabled: Bool) throws(IOMMUError)

  /// Reports the dirty pages in a range, in ascending order.
  ///
  /// A write that is under way is in this report or in the next one, never in neither.
  /// - Parameters:
  ///   - range: Closed, in bytes.
  ///   - clear: Whether the pages are clean afterwards.
  ///   - report: Takes first IOVA and length of a dirty page, in bytes; it may begin before
  ///     the range and end after it. Called with the table's lock held.
  ///
  /// Reports nothing while tracking is off.
  func readDirty(
    _ range: ClosedRange<UInt64>, clear: Bool,
    _ report: (_ first: UInt64, _ length: UInt64) -> Void
  ) throws(IOMMUError)
}

extension AddressSpace {
  /// The dirty ranges of a table, merged and cut to the range asked for.
  ///
  /// As on Linux the walk ends quietly at the first byte that is not mapped.
  func readDirty(
    of domain: (any DirtyTrackingDomain)?, _ range: ClosedRange<UInt64>, clear: Bool,
    otherwise cannotTrack: () -> IOMMUError
  ) throws(IOMMUError) -> [ClosedRange<UInt64>] {
    try state.withLock { (state) throws(IOMMUError) in
      try check(state)
      guard range.lowerBound & (state.alignment - 1) == 0,
        (range.upperBound &+ 1) & (state.alignment - 1) == 0
      else {
        throw IOMMUError(
          .invalidArgument,
          "\(hex(range.lowerBound))...\(hex(range.upperBound)) is not aligned to the "
            + "\(hex(state.alignment)) bytes of IOAS \(id)")
      }
      // Linux looks at the range first.
      guard let domain else { throw cannotTrack() }
      var dirty: [ClosedRange<UInt64>] = []
      var cursor = range.lowerBound
      var position = state.areas.firstEnding(atOrAfter: cursor)
      while let here = position, state.areas[here].first <= cursor {
        let last = min(state.areas[here].last, range.upperBound)
        try domain.readDirty(cursor...last, clear: clear) { first, length in
          let page = (first...first + (length - 1)).clamped(to: range)
          if let end = dirty.last,
            end.upperBound == .max || page.lowerBound <= end.upperBound + 1
          {
            dirty[dirty.count - 1] = end.lowerBound...max(end.upperBound, page.upperBound)
          } else {
            dirty.append(page)
          }
        }
        if last == range.upperBound { break }
        cursor = last + 1
        position = state.areas.position(after: here)
      }
      return dirty
    }
  }
}

extension Context {
  private func dirtyTable(
    _ id: ObjectID
  ) throws(IOMMUError) -> (HWPT, (any DirtyTrackingDomain)?) {
    guard case .hwpt(let table)? = objects.withLock({ $0.table[id] }), !table.isNested else {
      throw noObject(id, wanted: "a kernel-managed page table")
    }
    if case .shared(let domain) = table.kind { throw sharedTableRefusal(table, domain) }
    let domain = table.paging
    let tracks = table.attributes.contains(.dirtyTracking)
    return (table, tracks ? domain as? any DirtyTrackingDomain : nil)
  }

  private func cannotTrack(_ id: ObjectID) -> IOMMUError {
    IOMMUError(
      .operationNotSupported,
      "HWPT \(id) was not made to track dirty pages; IOMMU_HWPT_ALLOC_DIRTY_TRACKING asks for it"
    )
  }

  /// Linux: `IOMMU_HWPT_SET_DIRTY_TRACKING`. MODEL I1.
  /// - Throws: `ENOENT`; `EOPNOTSUPP` where the table was not made for it.
  public func setDirtyTracking(_ enabled: Bool, of table: ObjectID) throws(IOMMUError) {
    let (_, domain) = try dirtyTable(table)
    guard let domain else { throw cannotTrack(table) }
    try domain.setDirtyTracking(enabled)
  }

  /// What was written since the last read that cleared. Linux: `IOMMU_HWPT_GET_DIRTY_BITMAP`.
  /// MODEL I1.
  /// - Parameter range: Closed, in bytes, aligned as mappings of the table's space are.
  /// - Returns: Dirty ranges inside `range`, in order, none touching the next. A table tracks
  ///   by its own pages: a part of a large one is dirty, and is cleared, with the whole.
  ///   Nothing while tracking is off, as on Linux; pages that were unmapped are forgotten.
  /// - Throws: `ENOENT`; `EINVAL` off the alignment; `EOPNOTSUPP`.
  public func readDirty(
    of table: ObjectID, _ range: ClosedRange<UInt64>, clear: Bool
  ) throws(IOMMUError) -> [ClosedRange<UInt64>] {
    let (table, domain) = try dirtyTable(table)
    return try table.addressSpace.readDirty(of: domain, range, clear: clear) {
      cannotTrack(table.id)
    }
  }

  /// - Throws: `ENOENT` where the id names no page table.
  public func checkPageTable(_ id: ObjectID) throws(IOMMUError) { _ = try dirtyTable(id) }
}
