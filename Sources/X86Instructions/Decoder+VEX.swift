// SPDX-License-Identifier: Apache-2.0
//
// The prefixes VEX and EVEX, and BMI on general registers, which VEX encodes too. Intel SDM
// volume 2, 2.3 and 2.7.

/// How a vector instruction is encoded, and what its prefix says.
struct VectorEncoding {
  enum Kind { case legacy, vex, evex }

  var kind = Kind.legacy
  /// 0, 1 (66), 2 (F3), 3 (F2): the order of VEX's field.
  var prefix: UInt8 = 0
  var wide = false
  /// Bytes of a vector register, 16 to 64.
  var length = 16
  /// Register of VEX's second operand; 0 also where there is none.
  var source: UInt8 = 0
  /// EVEX: memory holds one element, which stands for all.
  var repeats = false
}

extension Decoder {
  mutating func vex(_ first: UInt8) throws(DecodeFailure) {
    if hasLock || hasREX || hasOperandSize || repeatPrefix != 0 { throw .unknown }
    var encoding = VectorEncoding(kind: .vex)
    var map: UInt8 = 1
    var last = try window.next()
    rexR = last & 0x80 == 0 ? 8 : 0
    if first == 0xC4 {
      rexX = last & 0x40 == 0 ? 8 : 0
      rexB = last & 0x20 == 0 ? 8 : 0
      map = last & 0x1F
      last = try window.next()
      encoding.wide = last & 0x80 != 0
    }
    encoding.source = ~last >> 3 & 15
    encoding.length = last & 4 != 0 ? 32 : 16
    encoding.prefix = last & 3
    rexW = encoding.wide
    let opcode = try window.next()
    if map == 2 && 0xF2...0xF7 ~= opcode || map == 3 && opcode == 0xF0 {
      return try bitManipulation(opcode, encoding)
    }
    try vector(map: map, opcode, encoding)
  }

  mutating func evex() throws(DecodeFailure) {
    if hasLock || hasREX || hasOperandSize || repeatPrefix != 0 { throw .unknown }
    let (p0, p1, p2) = (try window.next(), try window.next(), try window.next())
    guard p0 & 8 == 0, p1 & 4 != 0 else { throw .unknown }
    rexR = (p0 & 0x80 == 0 ? 8 : 0) | (p0 & 0x10 == 0 ? 16 : 0)
    rexX = p0 & 0x40 == 0 ? 8 : 0
    rexB = p0 & 0x20 == 0 ? 8 : 0
    var encoding = VectorEncoding(kind: .evex)
    encoding.prefix = p1 & 3
    encoding.wide = p1 & 0x80 != 0
    rexW = encoding.wide
    encoding.source = (~p1 >> 3 & 15) | (p2 & 8 == 0 ? 16 : 0)
    if p2 & 0x60 == 0x60 { throw .unknown }
    encoding.repeats = p2 & 0x10 != 0
    encoding.length = 16 << Int(p2 >> 5 & 3)
    result.vector.mask = p2 & 7
    result.vector.zeroes = p2 & 0x80 != 0
    if result.vector.zeroes && result.vector.mask == 0 { throw .unknown }
    try vector(map: p0 & 7, try window.next(), encoding)
  }

  /// ANDN, BEXTR, BZHI, BLSR, BLSMSK, BLSI, PDEP, PEXT, MULX, RORX, SARX, SHLX, SHRX.
  private mutating func bitManipulation(
    _ opcode: UInt8, _ encoding: VectorEncoding
  ) throws(DecodeFailure) {
    if encoding.length != 16 { throw .unknown }
    try operands(encoding.wide ? 8 : 4)
    result.vector.source = encoding.source
    let kind: BitManipulation
    switch (opcode, encoding.prefix) {
    case (0xF0, 3):
      kind = .rotate
      try immediate(1)
      if encoding.source != 0 { throw .unknown }
    case (0xF2, 0): kind = .andNot
    case (0xF3, 0):
      switch digit {
      case 1: kind = .resetLowest
      case 2: kind = .maskToLowest
      case 3: kind = .lowestSet
      default: throw .unknown
      }
      result.register = RegisterName(number: encoding.source)
    case (0xF5, 0): kind = .zeroHigh
    case (0xF5, 2): kind = .gather
    case (0xF5, 3): kind = .deposit
    case (0xF6, 3): kind = .multiply
    case (0xF7, 0): kind = .extract
    case (0xF7, 1): kind = .shiftLeft
    case (0xF7, 2): kind = .shiftArithmetic
    case (0xF7, 3): kind = .shiftRight
    default: throw .unknown
    }
    result.operation = .manipulate(kind)
  }
}
