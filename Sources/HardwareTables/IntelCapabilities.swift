// SPDX-License-Identifier: Apache-2.0
//
// What a VT-d unit can do, as far as its tables and queues ask: Intel Virtualization
// Technology for Directed I/O, revision 4.1, sections 11.4.2 (capability register) and 11.4.3
// (extended capability register).

/// The two capability registers and the width of host addresses.
public struct IntelCapabilities: Hashable, Sendable {
  /// CAP_REG.
  public var capability: UInt64
  /// ECAP_REG.
  public var extended: UInt64
  /// HAW: bits of a host-physical address, at most 52. From the DMAR table (8.1).
  public var hostAddressWidth: Int

  @inlinable
  public init(capability: UInt64, extended: UInt64, hostAddressWidth: Int = 52) {
    self.capability = capability
    self.extended = extended
    self.hostAddressWidth = hostAddressWidth
  }

  /// A bit of ECAP_REG, by its number.
  public struct Feature: RawRepresentable, Hashable, Sendable {
    public var rawValue: Int
    @inlinable public init(rawValue: Int) { self.rawValue = rawValue }

    /// DT: device TLBs.
    public static let deviceTLB = Feature(rawValue: 2)
    /// PT: pass-through.
    public static let passThrough = Feature(rawValue: 6)
    /// SC: snoop control.
    public static let snoopControl = Feature(rawValue: 7)
    /// MTS: memory types in scalable mode.
    public static let memoryTypes = Feature(rawValue: 25)
    /// NEST: nested translation.
    public static let nesting = Feature(rawValue: 26)
    /// PRS: page requests.
    public static let pageRequests = Feature(rawValue: 29)
    /// ERS: execute requests. Gone from later revisions; then the fields that go with it are
    /// reserved.
    public static let executeRequests = Feature(rawValue: 30)
    /// SRS: supervisor requests.
    public static let supervisorRequests = Feature(rawValue: 31)
    /// EAFS: extended accessed flag.
    public static let extendedAccessed = Feature(rawValue: 34)
    /// PASID.
    public static let pasid = Feature(rawValue: 40)
    /// SMTS: scalable mode.
    public static let scalableMode = Feature(rawValue: 43)
    /// SSADS: accessed and dirty bits in the second stage.
    public static let secondStageAccessedDirty = Feature(rawValue: 45)
    /// SSTS: second-stage translation in scalable mode.
    public static let secondStage = Feature(rawValue: 46)
    /// FSTS: first-stage translation.
    public static let firstStage = Feature(rawValue: 47)
    /// SMPWCS: page walks of scalable mode can snoop.
    public static let pageWalkSnoop = Feature(rawValue: 48)
    /// RPS: the RID_PASID field; without it requests without PASID use PASID 0.
    public static let ridPASID = Feature(rawValue: 49)
  }

  @inlinable
  public func has(_ feature: Feature) -> Bool { extended.bit(feature.rawValue) }

  /// SAGAW (bits 12 to 8): whether second-stage tables may have so many levels, 3 to 5.
  @inlinable
  public func hasSecondStage(levels: Int) -> Bool {
    levels >= 3 && levels <= 5 && capability.bit(8 + levels - 2)
  }

  /// The most levels that SAGAW has; 0 where it has none.
  @inlinable
  public var mostLevels: Int {
    hasSecondStage(levels: 5)
      ? 5
      : hasSecondStage(levels: 4)
        ? 4
        : hasSecondStage(levels: 3) ? 3 : 0
  }

  /// FS5LP (bit 60): 5-level first-stage tables.
  @inlinable public var hasFiveLevelFirstStage: Bool { capability.bit(60) }
  /// MAMV (bits 53 to 48): the most address mask of a page-selective invalidation.
  @inlinable public var mostAddressMask: UInt8 { UInt8(capability.bits(53, 48)) }

  /// Address bits that are reserved in every pointer: HAW and above.
  @inlinable
  var reservedAddressBits: UInt64 {
    hostAddressWidth >= 64 ? 0 : UInt64.max &<< UInt64(hostAddressWidth)
  }
}
