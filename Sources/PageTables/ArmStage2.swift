// SPDX-License-Identifier: Apache-2.0
//
// Arm SMMUv3 stage 2: VMSAv8-64 stage 2. DDI 0487 D8.3.2 (descriptors), D8.4.2 (permissions),
// D8.2.2 (concatenated tables); IHI 0070 5.2 (stream table entry: S2T0SZ, S2SL0, S2TG, S2PS,
// S2AFFD, S2HA, S2HD).

/// Switches of a stream table entry for stage 2.
@frozen
public struct ArmStage2Switches: ArmConfiguration {
  public var updatesAccessFlag = false
  public var updatesDirtyState = false
  public var ignoresAccessFlag = false
  public var beyondOutput: UInt64 = .max << 48
  /// FEAT_XNX (SMMU_IDR3.XNX): bit 53 tells unprivileged from privileged execution.
  public var distinguishesExecution = true

  @inlinable public init() {}
}

/// SMMUv3 stage 2: up to 4 levels and 48 bits (52 with 64 KiB); up to 16 tables side by side
/// may stand for a root and save a level.
public enum ArmStage2<Granule: ArmGranule>: ArmFormat {
  public typealias Configuration = ArmStage2Switches

  /// Bits 2 to 5, MemAttr: 1111, write-back in both; the first stage decides.
  @inlinable public static var memoryAttributes: UInt64 { 15 << 2 }
  /// Bit 6, S2AP[0]: reads go through.
  @inlinable public static var readBit: UInt64 { 1 << 6 }
  /// Bit 7, S2AP[1]: writes go through.
  @inlinable public static var writeBit: UInt64 { 1 << 7 }
  /// Bits 53 and 54, XN: 00 all execute, 01 unprivileged only, 10 none, 11 privileged only.
  @inlinable public static var executeNeverMask: UInt64 { 3 << 53 }
  @inlinable public static var executeNever: UInt64 { 2 << 53 }

  @inlinable public static var extraRootBits: Int { 4 }

  /// A leaf with DBM counts as writable where hardware keeps the dirty state.
  @inlinable @inline(__always)
  public static func rights(
    _ entry: UInt64, level: Int, _ switches: ArmStage2Switches
  ) -> Rights {
    guard isLeaf(entry, level: level) else { return .all }
    var allowed = UInt8(truncatingIfNeeded: entry >> 6 & 3)
    if entry & dirtyManagedBit != 0, switches.keepsDirtyState { allowed |= 2 }
    var rights = Rights(Permissions(rawValue: allowed))
    switch (entry & executeNeverMask) >> 53 {
    case 0: rights.formUnion(.executes)
    case 1:
      rights.formUnion(switches.distinguishesExecution ? .userExecute : .executes)
    case 3 where switches.distinguishesExecution: rights.formUnion(.privilegedExecute)
    default: break
    }
    return rights
  }

  @inlinable @inline(__always)
  public static func marked(
    _ entry: UInt64, level: Int, writes: Bool, _ switches: ArmStage2Switches
  ) -> UInt64 {
    guard isLeaf(entry, level: level), switches.updatesAccessFlag else { return entry }
    let writable = writes && switches.updatesDirtyState && entry & dirtyManagedBit != 0
    return entry | accessFlag | (writable ? writeBit : 0)
  }

  @inlinable @inline(__always)
  public static func isDirty(_ entry: UInt64) -> Bool {
    entry & (dirtyManagedBit | writeBit) == dirtyManagedBit | writeBit
  }

  @inlinable @inline(__always)
  public static func cleaned(_ entry: UInt64) -> UInt64 { entry & ~writeBit }

  @inlinable @inline(__always)
  public static func leafEntry(
    _ address: UInt64, shift: Int, level: Int, permissions: Permissions,
    attributes: LeafAttributes, _ switches: ArmStage2Switches
  ) -> UInt64 {
    let entry =
      commonLeaf(address, shift: shift, level: level, switches) | memoryAttributes
    return protected(entry, level: level, permissions: permissions, switches)
  }

  /// Taking the right to write away makes a leaf clean; giving it leaves it clean.
  @inlinable @inline(__always)
  public static func protected(
    _ entry: UInt64, level: Int, permissions: Permissions, _ switches: ArmStage2Switches
  ) -> UInt64 {
    var entry = entry & ~(readBit | executeNeverMask)
    if permissions.contains(.read) { entry |= readBit }
    if !permissions.contains(.execute) { entry |= executeNever }
    if !permissions.contains(.write) {
      entry &= ~(dirtyManagedBit | writeBit)
    } else {
      entry |= switches.keepsDirtyState ? dirtyManagedBit : writeBit
    }
    return entry
  }
}
