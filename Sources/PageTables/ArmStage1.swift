// SPDX-License-Identifier: Apache-2.0
//
// Arm SMMUv3 stage 1: VMSAv8-64 stage 1 for EL1 and EL0. DDI 0487 D8.3.1 (descriptors), D8.4.1
// (permissions, hierarchical ones too); IHI 0070 5.4 (context descriptor: HA, HD, AFFD, WXN,
// HAD0, PAN, IPS).

/// Switches of a stage 1 context descriptor.
@frozen
public struct ArmStage1Switches: ArmConfiguration {
  public var updatesAccessFlag = false
  public var updatesDirtyState = false
  public var ignoresAccessFlag = false
  public var beyondOutput: UInt64 = .max << 48
  /// WXN: what can be written cannot be executed.
  public var neverExecutesWritable = false
  /// HAD0 or HAD1: entries that point to tables restrict nothing.
  public var ignoresTablePermissions = false
  /// PAN: privileged requests neither read nor write what unprivileged ones may.
  public var preventsPrivilegedAccess = false

  @inlinable public init() {}
}

/// SMMUv3 stage 1: up to 4 levels and 48 bits (52 with 64 KiB), in the lower (TTB0) or the
/// upper half (TTB1) of the address space. MODEL B2.
public enum ArmStage1<Granule: ArmGranule>: ArmFormat {
  public typealias Configuration = ArmStage1Switches

  /// Bits 2 to 4, AttrIndx: which attribute of MAIR; ours is 1.
  @inlinable public static var attributeIndex: UInt64 { 1 << 2 }
  /// Bit 6, AP[1]: unprivileged requests read, and write if any may.
  @inlinable public static var userBit: UInt64 { 1 << 6 }
  /// Bit 7, AP[2]: read only.
  @inlinable public static var readOnlyBit: UInt64 { 1 << 7 }
  /// Bit 11, nG: not global.
  @inlinable public static var notGlobalBit: UInt64 { 1 << 11 }
  /// Bit 53, PXN: privileged requests do not execute.
  @inlinable public static var privilegedExecuteNeverBit: UInt64 { 1 << 53 }
  /// Bit 54, UXN: unprivileged requests do not execute.
  @inlinable public static var userExecuteNeverBit: UInt64 { 1 << 54 }
  /// Bits 59 to 62 of an entry that points to a table: PXNTable, UXNTable (XNTable),
  /// APTable[0] (no unprivileged access) and APTable[1] (no writes).
  @inlinable public static var tablePXN: UInt64 { 1 << 59 }
  @inlinable public static var tableUXN: UInt64 { 1 << 60 }
  @inlinable public static var tableNoUser: UInt64 { 1 << 61 }
  @inlinable public static var tableReadOnly: UInt64 { 1 << 62 }

  @inlinable public static var choosesExtension: Bool { true }

  /// Of a table's entry: all but what it withholds. Of a leaf: its bits, and those of tables.
  @inlinable @inline(__always)
  public static func allowance(
    _ entry: UInt64, level: Int, _ switches: ArmStage1Switches
  ) -> UInt64 {
    let tables = tablePXN | tableUXN | tableNoUser | tableReadOnly
    if isLeaf(entry, level: level) { return entry | tables }
    return switches.ignoresTablePermissions ? .max : ~(entry & tables)
  }

  @inlinable @inline(__always)
  public static func rights(allowed: UInt64, _ switches: ArmStage1Switches) -> Rights {
    effective(leafRights(allowed, switches), switches)
  }

  /// Unprivileged execution asks for no read permission; a leaf with DBM counts as writable
  /// where hardware keeps the dirty state.
  /// - Parameter entry: Of a leaf, with the bits set that no table withholds.
  @inlinable @inline(__always)
  static func leafRights(_ entry: UInt64, _ switches: ArmStage1Switches) -> Rights {
    // Without a branch: walks are waited for.
    let user = right(.userRead, entry, userBit) & right(.userRead, entry, tableNoUser)
    let dirty = switches.keepsDirtyState ? right(.privilegedWrite, entry, dirtyManagedBit) : 0
    let write =
      (right(.privilegedWrite, ~entry, readOnlyBit) | dirty)
      & right(.privilegedWrite, entry, tableReadOnly)
    return Rights(
      rawValue: user | user << 1 & write >> 3 | Rights.privilegedRead.rawValue | write
        | right(.userExecute, ~entry, userExecuteNeverBit)
        & right(.userExecute, entry, tableUXN)
        | right(.privilegedExecute, ~entry, privilegedExecuteNeverBit)
        & right(.privilegedExecute, entry, tablePXN))
  }

  /// A right where an entry has a bit, else none.
  @inlinable @inline(__always)
  static func right(_ right: Rights, _ entry: UInt64, _ bit: UInt64) -> UInt8 {
    let shift = bit.trailingZeroBitCount &- right.rawValue.trailingZeroBitCount
    return UInt8(truncatingIfNeeded: entry &>> UInt64(truncatingIfNeeded: shift))
      & right.rawValue
  }

  @inlinable @inline(__always)
  public static func rights(
    _ entry: UInt64, level: Int, _ switches: ArmStage1Switches
  ) -> Rights {
    let allowed = allowance(entry, level: level, switches)
    if isLeaf(entry, level: level) { return leafRights(allowed, switches) }
    // What it withholds of a leaf that allows all.
    let none = readOnlyBit | userExecuteNeverBit | privilegedExecuteNeverBit
    return leafRights((allowed | userBit) & ~none, switches)
  }

  /// What unprivileged requests may write, privileged ones never execute (D8.4.1.2.3).
  @inlinable @inline(__always)
  public static func effective(_ rights: Rights, _ switches: ArmStage1Switches) -> Rights {
    // User write is bit 1, privileged execute bit 5.
    var allowed = Rights(rawValue: rights.rawValue & ~((rights.rawValue & 2) << 4))
    guard switches.neverExecutesWritable || switches.preventsPrivilegedAccess else {
      return allowed
    }
    if switches.neverExecutesWritable {
      if rights.contains(.userWrite) { allowed.subtract(.userExecute) }
      if rights.contains(.privilegedWrite) { allowed.subtract(.privilegedExecute) }
    }
    if switches.preventsPrivilegedAccess, rights.contains(.userRead) {
      allowed.subtract(.privilegedAccess)
    }
    return allowed
  }

  @inlinable @inline(__always)
  public static func marked(
    _ entry: UInt64, level: Int, writes: Bool, _ switches: ArmStage1Switches
  ) -> UInt64 {
    guard isLeaf(entry, level: level), switches.updatesAccessFlag else { return entry }
    let writable = writes && switches.updatesDirtyState && entry & dirtyManagedBit != 0
    return (entry | accessFlag) & ~(writable ? readOnlyBit : 0)
  }

  @inlinable @inline(__always)
  public static func isDirty(_ entry: UInt64) -> Bool {
    entry & (dirtyManagedBit | readOnlyBit) == dirtyManagedBit
  }

  @inlinable @inline(__always)
  public static func cleaned(_ entry: UInt64) -> UInt64 { entry | readOnlyBit }

  /// Whatever is mapped can be read.
  @inlinable
  public static func granted(_ permissions: Permissions) -> Permissions {
    permissions.union(.read)
  }

  @inlinable @inline(__always)
  public static func leafEntry(
    _ address: UInt64, shift: Int, level: Int, permissions: Permissions,
    attributes: LeafAttributes, _ switches: ArmStage1Switches
  ) -> UInt64 {
    let entry =
      commonLeaf(address, shift: shift, level: level, switches) | attributeIndex | readOnlyBit
      | notGlobalBit | (attributes.contains(.privileged) ? 0 : userBit)
    return protected(entry, level: level, permissions: permissions, switches)
  }

  /// Taking the right to write away makes a leaf clean; giving it leaves it clean.
  @inlinable @inline(__always)
  public static func protected(
    _ entry: UInt64, level: Int, permissions: Permissions, _ switches: ArmStage1Switches
  ) -> UInt64 {
    let never = userExecuteNeverBit | privilegedExecuteNeverBit
    var entry = permissions.contains(.execute) ? entry & ~never : entry | never
    if !permissions.contains(.write) {
      entry = entry & ~dirtyManagedBit | readOnlyBit
    } else if switches.keepsDirtyState {
      entry |= dirtyManagedBit
    } else {
      entry &= ~readOnlyBit
    }
    return entry
  }
}
