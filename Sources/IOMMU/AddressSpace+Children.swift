// SPDX-License-Identifier: Apache-2.0
//
// What a change to an address space means for those that are nested on it (MODEL B5): refused,
// or carried through to the last of them before it returns (G2). All of it runs under the
// root's lock, so that nothing comes between a check and what was checked.

import PageTables
import SystemPackage

extension AddressSpace {
  /// Unmaps in a space that nests on another or has others nested on it. As `unmap`; where a
  /// child refuses, nothing has changed.
  func unmapInTree(_ range: ClosedRange<UInt64>) throws(IOMMUError) -> UInt64 {
    try withTree { (state) throws(IOMMUError) in
      try checkOpen(state)
      var unmapped: UInt64 = 0
      try unmapInTree(range, counting: &unmapped, in: &state)
      return unmapped
    }
  }

  func unmapInTree(
    _ range: ClosedRange<UInt64>, counting unmapped: inout UInt64, in state: inout State
  ) throws(IOMMUError) {
    try checkChildrenAllowUnmap(range, in: state)
    if state.specials.contains(.nested) {
      return try unmapNested(range, counting: &unmapped, in: &state)
    }
    while let position = state.areas.firstOverlap(with: range) {
      let (first, last) = state.areas.bounds(at: position)
      try checkUnlocked(first: first, last: last, in: state)
      guard first >= range.lowerBound, last <= range.upperBound else {
        throw splits(first: first, last: last, range)
      }
      take(at: position, from: &state)
      unmapped &+= last &- first &+ 1
    }
  }

  /// Takes an area out of the space's children, then out of the space.
  func take(at position: AreaMap.Position, from state: inout State) {
    let (first, last) = state.areas.bounds(at: position)
    hide(first...last, from: state.children)
    remove(at: position, from: &state)
  }

  /// Carries an area that was just added through to the space's children; where one of them
  /// cannot have it, takes it out again.
  func showNew(at iova: UInt64, in state: inout State) throws(IOMMUError) {
    guard state.specials.contains(.hasChildren),
      let position = state.areas.firstOverlap(with: iova...iova)
    else { return }
    do throws(IOMMUError) {
      for child in state.children { try child.fill(from: state.areas[position]) }
    } catch {
      take(at: position, from: &state)
      throw error
    }
  }

  // MARK: Asking the children

  /// - Throws: `EBUSY` where something nested on the space refers to the range and refuses the
  ///   change, or hardware reads it.
  func checkChildrenAllowUnmap(
    _ range: ClosedRange<UInt64>, in state: borrowing State
  ) throws(IOMMUError) {
    for child in state.children { try child.checkAllowsUnmap(ofParent: range) }
  }

  private func checkAllowsUnmap(ofParent range: ClosedRange<UInt64>) throws(IOMMUError) {
    guard let link else { return }
    try state.withLock { (state) throws(IOMMUError) in
      for mapping in state.mappings.referring(to: range) {
        guard link.changes == .carriedThrough else {
          throw holds(mapping, link, "unmapped")
        }
        let own = mapping.range(ofParent: range)
        try checkUnlocked(first: own.lowerBound, last: own.upperBound, in: state)
        try checkChildrenAllowUnmap(own, in: state)
      }
    }
  }

  /// - Throws: `EBUSY` where something nested on the space refers to the range at all.
  func checkUnused(_ range: ClosedRange<UInt64>, in state: borrowing State) throws(IOMMUError) {
    for child in state.children {
      guard let link = child.link else { continue }
      try child.state.withLock { (state) throws(IOMMUError) in
        if let mapping = state.mappings.referring(to: range).first {
          throw child.holds(mapping, link, "moved to where it partly is")
        }
      }
    }
  }

  /// - Throws: `EBUSY` where something nested on the space refers to bytes on both sides of an
  ///   IOVA: its pieces are not cut.
  func checkChildrenAllowCut(
    before iova: UInt64, in state: borrowing State
  ) throws(IOMMUError) {
    for child in state.children {
      guard let link = child.link else { continue }
      try child.state.withLock { (state) throws(IOMMUError) in
        let referring = state.mappings.referring(to: iova - 1...iova - 1)
        if let mapping = referring.first(where: { $0.parentRange.contains(iova) }) {
          throw child.holds(mapping, link, "cut at \(hex(iova))")
        }
      }
    }
  }

  private func holds(
    _ mapping: NestedMapping, _ link: ParentLink, _ what: String
  ) -> IOMMUError {
    let (own, parents) = (mapping.range, mapping.parentRange)
    return IOMMUError(
      .resourceBusy,
      "\(hex(parents.lowerBound))...\(hex(parents.upperBound)) of IOAS \(link.parent.id) cannot be "
        + "\(what): it is behind \(hex(own.lowerBound))...\(hex(own.upperBound)) of IOAS \(id), "
        + "which is nested on it; unmap that first")
  }

  // MARK: Carrying through

  /// Takes what is behind a range out of the children and theirs. When it returns, no DMA of
  /// theirs uses it.
  private func hide(_ range: ClosedRange<UInt64>, from children: [AddressSpace]) {
    for child in children {
      child.state.withLock { state in
        for mapping in state.mappings.referring(to: range) {
          child.empty(mapping.range(ofParent: range), of: mapping, in: &state)
        }
      }
    }
  }

  /// Makes a hole of a part of a mapping, joined with the holes beside it.
  private func empty(
    _ range: ClosedRange<UInt64>, of mapping: NestedMapping, in state: inout State
  ) {
    var next = state.areas.firstOverlap(with: range)
    while let position = next {
      let (first, last) = state.areas.bounds(at: position)
      if !state.areas[position].isHole {
        take(at: position, from: &state)
        var hole = (first: first, last: last)
        if first > mapping.first, let before = removeHole(at: first - 1, from: &state) {
          hole.first = before.first
        }
        if last < mapping.last, let after = removeHole(at: last + 1, from: &state) {
          hole.last = after.last
        }
        state.areas.insert(.hole(hole.first, hole.last))
      }
      guard last < range.upperBound else { return }
      next = state.areas.firstOverlap(with: last + 1...range.upperBound)
    }
  }

  private func removeHole(at iova: UInt64, from state: inout State) -> Area? {
    guard let position = state.areas.firstOverlap(with: iova...iova),
      state.areas[position].isHole
    else { return nil }
    return state.areas.remove(at: position)
  }

  /// Fills the holes that stand for an area of the parent's. On failure what was filled is for
  /// the caller to take back.
  private func fill(from area: Area) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      for mapping in state.mappings.referring(to: area.first...area.last) {
        let range = (area.first...area.last).clamped(to: mapping.parentRange)
        guard let piece = shadow(of: area, for: mapping, range) else { continue }
        try checkPiece(piece, in: state)
        try fillHole(with: piece, in: &state)
      }
    }
  }

  private func fillHole(with piece: Area, in state: inout State) throws(IOMMUError) {
    try enter(piece, in: state)
    // From here on nothing fails. One hole is around the piece, and what is left of it stays.
    if let hole = removeHole(at: piece.first, from: &state) {
      if hole.first < piece.first { state.areas.insert(.hole(hole.first, piece.first - 1)) }
      if hole.last > piece.last { state.areas.insert(.hole(piece.last + 1, hole.last)) }
    }
    events.append(
      .map(
        ioas: id, iova: IOVA(piece.first), length: piece.length,
        permissions: piece.permissions))
    state.areas.insert(piece)
    for child in state.children { try child.fill(from: piece) }
  }
}
