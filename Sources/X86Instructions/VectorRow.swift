// SPDX-License-Identifier: Apache-2.0
//
// Which opcodes combine a vector register with memory, and how VEX and EVEX may encode each. Intel
// SDM volume 2, appendix A, tables, and the pages of the instructions.

/// One opcode of vector instructions whose memory operand is a source.
struct VectorRow {
  /// What EVEX's W says, and whether one element may stand for all.
  enum EVEX {
    case none
    /// Nothing; no broadcast.
    case ignored
    /// It has to be 0, or 1; no broadcast.
    case narrow, wide
    /// The same, with a broadcast of 4 or 8 bytes.
    case narrowRepeated, wideRepeated
    /// Elements of 8 bytes in place of 4, with broadcasts of them.
    case both
    /// Elements of twice the size; no broadcast.
    case doubled
  }
  enum VEX { case none, ignored, narrow, wide }

  var function: VectorFunction
  /// Bytes of an element of the result.
  var element: Int
  var evex: EVEX
  var isLegacy = true
  var vex = VEX.ignored
  var hasImmediate = false
  /// Bytes of memory; 0 is as many as the register has.
  var width = 0
  /// Lengths of the register: 16 or not, as powers of two from 16 on.
  var lengths: ClosedRange<Int> = 16...64

  init(_ function: VectorFunction, _ element: Int, _ evex: EVEX) {
    self.function = function
    self.element = element
    self.evex = evex
  }

  /// Those that AVX2 or AVX-512 brought.
  private static func new(
    _ function: VectorFunction, _ element: Int, vex: VEX = .none, _ evex: EVEX,
    width: Int = 0, immediate: Bool = false, lengths: ClosedRange<Int> = 16...64
  ) -> VectorRow {
    var row = VectorRow(function, element, evex)
    row.isLegacy = false
    row.vex = vex
    row.width = width
    row.hasImmediate = immediate
    row.lengths = lengths
    return row
  }

  private static func immediate(
    _ function: VectorFunction, _ element: Int, _ evex: EVEX
  ) -> VectorRow {
    var row = VectorRow(function, element, evex)
    row.hasImmediate = true
    return row
  }

  private static func count(_ function: VectorFunction, _ element: Int, _ evex: EVEX)
    -> VectorRow
  {
    var row = VectorRow(function, element, evex)
    row.width = 16
    return row
  }

  // MARK: map 0F

  static func map1(_ opcode: UInt8, _ prefix: UInt8, _ length: Int) -> VectorRow? {
    switch prefix {
    case 0: packed(opcode, 4, .narrowRepeated)
    case 1: integer(opcode) ?? packed(opcode, 8, .wideRepeated)
    case 2:
      switch opcode {
      case 0x12: new(.duplicateEven, 4, .narrow)
      case 0x16: new(.duplicateOdd, 4, .narrow)
      case 0x70: immediate(.shuffleHighWords, 2, .ignored)
      default: nil
      }
    default:
      switch opcode {
      case 0x12:
        length == 16 ? new(.right, 8, .wide, width: 8) : new(.duplicateEven, 8, .wide)
      case 0x70: immediate(.shuffleLowWords, 2, .ignored)
      default: nil
      }
    }
  }

  /// What does with numbers of 4 or 8 bytes no arithmetic.
  private static func packed(_ opcode: UInt8, _ size: Int, _ evex: EVEX) -> VectorRow? {
    switch opcode {
    case 0x14: VectorRow(.interleaveLow, size, evex)
    case 0x15: VectorRow(.interleaveHigh, size, evex)
    case 0x54: VectorRow(.and, size, evex)
    case 0x55: VectorRow(.andNot, size, evex)
    case 0x56: VectorRow(.or, size, evex)
    case 0x57: VectorRow(.xor, size, evex)
    case 0xC6: immediate(.shuffleTwo, size, evex)
    default: nil
    }
  }

  private static func integer(_ opcode: UInt8) -> VectorRow? {
    switch opcode {
    case 0x60: VectorRow(.interleaveLow, 1, .ignored)
    case 0x61: VectorRow(.interleaveLow, 2, .ignored)
    case 0x62: VectorRow(.interleaveLow, 4, .narrowRepeated)
    case 0x63: VectorRow(.packSigned, 1, .ignored)
    case 0x64: VectorRow(.greater, 1, .none)
    case 0x65: VectorRow(.greater, 2, .none)
    case 0x66: VectorRow(.greater, 4, .none)
    case 0x67: VectorRow(.packUnsigned, 1, .ignored)
    case 0x68: VectorRow(.interleaveHigh, 1, .ignored)
    case 0x69: VectorRow(.interleaveHigh, 2, .ignored)
    case 0x6A: VectorRow(.interleaveHigh, 4, .narrowRepeated)
    case 0x6B: VectorRow(.packSigned, 2, .narrowRepeated)
    case 0x6C: VectorRow(.interleaveLow, 8, .wideRepeated)
    case 0x6D: VectorRow(.interleaveHigh, 8, .wideRepeated)
    case 0x70: immediate(.shuffle, 4, .narrowRepeated)
    case 0x74: VectorRow(.equal, 1, .none)
    case 0x75: VectorRow(.equal, 2, .none)
    case 0x76: VectorRow(.equal, 4, .none)
    case 0xD1: count(.shiftAllRight, 2, .ignored)
    case 0xD2: count(.shiftAllRight, 4, .narrow)
    case 0xD3: count(.shiftAllRight, 8, .wide)
    case 0xD4: VectorRow(.add, 8, .wideRepeated)
    case 0xD5: VectorRow(.multiplyLow, 2, .ignored)
    case 0xD8: VectorRow(.subtractUnsigned, 1, .ignored)
    case 0xD9: VectorRow(.subtractUnsigned, 2, .ignored)
    case 0xDA: VectorRow(.minimumUnsigned, 1, .ignored)
    case 0xDB: VectorRow(.and, 4, .both)
    case 0xDC: VectorRow(.addUnsigned, 1, .ignored)
    case 0xDD: VectorRow(.addUnsigned, 2, .ignored)
    case 0xDE: VectorRow(.maximumUnsigned, 1, .ignored)
    case 0xDF: VectorRow(.andNot, 4, .both)
    case 0xE0: VectorRow(.average, 1, .ignored)
    case 0xE1: count(.shiftAllArithmetic, 2, .ignored)
    // Its quadwords are AVX-512's.
    case 0xE2: count(.shiftAllArithmetic, 4, .doubled)
    case 0xE3: VectorRow(.average, 2, .ignored)
    case 0xE4: VectorRow(.multiplyHighUnsigned, 2, .ignored)
    case 0xE5: VectorRow(.multiplyHighSigned, 2, .ignored)
    case 0xE8: VectorRow(.subtractSigned, 1, .ignored)
    case 0xE9: VectorRow(.subtractSigned, 2, .ignored)
    case 0xEA: VectorRow(.minimumSigned, 2, .ignored)
    case 0xEB: VectorRow(.or, 4, .both)
    case 0xEC: VectorRow(.addSigned, 1, .ignored)
    case 0xED: VectorRow(.addSigned, 2, .ignored)
    case 0xEE: VectorRow(.maximumSigned, 2, .ignored)
    case 0xEF: VectorRow(.xor, 4, .both)
    case 0xF1: count(.shiftAllLeft, 2, .ignored)
    case 0xF2: count(.shiftAllLeft, 4, .narrow)
    case 0xF3: count(.shiftAllLeft, 8, .wide)
    case 0xF4: VectorRow(.multiplyEvenUnsigned, 8, .wideRepeated)
    case 0xF5: VectorRow(.multiplyAdd, 4, .ignored)
    case 0xF6: VectorRow(.sumDifferences, 8, .ignored)
    case 0xF8: VectorRow(.subtract, 1, .ignored)
    case 0xF9: VectorRow(.subtract, 2, .ignored)
    case 0xFA: VectorRow(.subtract, 4, .narrowRepeated)
    case 0xFB: VectorRow(.subtract, 8, .wideRepeated)
    case 0xFC: VectorRow(.add, 1, .ignored)
    case 0xFD: VectorRow(.add, 2, .ignored)
    case 0xFE: VectorRow(.add, 4, .narrowRepeated)
    default: nil
    }
  }

  /// Shifts by an immediate: EVEX alone has them for memory.
  static func shift(_ opcode: UInt8, digit: UInt8) -> VectorRow? {
    switch (opcode, digit) {
    case (0x71, 2): new(.shiftRight, 2, .ignored, immediate: true)
    case (0x71, 4): new(.shiftArithmetic, 2, .ignored, immediate: true)
    case (0x71, 6): new(.shiftLeft, 2, .ignored, immediate: true)
    case (0x72, 0): new(.rotateRight, 4, .both, immediate: true)
    case (0x72, 1): new(.rotateLeft, 4, .both, immediate: true)
    case (0x72, 2): new(.shiftRight, 4, .narrowRepeated, immediate: true)
    case (0x72, 4): new(.shiftArithmetic, 4, .both, immediate: true)
    case (0x72, 6): new(.shiftLeft, 4, .narrowRepeated, immediate: true)
    case (0x73, 2): new(.shiftRight, 8, .wideRepeated, immediate: true)
    case (0x73, 6): new(.shiftLeft, 8, .wideRepeated, immediate: true)
    default: nil
    }
  }

  // MARK: map 0F 38, with 66

  static func map2(_ opcode: UInt8, _ length: Int) -> VectorRow? {
    switch opcode {
    case 0x00: VectorRow(.shuffleBytes, 1, .ignored)
    case 0x01: VectorRow(.addPairs, 2, .none)
    case 0x02: VectorRow(.addPairs, 4, .none)
    case 0x03: VectorRow(.addPairsSigned, 2, .none)
    case 0x04: VectorRow(.multiplyAddBytes, 2, .ignored)
    case 0x05: VectorRow(.subtractPairs, 2, .none)
    case 0x06: VectorRow(.subtractPairs, 4, .none)
    case 0x07: VectorRow(.subtractPairsSigned, 2, .none)
    case 0x08: VectorRow(.sign, 1, .none)
    case 0x09: VectorRow(.sign, 2, .none)
    case 0x0A: VectorRow(.sign, 4, .none)
    case 0x0B: VectorRow(.multiplyHighRounded, 2, .ignored)
    case 0x0C: new(.permuteInLane, 4, vex: .narrow, .narrowRepeated)
    case 0x0D: new(.permuteInLane, 8, vex: .narrow, .wideRepeated)
    case 0x10: new(.shiftRight, 2, .wide)
    case 0x11: new(.shiftArithmetic, 2, .wide)
    case 0x12: new(.shiftLeft, 2, .wide)
    case 0x14: new(.rotateRight, 4, .both)
    case 0x15: new(.rotateLeft, 4, .both)
    case 0x16: new(.permute, 4, vex: .narrow, .both, lengths: 32...64)
    case 0x18: new(.right, 4, .narrow, width: 4)
    case 0x19: new(.right, 4, .doubled, width: 8, lengths: 32...64)
    case 0x1A: new(.right, 4, .doubled, width: 16, lengths: 32...64)
    case 0x1B: new(.right, 4, .doubled, width: 32, lengths: 64...64)
    case 0x1C: VectorRow(.absolute, 1, .ignored)
    case 0x1D: VectorRow(.absolute, 2, .ignored)
    case 0x1E: VectorRow(.absolute, 4, .narrowRepeated)
    case 0x1F: new(.absolute, 8, .wideRepeated)
    case 0x20...0x25, 0x30...0x35: extend(opcode, length)
    case 0x28: VectorRow(.multiplyEvenSigned, 8, .wideRepeated)
    case 0x29: VectorRow(.equal, 8, .none)
    case 0x2B: VectorRow(.packUnsigned, 2, .narrowRepeated)
    case 0x36: new(.permute, 4, vex: .narrow, .both, lengths: 32...64)
    case 0x37: VectorRow(.greater, 8, .none)
    case 0x38: VectorRow(.minimumSigned, 1, .ignored)
    case 0x39: VectorRow(.minimumSigned, 4, .both)
    case 0x3A: VectorRow(.minimumUnsigned, 2, .ignored)
    case 0x3B: VectorRow(.minimumUnsigned, 4, .both)
    case 0x3C: VectorRow(.maximumSigned, 1, .ignored)
    case 0x3D: VectorRow(.maximumSigned, 4, .both)
    case 0x3E: VectorRow(.maximumUnsigned, 2, .ignored)
    case 0x3F: VectorRow(.maximumUnsigned, 4, .both)
    case 0x40: VectorRow(.multiplyLow, 4, .both)
    case 0x41:
      length == 16 ? VectorRow(.minimumPosition, 2, .none) : nil
    case 0x45: new(.shiftRight, 4, vex: .ignored, .both)
    case 0x46: new(.shiftArithmetic, 4, vex: .narrow, .both)
    case 0x47: new(.shiftLeft, 4, vex: .ignored, .both)
    case 0x58: new(.right, 4, .narrow, width: 4)
    case 0x59: new(.right, 4, .doubled, width: 8)
    case 0x5A: new(.right, 4, .doubled, width: 16, lengths: 32...64)
    case 0x5B: new(.right, 4, .doubled, width: 32, lengths: 64...64)
    case 0x64: new(.blend, 4, .both)
    case 0x65: new(.blend, 4, .both)
    case 0x66: new(.blend, 1, .doubled)
    case 0x75: new(.permuteByResult, 1, .doubled)
    case 0x76, 0x77: new(.permuteByResult, 4, .both)
    case 0x78: new(.right, 1, .narrow, width: 1)
    case 0x79: new(.right, 2, .narrow, width: 2)
    case 0x7D: new(.permuteTables, 1, .doubled)
    case 0x7E, 0x7F: new(.permuteTables, 4, .both)
    case 0x8D: new(.permute, 1, .doubled)
    default: nil
    }
  }

  /// PMOVSX and PMOVZX.
  private static func extend(_ opcode: UInt8, _ length: Int) -> VectorRow {
    let (from, to) = Self.sizes(opcode)
    var row = VectorRow(
      opcode < 0x30 ? .extendSigned : .extendZero, to, to == 8 && from == 4 ? .narrow : .ignored
    )
    row.width = length * from / to
    return row
  }

  /// Element sizes of conversions between integers, by the opcode's low digit.
  static func sizes(_ opcode: UInt8) -> (narrow: Int, wide: Int) {
    switch opcode & 7 {
    case 0: (1, 2)
    case 1: (1, 4)
    case 2: (1, 8)
    case 3: (2, 4)
    case 4: (2, 8)
    default: (4, 8)
    }
  }

  // MARK: map 0F 3A, with 66

  static func map3(_ opcode: UInt8) -> VectorRow? {
    switch opcode {
    case 0x00, 0x01:
      new(
        .permuteImmediate, 8, vex: .wide, .wideRepeated, immediate: true, lengths: 32...64)
    case 0x02: new(.blendImmediate, 4, vex: .narrow, .none, immediate: true)
    case 0x03: new(.alignElements, 4, .both, immediate: true)
    case 0x04: new(.shuffle, 4, vex: .narrow, .narrowRepeated, immediate: true)
    case 0x05: new(.shuffle, 8, vex: .narrow, .wideRepeated, immediate: true)
    case 0x06, 0x46:
      new(.permuteBlocks, 8, vex: .narrow, .none, immediate: true, lengths: 32...32)
    case 0x0C: immediate(.blendImmediate, 4, .none)
    case 0x0D: immediate(.blendImmediate, 8, .none)
    case 0x0E: immediate(.blendImmediate, 2, .none)
    case 0x0F: immediate(.align, 1, .ignored)
    case 0x18, 0x38:
      new(.insertBlock, 4, .doubled, width: 16, immediate: true, lengths: 32...64)
    case 0x1A, 0x3A:
      new(.insertBlock, 4, .doubled, width: 32, immediate: true, lengths: 64...64)
    case 0x21: insertion
    case 0x23, 0x43: new(.shuffleBlocks, 4, .both, immediate: true, lengths: 32...64)
    case 0x25: new(.ternary, 4, .both, immediate: true)
    case 0x4A: new(.blendVariable, 4, vex: .narrow, .none, immediate: true)
    case 0x4B: new(.blendVariable, 8, vex: .narrow, .none, immediate: true)
    case 0x4C: new(.blendVariable, 1, vex: .narrow, .none, immediate: true)
    default: nil
    }
  }

  /// INSERTPS.
  private static var insertion: VectorRow {
    var row = immediate(.insertElement, 4, .narrow)
    row.width = 4
    row.lengths = 16...16
    return row
  }
}
