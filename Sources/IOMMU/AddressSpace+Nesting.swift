// SPDX-License-Identifier: Apache-2.0
//
// A nested address space's own calls (MODEL B5). Its mappings name its parent's IOVA; what goes
// into its page tables is the parent's memory itself: DMA walks one table.

import PageTables
import SystemPackage

extension AddressSpace {
  /// Maps a range of the parent's IOVA. All or nothing; the pins are the parent's (MODEL B6).
  ///
  /// What may be done is what both the call and the parent's mapping allow.
  /// - Parameters: `parentIOVA` and `length` in bytes.
  /// - Throws: As `map`; `EINVAL` where the space is not nested. Where parent changes are
  ///   refused: `ENOENT` where the parent does not map a byte of it, `EPERM` where the parent
  ///   allows nothing of what is asked for.
  func map(
    parentIOVA: IOVA, length: UInt64, permissions: Permissions, placement: Placement
  ) throws(IOMMUError) -> IOVA {
    guard let link else {
      throw IOMMUError(
        .invalidArgument,
        "IOAS \(id) is nested on no other, so there is no parent's IOVA \(parentIOVA) to map")
    }
    guard length > 0 else {
      throw IOMMUError(.invalidArgument, "a mapping of no bytes cannot be made")
    }
    let parentFirst = parentIOVA.rawValue
    guard !parentFirst.addingReportingOverflow(length - 1).overflow else {
      throw IOMMUError(
        .overflow,
        "IOVA \(parentIOVA) of the parent + \(hex(length)) bytes passes the last address")
    }
    try FailurePoint.pass(.scratch)
    return try whileSlotsStay { () throws(IOMMUError) in
      try map(parentFirst, length, permissions, placement, link)
    }
  }

  private func map(
    _ parentFirst: UInt64, _ length: UInt64, _ permissions: Permissions, _ placement: Placement,
    _ link: ParentLink
  ) throws(IOMMUError) -> IOVA {
    try withParent(link) { (parent, state) throws(IOMMUError) in
      try checkOpen(state)
      try checkLength(length, in: state)
      let first = try place(placement, length: length, hint: parentFirst, in: state)
      let mapping = NestedMapping(
        first: first, last: first + (length - 1), parentFirst: parentFirst,
        permissions: permissions)
      let areas = try shadows(of: mapping, on: parent, link)
      for area in areas { try checkPiece(area, in: state) }
      try insert(areas, of: mapping, in: &state)
      return IOVA(first)
    }
  }

  /// What a mapping comes to: parts of the parent's areas, and holes where it has none.
  private func shadows(
    of mapping: NestedMapping, on parent: AreaMap, _ link: ParentLink
  ) throws(IOMMUError) -> [Area] {
    var areas: [Area] = []
    let end = mapping.parentRange.upperBound
    var cursor = mapping.parentFirst
    var position = parent.firstEnding(atOrAfter: cursor)
    while true {
      let area = position.map { parent[$0] }
      var last = end
      if let area, area.first <= cursor {
        last = min(last, area.last)
      } else if let area, area.first <= end {
        last = area.first - 1
      }
      let piece = area.flatMap { shadow(of: $0, for: mapping, cursor...last) }
      if link.changes == .refused, piece == nil {
        throw unmapped(cursor, mapping, in: area, link)
      }
      if let piece {
        areas.append(piece)
      } else {
        let range = mapping.range(ofParent: cursor...last)
        let before = areas.last.flatMap { $0.isHole ? $0.first : nil }
        if before != nil { areas.removeLast() }
        areas.append(.hole(before ?? range.lowerBound, range.upperBound))
      }
      if last == end { return areas }
      cursor = last + 1
      while let here = position, parent[here].last < cursor {
        position = parent.position(after: here)
      }
    }
  }

  /// What a mapping makes of a part of one of the parent's areas.
  /// - Parameter range: The parent's IOVA; within the mapping's.
  /// - Returns: Nil where the area is not there, or allows nothing of what is asked for.
  func shadow(
    of area: Area, for mapping: NestedMapping, _ range: ClosedRange<UInt64>
  ) -> Area? {
    let permissions = area.permissions.intersection(mapping.permissions)
    guard area.first <= range.lowerBound, !area.isHole, !permissions.isEmpty else { return nil }
    let own = mapping.range(ofParent: range)
    return Area(
      first: own.lowerBound, last: own.upperBound, pages: area.pages,
      start: area.start + (range.lowerBound - area.first), permissions: permissions)
  }

  private func unmapped(
    _ parentIOVA: UInt64, _ mapping: NestedMapping, in area: Area?, _ link: ParentLink
  ) -> IOMMUError {
    let end = mapping.parentRange.upperBound
    let range = "\(hex(mapping.parentFirst))...\(hex(end))"
    if let area, area.first <= parentIOVA, !area.isHole {
      return IOMMUError(
        .notPermitted,
        "IOAS \(link.parent.id), the parent of IOAS \(id), maps \(hex(area.first))..."
          + "\(hex(area.last)) \(area.permissions), so \(range) cannot be mapped "
          + "\(mapping.permissions)")
    }
    return IOMMUError(
      .noSuchFileOrDirectory,
      "IOVA \(hex(parentIOVA)) is not mapped in IOAS \(link.parent.id), the parent of IOAS \(id), "
        + "so \(range) cannot be mapped; map it there first, or make the nested space with parent "
        + "changes carried through")
  }

  /// Checks that page tables can take a piece that another space gives.
  func checkPiece(_ area: Area, in state: borrowing State) throws(IOMMUError) {
    let bits = area.first | area.length | area.start & (Pages.hostPage - 1)
    guard bits & (state.alignment - 1) == 0 else {
      throw IOMMUError(
        .invalidArgument,
        "the parent's mapping behind \(hex(area.first))...\(hex(area.last)) of IOAS \(id), nested "
          + "on it, is not aligned to the \(hex(state.alignment)) bytes that its page tables need"
      )
    }
  }

  private func insert(
    _ areas: [Area], of mapping: NestedMapping, in state: inout State
  ) throws(IOMMUError) {
    do throws(IOMMUError) {
      for area in areas {
        if area.isHole {
          state.areas.insert(area)
        } else {
          try insert(area, in: &state)
          try showNew(at: area.first, in: &state)
        }
      }
    } catch {
      // The range was free before: what is there now is ours.
      removeAreas(in: mapping.range, from: &state)
      throw error
    }
    state.mappings.insert(mapping)
  }

  private func removeAreas(in range: ClosedRange<UInt64>, from state: inout State) {
    while let position = state.areas.firstOverlap(with: range) {
      if state.areas[position].isHole {
        _ = state.areas.remove(at: position)
      } else {
        take(at: position, from: &state)
      }
    }
  }

  /// Unmaps the mappings of a nested space that lie wholly inside a range. As `unmap`.
  func unmapNested(
    _ range: ClosedRange<UInt64>, counting unmapped: inout UInt64, in state: inout State
  ) throws(IOMMUError) {
    for mapping in state.mappings.overlapping(range) {
      try checkUnlocked(first: mapping.first, last: mapping.last, in: state)
      guard mapping.first >= range.lowerBound, mapping.last <= range.upperBound else {
        throw splits(first: mapping.first, last: mapping.last, range)
      }
      removeAreas(in: mapping.range, from: &state)
      state.mappings.remove(mapping)
      unmapped &+= mapping.length
    }
  }

  // MARK: What a special space refuses

  /// Checks a map of memory into a space that is not the usual one.
  /// - Returns: Where it goes: into a dummy root at its own address.
  func checkMap(
    _ placement: Placement, of address: UInt64, in state: borrowing State
  ) throws(IOMMUError) -> Placement {
    try checkOpen(state)
    try refuseNested(state, "given memory; map addresses of its parent")
    guard state.specials.contains(.dummyRoot) else { return placement }
    guard placement == .anywhere || placement == .fixed(IOVA(address)) else {
      throw IOMMUError(
        .invalidArgument,
        "IOAS \(id) is a dummy root: memory at \(hex(address)) is mapped at that address or not "
          + "at all")
    }
    return .fixed(IOVA(address))
  }

  /// - Throws: `EOPNOTSUPP`.
  func refuseNested(_ state: borrowing State, _ what: String) throws(IOMMUError) {
    guard state.specials.contains(.nested) else { return }
    throw IOMMUError(
      .operationNotSupported,
      "IOAS \(id) is nested on IOAS \(link?.parent.id.description ?? "") and cannot be \(what)")
  }

  /// - Throws: `EOPNOTSUPP`.
  func refuseDummyRoot(_ state: borrowing State, _ what: String) throws(IOMMUError) {
    guard state.specials.contains(.dummyRoot) else { return }
    throw IOMMUError(
      .operationNotSupported,
      "IOAS \(id) is a dummy root, which no DMA goes through, and cannot be \(what); nest an IOAS "
        + "on it")
  }
}

extension Area {
  /// Addresses of a nested space behind which its parent maps nothing.
  static func hole(_ first: UInt64, _ last: UInt64) -> Area {
    Area(first: first, last: last, pages: .hole, start: 0, permissions: [])
  }
}
