// SPDX-License-Identifier: Apache-2.0
//
// The device table entry of an AMD IOMMU: AMD I/O Virtualization Technology (48882), section
// 2.2.2.1 (device table entry format) and tables 7 and 8.

/// A device table entry of 32 bytes: the fields, without any check.
public struct AMDDeviceTableEntry: Hashable, Sendable {
  public var words: Words4

  @inlinable
  public init(_ words: Words4) { self.words = words }

  /// V: bits 127 to 1 count. Where it is clear, accesses go through untranslated.
  @inlinable public var isValid: Bool { words[0].bit(0) }
  /// TV: the translation fields count.
  @inlinable public var hasTranslation: Bool { words[0].bit(1) }
  /// HAD: accessed (1) and dirty (2) bits are kept in the host's table.
  @inlinable public var hostAccessedDirty: UInt8 { UInt8(words[0].bits(8, 7)) }
  /// Mode: levels of the host's table; 0 is no translation, 7 is reserved.
  @inlinable public var hostLevels: Int { Int(words[0].bits(11, 9)) }
  /// Host page table root pointer, in bytes.
  @inlinable public var hostTable: UInt64 { words[0] & .mask(51, 12) }
  /// PPR: page requests are served.
  @inlinable public var allowsPageRequests: Bool { words[0].bit(52) }
  /// GPRP: responses carry the guest's PASID.
  @inlinable public var responsesHavePASID: Bool { words[0].bit(53) }
  /// GIoV: requests without PASID use the guest's table of PASID 0.
  @inlinable public var translatesWithoutPASID: Bool { words[0].bit(54) }
  /// GV: the guest's translation counts.
  @inlinable public var hasGuestTranslation: Bool { words[0].bit(55) }
  /// GLX: levels of the guest CR3 table, less one; 3 is reserved.
  @inlinable public var guestCR3Levels: Int { Int(words[0].bits(57, 56)) + 1 }
  /// GCR3 table root pointer, in bytes: bits 14 to 12, 30 to 15 and 51 to 31 lie apart.
  @inlinable
  public var guestCR3Table: UInt64 {
    words[0].bits(60, 58) &<< 12 | words[1].bits(31, 16) &<< 15 | words[1].bits(63, 43) &<< 31
  }
  /// IR and IW: what the device may do at all.
  @inlinable public var allowsRead: Bool { words[0].bit(61) }
  @inlinable public var allowsWrite: Bool { words[0].bit(62) }

  @inlinable public var domain: UInt16 { UInt16(words[1].bits(15, 0)) }
  /// I: the device may have an IOTLB (ATS).
  @inlinable public var allowsIOTLB: Bool { words[1].bit(32) }
  /// SE and SA: page faults are logged once, or not at all.
  @inlinable public var suppressesRepeatedFaults: Bool { words[1].bit(33) }
  @inlinable public var suppressesAllFaults: Bool { words[1].bit(34) }
  /// IoCtl: what happens to port I/O; 3 is reserved.
  @inlinable public var portIOControl: UInt8 { UInt8(words[1].bits(36, 35)) }
  /// Cache: translations by the device are not cached here too.
  @inlinable public var hintsNoCaching: Bool { words[1].bit(37) }
  /// SD: accesses do not snoop.
  @inlinable public var disablesSnoop: Bool { words[1].bit(38) }
  /// EX: the exclusion range applies.
  @inlinable public var allowsExclusion: Bool { words[1].bit(39) }
  /// SysMgt: what happens to system management messages.
  @inlinable public var systemManagement: UInt8 { UInt8(words[1].bits(41, 40)) }

  /// IV: the interrupt fields count.
  @inlinable public var hasInterruptMap: Bool { words[2].bit(0) }
  /// IntTabLen: the interrupt table has 2^n entries, n at most 11.
  @inlinable public var interruptTableLength: UInt8 { UInt8(words[2].bits(4, 1)) }
  /// IG: unmapped interrupts are not logged.
  @inlinable public var ignoresUnmappedInterrupts: Bool { words[2].bit(5) }
  /// Interrupt table root pointer, in bytes, a multiple of 64.
  @inlinable public var interruptTable: UInt64 { words[2] & .mask(51, 6) }
  /// GuestPagingMode: levels of the guest's tables, less four; 2 and 3 are reserved.
  @inlinable public var guestLevels: Int { Int(words[2].bits(55, 54)) + 4 }
  /// IntCtl: what happens to fixed and arbitrated interrupts; 3 is reserved.
  @inlinable public var interruptControl: UInt8 { UInt8(words[2].bits(61, 60)) }

  /// vImuEn: the guest's view of the device is known to the IOMMU.
  @inlinable public var hasVirtualIOMMU: Bool { words[3].bit(15) }
  @inlinable public var guestID: UInt16 { UInt16(words[3].bits(31, 16)) }
  @inlinable public var guestDevice: UInt16 { UInt16(words[3].bits(47, 32)) }
}

extension AMDDeviceTableEntry {
  /// Bits 127 to 0 that are reserved, with those that go with what the IOMMU has not.
  @inlinable
  static func reservedBits(_ iommu: AMDCapabilities) -> Words2 {
    var reserved = Words2(.mask(6, 2) | .mask(63, 63), .mask(42, 42))
    if !iommu.has(.hostAccessed) { reserved[0] |= .mask(7, 7) }
    if !iommu.has(.hostDirty) { reserved[0] |= .mask(8, 8) }
    if !iommu.has(.pageRequests) { reserved[0] |= .mask(53, 52) }
    if !iommu.has(.guestIO) { reserved[0] |= .mask(54, 54) }
    if !iommu.has(.guestTranslation) {
      reserved |= Words2(.mask(60, 55), .mask(31, 16) | .mask(63, 43))
    }
    return reserved
  }

  /// What a memory access of the device meets in a valid entry, in this order: reserved bits
  /// and values, then TV, then the levels.
  /// - Throws: ILLEGAL_DEV_TABLE_ENTRY, or IO_PAGE_FAULT where TV is clear.
  @inlinable
  public func check(_ iommu: AMDCapabilities) throws(AMDFault) {
    guard isValid else { return }
    let reserved = Self.reservedBits(iommu)
    if words[0] & reserved[0] | words[1] & reserved[1] != 0 || portIOControl == 3 {
      throw .illegalDeviceTableEntry(reservedBits: true)
    }
    if !hasTranslation {
      throw .pageFault(
        AMDFault.PageFault(isGuest: false, isPresent: false, hasReservedBits: false))
    }
    if hostLevels > iommu.mostHostLevels {
      throw .illegalDeviceTableEntry(reservedBits: false)
    }
    if hasGuestTranslation,
      guestCR3Levels > iommu.mostCR3Levels || guestLevels > Swift.min(iommu.mostGuestLevels, 5)
    {
      throw .illegalDeviceTableEntry(reservedBits: false)
    }
  }

  /// What an interrupt of the device meets in an entry with IV set.
  /// - Throws: ILLEGAL_DEV_TABLE_ENTRY for reserved bits and values.
  @inlinable
  public func checkInterrupts() throws(AMDFault) {
    guard hasInterruptMap else { return }
    if words[2] & (.mask(53, 52) | .mask(59, 59)) != 0 || interruptControl == 3
      || interruptControl == 2 && interruptTableLength > 11
    {
      throw .illegalDeviceTableEntry(reservedBits: true)
    }
  }
}
