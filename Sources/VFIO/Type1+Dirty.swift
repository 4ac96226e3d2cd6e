// SPDX-License-Identifier: Apache-2.0
//
// Dirty pages and information of a container (MODEL I1, J1). Type1 does not look into page
// tables: while it tracks, every page that devices can reach counts as dirty at every look. Who
// wants the IOMMU's own bits has /dev/iommu.

import IOMMU
import PageTables
import SystemPackage

extension VFIOContainer {
  /// Starts tracking; nothing where it runs.
  ///
  /// Linux: `VFIO_IOMMU_DIRTY_PAGES_FLAG_START`.
  /// - Throws: `EINVAL` before a model is set.
  public func startDirtyTracking() throws(IOMMUError) { try track(true) }

  /// Stops it; nothing where it does not run. Linux: `VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP`.
  /// - Throws: `EINVAL` before a model is set.
  public func stopDirtyTracking() throws(IOMMUError) { try track(false) }

  private func track(_ on: Bool) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      _ = try Self.type1(of: state)
      state.type1?.tracksDirty = on
    }
  }

  /// The mappings in a range, all of whose pages count as dirty.
  ///
  /// Linux: `VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP`.
  /// - Parameters:
  ///   - range: Both ends inclusive, in bytes; it splits no mapping.
  ///   - pageSize: Of a bit, in bytes: the smallest that the container maps.
  ///   - tellDirty: Is told each mapping, in order. Called with the container's lock held, so
  ///     that nobody unmaps what it is told; it must not call the container.
  /// - Throws: `EINVAL`; what `tellDirty` throws.
  public func readDirty(
    _ range: ClosedRange<UInt64>, pageSize: UInt64,
    tellDirty: (ClosedRange<UInt64>) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      let type1 = try Self.type1(of: state)
      try type1.checkPageSize(pageSize)
      guard (range.lowerBound | (range.upperBound &+ 1)) & (pageSize - 1) == 0 else {
        throw IOMMUError(
          .invalidArgument,
          "\(hex(range.lowerBound))...\(hex(range.upperBound)) must begin and end with pages of "
            + "\(hex(pageSize)) bytes")
      }
      try type1.checkTracking(pageSize)
      try type1.checkSplitsNothing(range)
      var rest: ClosedRange<UInt64>? = range
      while let here = rest, let mapping = type1.mapping(in: here) {
        try tellDirty(mapping)
        rest =
          mapping.upperBound < range.upperBound
          ? mapping.upperBound + 1...range.upperBound : nil
      }
    }
  }

  /// What a container says of its mappings. Linux: `VFIO_IOMMU_GET_INFO`.
  public struct Information: Equatable, Sendable {
    /// Page sizes that all groups' IOMMUs have, as bits.
    public var pageSizes: UInt64
    /// What may be mapped, in order, both ends inclusive, in bytes.
    public var ranges: [ClosedRange<UInt64>]
    /// How many more mappings there can be.
    public var mappingsLeft: UInt32
    /// Page sizes of dirty bitmaps, as bits.
    public var dirtyPageSizes: UInt64
    /// Longest dirty bitmap, in bytes.
    public var longestBitmap: UInt64
  }

  /// Longest dirty bitmap, in bytes: 2³¹ pages.
  public static let longestBitmap: UInt64 = 256 << 20

  /// - Throws: `EINVAL` before a model is set.
  public var information: Information {
    get throws(IOMMUError) {
      try state.withLock { (state) throws(IOMMUError) in
        let type1 = try Self.type1(of: state)
        let sizes = try type1.context.commonPageSizes(of: type1.space.id)
        return Information(
          pageSizes: sizes.rawValue,
          ranges: try type1.context.mappableRanges(of: type1.space.id).ranges,
          mappingsLeft: type1.mappingsLeft, dirtyPageSizes: sizes.smallest,
          longestBitmap: Self.longestBitmap)
      }
    }
  }
}

extension Type1 {
  /// - Throws: `EINVAL` where a bit of a dirty bitmap does not stand for a page.
  func checkPageSize(_ size: UInt64) throws(IOMMUError) {
    let page = try pageSize()
    guard size == page else {
      throw IOMMUError(
        .invalidArgument,
        "a dirty bitmap has a bit for each \(hex(page)) bytes here, not for \(hex(size))")
    }
  }

  /// - Throws: `EINVAL` where dirty pages are not tracked, or not by this size.
  func checkTracking(_ size: UInt64) throws(IOMMUError) {
    guard tracksDirty else {
      throw IOMMUError(
        .invalidArgument,
        "the container does not track dirty pages; VFIO_IOMMU_DIRTY_PAGES_FLAG_START starts that"
      )
    }
    try checkPageSize(size)
  }
}
