// SPDX-License-Identifier: Apache-2.0
//
// What may be mapped at all: ranges that devices and page tables reserve, ranges that the
// user allows for automatic placement, and the alignment that page tables force.

import SystemPackage

extension AddressSpace {
  /// What may be mapped, and the alignment of it. Linux: `IOMMU_IOAS_IOVA_RANGES`.
  func mappableRanges() throws(IOMMUError) -> (ranges: [ClosedRange<UInt64>], alignment: UInt64)
  {
    try state.withLock { (state) throws(IOMMUError) in
      try check(state)
      var holes: [ClosedRange<UInt64>] = []
      var cursor: UInt64 = 0
      for range in state.reserved.map(\.range).sorted(by: { $0.lowerBound < $1.lowerBound }) {
        if range.lowerBound > cursor { holes.append(cursor...range.lowerBound - 1) }
        guard range.upperBound < UInt64.max else { return (holes, state.alignment) }
        cursor = max(cursor, range.upperBound + 1)
      }
      holes.append(cursor...UInt64.max)
      return (holes, state.alignment)
    }
  }

  /// Replaces what automatic placement may use. Linux: `IOMMU_IOAS_ALLOW_IOVAS`.
  /// - Parameter ranges: None overlapping another; empty allows everything.
  /// - Throws: `EADDRINUSE` where one is reserved. Then the old ranges stay.
  func allow(_ ranges: [ClosedRange<UInt64>]) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      try check(state)
      for range in ranges {
        if let reserved = state.reserved.first(where: { $0.range.overlaps(range) }) {
          throw IOMMUError(
            .addressInUse,
            "\(hex(range.lowerBound))...\(hex(range.upperBound)) cannot be allowed in IOAS \(id): "
              + "\(hex(reserved.range.lowerBound))...\(hex(reserved.range.upperBound)) is reserved"
          )
        }
      }
      // Neighbours are one range for what is placed there.
      var joined: [ClosedRange<UInt64>] = []
      for range in ranges.sorted(by: { $0.lowerBound < $1.lowerBound }) {
        if let last = joined.last, last.upperBound &+ 1 == range.lowerBound {
          joined[joined.count - 1] = last.lowerBound...range.upperBound
        } else {
          joined.append(range)
        }
      }
      state.allowed = joined
    }
  }

  /// Keeps ranges from being mapped, all of them or none.
  /// - Throws: `EADDRINUSE` where something is mapped or allowed there.
  func reserve(
    _ ranges: [ClosedRange<UInt64>], for owner: Reserved.Owner
  ) throws(IOMMUError) {
    try whileSlotsStay { () throws(IOMMUError) in
      try state.withLock { (state) throws(IOMMUError) in
        try check(state)
        try reserve(ranges, for: owner, in: &state)
      }
    }
  }

  func reserve(
    _ ranges: [ClosedRange<UInt64>], for owner: Reserved.Owner, in state: inout State
  ) throws(IOMMUError) {
    try FailurePoint.pass(.reservation)
    for range in ranges {
      if let position = state.areas.firstOverlap(with: range) {
        let area = state.areas[position]
        throw IOMMUError(
          .addressInUse,
          "\(hex(range.lowerBound))...\(hex(range.upperBound)) must be reserved in IOAS \(id), "
            + "but \(hex(area.first))...\(hex(area.last)) is mapped; unmap that first")
      }
      if let allowed = state.allowed.first(where: { $0.overlaps(range) }) {
        throw IOMMUError(
          .addressInUse,
          "\(hex(range.lowerBound))...\(hex(range.upperBound)) must be reserved in IOAS \(id), "
            + "but \(hex(allowed.lowerBound))...\(hex(allowed.upperBound)) is allowed")
      }
    }
    state.reserved += ranges.map { Reserved(range: $0, owner: owner) }
  }

  func unreserve(_ owner: Reserved.Owner) {
    state.withLock { state in state.reserved.removeAll { $0.owner == owner } }
  }

  /// Whether leaves larger than a host page may be used. Linux: `IOMMU_OPTION_HUGE_PAGES`.
  var largePages: Bool {
    get throws(IOMMUError) {
      try state.withLock { (state) throws(IOMMUError) in
        try check(state)
        return state.largePages
      }
    }
  }

  /// - Throws: `EINVAL` where page tables already hold mappings, `EADDRINUSE` where an area is
  ///   not aligned to host pages.
  func setLargePages(_ enabled: Bool) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      try check(state)
      guard enabled != state.largePages else { return }
      if !enabled {
        guard state.domains.isEmpty || state.areas.isEmpty else {
          throw IOMMUError(
            .invalidArgument,
            "large pages cannot be turned off in IOAS \(id) while a page table holds mappings")
        }
        try checkAligned(to: max(Pages.hostPage, state.alignment), in: state)
      }
      state.largePages = enabled
      state.alignment = minimumAlignment(in: state)
    }
  }

  /// The alignment that page tables and options ask for.
  func minimumAlignment(in state: borrowing State) -> UInt64 {
    var alignment: UInt64 =
      state.largePages && state.pinningAccessors == 0 ? 1 : Pages.hostPage
    for domain in state.domains {
      alignment = max(alignment, domain.geometry.pageSizes.smallest)
    }
    return alignment
  }

  /// - Throws: `EADDRINUSE` where an area does not have this alignment.
  func checkAligned(to alignment: UInt64, in state: borrowing State) throws(IOMMUError) {
    let mask = alignment - 1
    try state.areas.visit { (area) throws(IOMMUError) in
      guard (area.first | area.length | area.start & (Pages.hostPage - 1)) & mask == 0 else {
        throw IOMMUError(
          .addressInUse,
          "the mapping \(hex(area.first))...\(hex(area.last)) of IOAS \(id) is not aligned to "
            + "\(hex(alignment)) bytes, as the page table needs")
      }
    }
  }
}
