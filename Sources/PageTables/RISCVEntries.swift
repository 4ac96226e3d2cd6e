// SPDX-License-Identifier: Apache-2.0
//
// What both RISC-V stages share. RISC-V Privileged Architecture (volume II, 20240411): 10.3.2
// (translation process), 10.4 to 10.6 (Sv39, Sv48, Sv57), chapter 11 (Svnapot), chapter 12
// (Svpbmt), chapter 14 (Svadu); RISC-V IOMMU 1.0: 2.1.3 (SADE, GADE, SUM), 3.3 (process to
// translate), for the order of checks its reference model too.

/// Switches of a RISC-V page table for devices.
@frozen
public struct RISCVSwitches: TableConfiguration {
  /// SADE or GADE: hardware sets A and D; else their absence faults (Svadu).
  public var updatesEntries: Bool
  /// Svpbmt: the memory type in bits 61 and 62 is no reserved field.
  public var hasMemoryTypes: Bool
  /// SUM: privileged requests reach what unprivileged ones may. First stage only.
  public var allowsSupervisorUserAccess: Bool

  @inlinable public init() { self.init(updates: false) }

  @inlinable
  public init(
    updates: Bool, memoryTypes: Bool = true, supervisorUserAccess: Bool = false
  ) {
    updatesEntries = updates
    hasMemoryTypes = memoryTypes
    allowsSupervisorUserAccess = supervisorUserAccess
  }

  @inlinable public mutating func keepDirty() { updatesEntries = true }
}

/// RISC-V paging with entries of 64 bits: leaves at every level, and of 64 KiB (Svnapot).
public protocol RISCVFormat: MarkingFormat where Configuration == RISCVSwitches {}

extension RISCVFormat {
  /// Bit 0, V.
  @inlinable public static var validBit: UInt64 { 1 << 0 }
  /// Bits 1 to 3, R, W, X: all clear in an entry that points to a table.
  @inlinable public static var readBit: UInt64 { 1 << 1 }
  @inlinable public static var writeBit: UInt64 { 1 << 2 }
  @inlinable public static var executeBit: UInt64 { 1 << 3 }
  /// Bit 4, U: unprivileged requests go through.
  @inlinable public static var userBit: UInt64 { 1 << 4 }
  /// Bit 6, A: used in a translation. Leaves only.
  @inlinable public static var accessedBit: UInt64 { 1 << 6 }
  /// Bit 7, D: written through. Leaves only.
  @inlinable public static var dirtyBit: UInt64 { 1 << 7 }
  /// Bits 10 to 53: the page number, bits 12 to 55 of the address.
  @inlinable public static var pageNumberMask: UInt64 { 0x003F_FFFF_FFFF_FC00 }
  /// Bits 54 to 60: reserved.
  @inlinable public static var reservedMask: UInt64 { 0x7F << 54 }
  /// Bits 61 and 62, PBMT: memory type; 3 is reserved.
  @inlinable public static var memoryTypeMask: UInt64 { 3 << 61 }
  /// Bit 63, N: a part of a larger leaf (Svnapot).
  @inlinable public static var napotBit: UInt64 { 1 << 63 }
  /// Low bits of the page number in the one size that Svnapot has, 64 KiB: 1000.
  @inlinable public static var napotSize: UInt64 { 8 << 10 }

  @inlinable public static var levelRange: ClosedRange<Int> { 3...5 }
  @inlinable public static func physicalBits(_ switches: RISCVSwitches) -> Int { 56 }

  /// One size a level, and 64 KiB.
  @inlinable
  public static func pageSizes(levels: Int) -> PageSizes {
    var sizes: PageSizes = [.size4KiB, PageSizes(rawValue: 1 << 16)]
    for level in 2...max(2, levels) {
      sizes.insert(PageSizes(rawValue: 1 << UInt64(shift(level: level))))
    }
    return sizes
  }

  @inlinable @inline(__always)
  public static func isPresent(_ entry: UInt64) -> Bool { entry & validBit != 0 }

  /// Steps 3 and 4 of 10.3.2: W without R, reserved bits, a memory type that is reserved or
  /// not there; N above level 1 (11.1); and in entries that point to tables A, D, U, N and the
  /// memory type (10.4.1), and that there is a level below.
  @inlinable @inline(__always)
  public static func defect(
    _ entry: UInt64, level: Int, _ switches: RISCVSwitches
  ) -> WalkFault.Reason? {
    if entry & notOfTables == 0 { return level == 1 ? .notPresent : nil }
    // Not a leaf, or W without R.
    if entry & (readBit | executeBit) == 0 || entry & (readBit | writeBit) == writeBit {
      return .reservedBits
    }
    if entry & (reservedMask | memoryTypeMask | napotBit) == 0 { return nil }
    let type = entry & memoryTypeMask
    if entry & reservedMask != 0 || type == memoryTypeMask { return .reservedBits }
    if type != 0, !switches.hasMemoryTypes { return .reservedBits }
    return entry & napotBit != 0 && level > 1 ? .reservedBits : nil
  }

  /// All of what an entry that points to a table must not have.
  @inlinable static var notOfTables: UInt64 {
    readBit | writeBit | executeBit | userBit | accessedBit | dirtyBit | reservedMask
      | memoryTypeMask | napotBit
  }

  @inlinable @inline(__always)
  public static func pointsToTable(
    _ entry: UInt64, level: Int, _ switches: RISCVSwitches
  ) -> Bool { entry & (validBit | notOfTables) == validBit && level != 1 }

  /// Steps 6 and 7: a misaligned superpage, a reserved Svnapot size, A or D missing.
  @inlinable @inline(__always)
  public static func leafDefect(
    _ entry: UInt64, level: Int, writes: Bool, _ switches: RISCVSwitches
  ) -> WalkFault.Reason? {
    if address(entry, switches) & lowBits(shift(level: level)) != 0 { return .misaligned }
    if entry & napotBit != 0, entry & (15 << 10) != napotSize { return .reservedBits }
    if switches.updatesEntries { return nil }
    if entry & accessedBit == 0 { return .accessFlag }
    return writes && entry & dirtyBit == 0 ? .dirtyFlag : nil
  }

  @inlinable @inline(__always)
  public static func isLeaf(_ entry: UInt64, level: Int) -> Bool {
    entry & (readBit | executeBit) != 0
  }

  @inlinable @inline(__always)
  public static func leafShift(_ entry: UInt64, level: Int) -> Int {
    entry & napotBit != 0 ? 16 : shift(level: level)
  }

  @inlinable @inline(__always)
  public static func address(_ entry: UInt64, _ switches: RISCVSwitches) -> UInt64 {
    (entry & pageNumberMask) << 2
  }

  /// W without R is reserved.
  @inlinable
  public static func granted(_ permissions: Permissions) -> Permissions {
    permissions.contains(.write) ? permissions.union(.read) : permissions
  }

  @inlinable @inline(__always)
  public static func tableEntry(_ address: UInt64, level: Int) -> UInt64 {
    address >> 2 | validBit
  }

  @inlinable @inline(__always)
  public static func leafEntry(
    _ address: UInt64, shift: Int, level: Int, permissions: Permissions,
    attributes: LeafAttributes, _ switches: RISCVSwitches
  ) -> UInt64 {
    let entry =
      address >> 2 | validBit | (attributes.contains(.privileged) ? 0 : userBit)
      | (shift == 16 ? napotBit | napotSize : 0)
    return protected(entry, level: level, permissions: permissions, switches)
  }

  /// Where hardware does not set A and D, they are set from the start.
  @inlinable @inline(__always)
  public static func protected(
    _ entry: UInt64, level: Int, permissions: Permissions, _ switches: RISCVSwitches
  ) -> UInt64 {
    let granted = granted(permissions)
    return entry & ~(7 << 1) | UInt64(granted.rawValue & 7) << 1
      | (switches.updatesEntries
        ? 0 : accessedBit | (granted.contains(.write) ? dirtyBit : 0))
  }
}
