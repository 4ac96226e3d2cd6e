// SPDX-License-Identifier: Apache-2.0
//
// Taking mappings out of an address space, and copying them to another.

import PageTables
import SystemPackage

extension AddressSpace {
  /// Unmaps every area that lies wholly inside `range`.
  ///
  /// Linux: `IOMMU_IOAS_UNMAP`. MODEL B1, G2: when it returns, no DMA uses what was mapped.
  /// As on Linux, areas before the first one that would be split are gone when it throws.
  /// - Parameter range: Closed, in bytes, so that it can reach the last address.
  /// - Returns: Bytes unmapped.
  /// - Throws: `ENOENT` where an area would be split, `EBUSY` where hardware reads one.
  func unmap(_ range: ClosedRange<UInt64>) throws(IOMMUError) -> UInt64 {
    let unmapped: UInt64? = try state.withLock { (state) throws(IOMMUError) in
      state.specials.isEmpty ? try unmap(range, in: &state) : nil
    }
    return if let unmapped { unmapped } else { try unmapInTree(range) }
  }

  private func unmap(
    _ range: ClosedRange<UInt64>, in state: inout State
  ) throws(IOMMUError) -> UInt64 {
    var unmapped: UInt64 = 0
    while let position = state.areas.firstOverlap(with: range) {
      let (first, last) = state.areas.bounds(at: position)
      try checkUnlocked(first: first, last: last, in: state)
      guard first >= range.lowerBound, last <= range.upperBound else {
        throw splits(first: first, last: last, range)
      }
      remove(at: position, from: &state)
      unmapped &+= last &- first &+ 1
      if last == range.upperBound { break }
    }
    return unmapped
  }

  func splits(first: UInt64, last: UInt64, _ range: ClosedRange<UInt64>) -> IOMMUError {
    IOMMUError(
      .noSuchFileOrDirectory,
      "unmapping \(hex(range.lowerBound))...\(hex(range.upperBound)) would split the mapping "
        + "\(hex(first))...\(hex(last)) of IOAS \(id)")
  }

  func remove(at position: AreaMap.Position, from state: inout State) {
    let area = state.areas.remove(at: position)
    releasePins(touching: area.first...area.last, in: &state)
    for domain in state.domains { unfill(area, from: domain) }
    events.append(.unmap(ioas: id, iova: IOVA(area.first), length: area.length))
  }

  /// Empties the space for good. No page table mirrors it any more and nothing nests on it.
  func destroy() {
    // Nothing in it throws.
    try? withTree { state in
      state.specials.insert(.destroyed)
      while let position = state.areas.firstEnding(atOrAfter: 0) {
        remove(at: position, from: &state)
      }
      state.mappings = NestedMappings()
    }
    link?.parent.release(self)
  }

  /// The memory behind a range, for mapping elsewhere. Linux: `iopt_get_pages`.
  /// - Throws: `ENOENT` where a byte of the range is not mapped, `EINVAL`, `EOVERFLOW`; `EPERM`
  ///   where it is a VM's slots, which a copy would not follow.
  func pieces(_ iova: IOVA, length: UInt64) throws(IOMMUError) -> [Piece] {
    guard length > 0 else {
      throw IOMMUError(.invalidArgument, "a copy of no bytes from IOAS \(id)")
    }
    let (last, overflow) = iova.rawValue.addingReportingOverflow(length - 1)
    guard !overflow else {
      throw IOMMUError(
        .overflow, "IOVA \(iova) + \(hex(length)) bytes passes the last address")
    }
    try FailurePoint.pass(.scratch)
    return try state.withLock { (state) throws(IOMMUError) in
      try checkOpen(state)
      try refuseNested(state, "copied from; copy from the parent")
      var pieces: [Piece] = []
      var cursor = iova.rawValue
      var position = state.areas.firstEnding(atOrAfter: cursor)
      while true {
        guard let here = position, state.areas[here].first <= cursor else {
          throw IOMMUError(
            .noSuchFileOrDirectory,
            "IOVA \(hex(cursor)) is not mapped in IOAS \(id), so "
              + "\(iova)...\(hex(last)) cannot be copied")
        }
        let area = state.areas[here]
        let end = min(area.last, last)
        pieces.append(
          Piece(
            pages: area.pages, start: area.start + (cursor - area.first),
            length: end - cursor + 1))
        if end == last { return pieces }
        cursor = end + 1
        position = state.areas.position(after: here)
      }
    }
  }

  /// Maps memory that another space has mapped. Linux: `IOMMU_IOAS_COPY`; the pins are shared.
  /// - Throws: As `map`; `EPERM` where write access is asked of memory mapped without it.
  func map(
    _ pieces: [Piece], length: UInt64, permissions: Permissions, placement: Placement
  ) throws(IOMMUError) -> IOVA {
    try state.withLock { (state) throws(IOMMUError) in
      try checkOpen(state)
      try refuseNested(state, "copied into; map addresses of its parent")
      try refuseDummyRoot(state, "copied into; map the memory at its own address")
      try checkLength(length, in: state)
      let hint = pieces[0].pages.address &+ pieces[0].start
      let first = try place(placement, length: length, hint: hint, in: state)
      for piece in pieces {
        guard !permissions.contains(.write) || piece.pages.isWritable else {
          throw IOMMUError(
            .notPermitted,
            "memory that was mapped without write access cannot be copied with it")
        }
        try checkPiece(offset: piece.start, in: state)
      }
      var iova = first
      do throws(IOMMUError) {
        for piece in pieces {
          try insert(
            Area(
              first: iova, last: iova + (piece.length - 1), pages: piece.pages,
              start: piece.start, permissions: permissions), in: &state)
          if !state.specials.isEmpty { try showNew(at: iova, in: &state) }
          iova &+= piece.length
        }
      } catch {
        // The range was free before: what is there now is ours.
        while iova != first, let position = state.areas.firstOverlap(with: first...iova - 1) {
          take(at: position, from: &state)
        }
        throw error
      }
      return IOVA(first)
    }
  }
}
