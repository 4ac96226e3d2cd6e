// SPDX-License-Identifier: Apache-2.0
//
// Intel VT-d second-stage tables. Intel Virtualization Technology for Directed I/O,
// revision 4.1: section 3.7 (second-stage translation), section 9.8 (second-stage paging
// entries), table 6 in 3.7 for the addresses that each level takes.

/// VT-d second-stage format: 3 levels (39 bits), 4 (48 bits) or 5 (57 bits), with leaves of
/// 4 KiB, 2 MiB and 1 GiB. It knows no privilege, and whatever may be read may be executed.
public enum IntelSecondStage: MarkingFormat {
  /// SSADE: hardware keeps accessed and dirty bits (the PASID entry's bit 9).
  public typealias Configuration = UpdateSwitch

  /// Bit 0, R: reads go through (9.8).
  @inlinable public static var readBit: UInt64 { 1 << 0 }
  /// Bit 1, W: writes go through (9.8). An entry with R and W clear is not present.
  @inlinable public static var writeBit: UInt64 { 1 << 1 }
  /// Bit 7, PS: a leaf, in SS-PDPE and SS-PDE. Reserved above them; ignored in SS-PTE.
  @inlinable public static var pageSizeBit: UInt64 { 1 << 7 }
  /// Bit 8, A: used in a translation, in entries of every level (3.7, 9.8). Kept where the
  /// extended capability register has SSADS and the PASID entry has SSADE set.
  @inlinable public static var accessedBit: UInt64 { 1 << 8 }
  /// Bit 9, D: written through, in leaves (3.7, 9.8).
  @inlinable public static var dirtyBit: UInt64 { 1 << 9 }
  /// Bit 11, SNP: force snooping, in leaves, where the IOMMU has snoop control.
  @inlinable public static var snoopBit: UInt64 { 1 << 11 }
  /// Bits 12 to 51.
  @inlinable public static var addressMask: UInt64 { 0x000F_FFFF_FFFF_F000 }

  @inlinable public static var levelRange: ClosedRange<Int> { 3...5 }

  @inlinable
  public static func addressBits(levels: Int) -> Int { 12 + 9 * levels }

  @inlinable
  public static func pageSizes(levels: Int) -> PageSizes { [.size4KiB, .size2MiB, .size1GiB] }

  @inlinable
  public static func physicalBits(_ switches: UpdateSwitch) -> Int { 52 }

  @inlinable @inline(__always)
  public static func isPresent(_ entry: UInt64) -> Bool { entry & (readBit | writeBit) != 0 }

  /// PS above SS-PDPE, and address bits of a large leaf below its alignment.
  @inlinable @inline(__always)
  public static func defect(
    _ entry: UInt64, level: Int, _ switches: UpdateSwitch
  ) -> WalkFault.Reason? {
    guard entry & pageSizeBit != 0, level != 1 else { return nil }
    if level > 3 { return .reservedBits }
    return entry & addressMask & lowBits(shift(level: level)) == 0 ? nil : .reservedBits
  }

  @inlinable @inline(__always)
  public static func pointsToTable(
    _ entry: UInt64, level: Int, _ switches: UpdateSwitch
  ) -> Bool { isPresent(entry) && entry & pageSizeBit == 0 && level != 1 }

  @inlinable @inline(__always)
  public static func isLeaf(_ entry: UInt64, level: Int) -> Bool {
    level == 1 || entry & pageSizeBit != 0
  }

  @inlinable @inline(__always)
  public static func leafShift(_ entry: UInt64, level: Int) -> Int { shift(level: level) }

  @inlinable @inline(__always)
  public static func address(_ entry: UInt64, _ switches: UpdateSwitch) -> UInt64 {
    entry & addressMask
  }

  @inlinable @inline(__always)
  public static func rights(
    _ entry: UInt64, level: Int, _ switches: UpdateSwitch
  ) -> Rights { Rights(rawValue: UInt8(truncatingIfNeeded: entry & 3)) }

  @inlinable @inline(__always)
  public static func effective(_ rights: Rights, _ switches: UpdateSwitch) -> Rights {
    Rights(rawValue: (rights.rawValue | rights.rawValue << 2 & 4) &* 9)
  }

  @inlinable public static var marksTables: Bool { true }

  @inlinable @inline(__always)
  public static func marked(
    _ entry: UInt64, level: Int, writes: Bool, _ switches: UpdateSwitch
  ) -> UInt64 {
    entry | accessedBit | (writes && isLeaf(entry, level: level) ? dirtyBit : 0)
  }

  @inlinable
  public static func granted(_ permissions: Permissions) -> Permissions {
    permissions.contains(.read)
      ? permissions.union(.execute) : permissions.subtracting(.execute)
  }

  @inlinable @inline(__always)
  public static func tableEntry(_ address: UInt64, level: Int) -> UInt64 {
    address | readBit | writeBit
  }

  @inlinable @inline(__always)
  public static func leafEntry(
    _ address: UInt64, shift: Int, level: Int, permissions: Permissions,
    attributes: LeafAttributes, _ switches: UpdateSwitch
  ) -> UInt64 {
    address | UInt64(permissions.rawValue & 3)
      | (level > 1 ? pageSizeBit : 0)
      | (attributes.contains(.forceSnoop) ? snoopBit : 0)
  }

  @inlinable @inline(__always)
  public static func protected(
    _ entry: UInt64, level: Int, permissions: Permissions, _ switches: UpdateSwitch
  ) -> UInt64 { entry & ~3 | UInt64(permissions.rawValue & 3) }
}
