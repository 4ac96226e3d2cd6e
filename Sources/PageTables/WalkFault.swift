// SPDX-License-Identifier: Apache-2.0
//
// What a walk finds, and why it finds nothing: rich enough to derive every vendor's codes.

/// What a walk finds.
@frozen
public struct Translation: Hashable, Sendable {
  /// The address of the very byte that was asked for: physical, or what the next stage
  /// translates.
  public var physical: PhysicalAddress
  /// log2 of the size of the leaf that holds it, in bytes; of two stages, the smaller.
  public var leafShift: UInt8
  /// What all entries on the way allow together.
  public var rights: Rights

  @inlinable
  public init(physical: PhysicalAddress, leafShift: UInt8, rights: Rights) {
    self.physical = physical
    self.leafShift = leafShift
    self.rights = rights
  }

  /// Which reading and writing is allowed to unprivileged requests. `rights` says all.
  @inlinable @inline(__always)
  public var permissions: Permissions { Permissions(rawValue: rights.rawValue & 3) }
}

/// Why a walk finds nothing, where, and in which stage.
@frozen
public struct WalkFault: Error, Hashable, Sendable {
  public enum Reason: UInt8, Hashable, Sendable {
    /// The address has more bits than the table translates, or is not canonical.
    /// VT-d 80h; Arm F_TRANSLATION; RISC-V page fault.
    case addressWidth
    /// An entry on the way is not present, or is of a kind that its level cannot have.
    case notPresent
    /// An entry on the way has a bit set that the format reserves.
    case reservedBits
    /// A large leaf whose address is not a multiple of its size. RISC-V; x86 has these bits
    /// reserved.
    case misaligned
    /// An entry's address is wider than the configured output. Arm F_ADDR_SIZE.
    case addressSize
    /// The leaf was not accessed before, and hardware is told not to mark it.
    case accessFlag
    /// The leaf was not written before, and hardware is told not to mark it. RISC-V.
    case dirtyFlag
    /// The leaf is there, and an entry on the way does not allow this access: see `rights`.
    case permission
    /// The memory where an entry should be cannot be read or written.
    case tableUnreachable
    /// The memory of an entry is known to hold wrong data. RISC-V 274.
    case tableCorrupted
  }

  /// Which table the faulting entry belongs to.
  public enum Stage: UInt8, Hashable, Sendable {
    /// The only table of the walk, or the first of two.
    case first
    /// The second of two: `ipa` is what it was asked for.
    case second
  }

  public var reason: Reason
  /// The entry's level; 0 where no entry was looked at.
  public var level: UInt8
  public var stage = Stage.first
  /// Of a fault in the second stage: the level of the first-stage entry that was fetched or
  /// marked; 0 where the access itself was being translated (Arm's CLASS IN).
  public var tableLevel: UInt8 = 0
  /// Whether it happened while an entry of the first stage was being marked (RISC-V's
  /// implicit write).
  public var isMarking = false
  /// What the walk allowed, where the reason is `.permission`.
  public var rights = Rights.none
  /// What the second stage was asked for, in bytes; 0 for a fault of the first.
  public var ipa: UInt64 = 0
  /// Where the entry is that could not be read or written (`.tableUnreachable`,
  /// `.tableCorrupted`), by the addresses of its own table: of a first stage on a second, what
  /// the second translated. 0 for other reasons. SMMUv3's FetchAddr.
  public var entry: UInt64 = 0

  @inlinable
  public init(_ reason: Reason, level: Int = 0, rights: Rights = .none) {
    self.reason = reason
    self.level = UInt8(truncatingIfNeeded: level)
    self.rights = rights
  }

  /// Whether an entry of the first stage could not be fetched or marked, for the second stage
  /// did not allow it (Arm's CLASS TT, RISC-V's implicit access).
  @inlinable public var isTableFetch: Bool { tableLevel != 0 }
}

/// Why nothing was mapped.
public enum MapFailure: Error, Hashable, Sendable {
  /// An address or the length is not a multiple of the granule, or the length is zero.
  case misaligned
  /// The range ends past the last address that the table translates, or overflows.
  case addressWidth
  /// The physical range ends past the last address that an entry can hold.
  case physicalWidth
  /// Neither reading nor writing would be allowed, which no format can say of a live leaf.
  case noPermissions
  /// Something is mapped at this address already.
  case occupied(IOVA)
  /// The table's memory limit is reached.
  case outOfMemory
}
