// SPDX-License-Identifier: Apache-2.0
//
// The mock IOMMU's page table: a dictionary of half-size pages, so that the engine's handling
// of pages smaller than the host's is tested, and every entry can be looked at.

import IOMMU
import PageTables
import Synchronization
import SystemPackage

/// A table of the mock IOMMU (Linux: `struct mock_iommu_domain`). Thread-safe.
public final class MockDomain: PagingDomain {
  /// `MOCK_PAGE_SIZE`: half a host page, in bytes.
  public static let pageSize: UInt64 = 2048
  /// `MOCK_HUGE_PAGE_SIZE`, in bytes; only for devices that were made with it.
  public static let hugePageSize: UInt64 = 512 * pageSize
  /// `MOCK_APERTURE_START` to `MOCK_APERTURE_LAST`, both inclusive.
  public static let aperture: ClosedRange<UInt64> = 0x100_0000...0x7fff_ffff

  /// After so many bytes a map asks for more memory, as far as failures on demand go.
  private static let tableReach: UInt64 = 32 * pageSize

  public let geometry: DomainGeometry
  /// Whether it was made to track dirty pages: some devices cannot use it then.
  public let tracksDirty: Bool

  private struct State: Sendable {
    /// Page numbers to physical addresses, with flags in the bits that are zero in those.
    var pages: [UInt64: UInt64] = [:]
    var isTracking = false
    var refusalToInvalidate = Errno.invalidArgument
  }

  /// Flags of an entry.
  private static let dirty: UInt64 = 1
  private static let huge: UInt64 = 2
  private static let flags = dirty | huge

  private let state = RankedMutex(.domain, State())

  init(hugePages: Bool, tracksDirty: Bool) {
    geometry = DomainGeometry(
      aperture: Self.aperture,
      pageSizes: PageSizes(rawValue: Self.pageSize | (hugePages ? Self.hugePageSize : 0)),
      enforcesSnoop: false)
    self.tracksDirty = tracksDirty
  }

  /// Notes that a table nests on this one whose data is as long as Linux 6.12 has it. A program
  /// that was built for 6.12 expects its answer to an invalidation of the parent, too.
  func noteNesting(dataLength: UInt32) {
    guard dataLength == 4 else { return }
    state.withLock { $0.refusalToInvalidate = .noSuchFileOrDirectory }
  }

  public var refusalToInvalidate: Errno { state.withLock { $0.refusalToInvalidate } }

  public func map(
    _ iova: IOVA, to physical: PhysicalAddress, length: UInt64, permissions: Permissions
  ) throws(IOMMUError) {
    guard length > 0, (iova.rawValue | physical.rawValue | length) % Self.pageSize == 0,
      Self.aperture.contains(iova.rawValue),
      Self.aperture.upperBound - iova.rawValue >= length - 1
    else {
      throw IOMMUError(
        .invalidArgument,
        "the mock IOMMU cannot map \(hex(length)) bytes at IOVA \(iova) to \(physical)")
    }
    try state.withLock { (state) throws(IOMMUError) in
      let numbers = Self.numbers(iova, length)
      // The engine never maps over a mapping: a test that sees this has found a bug.
      guard numbers.allSatisfy({ state.pages[$0] == nil }) else {
        throw IOMMUError(.fileExists, "the mock IOMMU has a page in \(hex(length)) at \(iova)")
      }
      var offset: UInt64 = 0
      for number in numbers {
        if offset % Self.tableReach == 0 {
          do throws(IOMMUError) {
            try FailurePoint.pass(.tableMemory)
          } catch {
            for number in Self.numbers(iova, offset) { state.pages.removeValue(forKey: number) }
            throw error
          }
        }
        let huge = isHuge(
          iova.rawValue + offset, physical.rawValue + offset,
          from: iova.rawValue, to: iova.rawValue + length)
        state.pages[number] = physical.rawValue + offset | (huge ? Self.huge : 0)
        offset += Self.pageSize
      }
    }
  }

  /// Whether a page is part of a huge one: where that fits between the ends of the mapping.
  private func isHuge(
    _ iova: UInt64, _ physical: UInt64, from start: UInt64, to end: UInt64
  ) -> Bool {
    guard geometry.pageSizes.rawValue & Self.hugePageSize != 0 else { return false }
    let mask = Self.hugePageSize - 1
    let head = iova & ~mask
    return iova & mask == physical & mask && head >= start && end - head >= Self.hugePageSize
  }

  public func unmap(_ iova: IOVA, length: UInt64) {
    state.withLock { state in
      for number in Self.numbers(iova, length) { state.pages.removeValue(forKey: number) }
    }
  }

  private static func numbers(_ iova: IOVA, _ length: UInt64) -> Range<UInt64> {
    iova.rawValue / pageSize..<(iova.rawValue + length) / pageSize
  }

  public func translate(_ iova: IOVA) -> PhysicalAddress? {
    state.withLock { state in
      state.pages[iova.rawValue / Self.pageSize].map {
        PhysicalAddress($0 & ~Self.flags + iova.rawValue % Self.pageSize)
      }
    }
  }

  /// Pages in the table: zero once everything is unmapped.
  public var pageCount: Int { state.withLock { $0.pages.count } }
}

// MARK: Dirty pages

extension MockDomain: DirtyTrackingDomain {
  public func setDirtyTracking(_ enabled: Bool) throws(IOMMUError) {
    state.withLock { state in
      if enabled { for number in state.pages.keys { state.pages[number]? &= ~Self.dirty } }
      state.isTracking = enabled
    }
  }

  public func readDirty(
    _ range: ClosedRange<UInt64>, clear: Bool,
    _ report: (_ first: UInt64, _ length: UInt64) -> Void
  ) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      guard state.isTracking else { return }
      var iova = range.lowerBound & ~(Self.pageSize - 1)
      while iova <= range.upperBound {
        let entry = state.pages[iova / Self.pageSize] ?? 0
        let size = entry & Self.huge != 0 ? Self.hugePageSize : Self.pageSize
        let head = iova & ~(size - 1)
        // A huge page is dirty as a whole.
        let numbers = Self.numbers(IOVA(head), size)
        let dirty = numbers.filter { state.pages[$0].map { $0 & Self.dirty != 0 } ?? false }
        if !dirty.isEmpty { report(head, size) }
        if clear { for number in dirty { state.pages[number]? &= ~Self.dirty } }
        iova = head + size
      }
    }
  }

  /// Makes the page at an address dirty, as a device's write would.
  /// - Returns: Whether a page is mapped there.
  /// - Throws: `EINVAL` while tracking is off.
  public func markDirty(_ iova: IOVA) throws(IOMMUError) -> Bool {
    try state.withLock { (state) throws(IOMMUError) in
      guard state.isTracking else { throw Self.notTracking }
      let number = iova.rawValue / Self.pageSize
      guard state.pages[number] != nil else { return false }
      state.pages[number]? |= Self.dirty
      return true
    }
  }

  /// Whether dirty pages are tracked at the moment.
  public var isTracking: Bool { state.withLock { $0.isTracking } }

  /// `EINVAL`: what a call on dirty pages says while tracking is off.
  public static var notTracking: IOMMUError {
    IOMMUError(.invalidArgument, "the page table does not track dirty pages at the moment")
  }
}
