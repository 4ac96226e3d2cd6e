// SPDX-License-Identifier: Apache-2.0
//
// Where a mapping may go: the checks of a fixed IOVA, and the search for a free one.

import SystemPackage

extension AddressSpace {
  /// Checks a range that the caller chose. Linux: `iopt_check_iova`.
  func checkFree(_ iova: UInt64, length: UInt64, in state: borrowing State) throws(IOMMUError) {
    guard iova & (state.alignment - 1) == 0 else {
      throw IOMMUError(
        .invalidArgument,
        "IOVA \(hex(iova)) is not a multiple of IOAS \(id)'s alignment, "
          + "\(hex(state.alignment)) bytes")
    }
    let (last, overflow) = iova.addingReportingOverflow(length - 1)
    guard !overflow else {
      throw IOMMUError(
        .overflow, "IOVA \(hex(iova)) + \(hex(length)) bytes passes the last address")
    }
    let range = iova...last
    if let reserved = state.reserved.first(where: { $0.range.overlaps(range) }) {
      throw IOMMUError(
        .invalidArgument,
        "IOVA \(hex(iova))...\(hex(last)) touches \(hex(reserved.range.lowerBound))..."
          + "\(hex(reserved.range.upperBound)), which is reserved in IOAS \(id); "
          + "IOAS_IOVA_RANGES lists what may be mapped")
    }
    if let position = state.areas.firstOverlap(with: range) {
      let area = state.areas[position]
      throw IOMMUError(
        .fileExists,
        "IOVA \(hex(iova))...\(hex(last)) touches the mapping \(hex(area.first))..."
          + "\(hex(area.last)) of IOAS \(id); unmap that first")
    }
  }

  /// Finds room. Linux: `iopt_alloc_iova`, whose choice this makes: the lowest hole that
  /// holds the length at an alignment that keeps large pages possible, never IOVA 0.
  func findFree(
    length: UInt64, hint: UInt64, in state: borrowing State
  ) throws(IOMMUError) -> UInt64 {
    guard length < UInt64.max / 2 else {
      throw IOMMUError(.overflow, "no IOVA can be found for \(hex(length)) bytes")
    }
    let largest: UInt64 = 2 << 20
    let rounded = roundUpToPowerOfTwo(length)
    let alignment = min(
      largest, hint == 0 ? rounded : min(rounded, 1 << hint.trailingZeroBitCount))
    guard alignment >= state.alignment else {
      throw IOMMUError(
        .invalidArgument,
        "memory at \(hex(hint)) is not aligned to IOAS \(id)'s \(hex(state.alignment)) bytes")
    }
    let fit = Fit(length: length, alignment: alignment, pageOffset: hint & (Pages.hostPage - 1))
    let everything = Pages.hostPage...UInt64.max - Pages.hostPage
    for span in state.allowed.isEmpty ? [everything] : state.allowed {
      guard span.overlaps(everything) else { continue }
      let span = span.clamped(to: everything)
      guard fit.start(in: span) != nil else { continue }
      if let iova = firstFit(fit, in: span, state: state) { return iova }
    }
    throw IOMMUError(
      .noSpace,
      "IOAS \(id) has no free range of \(hex(length)) bytes aligned to \(hex(alignment))")
  }

  /// What a hole must offer.
  private struct Fit {
    let length: UInt64
    let alignment: UInt64
    /// The offset in its page that the memory has, and the IOVA gets too.
    let pageOffset: UInt64

    /// The lowest suitable IOVA in a hole.
    func start(in hole: ClosedRange<UInt64>) -> UInt64? {
      let (sum, overflow) = hole.lowerBound.addingReportingOverflow(alignment - 1)
      guard !overflow else { return nil }
      let aligned = sum & ~(alignment - 1) | pageOffset
      guard aligned <= hole.upperBound, hole.upperBound - aligned >= length - 1 else {
        return nil
      }
      return aligned
    }
  }

  private func firstFit(
    _ fit: Fit, in span: ClosedRange<UInt64>, state: borrowing State
  ) -> UInt64? {
    var cursor = span.lowerBound
    while true {
      // Step over everything that covers the cursor.
      var next = cursor
      for reserved in state.reserved where reserved.range.contains(next) {
        guard reserved.range.upperBound < span.upperBound else { return nil }
        next = reserved.range.upperBound + 1
      }
      var position = state.areas.firstEnding(atOrAfter: next)
      while let here = position, state.areas[here].first <= next {
        guard state.areas[here].last < span.upperBound else { return nil }
        next = state.areas[here].last + 1
        position = state.areas.position(after: here)
      }
      if next != cursor {
        cursor = next
        continue
      }
      // The hole ends before the next area or reserved range.
      var last = span.upperBound
      if let position, state.areas[position].first <= last {
        last = state.areas[position].first - 1
      }
      for reserved in state.reserved
      where reserved.range.lowerBound > cursor && reserved.range.lowerBound <= last {
        last = reserved.range.lowerBound - 1
      }
      if let iova = fit.start(in: cursor...last) { return iova }
      guard last < span.upperBound else { return nil }
      cursor = last + 1
    }
  }

  private func roundUpToPowerOfTwo(_ value: UInt64) -> UInt64 {
    value <= 1 ? 1 : 1 << (64 - (value - 1).leadingZeroBitCount)
  }
}
