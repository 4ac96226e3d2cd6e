// SPDX-License-Identifier: Apache-2.0
//
// Unmapping as the 2021 proposal and VFIO's type1v2 have it: whole mappings or nothing at all
// (MODEL B1, K1).

import PageTables
import SystemPackage

extension AddressSpace {
  /// Unmaps all mappings in a range, of which none reaches beyond it.
  /// - Returns: Bytes unmapped; where nothing is mapped, 0.
  /// - Throws: `EINVAL` where a mapping reaches beyond, `EBUSY` where hardware reads one or a
  ///   child refuses. Nothing has changed then, but for `EBUSY` of hardware in the middle.
  func unmapWhole(_ range: ClosedRange<UInt64>) throws(IOMMUError) -> UInt64 {
    try withTree { (state) throws(IOMMUError) in
      try checkOpen(state)
      for end in [range.lowerBound, range.upperBound] {
        guard let mapping = mapping(at: end, in: state),
          mapping.lowerBound < range.lowerBound || mapping.upperBound > range.upperBound
        else { continue }
        throw IOMMUError(
          .invalidArgument,
          "\(hex(range.lowerBound))...\(hex(range.upperBound)) would split the mapping "
            + "\(hex(mapping.lowerBound))...\(hex(mapping.upperBound)) of IOAS \(id); it is unmapped "
            + "whole")
      }
      var unmapped: UInt64 = 0
      try unmapInTree(range, counting: &unmapped, in: &state)
      return unmapped
    }
  }

  /// What the user mapped around an address: of a nested space that may be several areas.
  private func mapping(
    at iova: UInt64, in state: borrowing State
  ) -> ClosedRange<UInt64>? {
    if state.specials.contains(.nested) {
      return state.mappings.overlapping(iova...iova).first?.range
    }
    guard let position = state.areas.firstOverlap(with: iova...iova) else { return nil }
    let (first, last) = state.areas.bounds(at: position)
    return first...last
  }
}

extension Context {
  /// Unmaps whole mappings or nothing: type1v2's way. When it returns, no DMA uses them (G2).
  /// - Parameters: `iova` and `length` in bytes.
  /// - Returns: Bytes unmapped; where nothing is mapped, 0.
  /// - Throws: `ENOENT`; `EINVAL` for no bytes and where a mapping would be split, `EOVERFLOW`
  ///   past the last address, `EBUSY`.
  public func unmapWhole(
    _ iova: IOVA, length: UInt64, from ioas: ObjectID
  ) throws(IOMMUError) -> UInt64 {
    let space = try addressSpace(ioas)
    guard length > 0 else {
      throw IOMMUError(.invalidArgument, "an unmap of no bytes from IOAS \(ioas)")
    }
    let (last, overflow) = iova.rawValue.addingReportingOverflow(length - 1)
    guard !overflow else {
      throw IOMMUError(.overflow, "\(iova) + \(hex(length)) bytes passes the last address")
    }
    return try space.unmapWhole(iova.rawValue...last)
  }
}
