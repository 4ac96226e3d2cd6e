// SPDX-License-Identifier: Apache-2.0
//
// Structures of several words in the memory that tables lie in.

import PageTables

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

extension TableMemoryFault {
  /// Whether the stage of translation behind this memory has no mapping for the address.
  @inlinable var isUntranslated: Bool {
    if case .secondStage = self { true } else { false }
  }
}
