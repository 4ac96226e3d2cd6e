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

  public let geometry: DomainGeometry
  /// Whether it was made to track dirty pages: some devices cannot use it then.
  public let tracksDirty: Bool

  /// Page numbers to physical addresses.
  private let pages = Mutex<[UInt64: UInt64]>([:])

  init(hugePages: Bool, tracksDirty: Bool) {
    geometry = DomainGeometry(
      aperture: Self.aperture,
      pageSizes: PageSizes(rawValue: Self.pageSize | (hugePages ? Self.hugePageSize : 0)),
      enforcesSnoop: false)
    self.tracksDirty = tracksDirty
  }

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
    try pages.withLock { (pages) throws(IOMMUError) in
      let numbers = Self.numbers(iova, length)
      // The engine never maps over a mapping: a test that sees this has found a bug.
      guard numbers.allSatisfy({ pages[$0] == nil }) else {
        throw IOMMUError(.fileExists, "the mock IOMMU has a page in \(hex(length)) at \(iova)")
      }
      var address = physical.rawValue
      for number in numbers {
        pages[number] = address
        address += Self.pageSize
      }
    }
  }

  public func unmap(_ iova: IOVA, length: UInt64) {
    pages.withLock { pages in
      for number in Self.numbers(iova, length) { pages.removeValue(forKey: number) }
    }
  }

  private static func numbers(_ iova: IOVA, _ length: UInt64) -> Range<UInt64> {
    iova.rawValue / pageSize..<(iova.rawValue + length) / pageSize
  }

  public func translate(_ iova: IOVA) -> PhysicalAddress? {
    pages.withLock { pages in
      pages[iova.rawValue / Self.pageSize].map {
        PhysicalAddress($0 + iova.rawValue % Self.pageSize)
      }
    }
  }

  /// Pages in the table: zero once everything is unmapped.
  public var pageCount: Int { pages.withLock { $0.count } }
}
