// SPDX-License-Identifier: Apache-2.0
//
// Integers in memory that become floating-point numbers in registers: what a compiler makes of a
// register that is read into a `double`. Intel SDM volume 1, 4.8.4 and 10.2.3.

/// Bits of MXCSR.
private enum Status {
  /// A result was rounded; and whether nobody is to be told.
  static let precision: UInt32 = 1 << 5
  static let precisionMask: UInt32 = 1 << 12
  /// To nearest (ties to even), down, up, towards zero.
  static func rounding(_ status: UInt32) -> UInt32 { status >> 13 & 3 }
}

extension Instruction {
  /// CVTSI2SS, CVTSI2SD, and VCVTUSI2SS and VCVTUSI2SD.
  func convert<Vectors: VectorState, Memory: InstructionMemory>(
    signed: Bool, _ address: UInt64, _ vectors: inout Vectors, _ memory: inout Memory
  ) throws(ExecutionFault) {
    let bits = try load(&memory, address, width)
    let value = signed ? Width.signExtended(bits, width) : bits
    let isNegative = signed && Int64(bitPattern: value) < 0
    let status = vectors.readStatus()
    let number = Conversion(
      isNegative ? 0 &- value : value, isNegative: isNegative, byteCount: vector.element,
      rounding: Status.rounding(status))
    if number.isRounded {
      vectors.writeStatus(status | Status.precision)
      if status & Status.precisionMask == 0 { throw .inexact }
    }
    var result = vectors.read(Int(vector.source))
    result.setElement(0, vector.element, number.bits)
    if !vector.isLegacy { result.clear(from: 16) }
    vectors.write(Int(register.number), result)
  }
}

/// A whole number as a floating-point number of 4 or 8 bytes.
private struct Conversion {
  var bits: UInt64 = 0
  var isRounded = false

  init(_ magnitude: UInt64, isNegative: Bool, byteCount: Int, rounding: UInt32) {
    guard magnitude != 0 else { return }
    // Bits of the fraction, with the one that is not stored.
    let precision = byteCount == 4 ? 24 : 53
    let count = 64 - magnitude.leadingZeroBitCount
    var fraction = magnitude
    if count > precision {
      let shift = UInt64(count - precision)
      let rest = magnitude & ((1 << shift) - 1)
      let half: UInt64 = 1 << (shift - 1)
      fraction = magnitude >> shift
      isRounded = rest != 0
      let goesUp =
        switch rounding {
        case 0: rest > half || rest == half && fraction & 1 != 0
        case 1: isNegative && rest != 0
        case 2: !isNegative && rest != 0
        default: false
        }
      if goesUp { fraction += 1 }
    } else {
      fraction <<= UInt64(precision - count)
    }
    // A fraction that has become 2 adds one to the exponent.
    let bias = UInt64(byteCount == 4 ? 127 : 1023)
    let exponent = bias + UInt64(count - 1)
    bits = ((exponent - 1) << UInt64(precision - 1)) + fraction
    if isNegative { bits |= Width.signBit(byteCount) }
  }
}
