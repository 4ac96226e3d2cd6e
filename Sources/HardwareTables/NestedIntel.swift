// SPDX-License-Identifier: Apache-2.0
//
// IOMMU_HWPT_DATA_VTD_S1, a first-stage table of VT-d that a user owns:
// include/uapi/linux/iommufd.h, struct iommu_hwpt_vtd_s1; VT-d revision 4.1, section 9.6.

/// A user's first-stage table, nested over a second stage of the host.
public struct IntelNestedTable: Hashable, Sendable {
  /// The flags of the uAPI.
  public struct Flags: OptionSet, Hashable, Sendable {
    public var rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// IOMMU_VTD_S1_SRE.
    public static let supervisor = Flags(rawValue: 1)
    /// IOMMU_VTD_S1_EAFE.
    public static let extendedAccessed = Flags(rawValue: 2)
    /// IOMMU_VTD_S1_WPE: only with `supervisor`.
    public static let writeProtect = Flags(rawValue: 4)
  }

  public var flags: Flags
  /// Guest-physical, in bytes.
  public var table: UInt64
  /// In bits.
  public var addressWidth: UInt32

  public init(flags: Flags, table: UInt64, addressWidth: UInt32) {
    self.flags = flags
    self.table = table
    self.addressWidth = addressWidth
  }

  /// The struct as in memory, 24 bytes in words. Allocation takes anything: unknown flags and
  /// the reserved field are not looked at, and the rest is checked at attach.
  public init(decoding flags: UInt64, _ table: UInt64, _ width: UInt64) {
    self.init(
      flags: Flags(rawValue: flags), table: table, addressWidth: UInt32(width.bits(31, 0)))
  }

  /// What attaching a device checks, in Linux's order.
  /// - Throws: EINVAL.
  public func check(_ unit: IntelCapabilities) throws(NestedTableError) {
    switch addressWidth {
    case 48: break
    case 57 where unit.hasFiveLevelFirstStage: break
    default: throw .invalid
    }
    if flags.contains(.supervisor), !unit.has(.supervisorRequests) { throw .invalid }
    if flags.contains(.extendedAccessed), !unit.has(.extendedAccessed) { throw .invalid }
  }

  /// The PASID entry that nests this table.
  /// - Parameter parent: The host's entry of second-stage translation, in memory's form.
  /// - Throws: What `check` throws.
  public func entry(
    parent: Words8, _ unit: IntelCapabilities
  ) throws(NestedTableError) -> Words8 {
    try check(unit)
    var words = parent
    words[0] =
      words[0] & ~.mask(8, 6) | .place(IntelPASIDEntry.Translation.nested.rawValue, 8, 6)
    let isSupervisor = flags.contains(.supervisor)
    let third: UInt64 =
      .place(isSupervisor, 0) | .place(addressWidth == 57, 2)
      | .place(isSupervisor && flags.contains(.writeProtect), 4)
    words[2] =
      third | .place(flags.contains(.extendedAccessed), 7) | table & .mask(63, 12)
    return words
  }
}
