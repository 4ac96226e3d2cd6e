// SPDX-License-Identifier: Apache-2.0
//
// How an AMD IOMMU's table lookups end: AMD I/O Virtualization Technology (48882), section
// 2.5 (event logging), the conditions of events 01h to 04h.

import PageTables

/// A request that a lookup ended, by the event that it is logged as.
public enum AMDFault: Error, Hashable, Sendable {
  /// ILLEGAL_DEV_TABLE_ENTRY. RZ tells reserved bits that are not zero from levels that are
  /// not encoded right, or not there.
  case illegalDeviceTableEntry(reservedBits: Bool)
  /// IO_PAGE_FAULT.
  case pageFault(PageFault)
  /// DEV_TAB_HARDWARE_ERROR: the entry at `address` could not be read.
  case deviceTableHardwareError(address: UInt64, AMDHardwareErrorType)
  /// PAGE_TAB_HARDWARE_ERROR: the guest CR3 entry at `address` could not be read.
  case pageTableHardwareError(address: UInt64, AMDHardwareErrorType)

  public struct PageFault: Hashable, Sendable {
    /// GN: it is the guest's translation that faulted.
    public var isGuest: Bool
    /// PR: what faulted was present.
    public var isPresent: Bool
    /// RZ: reserved bits, or a level, were wrong.
    public var hasReservedBits: Bool

    @inlinable
    public init(isGuest: Bool, isPresent: Bool, hasReservedBits: Bool) {
      self.isGuest = isGuest
      self.isPresent = isPresent
      self.hasReservedBits = hasReservedBits
    }
  }
}

/// Type of a hardware error (events 03h, 04h and 06h).
public enum AMDHardwareErrorType: UInt8, Hashable, Sendable, CaseIterable {
  case masterAbort = 1
  case targetAbort = 2
  /// Data with an error: poisoned.
  case dataError = 3

  @inlinable
  public init(_ fault: TableMemoryFault) {
    self = fault == .corrupted ? .dataError : .masterAbort
  }
}
