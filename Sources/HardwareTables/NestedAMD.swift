// SPDX-License-Identifier: Apache-2.0
//
// IOMMU_HWPT_DATA_AMD_GUEST, the guest half of a device table entry that a user owns:
// include/uapi/linux/iommufd.h, struct iommu_hwpt_amd_guest; AMD 48882, section 2.2.2.1.

/// A user's device table entry, whose guest translation is nested over the host's table.
public struct AMDNestedEntry: Hashable, Sendable {
  public private(set) var guest: AMDDeviceTableEntry

  /// Checks the entry in Linux's order.
  /// - Throws: EINVAL for a host's table, for a missing GCR3 table, for levels that are
  ///   reserved; EOPNOTSUPP for five levels where the IOMMU has four.
  public init(
    decoding words: Words4, _ iommu: AMDCapabilities
  ) throws(NestedTableError) {
    let guest = AMDDeviceTableEntry(words)
    if guest.hostLevels != 0 || guest.hostTable != 0 { throw .invalid }
    if guest.isValid, guest.hasGuestTranslation, guest.guestCR3Table == 0 { throw .invalid }
    if guest.guestLevels > 5 || guest.guestCR3Levels > 3 { throw .invalid }
    if guest.guestLevels == 5, iommu.mostGuestLevels < 5 { throw .notSupported }
    self.guest = guest
  }

  /// The domain ID that the guest knows its table by.
  public var guestDomain: UInt16 { guest.domain }

  /// The entry that nests the guest's translation. As in Linux it has GV set whether or not
  /// the guest's has V and GV: without a GCR3 table the guest's requests fault.
  /// - Parameters:
  ///   - parent: The host's entry, with its table and no guest translation.
  ///   - domain: The host's domain ID for this guest's domain.
  public func entry(parent: AMDDeviceTableEntry, domain: UInt16) -> AMDDeviceTableEntry {
    // PPR, GIoV, GLX and the pieces of the GCR3 table; GuestPagingMode.
    let fields = Words4(
      .mask(52, 52) | .mask(54, 54) | .mask(60, 56), .mask(31, 16) | .mask(63, 43),
      .mask(55, 54), 0)
    var words = parent.words & ~fields | guest.words & fields
    words[0] |= .mask(55, 55)
    words[1] = words[1] & ~.mask(15, 0) | UInt64(domain)
    return AMDDeviceTableEntry(words)
  }
}
