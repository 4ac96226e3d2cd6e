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

/// Memory that holds anything anywhere: each word depends on its address and a seed. It notes
/// what is read, and whether something had named the place before.
final class NoiseMemory: TableMemory {
  private let seed: UInt64
  /// What tables may be named by: words that were given or read.
  private var named: [UInt64]
  /// Bytes that the tables reach from where they are named.
  private let reach: UInt64
  private(set) var loads = 0
  /// Reads where nothing had pointed, or across words.
  private(set) var strays: [UInt64] = []
  /// Words that mean something; now and then one bit of theirs is another.
  private let good: [UInt64: UInt64]

  init(seed: UInt64, named: [UInt64], reach: UInt64, good: [UInt64: UInt64] = [:]) {
    self.seed = seed
    self.good = good
    self.named = named
    self.reach = reach
  }

  /// The addresses that a word may stand for: with bits above 51 or 55 or without, and RISC-V's
  /// pages at bit 10, in either order of bytes.
  private func isNamed(_ address: UInt64) -> Bool {
    named.contains { word in
      let swapped = word.byteSwapped
      return [
        word, word & .mask(55, 0), word & .mask(51, 0), word.bits(53, 10) &<< 12,
        swapped.bits(53, 10) &<< 12, word.bits(43, 0) &<< 12, swapped.bits(43, 0) &<< 12,
      ].contains { address &- $0 &+ reach < 2 * reach }
    }
  }

  func load(_ address: UInt64) throws(TableMemoryFault) -> UInt64 {
    loads += 1
    if address % 8 != 0 || !isNamed(address) { strays.append(address) }
    var value = (address ^ seed) &* 0x9E37_79B9_7F4A_7C15
    value ^= value >> 29
    value = value &* 0xBF58_476D_1CE4_E5B9
    value ^= value >> 32
    if value & 0xFF == 0 { throw .corrupted }
    if value & 0xFF == 1 { throw .unreachable }
    if let word = good[address] {
      let word = value >> 8 & 7 == 0 ? word ^ 1 << (value >> 16 & 63) : word
      named.append(word)
      return word
    }
    // Kinds of words, so that some get past the checks: nothing, mostly in the upper words of
    // an entry, a pointer, a small number, a few bits, anything.
    let kind = value >> 8 & 15
    switch address & 16 == 0 || kind == 15 ? kind & 7 : 0 {
    case 0, 1: value = 0
    case 2, 3: value = value & 0x3FFF_FFFF_FFFF | 1
    case 4: value = value & 0x3FFF_FFFF_F000 | 1
    case 5: value = value & 0xFF_FFFF_FC0F | 1
    case 6: value = value & (value << 17) & (value >> 13) | 1
    default: break
    }
    named.append(value)
    return value
  }

  /// Tables of devices are only read.
  func compareExchange(
    _ address: UInt64, expected: UInt64, desired: UInt64
  ) throws(TableMemoryFault) -> Bool {
    strays.append(address)
    return true
  }
}
