// SPDX-License-Identifier: Apache-2.0
//
// The memory that hardware's tables lie in: a parameter of every lookup, so that a lookup in
// a user's table goes through the parent's translation and one in the host's does not.

/// Why memory that a table lies in could not be read.
public struct TableMemoryFault: Error, Hashable, Sendable {
  public enum Reason: UInt8, Hashable, Sendable {
    /// Nothing answers at this address, or the access is not allowed there.
    case aborted
    /// What was read is known to be wrong: poisoned data.
    case poisoned
    /// The stage of translation behind this memory has no mapping for the address.
    case untranslated
  }

  /// In bytes, in the address space that the table's own pointers are in.
  public var address: UInt64
  public var reason: Reason

  @inlinable
  public init(address: UInt64, reason: Reason) {
    self.address = address
    self.reason = reason
  }
}

/// Memory that holds tables: 8 bytes at a time, little-endian, at multiples of 8.
///
/// Whoever conforms says whether it may be used from several threads.
public protocol TableMemory {
  /// - Parameter address: In bytes, a multiple of 8.
  func load(_ address: UInt64) throws(TableMemoryFault) -> UInt64

  /// Replaces a word unless it has changed meanwhile.
  /// - Parameter address: In bytes, a multiple of 8.
  /// - Returns: Whether the word was `expected` and now is `desired`.
  func compareExchange(
    _ address: UInt64, expected: UInt64, desired: UInt64
  ) throws(TableMemoryFault) -> Bool
}

extension TableMemory {
  // Each word is read once. All four specifications allow the words of one structure to be
  // read apart from each other. Addresses wrap: what lies beyond is the memory's to refuse.

  @inlinable @inline(__always)
  func loadWords2(_ address: UInt64) throws(TableMemoryFault) -> Words2 {
    Words2(try load(address), try load(address &+ 8))
  }

  @inlinable @inline(__always)
  func loadWords4(_ address: UInt64) throws(TableMemoryFault) -> Words4 {
    Words4(
      try load(address), try load(address &+ 8), try load(address &+ 16),
      try load(address &+ 24))
  }

  @inlinable @inline(__always)
  func loadWords8(_ address: UInt64) throws(TableMemoryFault) -> Words8 {
    Words8(
      lowHalf: try loadWords4(address), highHalf: try loadWords4(address &+ 32))
  }
}
