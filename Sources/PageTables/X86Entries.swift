// SPDX-License-Identifier: Apache-2.0
//
// What Intel's first stage and AMD's guest tables share: x86-64 paging, 4 and 5 levels. Intel
// SDM volume 3, 4.5 (4-level and 5-level paging) and 4.6 (access rights); AMD64 APM volume 2,
// 5.3 (long mode) and 5.6 (page protection).

/// Switches of x86-64 paging for devices.
@frozen
public struct X86Switches: TableConfiguration {
  /// Bits of an entry that are reserved because physical addresses are narrower.
  @usableFromInline var reserved: UInt64
  /// WPE, the CPU's CR0.WP: privileged requests too need R/W to write.
  public var writeProtects: Bool
  /// NXE, the CPU's EFER.NXE: XD is no reserved bit, and withholds execution.
  public var noExecute: Bool
  /// SMEP: privileged requests do not execute what unprivileged ones may reach.
  public var preventsSupervisorExecution: Bool
  /// EAFE: bit 10 is set with the accessed bit (VT-d's extended access flag). Intel only.
  public var extendedAccess: Bool
  /// Always: x86-64 has no tables whose accessed bits are not kept.
  @inlinable public var updatesEntries: Bool { true }

  @inlinable public init() { self.init(writeProtects: true) }

  /// - Parameter physicalBits: Width of physical addresses (VT-d's HAW), at most 52.
  @inlinable
  public init(
    writeProtects: Bool, noExecute: Bool = true, preventsSupervisorExecution: Bool = false,
    extendedAccess: Bool = false, physicalBits: Int = 52
  ) {
    self.writeProtects = writeProtects
    self.noExecute = noExecute
    self.preventsSupervisorExecution = preventsSupervisorExecution
    self.extendedAccess = extendedAccess
    let width = UInt64(min(max(physicalBits, 12), 52))
    reserved = 0x000F_FFFF_FFFF_F000 & ~((1 << width) &- 1) | (noExecute ? 0 : 1 << 63)
  }

  @inlinable public mutating func keepDirty() {}

  /// Width of physical addresses, in bits.
  @inlinable public var physicalBits: Int {
    let wide = reserved & 0x000F_FFFF_FFFF_F000
    return wide == 0 ? 52 : wide.trailingZeroBitCount
  }
}

/// x86-64 paging. The formats say what is reserved.
public protocol X86Format: MarkingFormat where Configuration == X86Switches {
  /// Reserved in every entry of a level that points to a table.
  static func reservedTableBits(level: Int) -> UInt64
}

extension X86Format {
  /// Bit 0, P.
  @inlinable public static var presentBit: UInt64 { 1 << 0 }
  /// Bit 1, R/W: writes go through.
  @inlinable public static var writeBit: UInt64 { 1 << 1 }
  /// Bit 2, U/S: unprivileged requests go through.
  @inlinable public static var userBit: UInt64 { 1 << 2 }
  /// Bit 5, A: used in a translation, in entries of every level.
  @inlinable public static var accessedBit: UInt64 { 1 << 5 }
  /// Bit 6, D: written through, in leaves.
  @inlinable public static var dirtyBit: UInt64 { 1 << 6 }
  /// Bit 7, PS: a leaf, at levels 2 and 3. (PAT at level 1.)
  @inlinable public static var pageSizeBit: UInt64 { 1 << 7 }
  /// Bit 10, EA: VT-d's extended accessed bit, where it is enabled.
  @inlinable public static var extendedAccessedBit: UInt64 { 1 << 10 }
  /// Bit 63, XD (NX): no instruction fetches.
  @inlinable public static var executeDisableBit: UInt64 { 1 << 63 }
  /// Bits 12 to 51.
  @inlinable public static var addressMask: UInt64 { 0x000F_FFFF_FFFF_F000 }

  @inlinable public static var levelRange: ClosedRange<Int> { 4...5 }
  @inlinable public static var addressExtension: AddressExtension { .sign }
  @inlinable public static func addressBits(levels: Int) -> Int { 12 + 9 * levels }
  @inlinable
  public static func pageSizes(levels: Int) -> PageSizes { [.size4KiB, .size2MiB, .size1GiB] }
  @inlinable
  public static func physicalBits(_ switches: X86Switches) -> Int { switches.physicalBits }

  @inlinable @inline(__always)
  public static func isPresent(_ entry: UInt64) -> Bool { entry & presentBit != 0 }

  /// Bits above the physical width and XD where NX is off, at every level; PS above level 3;
  /// bits 13 up to its alignment in a large leaf (12 is PAT).
  @inlinable @inline(__always)
  public static func defect(
    _ entry: UInt64, level: Int, _ switches: X86Switches
  ) -> WalkFault.Reason? {
    var reserved = switches.reserved
    if level > 1 {
      if entry & pageSizeBit == 0 {
        reserved |= reservedTableBits(level: level)
      } else if level > 3 {
        return .reservedBits
      } else {
        reserved |= lowBits(shift(level: level)) & ~lowBits(13)
      }
    }
    return entry & reserved == 0 ? nil : .reservedBits
  }

  @inlinable @inline(__always)
  public static func pointsToTable(
    _ entry: UInt64, level: Int, _ switches: X86Switches
  ) -> Bool {
    let relevant =
      presentBit | pageSizeBit | switches.reserved | reservedTableBits(level: level)
    return entry & relevant == presentBit && level != 1
  }

  @inlinable @inline(__always)
  public static func isLeaf(_ entry: UInt64, level: Int) -> Bool {
    level == 1 || entry & pageSizeBit != 0
  }

  @inlinable @inline(__always)
  public static func leafShift(_ entry: UInt64, level: Int) -> Int { shift(level: level) }

  @inlinable @inline(__always)
  public static func address(_ entry: UInt64, _ switches: X86Switches) -> UInt64 {
    entry & addressMask
  }

  /// Every present entry lets privileged requests read; without WP, write as well.
  @inlinable @inline(__always)
  public static func rights(
    _ entry: UInt64, level: Int, _ switches: X86Switches
  ) -> Rights {
    let writes = UInt8(truncatingIfNeeded: entry >> 1 & 1)
    let executes: UInt8 = entry & executeDisableBit == 0 ? 4 : 0
    let user: UInt8 = entry & userBit == 0 ? 0 : 7
    let supervisor = 1 | (switches.writeProtects ? writes << 1 : 2) | executes
    return Rights(rawValue: (1 | writes << 1 | executes) & user | supervisor << 3)
  }

  /// The entry itself, with XD turned into its opposite.
  @inlinable @inline(__always)
  public static func allowance(
    _ entry: UInt64, level: Int, _ switches: X86Switches
  ) -> UInt64 { entry ^ executeDisableBit }

  @inlinable @inline(__always)
  public static func rights(allowed: UInt64, _ switches: X86Switches) -> Rights {
    effective(rights(allowed ^ executeDisableBit, level: 1, switches), switches)
  }

  @inlinable @inline(__always)
  public static func effective(_ rights: Rights, _ switches: X86Switches) -> Rights {
    if switches.preventsSupervisorExecution, rights.contains(.userRead) {
      return rights.subtracting(.privilegedExecute)
    }
    return rights
  }

  @inlinable public static var marksTables: Bool { true }

  @inlinable @inline(__always)
  public static func marked(
    _ entry: UInt64, level: Int, writes: Bool, _ switches: X86Switches
  ) -> UInt64 {
    entry | accessedBit
      | (switches.extendedAccess ? extendedAccessedBit : 0)
      | (writes && isLeaf(entry, level: level) ? dirtyBit : 0)
  }

  @inlinable @inline(__always)
  public static func tracksDirty(_ switches: X86Switches) -> Bool { true }

  /// Whatever is mapped can be read.
  @inlinable
  public static func granted(_ permissions: Permissions) -> Permissions {
    permissions.union(.read)
  }

  @inlinable @inline(__always)
  public static func tableEntry(_ address: UInt64, level: Int) -> UInt64 {
    address | presentBit | writeBit | userBit
  }

  @inlinable @inline(__always)
  public static func leafEntry(
    _ address: UInt64, shift: Int, level: Int, permissions: Permissions,
    attributes: LeafAttributes, _ switches: X86Switches
  ) -> UInt64 {
    let entry =
      address | presentBit | (attributes.contains(.privileged) ? 0 : userBit)
      | (level > 1 ? pageSizeBit : 0)
    return protected(entry, level: level, permissions: permissions, switches)
  }

  @inlinable @inline(__always)
  public static func protected(
    _ entry: UInt64, level: Int, permissions: Permissions, _ switches: X86Switches
  ) -> UInt64 {
    entry & ~(writeBit | executeDisableBit)
      | (permissions.contains(.write) ? writeBit : 0)
      | (permissions.contains(.execute) || !switches.noExecute ? 0 : executeDisableBit)
  }
}
