// SPDX-License-Identifier: Apache-2.0
//
// What a radix page-table format is: geometry, bit layout and predicates only. The algorithms
// that build and walk tables (`PageTable`, `TableRoot`) know no format, and a format knows no
// algorithm.

/// How addresses outside of what a table translates look.
public enum AddressExtension: UInt8, Hashable, Sendable {
  /// All bits above are zero.
  case zero
  /// All bits above are copies of the topmost bit translated ("canonical").
  case sign
  /// All bits above are one: Arm's TTBR1.
  case ones
}

/// Switches that a format's specification has beside the table: control bits of the context
/// that names the table. Trivial, for walks carry them by value.
public protocol TableConfiguration: Hashable, Sendable, BitwiseCopyable {
  /// The switches of a table that the engine builds for itself.
  init()
  /// Whether walks on behalf of hardware set accessed and dirty bits.
  var updatesEntries: Bool { get }
  /// Turns on whatever makes hardware keep accessed and dirty bits.
  mutating func keepDirty()
}

/// The bits of one page-table format with entries of 64 bits.
///
/// Levels are numbered from 1, the lowest: an entry of level n stands for
/// 2^(granuleShift + indexBits(n - 1)) bytes. All requirements are pure functions.
public protocol PageTableFormat: Sendable {
  associatedtype Configuration: TableConfiguration

  // MARK: Geometry

  /// log2 of the size of a table, and of the smallest leaf, in bytes.
  static var granuleShift: Int { get }

  /// How many levels a table of this format may have.
  static var levelRange: ClosedRange<Int> { get }

  /// How many more index bits the root may have than the tables below it: its size is 2^this
  /// granules.
  static var extraRootBits: Int { get }

  /// Whether a root is as large as its format says, whatever the width of the addresses; else
  /// it has an entry for each offset and no more.
  static var hasFixedRoot: Bool { get }

  /// How addresses are extended, unless a root says otherwise.
  static var addressExtension: AddressExtension { get }

  /// Whether roots of one format differ in how addresses are extended.
  static var choosesExtension: Bool { get }

  /// Width of the addresses that a table with this many levels translates, in bits, unless
  /// it is made for fewer.
  static func addressBits(levels: Int) -> Int

  /// The most that a table with this many levels can be made for, in bits.
  static func maximumAddressBits(levels: Int) -> Int

  /// Sizes that a leaf may have in a table with this many levels.
  static func pageSizes(levels: Int) -> PageSizes

  /// Width of the addresses that entries hold, in bits.
  static func physicalBits(_ configuration: Configuration) -> Int

  // MARK: Reading entries

  /// Whether an entry points at something.
  static func isPresent(_ entry: UInt64) -> Bool

  /// What hardware refuses about this present entry before it looks at permissions.
  static func defect(
    _ entry: UInt64, level: Int, _ configuration: Configuration
  ) -> WalkFault.Reason?

  /// What hardware refuses about a leaf that has no `defect` and allows the access.
  static func leafDefect(
    _ entry: UInt64, level: Int, writes: Bool, _ configuration: Configuration
  ) -> WalkFault.Reason?

  /// Whether a present entry without defect maps memory; else it points to a table. True for
  /// every such entry of level 1.
  static func isLeaf(_ entry: UInt64, level: Int) -> Bool

  /// Whether an entry is present, without defect, and points to a table one level below: most of
  /// what walks see, and so the formats tell it by one comparison.
  static func pointsToTable(_ entry: UInt64, level: Int, _ configuration: Configuration) -> Bool

  /// log2 of the bytes that a leaf maps. Where that is more than an entry of its level stands
  /// for, the leaf takes consecutive entries.
  static func leafShift(_ entry: UInt64, level: Int) -> Int

  /// The address bits that lie within a leaf: as many as `leafShift` says.
  static func leafMask(_ entry: UInt64, level: Int) -> UInt64

  /// Address of the table, or of the memory, that an entry points to. Of memory its `leafMask` says
  /// which bits count.
  static func address(_ entry: UInt64, _ configuration: Configuration) -> UInt64

  /// Level of the table that an entry of `level` points to: lower. More than one lower only
  /// in formats that skip levels.
  static func childLevel(_ entry: UInt64, level: Int) -> Int

  /// Whether `childLevel` may be more than one lower; then the address bits between have to
  /// be zero.
  static var skipsLevels: Bool { get }

  /// What an entry alone allows, before `effective`.
  static func rights(_ entry: UInt64, level: Int, _ configuration: Configuration) -> Rights

  /// What all entries together allow, from the intersection of what each does.
  static func effective(_ rights: Rights, _ configuration: Configuration) -> Rights

  /// What an entry leaves allowed, in bits of the format's own: those of all entries of a walk
  /// are combined by "and". So that a walk works rights out once, at the leaf.
  static func allowance(_ entry: UInt64, level: Int, _ configuration: Configuration) -> UInt64

  /// What all entries together allow, from their allowances, the leaf's among them.
  static func rights(allowed: UInt64, _ configuration: Configuration) -> Rights

  /// Whether fetches of entries count as writes in the stage below, where it allows them.
  static func fetchesAsWrites(_ configuration: Configuration) -> Bool

  // MARK: Accessed and dirty

  /// The entry as hardware leaves it that translates through it; equal where it need not
  /// change.
  static func marked(
    _ entry: UInt64, level: Int, writes: Bool, _ configuration: Configuration
  ) -> UInt64

  /// Whether entries that point to tables are marked as well.
  static var marksTables: Bool { get }

  /// Whether hardware can mark leaves as written. Where it cannot, whoever wants to know
  /// protects leaves from writing, and takes the faults (`PageTable.protect`).
  static func tracksDirty(_ configuration: Configuration) -> Bool

  /// Whether a leaf was written through since it was made or cleaned.
  static func isDirty(_ entry: UInt64) -> Bool

  /// A dirty leaf, made clean.
  static func cleaned(_ entry: UInt64) -> UInt64

  // MARK: Making entries

  /// What a leaf allows that was asked to allow this much: more where the format cannot say
  /// less.
  static func granted(_ permissions: Permissions) -> Permissions

  /// An entry at `level` that points to a table of `level - 1` and restricts nothing.
  static func tableEntry(_ address: UInt64, level: Int) -> UInt64

  /// An entry at `level` that maps 2^shift bytes from `address` on, a multiple of them. Clean
  /// where dirty bits are kept.
  static func leafEntry(
    _ address: UInt64, shift: Int, level: Int, permissions: Permissions,
    attributes: LeafAttributes, _ configuration: Configuration
  ) -> UInt64

  /// What is added from one to the next of the entries that make up one leaf.
  static func leafStep(shift: Int, level: Int) -> UInt64

  /// A leaf with other permissions, and all else as it was.
  static func protected(
    _ entry: UInt64, level: Int, permissions: Permissions, _ configuration: Configuration
  ) -> UInt64
}

extension PageTableFormat {
  @inlinable public static var granuleShift: Int { 12 }
  @inlinable public static var extraRootBits: Int { 0 }
  @inlinable public static var hasFixedRoot: Bool { true }
  @inlinable public static var addressExtension: AddressExtension { .zero }
  @inlinable public static var choosesExtension: Bool { false }
  @inlinable public static var skipsLevels: Bool { false }
  @inlinable public static var marksTables: Bool { false }

  @inlinable @inline(__always)
  public static func effective(_ rights: Rights, _ configuration: Configuration) -> Rights {
    rights
  }

  @inlinable @inline(__always)
  public static func allowance(
    _ entry: UInt64, level: Int, _ configuration: Configuration
  ) -> UInt64 { UInt64(rights(entry, level: level, configuration).rawValue) }

  @inlinable @inline(__always)
  public static func rights(allowed: UInt64, _ configuration: Configuration) -> Rights {
    effective(Rights(rawValue: UInt8(truncatingIfNeeded: allowed)), configuration)
  }

  @inlinable
  public static func maximumAddressBits(levels: Int) -> Int { addressBits(levels: levels) }

  @inlinable @inline(__always)
  public static func childLevel(_ entry: UInt64, level: Int) -> Int { level &- 1 }

  @inlinable @inline(__always)
  public static func leafDefect(
    _ entry: UInt64, level: Int, writes: Bool, _ configuration: Configuration
  ) -> WalkFault.Reason? { nil }

  @inlinable @inline(__always)
  public static func fetchesAsWrites(_ configuration: Configuration) -> Bool { false }

  @inlinable @inline(__always)
  public static func leafMask(_ entry: UInt64, level: Int) -> UInt64 {
    lowBits(leafShift(entry, level: level))
  }

  @inlinable @inline(__always)
  public static func leafStep(shift: Int, level: Int) -> UInt64 { 0 }

  @inlinable
  public static func granted(_ permissions: Permissions) -> Permissions { permissions }

  /// The lowest bits of an address: so many, fewer than 64.
  @inlinable @inline(__always)
  static func lowBits(_ count: Int) -> UInt64 {
    (1 &<< UInt64(truncatingIfNeeded: count)) &- 1
  }

  /// How many bits of an address number an entry of a table that is not the root.
  @inlinable @inline(__always)
  public static var indexBits: Int { granuleShift &- 3 }

  /// log2 of the bytes that one entry of a level stands for.
  @inlinable @inline(__always)
  public static func shift(level: Int) -> Int { granuleShift &+ indexBits &* (level &- 1) }

  /// The level whose entries hold leaves of 2^shift bytes.
  @inlinable @inline(__always)
  public static func level(leafShift shift: Int) -> Int {
    (shift &- granuleShift) / indexBits &+ 1
  }

  /// The fewest levels that translate so many bits without a larger root.
  @inlinable
  public static func levels(addressBits: Int) -> Int {
    (addressBits - granuleShift + indexBits - 1) / indexBits
  }
}

/// Of formats whose specification has no switches for the table.
///
/// `updates` alone: whether hardware keeps accessed and dirty bits (VT-d's SSADE, AMD's HAD).
@frozen
public struct UpdateSwitch: TableConfiguration {
  public var updatesEntries: Bool

  @inlinable public init() { updatesEntries = false }
  @inlinable public init(updates: Bool) { updatesEntries = updates }
  @inlinable public mutating func keepDirty() { updatesEntries = true }
}

/// Properties of a leaf besides its permissions.
public struct LeafAttributes: OptionSet, Hashable, Sendable {
  public var rawValue: UInt8

  @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }

  /// Accesses snoop the CPU's caches whatever the device asks for.
  @inlinable public static var forceSnoop: LeafAttributes { LeafAttributes(rawValue: 1) }
  /// Only privileged requests go through. In first stages.
  @inlinable public static var privileged: LeafAttributes { LeafAttributes(rawValue: 2) }
}
