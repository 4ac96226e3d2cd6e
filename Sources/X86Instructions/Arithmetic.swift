// SPDX-License-Identifier: Apache-2.0
//
// Results and flags of integer instructions. Intel SDM volume 1, appendix A, and volume 2.

/// A result of `byteCount` bytes with the flags that it sets.
struct Outcome {
  var value: UInt64
  var flags: UInt64

  /// Sign, zero and parity of a result, and what else was found.
  init(_ value: UInt64, _ byteCount: Int, carry: Bool, overflow: Bool, adjust: Bool = false) {
    let value = value & Width.mask(byteCount)
    self.value = value
    flags =
      (carry ? Flags.carry : 0) | (overflow ? Flags.overflow : 0) | (adjust ? Flags.adjust : 0)
      | (value == 0 ? Flags.zero : 0)
      | (value & Width.signBit(byteCount) != 0 ? Flags.sign : 0)
      | ((value & 0xFF).nonzeroBitCount & 1 == 0 ? Flags.parity : 0)
  }

  static func add(_ left: UInt64, _ right: UInt64, carry: Bool, _ byteCount: Int) -> Outcome {
    let sum = left &+ right &+ (carry ? 1 : 0)
    let sign = Width.signBit(byteCount)
    return Outcome(
      sum, byteCount, carry: (left & right | (left | right) & ~sum) & sign != 0,
      overflow: (left ^ sum) & (right ^ sum) & sign != 0, adjust: (left ^ right ^ sum) & 16 != 0
    )
  }

  static func subtract(
    _ left: UInt64, _ right: UInt64, borrow: Bool, _ byteCount: Int
  ) -> Outcome {
    let difference = left &- right &- (borrow ? 1 : 0)
    let sign = Width.signBit(byteCount)
    return Outcome(
      difference, byteCount,
      carry: (~left & right | (~left | right) & difference) & sign != 0,
      overflow: (left ^ right) & (left ^ difference) & sign != 0,
      adjust: (left ^ right ^ difference) & 16 != 0)
  }

  static func arithmetic(
    _ operation: Arithmetic, _ left: UInt64, _ right: UInt64, carry: Bool, _ byteCount: Int
  ) -> Outcome {
    switch operation {
    case .add: add(left, right, carry: false, byteCount)
    case .addWithCarry: add(left, right, carry: carry, byteCount)
    case .subtract, .compare: subtract(left, right, borrow: false, byteCount)
    case .subtractWithBorrow: subtract(left, right, borrow: carry, byteCount)
    case .and: Outcome(left & right, byteCount, carry: false, overflow: false)
    case .or: Outcome(left | right, byteCount, carry: false, overflow: false)
    case .xor: Outcome(left ^ right, byteCount, carry: false, overflow: false)
    }
  }

  /// Shifts and rotations. `count` as given: of it five bits count, or six for 8 bytes.
  /// - Returns: The value, and the flags with the mask of those that change.
  static func shift(
    _ operation: Shift, _ value: UInt64, _ count: UInt64, flags: UInt64, _ byteCount: Int
  ) -> (value: UInt64, flags: UInt64, mask: UInt64) {
    let bits = UInt64(byteCount) * 8
    let count = count & (byteCount == 8 ? 63 : 31)
    if count == 0 { return (value, 0, 0) }
    let mask = Width.mask(byteCount)
    let sign = Width.signBit(byteCount)
    let rotation = Flags.carry | Flags.overflow
    switch operation {
    case .rotateLeft, .rotateRight:
      let turn = count % bits
      let left = operation == .rotateLeft ? turn : (bits - turn) % bits
      let result = left == 0 ? value : (value << left | value >> (bits - left)) & mask
      let carry = operation == .rotateLeft ? result & 1 != 0 : result & sign != 0
      let overflow =
        operation == .rotateLeft
        ? (result & sign != 0) != carry : (result & sign != 0) != (result & sign >> 1 != 0)
      return (result, (carry ? Flags.carry : 0) | (overflow ? Flags.overflow : 0), rotation)
    case .rotateCarryLeft, .rotateCarryRight:
      var result = value
      var carry = flags & Flags.carry != 0
      let isLeft = operation == .rotateCarryLeft
      // Of a left rotation the overflow is judged after it, of a right one before.
      var overflow = (value & sign != 0) != carry
      for _ in 0..<(count % (bits + 1)) {
        let out = isLeft ? result & sign != 0 : result & 1 != 0
        result =
          isLeft
          ? (result << 1 | (carry ? 1 : 0)) & mask : result >> 1 | (carry ? sign : 0)
        carry = out
      }
      if isLeft { overflow = (result & sign != 0) != carry }
      return (result, (carry ? Flags.carry : 0) | (overflow ? Flags.overflow : 0), rotation)
    case .left, .left2:
      let result = count >= 64 ? 0 : (value << count) & mask
      let carry = count <= bits && (value >> (bits - count)) & 1 != 0
      let outcome = Outcome(
        result, byteCount, carry: carry, overflow: (result & sign != 0) != carry)
      return (outcome.value, outcome.flags, Flags.status)
    case .right:
      let carry = (value >> (count - 1)) & 1 != 0
      let outcome = Outcome(
        value >> count, byteCount, carry: carry, overflow: value & sign != 0)
      return (outcome.value, outcome.flags, Flags.status)
    case .arithmeticRight:
      let extended = Int64(bitPattern: Width.signExtended(value, byteCount))
      let carry = (extended >> Int64(count - 1)) & 1 != 0
      let outcome = Outcome(
        UInt64(bitPattern: extended >> Int64(count)), byteCount, carry: carry, overflow: false)
      return (outcome.value, outcome.flags, Flags.status)
    }
  }

  /// SHLD and SHRD: `value` shifted, and filled from `other`. Counts above 16 bits of an operand
  /// of 16 are undefined.
  static func doubleShift(
    left: Bool, _ value: UInt64, _ other: UInt64, _ count: UInt64, _ byteCount: Int
  ) -> (value: UInt64, flags: UInt64, mask: UInt64) {
    let bits = UInt64(byteCount) * 8
    let count = count & (byteCount == 8 ? 63 : 31)
    if count == 0 { return (value, 0, 0) }
    let pair: UInt128
    let result: UInt64
    let carry: Bool
    if left {
      // value:other:value, so that counts above 16 rotate further.
      pair = UInt128(value) << UInt128(bits) | UInt128(other)
      let wide = bits == 16 ? pair << 16 | UInt128(value) : pair
      let width = bits == 16 ? UInt128(48) : UInt128(bits) * 2
      result = UInt64(truncatingIfNeeded: (wide << UInt128(count)) >> (width - UInt128(bits)))
      carry = (wide >> (width - UInt128(count))) & 1 != 0
    } else {
      pair = UInt128(other) << UInt128(bits) | UInt128(value)
      let wide = bits == 16 ? UInt128(value) << 32 | pair : pair
      result = UInt64(truncatingIfNeeded: wide >> UInt128(count))
      carry = (wide >> UInt128(count - 1)) & 1 != 0
    }
    let sign = Width.signBit(byteCount)
    let outcome = Outcome(
      result, byteCount, carry: carry, overflow: (result ^ value) & sign != 0)
    return (outcome.value, outcome.flags, Flags.status)
  }

  /// A CRC-32C over `byteCount` bytes more, without the inversions: polynomial 0x11EDC6F41, reflected.
  static func checksum(_ start: UInt32, _ value: UInt64, _ byteCount: Int) -> UInt32 {
    var remainder = UInt64(start) ^ value
    for _ in 0..<(byteCount * 8) {
      remainder = remainder & 1 != 0 ? (remainder >> 1) ^ 0x82F6_3B78 : remainder >> 1
    }
    return UInt32(truncatingIfNeeded: remainder)
  }
}
