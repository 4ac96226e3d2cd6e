// SPDX-License-Identifier: Apache-2.0
//
// AMD host page tables, "version 1". AMD I/O Virtualization Technology (IOMMU)
// Specification, publication 48882: section 2.2.3 (I/O page tables for host translations),
// its figures of the page-directory and page-table entries, and its table of page-size
// encodings.

/// AMD's host format: 1 to 6 levels (21 to 64 bits), leaves of every power of two.
///
/// An entry's next-level field tells what it points to: 0, memory of the size that the level
/// stands for; 7, memory of a size that is encoded in the address; else, a table of that
/// lower level. Where that is more than one lower, the address bits between must be zero; we
/// never write such entries. It knows no privilege, and whatever may be read may be executed.
public enum AMDv1: MarkingFormat {
  /// HAD: hardware keeps accessed and dirty bits (the device table entry's bits 7 and 8).
  public typealias Configuration = UpdateSwitch

  /// Bit 0, PR.
  @inlinable public static var presentBit: UInt64 { 1 << 0 }
  /// Bit 5, A: used in a translation, in leaves (2.2.3.1, host access support). Kept where the
  /// device table entry's HAD field asks for it.
  @inlinable public static var accessedBit: UInt64 { 1 << 5 }
  /// Bit 6, D: written through, in leaves (2.2.3.2, host dirty support). Of a leaf that is
  /// repeated, any one of its entries makes the whole of it dirty.
  @inlinable public static var dirtyBit: UInt64 { 1 << 6 }
  /// Bits 9 to 11, next level, of a leaf whose size is encoded in its address bits.
  @inlinable public static var encodedSizeLevel: Int { 7 }
  /// Bit 60, FC: force coherent accesses. In leaves.
  @inlinable public static var coherentBit: UInt64 { 1 << 60 }
  /// Bit 61, IR: reads go through.
  @inlinable public static var readBit: UInt64 { 1 << 61 }
  /// Bit 62, IW: writes go through.
  @inlinable public static var writeBit: UInt64 { 1 << 62 }

  /// Bits 12 to 51.
  @inlinable public static var addressMask: UInt64 { 0x000F_FFFF_FFFF_F000 }

  @inlinable public static var levelRange: ClosedRange<Int> { 1...6 }

  @inlinable
  public static func addressBits(levels: Int) -> Int { min(64, 12 + 9 * levels) }

  @inlinable
  public static func physicalBits(_ switches: UpdateSwitch) -> Int { 52 }

  /// Every power of two from 4 KiB to half of what the topmost entry of the table can hold,
  /// and at most half of the physical space.
  @inlinable
  public static func pageSizes(levels: Int) -> PageSizes {
    let bits = UInt64(min(52, 12 + 9 * levels))
    return PageSizes(rawValue: ((1 << bits) &- 1) & ~0xFFF)
  }

  @inlinable @inline(__always)
  public static func isPresent(_ entry: UInt64) -> Bool { entry & presentBit != 0 }

  /// A next level that is neither a leaf's nor lower; an encoded size that is too large or too
  /// small for this level; a default-sized leaf off its alignment.
  @inlinable @inline(__always)
  public static func defect(
    _ entry: UInt64, level: Int, _ switches: UpdateSwitch
  ) -> WalkFault.Reason? {
    let next = nextLevel(entry)
    if next == level &- 1, next != 0 { return nil }
    if next == encodedSizeLevel {
      let size = encodedShift(entry)
      return size <= shift(level: level) || size >= shift(level: level &+ 1) || size > 51
        ? .reservedBits : nil
    }
    guard next == 0 else { return next < level ? nil : .reservedBits }
    let shift = shift(level: level)
    return shift > 51 || entry & addressMask & lowBits(shift) != 0 ? .reservedBits : nil
  }

  @inlinable @inline(__always)
  public static func pointsToTable(
    _ entry: UInt64, level: Int, _ switches: UpdateSwitch
  ) -> Bool {
    isPresent(entry) && nextLevel(entry) == level &- 1 && level != 1
  }

  @inlinable @inline(__always)
  public static func isLeaf(_ entry: UInt64, level: Int) -> Bool {
    let next = nextLevel(entry)
    return next == 0 || next == encodedSizeLevel
  }

  @inlinable @inline(__always)
  public static func leafShift(_ entry: UInt64, level: Int) -> Int {
    nextLevel(entry) == encodedSizeLevel
      ? encodedShift(entry) : shift(level: level)
  }

  @inlinable @inline(__always)
  public static func address(_ entry: UInt64, _ switches: UpdateSwitch) -> UInt64 {
    entry & addressMask
  }

  @inlinable public static var skipsLevels: Bool { true }

  @inlinable @inline(__always)
  public static func childLevel(_ entry: UInt64, level: Int) -> Int { nextLevel(entry) }

  @inlinable @inline(__always)
  public static func rights(
    _ entry: UInt64, level: Int, _ switches: UpdateSwitch
  ) -> Rights { Rights(rawValue: UInt8(truncatingIfNeeded: entry >> 61 & 3)) }

  @inlinable @inline(__always)
  public static func effective(_ rights: Rights, _ switches: UpdateSwitch) -> Rights {
    Rights(rawValue: (rights.rawValue & 3 | rights.rawValue << 2 & 4) &* 9)
  }

  @inlinable
  public static func granted(_ permissions: Permissions) -> Permissions {
    permissions.contains(.read)
      ? permissions.union(.execute) : permissions.subtracting(.execute)
  }

  @inlinable @inline(__always)
  public static func tableEntry(_ address: UInt64, level: Int) -> UInt64 {
    address | presentBit | readBit | writeBit | UInt64(level &- 1) << 9
  }

  @inlinable @inline(__always)
  public static func leafEntry(
    _ address: UInt64, shift: Int, level: Int, permissions: Permissions,
    attributes: LeafAttributes, _ switches: UpdateSwitch
  ) -> UInt64 {
    let common =
      presentBit | UInt64(permissions.rawValue & 3) << 61
      | (attributes.contains(.forceSnoop) ? coherentBit : 0)
    if shift == Self.shift(level: level) { return address | common }
    // The lowest clear bit from 12 up, at shift - 1, gives the size: all below it are set.
    let size = ((1 << UInt64(shift &- 1)) &- 1) & addressMask
    return address | size | UInt64(encodedSizeLevel) << 9 | common
  }

  @inlinable @inline(__always)
  public static func protected(
    _ entry: UInt64, level: Int, permissions: Permissions, _ switches: UpdateSwitch
  ) -> UInt64 { entry & ~(3 << 61) | UInt64(permissions.rawValue & 3) << 61 }

  /// Bits 9 to 11.
  @inlinable @inline(__always)
  public static func nextLevel(_ entry: UInt64) -> Int {
    Int(truncatingIfNeeded: entry >> 9 & 7)
  }

  /// log2 of the size that a leaf with next level 7 encodes: one more than the number of its
  /// lowest clear address bit.
  @inlinable @inline(__always)
  public static func encodedShift(_ entry: UInt64) -> Int {
    (~(entry & addressMask | 0xFFF)).trailingZeroBitCount &+ 1
  }
}
