// SPDX-License-Identifier: Apache-2.0
//
// A data structure that a controller answers with: bytes of zero, filled in by offset as the
// specification's tables have them.

/// A structure in the making.
struct NVMeBytes {
  private(set) var bytes: [UInt8]

  init(count: Int) { bytes = Array(repeating: 0, count: count) }

  /// Little-endian; wholly inside.
  mutating func put<Value: FixedWidthInteger>(_ value: Value, at offset: Int) {
    for index in 0..<Value.bitWidth / 8 {
      bytes[offset + index] = UInt8(truncatingIfNeeded: value >> Value(index * 8))
    }
  }

  /// ASCII, filled up with blanks.
  mutating func put(_ text: String, at offset: Int, count: Int) {
    let characters = Array(text.utf8.prefix(count))
    for index in 0..<count {
      bytes[offset + index] = index < characters.count ? characters[index] : 0x20
    }
  }

  /// ASCII, ended by a zero; `count` with it.
  mutating func put(zeroTerminated text: String, at offset: Int, count: Int) {
    for (index, character) in text.utf8.prefix(count - 1).enumerated() {
      bytes[offset + index] = character
    }
  }

  mutating func put(_ other: [UInt8], at offset: Int) {
    bytes.replaceSubrange(offset..<offset + other.count, with: other)
  }
}
