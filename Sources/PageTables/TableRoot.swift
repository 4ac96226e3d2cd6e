// SPDX-License-Identifier: Apache-2.0
//
// Where a walk begins, whoever owns the table: the root's address, how many levels and which
// addresses it translates, and the switches that its context has.

/// The root of a table of any format, as a context or PASID entry names it. Trivial to copy.
///
/// Walk it through a `TableMemory`; for tables of the engine's own see `PageTableRoot`.
@frozen
public struct TableRoot<Format: PageTableFormat>: Sendable {
  /// Where the root table lies, in the memory that the walk goes through.
  public let address: UInt64
  public let levels: Int
  /// 2^width - 1: the address bits that are translated.
  @usableFromInline let mask: UInt64
  /// What, added to an address, makes one out of reach larger than `mask`.
  @usableFromInline let bias: UInt64
  public let configuration: Format.Configuration

  /// A root that somebody else wrote, checked.
  ///
  /// - Parameters:
  ///   - address: A multiple of the root's size, or of 64 bytes where that is larger.
  ///   - levels: How many.
  ///   - addressBits: Width of the addresses; nil means what the levels translate.
  ///   - extending: How addresses are extended; nil means as the format does it.
  /// - Returns: nil where the format has no such table, or the address is misaligned or wider
  ///   than an entry could hold.
  public init?(
    address: UInt64, levels: Int, addressBits: Int? = nil,
    extending: AddressExtension? = nil, configuration: Format.Configuration
  ) {
    guard Format.levelRange.contains(levels) else { return nil }
    let bits = addressBits ?? Format.addressBits(levels: levels)
    guard bits <= Format.maximumAddressBits(levels: levels) else { return nil }
    let extending = extending ?? Format.addressExtension
    guard extending == Format.addressExtension || Format.choosesExtension else { return nil }
    if extending == .sign, bits != Format.addressBits(levels: levels) { return nil }
    let size: UInt64
    if Format.hasFixedRoot {
      guard bits >= Format.granuleShift else { return nil }
      size = 1 << UInt64(Format.granuleShift + Format.extraRootBits)
    } else {
      // At least two entries, or a level fewer would do.
      let rootBits = bits - Format.shift(level: levels)
      guard rootBits >= 1, rootBits <= Format.indexBits + Format.extraRootBits else {
        return nil
      }
      size = 1 << UInt64(max(rootBits + 3, 6))
    }
    let physicalBits = Format.physicalBits(configuration)
    guard address & (size - 1) == 0, physicalBits >= 64 || address >> UInt64(physicalBits) == 0
    else { return nil }
    self.init(
      checked: address, levels: levels, bits: bits, extending: extending,
      configuration: configuration)
  }

  init(
    checked address: UInt64, levels: Int, bits: Int, extending: AddressExtension,
    configuration: Format.Configuration
  ) {
    self.address = address
    self.levels = levels
    self.configuration = configuration
    mask = bits >= 64 ? .max : (1 << UInt64(bits)) - 1
    switch extending {
    case .zero: bias = 0
    case .sign: bias = 1 << UInt64(bits - 1)
    case .ones: bias = bits >= 64 ? 0 : 1 << UInt64(bits)
    }
  }

  /// How addresses are extended.
  @inlinable
  public var extending: AddressExtension {
    bias == 0 ? .zero : bias > mask ? .ones : .sign
  }

  /// First address that the table translates.
  @inlinable public var first: UInt64 { bias > mask ? ~mask : 0 }

  /// Last address that the table translates, inclusive. A canonical table does not translate
  /// all between the two.
  @inlinable public var last: UInt64 { bias == 0 ? mask : .max }

  /// The bits of an address that the table translates; nil where it is out of reach.
  @inlinable @inline(__always)
  func offset(_ address: UInt64) -> UInt64? {
    if Format.addressExtension == .zero, !Format.choosesExtension {
      return address <= mask ? address : nil
    }
    return address &+ bias <= mask ? address & mask : nil
  }

  /// The address of an offset.
  @inlinable @inline(__always)
  func extended(_ offset: UInt64) -> UInt64 {
    if Format.addressExtension == .zero, !Format.choosesExtension { return offset }
    return bias > mask ? offset | ~mask : (offset ^ bias) &- bias
  }

  /// The offsets of all addresses of a range that are in reach: one run, for the parts below
  /// and above the middle of a canonical table follow each other. Both ends inclusive; nil
  /// where none is.
  @inlinable
  func clip(_ first: UInt64, _ last: UInt64) -> ClosedRange<UInt64>? {
    guard first <= last, last >= self.first, first <= self.last else { return nil }
    if bias == 0 { return first...min(last, mask) }
    if bias > mask { return (max(first, ~mask) & mask)...(last & mask) }
    // The gap is bias ... -bias - 1.
    let low = first >= bias && first < 0 &- bias ? bias : first & mask
    let high = last >= bias && last < 0 &- bias ? bias &- 1 : last & mask
    return low <= high ? low...high : nil
  }

  /// Number of the entry for an offset in a table of a level.
  @inlinable @inline(__always)
  func index(_ offset: UInt64, level: Int) -> Int {
    let shift = UInt64(truncatingIfNeeded: Format.shift(level: level))
    let index = Int(truncatingIfNeeded: offset &>> shift)
    // Offsets are no wider than the root is large.
    if Format.extraRootBits != 0, level == levels { return index }
    return index & ((1 << Format.indexBits) &- 1)
  }

  /// Number of entries of a table of a level, as it lies in memory.
  @inlinable @inline(__always)
  func entryCount(level: Int) -> Int {
    if Format.extraRootBits != 0, level == levels {
      return 1 << max(rootShift &- 3, Format.indexBits)
    }
    return 1 << Format.indexBits
  }

  /// log2 of the bytes of a root that has an entry for every offset.
  @inlinable
  var rootShift: Int {
    let bits = 64 &- mask.leadingZeroBitCount &- Format.shift(level: levels)
    return max(bits &+ 3, Format.granuleShift)
  }
}
