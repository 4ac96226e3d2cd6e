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
  /// the range are cut there first: every leaf ends at a page anyway.
  /// - Returns: Bytes unmapped; and what ended it early: `ENOENT` where an area would be
  ///   split, `EINVAL` where one is pinned or the cut lies off the alignment.
  func unmapAsFarAsPossible(
    _ range: ClosedRange<UInt64>
  ) throws(IOMMUError) -> (unmapped: UInt64, failure: IOMMUError?) {
    try state.withLock { (state) throws(IOMMUError) in
      try check(state)
      if !state.largePages {
        try cut(around: range, in: &state)
      }
      var unmapped: UInt64 = 0
      while let position = state.areas.firstOverlap(with: range) {
        let area = state.areas[position]
        do throws(IOMMUError) {
          try checkUnlocked(first: area.first, last: area.last, in: state)
        } catch {
          return (unmapped, error)
        }
        guard area.first >= range.lowerBound, area.last <= range.upperBound else {
          return (unmapped, splits(area, range))
        }
        remove(at: position, from: &state)
        unmapped &+= area.length
      }
      return (unmapped, nil)
    }
  }

  /// Cuts the areas that lie across an end of a range, both or none.
  private func cut(
    around range: ClosedRange<UInt64>, in state: inout State
  ) throws(IOMMUError) {
    if range.upperBound < .max { try checkCut(before: range.upperBound + 1, in: state) }
    try checkCut(before: range.lowerBound, in: state)
    cut(before: range.lowerBound, in: &state)
    if range.upperBound < .max { cut(before: range.upperBound + 1, in: &state) }
  }

  /// The area that an IOVA divides.
  private func divided(
    by iova: UInt64, in state: borrowing State
  ) -> AreaMap.Position? {
    guard let position = state.areas.firstEnding(atOrAfter: iova),
      state.areas[position].first < iova
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
  /// - Parameter range: Closed, in bytes.
  /// - Returns: Bytes unmapped; and why no more, where something was in the way.
  /// - Throws: `ENOENT`; `EINVAL` where an area cannot be cut: then nothing was unmapped.
  public func unmapAsFarAsPossible(
    _ range: ClosedRange<UInt64>, from ioas: ObjectID
  ) throws(IOMMUError) -> (unmapped: UInt64, failure: IOMMUError?) {
    try addressSpace(ioas).unmapAsFarAsPossible(range)
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
