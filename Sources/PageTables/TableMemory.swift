// SPDX-License-Identifier: Apache-2.0
//
// Where tables live: the walker reads and marks entries through this, so that one walker serves
// the engine's own tables, tables in a user's memory, and two stages.

/// Why an entry could not be read or written.
@frozen
public enum TableMemoryFault: Error, Hashable, Sendable {
  /// Nothing is there, or it must not be touched.
  case unreachable
  /// What was read is known to be wrong: poisoned data.
  case corrupted
  /// A second stage does not translate the entry's address.
  case secondStage(WalkFault)
}

/// Memory that holds table entries: 8 bytes each, little-endian, aligned, single-copy atomic.
///
/// Whoever owns the tables may change them at any time: a walk reads each entry once.
public protocol TableMemory {
  /// The entry at an address, a multiple of 8.
  func load(_ address: UInt64) throws(TableMemoryFault) -> UInt64

  /// Replaces the entry at an address, a multiple of 8, unless it has changed meanwhile.
  /// - Returns: Whether it was replaced.
  func compareExchange(
    _ address: UInt64, expected: UInt64, desired: UInt64
  ) throws(TableMemoryFault) -> Bool
}
