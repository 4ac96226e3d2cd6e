// SPDX-License-Identifier: Apache-2.0
//
// Numbers as the bytes that memory and files have of them, little-endian.

extension FixedWidthInteger {
  package var littleEndianBytes: [UInt8] {
    (0..<Self.bitWidth / 8).map { UInt8(truncatingIfNeeded: self >> ($0 * 8)) }
  }
}

extension Sequence where Element: FixedWidthInteger {
  /// One number after the other.
  package var littleEndianBytes: [UInt8] { flatMap(\.littleEndianBytes) }
}

extension SIMD where Scalar: FixedWidthInteger {
  /// One number after the other.
  package var littleEndianBytes: [UInt8] { indices.flatMap { self[$0].littleEndianBytes } }
}

extension [UInt8] {
  /// The number that begins at an offset, which has that many bytes.
  package func number<Number: FixedWidthInteger>(
    at offset: Int, as type: Number.Type = Number.self
  ) -> Number {
    (0..<Number.bitWidth / 8).reduce(0) { $0 | Number(self[offset + $1]) << ($1 * 8) }
  }
}
