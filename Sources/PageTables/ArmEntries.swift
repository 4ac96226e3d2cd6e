// SPDX-License-Identifier: Apache-2.0
//
// What both stages of Arm's SMMUv3 share: VMSAv8-64 with granules of 4, 16 and 64 KiB. Arm
// Architecture Reference Manual (DDI 0487) D8.2 (translation process), D8.3 (descriptors),
// D8.5 (hardware updates), D8.7.1 (contiguous bit); Arm SMMUv3 (IHI 0070) 3.4 (address sizes),
// 3.13 (HTTU). Arm's level n is our 4 - n.

/// Size of tables and pages.
public protocol ArmGranule: Sendable {
  /// log2 of it, in bytes.
  static var shift: Int { get }
}

public enum Granule4KiB: ArmGranule {
  @inlinable public static var shift: Int { 12 }
}

public enum Granule16KiB: ArmGranule {
  @inlinable public static var shift: Int { 14 }
}

public enum Granule64KiB: ArmGranule {
  @inlinable public static var shift: Int { 16 }
}

/// VMSAv8-64 descriptors of one granule.
public protocol ArmFormat: PageTableFormat where Configuration: ArmConfiguration {
  associatedtype Granule: ArmGranule
}

/// Switches that both stages have.
public protocol ArmConfiguration: TableConfiguration {
  /// HA: hardware sets the access flag.
  var updatesAccessFlag: Bool { get set }
  /// HD: hardware keeps the dirty state of leaves that have DBM. Only with HA.
  var updatesDirtyState: Bool { get set }
  /// AFFD: an access flag that is clear is no fault.
  var ignoresAccessFlag: Bool { get set }
  /// The bits of an address that output addresses have not: from their width up.
  var beyondOutput: UInt64 { get set }
}

extension ArmConfiguration {
  @inlinable
  public init(
    updatesAccessFlag: Bool, updatesDirtyState: Bool = false, outputBits: Int = 48
  ) {
    self.init()
    self.updatesAccessFlag = updatesAccessFlag
    self.updatesDirtyState = updatesDirtyState
    self.outputBits = UInt8(min(max(outputBits, 32), 52))
  }

  /// IPS or S2PS: width of output addresses, in bits, 32 to 52; more than 48 only with the granule
  /// of 64 KiB.
  @inlinable public var outputBits: UInt8 {
    get { UInt8(truncatingIfNeeded: beyondOutput.trailingZeroBitCount) }
    set { beyondOutput = .max << UInt64(min(max(newValue, 32), 52)) }
  }

  @inlinable public var updatesEntries: Bool { updatesAccessFlag }

  @inlinable
  public mutating func keepDirty() {
    updatesAccessFlag = true
    updatesDirtyState = true
  }

  /// HD without HA is off.
  @inlinable public var keepsDirtyState: Bool { updatesAccessFlag && updatesDirtyState }
}

extension ArmFormat {
  /// Bit 0: valid.
  @inlinable public static var validBit: UInt64 { 1 << 0 }
  /// Bit 1: a table, or at the lowest level a page; else a block.
  @inlinable public static var tableBit: UInt64 { 1 << 1 }
  /// Bits 8 and 9, SH: 3, inner shareable.
  @inlinable public static var innerShareable: UInt64 { 3 << 8 }
  /// Bit 10, AF: used in a translation. Leaves only.
  @inlinable public static var accessFlag: UInt64 { 1 << 10 }
  /// Bit 51, DBM: hardware may make the leaf writable, and so dirty (D8.5.3).
  @inlinable public static var dirtyManagedBit: UInt64 { 1 << 51 }
  /// Bit 52: one of the adjacent entries that make up a larger leaf.
  @inlinable public static var contiguousBit: UInt64 { 1 << 52 }
  /// Bits 47 down to the granule.
  @inlinable public static var addressMask: UInt64 {
    0x0000_FFFF_FFFF_FFFF & ~((1 << UInt64(granuleShift)) &- 1)
  }

  @inlinable public static var granuleShift: Int { Granule.shift }
  @inlinable public static var hasFixedRoot: Bool { false }
  @inlinable public static var levelRange: ClosedRange<Int> {
    Granule.shift == 16 ? 1...3 : 1...4
  }

  /// Whole tables, and at most 48 bits.
  @inlinable
  public static func addressBits(levels: Int) -> Int {
    min(48, granuleShift + indexBits * levels)
  }

  @inlinable
  public static func maximumAddressBits(levels: Int) -> Int {
    min(Granule.shift == 16 ? 52 : 48, granuleShift + indexBits * levels + extraRootBits)
  }

  @inlinable
  public static func physicalBits(_ configuration: Configuration) -> Int {
    min(Int(configuration.outputBits), Granule.shift == 16 ? 52 : 48)
  }

  /// Pages and blocks, alone and contiguous. Blocks of 4 TiB, which only 52-bit addresses
  /// have, are walked but not made.
  @inlinable
  public static func pageSizes(levels: Int) -> PageSizes {
    var sizes = PageSizes()
    for level in 1...min(levels, Granule.shift == 12 ? 3 : 2) {
      let shift = shift(level: level)
      sizes.insert(PageSizes(rawValue: 1 << UInt64(shift)))
      sizes.insert(PageSizes(rawValue: 1 << UInt64(shift + contiguousShift(level: level))))
    }
    return sizes
  }

  /// log2 of how many entries make up a contiguous leaf (D8.7.1).
  @inlinable @inline(__always)
  public static func contiguousShift(level: Int) -> Int {
    switch Granule.shift {
    case 12: level <= 3 ? 4 : 0
    case 14: level == 1 ? 7 : level == 2 ? 5 : 0
    default: level <= 2 ? 5 : 0
    }
  }

  @inlinable @inline(__always)
  public static func isPresent(_ entry: UInt64) -> Bool { entry & validBit != 0 }

  /// In the order of D8.15.6: an encoding that the level does not have (a translation fault),
  /// an output address that is too wide, an access flag that is clear.
  @inlinable @inline(__always)
  public static func defect(
    _ entry: UInt64, level: Int, _ configuration: Configuration
  ) -> WalkFault.Reason? {
    if entry & tableBit == 0, !hasBlocks(level: level, configuration) { return .notPresent }
    if entry & addressMask & configuration.beyondOutput != 0 { return .addressSize }
    if isLeaf(entry, level: level), entry & accessFlag == 0, !configuration.updatesAccessFlag,
      !configuration.ignoresAccessFlag
    {
      return .accessFlag
    }
    return nil
  }

  @inlinable @inline(__always)
  public static func pointsToTable(
    _ entry: UInt64, level: Int, _ configuration: Configuration
  ) -> Bool {
    let relevant = validBit | tableBit | addressMask & configuration.beyondOutput
    return entry & relevant == validBit | tableBit && level != 1
  }

  /// 4 KiB: 2 MiB and 1 GiB; 16 KiB: 32 MiB; 64 KiB: 512 MiB, and 4 TiB where addresses have
  /// 52 bits.
  @inlinable @inline(__always)
  public static func hasBlocks(level: Int, _ configuration: Configuration) -> Bool {
    switch level {
    case 2: true
    case 3:
      Granule.shift == 12 || Granule.shift == 16 && physicalBits(configuration) == 52
    default: false
    }
  }

  @inlinable @inline(__always)
  public static func isLeaf(_ entry: UInt64, level: Int) -> Bool {
    level == 1 || entry & tableBit == 0
  }

  @inlinable @inline(__always)
  public static func leafShift(_ entry: UInt64, level: Int) -> Int {
    shift(level: level)
      &+ (entry & contiguousBit != 0 ? contiguousShift(level: level) : 0)
  }

  /// A contiguous leaf is one, whichever of its entries is looked at: what hardware may do, and
  /// all the same where they agree.
  @inlinable @inline(__always)
  public static func leafMask(_ entry: UInt64, level: Int) -> UInt64 {
    // Of two masks one: the address waits for the entry and no more.
    let shift = shift(level: level)
    let all = lowBits(shift &+ contiguousShift(level: level))
    return entry & contiguousBit != 0 ? all : lowBits(shift)
  }

  /// Bits 12 to 15 hold 48 to 51 where the granule is 64 KiB and addresses have 52 bits.
  @inlinable @inline(__always)
  public static func address(_ entry: UInt64, _ configuration: Configuration) -> UInt64 {
    let address = entry & addressMask
    // A branch: the next level does not wait for it.
    if Granule.shift == 16, _slowPath(configuration.beyondOutput & 1 << 48 == 0) {
      return address | (entry & 0xF000) << 36
    }
    return address
  }

  /// An address as entries hold it.
  @inlinable @inline(__always)
  static func encoded(_ address: UInt64) -> UInt64 {
    Granule.shift == 16 ? address & addressMask | address >> 36 & 0xF000 : address
  }

  @inlinable @inline(__always)
  public static func tracksDirty(_ configuration: Configuration) -> Bool {
    configuration.keepsDirtyState
  }

  @inlinable @inline(__always)
  public static func tableEntry(_ address: UInt64, level: Int) -> UInt64 {
    encoded(address) | validBit | tableBit
  }

  /// What leaves of both stages have in common.
  @inlinable @inline(__always)
  static func commonLeaf(
    _ address: UInt64, shift: Int, level: Int, _ configuration: Configuration
  ) -> UInt64 {
    encoded(address) | validBit | innerShareable
      | (level == 1 ? tableBit : 0)
      | (shift == Self.shift(level: level) ? 0 : contiguousBit)
      | (configuration.updatesAccessFlag ? 0 : accessFlag)
  }

  /// Each of the contiguous entries has its own address.
  @inlinable @inline(__always)
  public static func leafStep(shift: Int, level: Int) -> UInt64 {
    1 << UInt64(Self.shift(level: level))
  }
}
