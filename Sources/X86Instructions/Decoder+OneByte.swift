// SPDX-License-Identifier: Apache-2.0
//
// Opcodes of one byte. Intel SDM volume 2, appendix A, table A-2.

extension Decoder {
  mutating func oneByte(_ opcode: UInt8) throws(DecodeFailure) {
    switch opcode {
    case 0x00...0x3F:
      guard opcode & 7 < 4, let kind = Arithmetic(rawValue: opcode >> 3) else { throw .unknown }
      result.operation = .arithmetic(
        kind, opcode & 2 == 0 ? .registerToMemory : .memoryToRegister)
      try operands(size(opcode))
    case 0x63:
      result.operation = .load(signExtends: true)
      try operands(operandSize)
      result.width = min(operandSize, 4)
    case 0x69, 0x6B:
      result.operation = .multiplyImmediate
      try operands(operandSize)
      try immediate(opcode == 0x6B ? 1 : min(operandSize, 4))
    case 0x80, 0x81, 0x83:
      try operands(size(opcode))
      guard let kind = Arithmetic(rawValue: digit) else { throw .unknown }
      result.operation = .arithmetic(kind, .immediateToMemory)
      if opcode == 0x81 { try immediateOfOperand() } else { try immediate(1) }
    case 0x84, 0x85:
      result.operation = .test(.memoryToRegister)
      try operands(size(opcode))
    case 0x86, 0x87:
      result.operation = .exchange
      try operands(size(opcode))
    case 0x88, 0x89:
      result.operation = .store
      try operands(size(opcode))
    case 0x8A, 0x8B:
      result.operation = .load(signExtends: false)
      try operands(size(opcode))
    case 0x8F:
      result.operation = .pop
      try operands(hasOperandSize && !rexW ? 2 : 8)
      if digit != 0 { throw .unknown }
    case 0xA0...0xA3: try absolute(opcode)
    case 0xA4, 0xA5: string(.move, opcode)
    case 0xA6, 0xA7: string(.compare, opcode)
    case 0xAA, 0xAB: string(.store, opcode)
    case 0xAC, 0xAD: string(.load, opcode)
    case 0xAE, 0xAF: string(.scan, opcode)
    case 0xC0, 0xC1, 0xD0...0xD3: try shift(opcode)
    case 0xC6, 0xC7:
      result.operation = .storeImmediate
      try operands(size(opcode))
      if digit != 0 { throw .unknown }
      try immediateOfOperand()
    case 0xD7:
      result.operation = .translate
      result.width = 1
    case 0xF6, 0xF7: try groupThree(opcode)
    case 0xFE, 0xFF: try groupFour(opcode)
    default: throw .unknown
    }
  }

  /// MOV between the accumulator and an address of 8 bytes, or 4 with 0x67.
  private mutating func absolute(_ opcode: UInt8) throws(DecodeFailure) {
    result.operation = opcode < 0xA2 ? .load(signExtends: false) : .store
    result.memory.displacement = try window.take(result.memory.is32Bit ? 4 : 8)
    result.width = size(opcode)
    result.registerWidth = result.width
  }

  private mutating func string(_ operation: StringOperation, _ opcode: UInt8) {
    result.operation = .string(operation)
    result.width = size(opcode)
    result.registerWidth = result.width
    if repeatPrefix != 0 {
      result.repetition = repeatPrefix == 0xF2 ? .whileNotEqual : .whileEqual
    }
  }

  private mutating func shift(_ opcode: UInt8) throws(DecodeFailure) {
    try operands(size(opcode))
    guard let kind = Shift(rawValue: digit) else { throw .unknown }
    result.operation = .shift(kind, opcode >= 0xD2 ? .inRegister : .immediate)
    if opcode < 0xD0 { try immediate(1) } else { result.immediate = 1 }
  }

  /// F6 and F7: TEST, NOT, NEG, MUL, IMUL, DIV, IDIV.
  private mutating func groupThree(_ opcode: UInt8) throws(DecodeFailure) {
    try operands(size(opcode))
    switch digit {
    case 0, 1:
      result.operation = .test(.immediateToMemory)
      try immediateOfOperand()
    case 2: result.operation = .not
    case 3: result.operation = .negate
    case 4: result.operation = .multiply(signed: false)
    case 5: result.operation = .multiply(signed: true)
    case 6: result.operation = .divide(signed: false)
    default: result.operation = .divide(signed: true)
    }
  }

  /// FE and FF: INC and DEC; FF also CALL, JMP and PUSH, whose operands have 8 bytes.
  private mutating func groupFour(_ opcode: UInt8) throws(DecodeFailure) {
    try operands(size(opcode))
    switch (digit, opcode) {
    case (0, _): result.operation = .increment
    case (1, _): result.operation = .decrement
    // Processors differ in what 0x66 does to a jump.
    case (2, 0xFF) where !hasOperandSize: result.operation = .call
    case (4, 0xFF) where !hasOperandSize: result.operation = .jump
    case (6, 0xFF): result.operation = .push
    default: throw .unknown
    }
    if digit > 1 { result.width = hasOperandSize && !rexW ? 2 : 8 }
  }
}
