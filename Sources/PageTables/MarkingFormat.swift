// SPDX-License-Identifier: Apache-2.0
//
// What formats share that say "accessed" and "dirty" by a bit each: all but Arm's, where "dirty" is
// a right.

/// A format with a bit that is set in what is translated through, and one in what is written
/// through.
public protocol MarkingFormat: PageTableFormat {
  /// Set in leaves, and where `marksTables` says so in all entries, that are used.
  static var accessedBit: UInt64 { get }

  /// Set in leaves that are written through.
  static var dirtyBit: UInt64 { get }
}

extension MarkingFormat {
  /// Leaves only.
  @inlinable @inline(__always)
  public static func marked(
    _ entry: UInt64, level: Int, writes: Bool, _ configuration: Configuration
  ) -> UInt64 {
    guard isLeaf(entry, level: level) else { return entry }
    return entry | accessedBit | (writes ? dirtyBit : 0)
  }

  @inlinable @inline(__always)
  public static func tracksDirty(_ configuration: Configuration) -> Bool {
    configuration.updatesEntries
  }

  @inlinable @inline(__always)
  public static func isDirty(_ entry: UInt64) -> Bool { entry & dirtyBit != 0 }

  @inlinable @inline(__always)
  public static func cleaned(_ entry: UInt64) -> UInt64 { entry & ~dirtyBit }
}
