// SPDX-License-Identifier: Apache-2.0
//
// What integer instructions on vector registers make of their operands, element by element. Intel
// SDM volume 2. Those that move elements around are in VectorFunction+Shuffles.

/// `left` is the register operand, `right` what came from memory. Elements are the result's.
enum VectorFunction: UInt8, Sendable {
  // Of each pair of elements.
  case right, blend, and, andNot, or, xor, ternary
  case add, subtract, addSigned, addUnsigned, subtractSigned, subtractUnsigned
  case equal, greater, minimumSigned, minimumUnsigned, maximumSigned, maximumUnsigned
  case average, sign, absolute
  case multiplyLow, multiplyHighSigned, multiplyHighUnsigned, multiplyHighRounded
  case multiplyEvenSigned, multiplyEvenUnsigned, multiplyAdd, multiplyAddBytes, sumDifferences
  case rotateLeft, rotateRight, shiftLeft, shiftRight, shiftArithmetic
  // Of more of them.
  case shiftAllLeft, shiftAllRight, shiftAllArithmetic
  case interleaveLow, interleaveHigh, packSigned, packUnsigned
  case shuffleBytes, shuffle, shuffleLowWords, shuffleHighWords, shuffleTwo, shuffleBlocks
  case align, alignElements, addPairs, addPairsSigned, subtractPairs, subtractPairsSigned
  case blendImmediate, blendVariable, extendSigned, extendZero, duplicateEven, duplicateOdd
  case permute, permuteTables, permuteByResult, permuteImmediate, permuteInLane, permuteBlocks
  case insertBlock, insertElement, minimumPosition

  /// Whether an element of the result depends on memory's element at its place only: then no other
  /// is accessed under a mask.
  var isElementwise: Bool { rawValue <= VectorFunction.shiftArithmetic.rawValue }

  /// Whether memory is its only operand.
  var isUnary: Bool {
    switch self {
    case .right, .absolute, .shuffle, .shuffleLowWords, .shuffleHighWords, .extendSigned,
      .extendZero, .duplicateEven, .duplicateOdd, .permuteImmediate, .minimumPosition:
      true
    default: false
    }
  }

  /// One element of `size` bytes; the result's higher bytes are noise.
  func element(_ left: UInt64, _ right: UInt64, _ size: Int) -> UInt64 {
    switch self {
    case .and: return left & right
    case .andNot: return ~left & right
    case .or: return left | right
    case .xor: return left ^ right
    case .add: return left &+ right
    case .subtract: return left &- right
    case .addUnsigned: return min(left + right, Width.mask(size))
    case .subtractUnsigned: return left - min(left, right)
    case .equal: return left == right ? .max : 0
    case .minimumUnsigned: return min(left, right)
    case .maximumUnsigned: return max(left, right)
    case .average: return (left + right + 1) >> 1
    case .multiplyLow: return left &* right
    case .multiplyHighUnsigned: return (left &* right) >> 16
    case .multiplyEvenUnsigned: return (left & 0xFFFF_FFFF) * (right & 0xFFFF_FFFF)
    case .shiftLeft: return right >= UInt64(size * 8) ? 0 : left << right
    case .shiftRight: return right >= UInt64(size * 8) ? 0 : left >> right
    case .rotateLeft, .rotateRight:
      let bits = UInt64(size * 8)
      let turn = right % bits
      let toLeft = self == .rotateLeft ? turn : (bits - turn) % bits
      return toLeft == 0 ? left : left << toLeft | left >> (bits - toLeft)
    case .sumDifferences:
      var sum: UInt64 = 0
      for shift in stride(from: UInt64(0), to: 64, by: 8) {
        let (one, other) = (left >> shift & 0xFF, right >> shift & 0xFF)
        sum += max(one, other) - min(one, other)
      }
      return sum
    default:
      return UInt64(bitPattern: signed(left, right, size))
    }
  }

  /// Those that read their elements as signed numbers.
  private func signed(_ left: UInt64, _ right: UInt64, _ size: Int) -> Int64 {
    let one = Int64(bitPattern: Width.signExtended(left, size))
    let other = Int64(bitPattern: Width.signExtended(right, size))
    switch self {
    case .addSigned: return Self.saturated(one + other, size)
    case .subtractSigned: return Self.saturated(one - other, size)
    case .greater: return one > other ? -1 : 0
    case .minimumSigned: return min(one, other)
    case .maximumSigned: return max(one, other)
    case .sign: return other == 0 ? 0 : other < 0 ? 0 &- one : one
    case .absolute: return other < 0 ? 0 &- other : other
    case .multiplyHighSigned: return (one &* other) >> 16
    case .multiplyHighRounded: return (((one &* other) >> 14) + 1) >> 1
    case .multiplyEvenSigned:
      return Int64(Int32(truncatingIfNeeded: one)) * Int64(Int32(truncatingIfNeeded: other))
    case .shiftArithmetic: return one >> min(Int64(clamping: right), 63)
    case .multiplyAdd:
      let low = Int64(Int16(truncatingIfNeeded: one)) * Int64(Int16(truncatingIfNeeded: other))
      return low &+ (one >> 16) &* (other >> 16)
    case .multiplyAddBytes:
      // Unsigned bytes with signed ones.
      let low = Int64(left & 0xFF) * Int64(Int8(truncatingIfNeeded: other))
      return Self.saturated(low + Int64(left >> 8) * (other >> 8), 2)
    default: return other
    }
  }

  /// The nearest number that `size` bytes hold.
  static func saturated(_ value: Int64, _ size: Int) -> Int64 {
    if size == 8 { return value }
    let limit = Int64(1) << Int64(size * 8 - 1)
    return min(max(value, -limit), limit - 1)
  }

  static func saturatedUnsigned(_ value: Int64, _ size: Int) -> UInt64 {
    value < 0 ? 0 : min(UInt64(value), Width.mask(size))
  }
}
