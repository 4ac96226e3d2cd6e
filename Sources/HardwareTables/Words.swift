// SPDX-License-Identifier: Apache-2.0
//
// Groups of 64-bit words, as the structures of all four families are read and written, and
// the fields in them. Everything here is little-endian words, the order that memory has.

/// 16 bytes: word 0 holds bits 63 to 0.
public typealias Words2 = SIMD2<UInt64>
/// 32 bytes: word 0 holds bits 63 to 0.
public typealias Words4 = SIMD4<UInt64>
/// 64 bytes: word 0 holds bits 63 to 0.
public typealias Words8 = SIMD8<UInt64>

extension UInt64 {
  /// The field in bits `high` to `low`, both inclusive, moved down to bit 0.
  @inlinable @inline(__always)
  func bits(_ high: Int, _ low: Int) -> UInt64 {
    (self &>> UInt64(low)) & (UInt64.max &>> UInt64(63 &- high &+ low))
  }

  @inlinable @inline(__always)
  func bit(_ index: Int) -> Bool { (self &>> UInt64(index)) & 1 != 0 }

  /// Ones in bits `high` to `low`, both inclusive.
  @inlinable @inline(__always)
  static func mask(_ high: Int, _ low: Int) -> UInt64 {
    (UInt64.max &>> UInt64(63 &- high &+ low)) &<< UInt64(low)
  }

  /// `value` in the field of bits `high` to `low`; what does not fit is cut off.
  @inlinable @inline(__always)
  static func place(_ value: some BinaryInteger, _ high: Int, _ low: Int) -> UInt64 {
    (UInt64(truncatingIfNeeded: value) &<< UInt64(low)) & mask(high, low)
  }

  @inlinable @inline(__always)
  static func place(_ value: Bool, _ index: Int) -> UInt64 {
    value ? 1 &<< UInt64(index) : 0
  }
}

extension SIMD where Scalar == UInt64 {
  /// Whether a bit is set where `mask` has one.
  @inlinable @inline(__always)
  func hasAny(of mask: Self) -> Bool { self & mask != Self() }
}
