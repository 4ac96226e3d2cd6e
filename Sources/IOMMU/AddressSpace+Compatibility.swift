// SPDX-License-Identifier: Apache-2.0
//
// What the type1 interface of VFIO asks of an address space beside MODEL B1: unmapping that
// reports what it got done, and areas that may be cut where only small leaves are used.

import PageTables
import SystemPackage

extension AddressSpace {
  /// Unmaps the areas in a range as far as that goes.
  ///
  /// Linux: `iommufd_vfio_unmap_dma`. Without large pages, areas that lie across an end of
  /// the range are cut there first: every leaf ends at a page anyway. The cuts are made before
  /// the length is looked at.
  /// - Returns: Bytes unmapped; and what ended it early: `EINVAL` for no bytes, `EOVERFLOW` past
  ///   the last address, `ENOENT` where an area would be split.
  /// - Throws: `EINVAL` where an area is pinned or the cut lies off the alignment.
  func unmapAsFarAsPossible(
    _ iova: UInt64, length: UInt64
  ) throws(IOMMUError) -> (unmapped: UInt64, failure: IOMMUError?) {
    try withTree { (state) throws(IOMMUError) in
      try checkOpen(state)
      // A nested space has its parent's pieces; they are not cut.
      if !state.largePages, !state.specials.contains(.nested) {
        try cut(before: iova, and: iova &+ length, in: &state)
      }
      guard length > 0 else {
        return (0, IOMMUError(.invalidArgument, "an unmap of no bytes from IOAS \(id)"))
      }
      let (last, overflow) = iova.addingReportingOverflow(length - 1)
      guard !overflow else {
        return (
          0,
          IOMMUError(
            .overflow, "iova \(hex(iova)) + size \(hex(length)) passes the last address")
        )
      }
      return unmapAsFarAsPossible(iova...last, in: &state)
    }
  }

  /// As `unmapAsFarAsPossible` of a range, of everything: nothing is split.
  func unmapAllAsFarAsPossible() throws(IOMMUError) -> (
    unmapped: UInt64, failure: IOMMUError?
  ) {
    try withTree { (state) throws(IOMMUError) in
      try checkOpen(state)
      return unmapAsFarAsPossible(0...UInt64.max, in: &state)
    }
  }

  private func unmapAsFarAsPossible(
    _ range: ClosedRange<UInt64>, in state: inout State
  ) -> (unmapped: UInt64, failure: IOMMUError?) {
    var unmapped: UInt64 = 0
    if !state.specials.isEmpty {
      do throws(IOMMUError) {
        try unmapInTree(range, counting: &unmapped, in: &state)
      } catch {
        return (unmapped, error)
      }
      return (unmapped, nil)
    }
    while let position = state.areas.firstOverlap(with: range) {
      let area = state.areas[position]
      do throws(IOMMUError) {
        try checkUnlocked(first: area.first, last: area.last, in: state)
      } catch {
        return (unmapped, error)
      }
      guard area.first >= range.lowerBound, area.last <= range.upperBound else {
        return (unmapped, splits(first: area.first, last: area.last, range))
      }
      remove(at: position, from: &state)
      unmapped &+= area.length
    }
    return (unmapped, nil)
  }

  /// Cuts the areas around two IOVAs, both or none.
  private func cut(
    before first: UInt64, and end: UInt64, in state: inout State
  ) throws(IOMMUError) {
    try checkCut(before: end, in: state)
    try checkCut(before: first, in: state)
    cut(before: first, in: &state)
    cut(before: end, in: &state)
  }

  /// The area that an IOVA divides. Linux cuts no single byte off an area's start.
  private func divided(
    by iova: UInt64, in state: borrowing State
  ) -> AreaMap.Position? {
    guard iova > 0, let position = state.areas.firstEnding(atOrAfter: iova),
      state.areas[position].first < iova - 1
    else { return nil }
    return position
  }

  /// Checks that the area around an IOVA, if there is one, can be cut there.
  private func checkCut(before iova: UInt64, in state: borrowing State) throws(IOMMUError) {
    guard let position = divided(by: iova, in: state) else { return }
    let area = state.areas[position]
    let start = area.start + (iova - area.first)
    guard (iova | start & (Pages.hostPage - 1)) & (state.alignment - 1) == 0 else {
      throw IOMMUError(
        .invalidArgument,
        "the mapping \(hex(area.first))...\(hex(area.last)) of IOAS \(id) cannot be cut at "
          + "\(hex(iova)): that is off its alignment, \(hex(state.alignment)) bytes")
    }
    let whole = area.first...area.last
    guard !state.accessPins.values.contains(where: { $0.range.overlaps(whole) }) else {
      throw IOMMUError(
        .invalidArgument,
        "the mapping \(hex(area.first))...\(hex(area.last)) of IOAS \(id) is pinned and cannot "
          + "be cut")
    }
    if state.specials.contains(.hasChildren) {
      try checkChildrenAllowCut(before: iova, in: state)
    }
    try FailurePoint.pass(.area)
  }

  /// Makes an area end before an IOVA and another begin there. Linux: `iopt_area_split`. What
  /// page tables have pinned stays pinned: each half of it is unpinned by itself later.
  private func cut(before iova: UInt64, in state: inout State) {
    guard let position = divided(by: iova, in: state) else { return }
    let area = state.areas.remove(at: position)
    let start = area.start + (iova - area.first)
    state.areas.insert(
      Area(
        first: area.first, last: iova - 1, pages: area.pages, start: area.start,
        permissions: area.permissions))
    state.areas.insert(
      Area(
        first: iova, last: area.last, pages: area.pages, start: start,
        permissions: area.permissions))
  }

  /// Page sizes that every page table of the space has; all of them where there is none.
  /// Linux: `iommufd_get_pagesizes`.
  func commonPageSizes() throws(IOMMUError) -> PageSizes {
    try state.withLock { (state) throws(IOMMUError) in
      try check(state)
      var sizes = state.domains.reduce(UInt64.max) { $0 & $1.geometry.pageSizes.rawValue }
      // Sizes below the host's are told as the host's.
      let small = sizes & (Pages.hostPage - 1)
      sizes &= ~(Pages.hostPage - 1)
      if small != 0 { sizes |= Pages.hostPage }
      return PageSizes(rawValue: max(sizes, state.alignment))
    }
  }

  /// Whether every page table of the space enforces snooping. Linux: `iommufd_vfio_cc_iommu`.
  func enforcesSnoop() throws(IOMMUError) -> Bool {
    try state.withLock { (state) throws(IOMMUError) in
      try check(state)
      return state.domains.allSatisfy { $0.geometry.enforcesSnoop }
    }
  }
}

extension Context {
  /// Unmaps as VFIO's type1 does: nothing mapped is no error, and without large pages areas
  /// are cut at the range's ends (MODEL J1).
  /// - Parameters: `iova` and `length` in bytes.
  /// - Returns: Bytes unmapped; and why no more: `ENOENT` where an area would be split, `EINVAL`
  ///   for no bytes, `EOVERFLOW`.
  /// - Throws: `ENOENT`; `EINVAL` where an area cannot be cut: then nothing was unmapped.
  public func unmapAsFarAsPossible(
    _ iova: IOVA, length: UInt64, from ioas: ObjectID
  ) throws(IOMMUError) -> (unmapped: UInt64, failure: IOMMUError?) {
    try addressSpace(ioas).unmapAsFarAsPossible(iova.rawValue, length: length)
  }

  /// Unmaps everything, as `unmapAsFarAsPossible`: what a driver holds is in the way.
  public func unmapAllAsFarAsPossible(
    from ioas: ObjectID
  ) throws(IOMMUError) -> (unmapped: UInt64, failure: IOMMUError?) {
    try addressSpace(ioas).unmapAllAsFarAsPossible()
  }

  /// Maps as VFIO's type1 does: a mapping may allow no access at all, as far as the page tables
  /// of the space have such entries.
  /// - Throws: As `map`.
  @discardableResult
  public func mapAsType1(
    _ source: any MemorySource, start: UInt64, length: UInt64, into ioas: ObjectID,
    permissions: Permissions, at iova: IOVA, account: MemoryAccount? = nil
  ) throws(IOMMUError) -> IOVA {
    try addressSpace(ioas).map(
      source, start: start, length: length, permissions: permissions, placement: .fixed(iova),
      account: account ?? self.account)
  }

  /// Page sizes that all page tables of a space have, none below the host's.
  public func commonPageSizes(of ioas: ObjectID) throws(IOMMUError) -> PageSizes {
    try addressSpace(ioas).commonPageSizes()
  }

  /// Whether no device of a space can do DMA that bypasses the CPU's caches (MODEL F1).
  public func enforcesSnoop(in ioas: ObjectID) throws(IOMMUError) -> Bool {
    try addressSpace(ioas).enforcesSnoop()
  }
}
