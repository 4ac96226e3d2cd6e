// SPDX-License-Identifier: Apache-2.0
//
// What an AMD IOMMU can do, as far as its tables and commands ask: AMD I/O Virtualization
// Technology (48882), section 3.4.5, extended feature register.

/// The extended feature register (MMIO 0030h).
public struct AMDCapabilities: Hashable, Sendable {
  /// EFR.
  public var rawValue: UInt64

  @inlinable
  public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// A bit of EFR, by its number.
  public struct Feature: RawRepresentable, Hashable, Sendable {
    public var rawValue: Int
    @inlinable public init(rawValue: Int) { self.rawValue = rawValue }

    /// PreFSup.
    public static let prefetch = Feature(rawValue: 0)
    /// PPRSup: peripheral page requests.
    public static let pageRequests = Feature(rawValue: 1)
    /// GTSup: guest translation.
    public static let guestTranslation = Feature(rawValue: 4)
    /// IASup: INVALIDATE_IOMMU_ALL.
    public static let invalidateAll = Feature(rawValue: 6)
    /// GIOSup: guest translation of requests without PASID.
    public static let guestIO = Feature(rawValue: 48)
    /// HASup: accessed bits in the host's tables.
    public static let hostAccessed = Feature(rawValue: 49)
    /// EPHSup: enhanced page-request handling.
    public static let enhancedPageRequests = Feature(rawValue: 50)
    /// HDSup: dirty bits in the host's tables.
    public static let hostDirty = Feature(rawValue: 52)
  }

  @inlinable
  public func has(_ feature: Feature) -> Bool { rawValue.bit(feature.rawValue) }

  /// HATS (bits 11 and 10): the most levels of a host table, 4 to 6.
  @inlinable
  public var mostHostLevels: Int { Swift.min(4 + Int(rawValue.bits(11, 10)), 6) }
  /// GATS (bits 13 and 12): the most levels of a guest table, 4 to 6.
  @inlinable
  public var mostGuestLevels: Int { Swift.min(4 + Int(rawValue.bits(13, 12)), 6) }
  /// GLXSup (bits 15 and 14): the most levels of a guest CR3 table, 1 to 3.
  @inlinable
  public var mostCR3Levels: Int { Swift.min(1 + Int(rawValue.bits(15, 14)), 3) }
  /// PASmax (bits 36 to 32): a PASID has so many bits, and one more.
  @inlinable
  public var pasidWidth: Int { Int(rawValue.bits(36, 32)) + 1 }
}
