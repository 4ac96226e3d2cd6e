// SPDX-License-Identifier: Apache-2.0
//
// What a radix page-table format is: bit layout and predicates only. The algorithms that
// build and walk tables (`PageTable`) know no format, and a format knows no algorithm.

/// The bits of one page-table format with 512 entries of 64 bits in each table.
///
/// Levels are numbered from 1, the lowest, as both vendors number them: an entry of level n
/// stands for 2^(12 + 9(n - 1)) bytes of IOVA. All requirements are pure functions.
public protocol PageTableFormat: Sendable {
  /// How many levels a table of this format may have.
  static var levelRange: ClosedRange<Int> { get }

  /// Sizes that a leaf may have in a table with this many levels.
  static func pageSizes(levels: Int) -> PageSizes

  /// Whether an entry points at something.
  static func isPresent(_ entry: UInt64) -> Bool

  /// Whether hardware would refuse this present entry at this level.
  static func hasReservedBits(_ entry: UInt64, level: Int) -> Bool

  /// Whether a present entry of this level maps memory; else it points to a table. True for
  /// every entry of level 1.
  static func isLeaf(_ entry: UInt64, level: Int) -> Bool

  /// log2 of the bytes that a leaf maps. Where that is more than an entry of its level stands
  /// for, the leaf is repeated in consecutive entries.
  static func leafShift(_ entry: UInt64, level: Int) -> Int

  /// First physical address that a leaf maps.
  static func leafAddress(_ entry: UInt64, level: Int) -> UInt64

  /// Address of the table that an entry points to.
  static func tableAddress(_ entry: UInt64) -> UInt64

  /// What an entry allows. A walk allows what all its entries allow.
  static func permissions(_ entry: UInt64) -> Permissions

  /// The bit that an IOMMU sets in a leaf that it translates through; 0 where it keeps none.
  static var accessedBit: UInt64 { get }

  /// The bit that an IOMMU sets in a leaf that it writes through; 0 where it keeps none.
  static var dirtyBit: UInt64 { get }

  /// Whether the accessed bit is set in entries that point to tables too.
  static var marksTables: Bool { get }

  /// An entry at `level` that points to a table of `level - 1` and restricts nothing.
  static func tableEntry(_ address: UInt64, level: Int) -> UInt64

  /// An entry at `level` that maps 2^shift bytes from `address` on, a multiple of them.
  static func leafEntry(
    _ address: UInt64, shift: Int, level: Int, permissions: Permissions,
    attributes: LeafAttributes
  ) -> UInt64
}

extension PageTableFormat {
  @inlinable public static var accessedBit: UInt64 { 0 }
  @inlinable public static var dirtyBit: UInt64 { 0 }
  @inlinable public static var marksTables: Bool { false }

  /// log2 of the IOVA bytes that one entry of a level stands for.
  @inlinable @inline(__always)
  public static func shift(level: Int) -> Int { 12 &+ 9 &* (level &- 1) }

  /// Width of the addresses that a table with this many levels translates, in bits.
  @inlinable
  public static func addressBits(levels: Int) -> Int { min(64, 12 + 9 * levels) }

  /// The level whose entries hold leaves of 2^shift bytes.
  @inlinable @inline(__always)
  public static func level(leafShift shift: Int) -> Int { (shift &- 12) / 9 &+ 1 }

  /// Bits 12 to 51: the physical address in an entry of either vendor.
  @inlinable @inline(__always)
  public static var addressMask: UInt64 { 0x000F_FFFF_FFFF_F000 }
}

/// Properties of a leaf besides its permissions.
public struct LeafAttributes: OptionSet, Hashable, Sendable {
  public var rawValue: UInt8

  @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }

  /// Accesses snoop the CPU's caches whatever the device asks for.
  public static let forceSnoop = LeafAttributes(rawValue: 1)
}

/// What a walk finds.
public struct Translation: Hashable, Sendable {
  /// The physical address of the very byte that was asked for.
  public var physical: PhysicalAddress
  /// log2 of the size of the leaf that holds it, in bytes.
  public var leafShift: UInt8
  /// What all entries on the way allow together.
  public var permissions: Permissions

  @inlinable
  public init(physical: PhysicalAddress, leafShift: UInt8, permissions: Permissions) {
    self.physical = physical
    self.leafShift = leafShift
    self.permissions = permissions
  }
}

/// Why a walk finds nothing.
public enum WalkFault: UInt8, Error, Hashable, Sendable {
  /// The address has more bits than the table translates.
  case addressWidth
  /// An entry on the way is not present.
  case notPresent
  /// An entry on the way has a bit set that the format reserves.
  case reservedBits
  /// The leaf is there, and an entry on the way does not allow this access.
  case permission
}

/// Why nothing was mapped.
public enum MapFailure: Error, Hashable, Sendable {
  /// An address or the length is not a multiple of 4 KiB, or the length is zero.
  case misaligned
  /// The range ends past the last address that the table translates, or overflows.
  case addressWidth
  /// The physical range ends past bit 51.
  case physicalWidth
  /// Neither reading nor writing would be allowed, which no format can say of a live leaf.
  case noPermissions
  /// Something is mapped at this address already.
  case occupied(IOVA)
  /// The table's memory limit is reached.
  case outOfMemory
}
