// SPDX-License-Identifier: Apache-2.0
//
// Memory that tests write tables into: sparse, with addresses that answer in bad ways.

import PageTables

@testable import HardwareTables

/// Words at multiples of 8; what was never written reads as 0.
struct FakeMemory: TableMemory {
  var words: [UInt64: UInt64] = [:]
  /// Addresses that fail, and how.
  var faults: [UInt64: TableMemoryFault] = [:]

  func load(_ address: UInt64) throws(TableMemoryFault) -> UInt64 {
    if let fault = faults[address] { throw fault }
    return words[address] ?? 0
  }

  /// Tables are only read here.
  func compareExchange(
    _ address: UInt64, expected: UInt64, desired: UInt64
  ) throws(TableMemoryFault) -> Bool {
    false
  }

  /// A second stage that has no mapping.
  static let untranslated = TableMemoryFault.secondStage(WalkFault(.notPresent, level: 1))

  mutating func write<Words: SIMD<UInt64>>(_ words: Words, at address: UInt64) {
    for index in 0..<Words.scalarCount {
      self.words[address + UInt64(index) * 8] = words[index]
    }
  }
}

/// Memory that holds anything anywhere: each word depends on its address and a seed.
struct NoiseMemory: TableMemory {
  var seed: UInt64

  func load(_ address: UInt64) throws(TableMemoryFault) -> UInt64 {
    var value = (address ^ seed) &* 0x9E37_79B9_7F4A_7C15
    value ^= value >> 29
    value = value &* 0xBF58_476D_1CE4_E5B9
    value ^= value >> 32
    if value & 0xFF == 0 { throw .corrupted }
    // Kinds of words, so that some get past the checks: a pointer, a small number, a few
    // bits, anything.
    switch value >> 8 & 3 {
    case 0: return value & 0x3FFF_FFFF_F000 | 1
    case 1: return value & 0xF | 1
    case 2: return value & (value << 17) & (value >> 13)
    default: return value
    }
  }

  func compareExchange(
    _ address: UInt64, expected: UInt64, desired: UInt64
  ) throws(TableMemoryFault) -> Bool {
    true
  }
}
