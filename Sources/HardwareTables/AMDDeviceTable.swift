// SPDX-License-Identifier: Apache-2.0
//
// From a device to the tables that translate for it: AMD I/O Virtualization Technology
// (48882), sections 2.2.2 (device table) and 2.2.6.3 (guest CR3 table).

import PageTables

/// The device table, as its base address register names it (3.4.1).
public struct AMDDeviceTable: Hashable, Sendable {
  /// In bytes, a multiple of 4 KiB.
  public var address: UInt64
  /// Entries of 32 bytes.
  public var count: Int
  public var iommu: AMDCapabilities

  @inlinable
  public init(address: UInt64, count: Int, iommu: AMDCapabilities) {
    self.address = address
    self.count = count
    self.iommu = iommu
  }

  /// Reads the base address register: (Size + 1) × 4 KiB from DevTabBase on.
  public init(register: UInt64, iommu: AMDCapabilities) {
    self.init(
      address: register & .mask(51, 12), count: (Int(register.bits(8, 0)) + 1) * 128,
      iommu: iommu)
  }

  /// The checked entry of a device; nil where V is clear and accesses go through untranslated.
  /// - Throws: ILLEGAL_DEV_TABLE_ENTRY for a device beyond the table too.
  @inlinable
  public func entry<Memory: TableMemory>(
    device: UInt16, in memory: borrowing Memory
  ) throws(AMDFault) -> AMDDeviceTableEntry? {
    if Int(device) >= count { throw .illegalDeviceTableEntry(reservedBits: false) }
    let place = address &+ UInt64(device) &* 32
    let words: Words4
    do throws(TableMemoryFault) {
      words = try memory.loadWords4(place)
    } catch {
      throw .deviceTableHardwareError(
        address: place, AMDHardwareErrorType(error))
    }
    let entry = AMDDeviceTableEntry(words)
    if !entry.isValid { return nil }
    try entry.check(iommu)
    return entry
  }
}

/// What a request is translated by.
public struct AMDTranslation: Hashable, Sendable {
  /// Of the guest's table for the PASID, in bytes, guest-physical; nil where only the host
  /// translates.
  public var guestTable: UInt64?
  /// Levels of the guest's table, 4 or 5.
  public var guestLevels: Int
  /// Of the host's table, in bytes, with its levels; 0 levels is no translation.
  public var hostTable: UInt64
  public var hostLevels: Int
  public var domain: UInt16

  @inlinable
  public init(
    guestTable: UInt64?, guestLevels: Int, hostTable: UInt64, hostLevels: Int, domain: UInt16
  ) {
    self.guestTable = guestTable
    self.guestLevels = guestLevels
    self.hostTable = hostTable
    self.hostLevels = hostLevels
    self.domain = domain
  }
}

extension AMDDeviceTableEntry {
  /// What translates a request, of a checked entry.
  /// - Parameters:
  ///   - pasid: Of the request, where it has one; 20 bits.
  ///   - memory: What the guest CR3 table's pointers point into: the guest's memory, through
  ///     the host's table where there is one.
  /// - Throws: IO_PAGE_FAULT for a PASID that the guest has no table for, and
  ///   PAGE_TAB_HARDWARE_ERROR.
  @inlinable
  public func translation<Memory: TableMemory>(
    pasid: UInt32?, _ iommu: AMDCapabilities, in memory: borrowing Memory
  ) throws(AMDFault) -> AMDTranslation {
    var result = AMDTranslation(
      guestTable: nil, guestLevels: guestLevels, hostTable: hostTable, hostLevels: hostLevels,
      domain: domain)
    guard hasGuestTranslation else {
      // A PASID means nothing to a device without a guest's tables.
      if pasid != nil { throw Self.guestFault(isPresent: false) }
      return result
    }
    guard let number = pasid ?? (translatesWithoutPASID ? 0 : nil) else { return result }
    result.guestTable = try guestTable(pasid: number, iommu, in: memory)
    return result
  }

  /// Walks the guest CR3 table: 9 bits of the PASID a level, of which the third has 2.
  @inlinable
  func guestTable<Memory: TableMemory>(
    pasid: UInt32, _ iommu: AMDCapabilities, in memory: borrowing Memory
  ) throws(AMDFault) -> UInt64 {
    let width = Swift.min(guestCR3Levels * 9, Swift.min(iommu.pasidWidth, 20))
    if pasid &>> UInt32(width) != 0 { throw Self.guestFault(isPresent: false) }
    var table = guestCR3Table
    var level = guestCR3Levels
    while true {
      level -= 1
      let index = UInt64(pasid &>> UInt32(9 * level) & 511)
      let place = table &+ index &* 8
      let entry: UInt64
      do throws(TableMemoryFault) {
        entry = try memory.load(place)
      } catch {
        if error.isUntranslated {
          // The host's table has no mapping for the guest's pointer.
          throw .pageFault(
            AMDFault.PageFault(isGuest: false, isPresent: false, hasReservedBits: false))
        }
        throw .pageTableHardwareError(
          address: place, AMDHardwareErrorType(error))
      }
      if !entry.bit(0) { throw Self.guestFault(isPresent: false) }
      if entry & .mask(63, 52) != 0 {
        throw Self.guestFault(isPresent: true, hasReservedBits: true)
      }
      table = entry & .mask(51, 12)
      if level == 0 { return table }
    }
  }

  @inlinable
  static func guestFault(isPresent: Bool, hasReservedBits: Bool = false) -> AMDFault {
    .pageFault(
      AMDFault.PageFault(
        isGuest: true, isPresent: isPresent, hasReservedBits: hasReservedBits))
  }
}
