// SPDX-License-Identifier: Apache-2.0
//
// Memory that tests write tables into: sparse, with addresses that answer in bad ways.

@testable import HardwareTables

/// Words at multiples of 8; what was never written reads as 0.
struct FakeMemory: TableMemory {
  var words: [UInt64: UInt64] = [:]
  /// Addresses that fail, and how.
  var faults: [UInt64: TableMemoryFault.Reason] = [:]

  func load(_ address: UInt64) throws(TableMemoryFault) -> UInt64 {
    if let reason = faults[address] {
      throw TableMemoryFault(address: address, reason: reason)
    }
    return words[address] ?? 0
  }

  /// Tables are only read here.
  func compareExchange(
    _ address: UInt64, expected: UInt64, desired: UInt64
  ) throws(TableMemoryFault) -> Bool {
    false
  }

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
    if value & 0xFF == 0 { throw TableMemoryFault(address: address, reason: .poisoned) }
    // Half of the words have few bits, so that some get past the checks.
    return value & 0x100 == 0 ? value & (value << 17) & (value >> 13) | value & 0x3F : value
  }

  func compareExchange(
    _ address: UInt64, expected: UInt64, desired: UInt64
  ) throws(TableMemoryFault) -> Bool {
    true
  }
}
