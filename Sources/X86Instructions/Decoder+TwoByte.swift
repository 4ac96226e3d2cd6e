// SPDX-License-Identifier: Apache-2.0
//
// Opcodes of two and three bytes on general registers. Intel SDM volume 2, appendix A, tables A-3
// and A-4. What is not found here is looked for among the vector instructions.

extension Decoder {
  mutating func twoByte() throws(DecodeFailure) {
    let opcode = try window.next()
    switch opcode {
    // Without MPX: its bounds are in memory.
    case 0x0D, 0x18, 0x19, 0x1C...0x1F: try memoryOperand()
    case 0x38: try threeByte38()
    case 0x3A: try vectorThreeByte3A(try window.next())
    case 0x40...0x4F:
      result.operation = .loadIf(condition: opcode & 15)
      try operands(operandSize)
    case 0x90...0x9F:
      result.operation = .storeCondition(opcode & 15)
      try operands(1)
    case 0xA3, 0xAB, 0xB3, 0xBB:
      guard let kind = BitTest(rawValue: opcode >> 3 & 3) else { throw .unknown }
      result.operation = .bitTest(kind, .inRegister)
      try operands(operandSize)
    case 0xBA:
      try operands(operandSize)
      guard digit >= 4, let kind = BitTest(rawValue: digit & 3) else { throw .unknown }
      result.operation = .bitTest(kind, .immediate)
      try immediate(1)
    case 0xA4, 0xA5, 0xAC, 0xAD:
      result.operation = .doubleShift(
        left: opcode < 0xA8, opcode & 1 == 0 ? .immediate : .inRegister)
      try operands(operandSize)
      if opcode & 1 == 0 { try immediate(1) }
    case 0xAE: try cacheLine()
    case 0xAF:
      result.operation = .multiplyToRegister
      try operands(operandSize)
    case 0xB0, 0xB1:
      result.operation = .compareExchange
      try operands(size(opcode))
    case 0xB6, 0xB7, 0xBE, 0xBF:
      result.operation = .load(signExtends: opcode >= 0xBE)
      try operands(operandSize)
      result.width = opcode & 1 == 0 ? 1 : 2
    case 0xB8, 0xBC, 0xBD: try scan(opcode)
    case 0xC0, 0xC1:
      result.operation = .exchangeAdd
      try operands(size(opcode))
    case 0xC3:
      if hasOperandSize || repeatPrefix != 0 { throw .unknown }
      result.operation = .store
      try operands(operandSize)
    case 0xC7:
      try operands(rexW ? 16 : 8)
      if digit != 1 { throw .unknown }
      result.operation = .compareExchangePair
    default: try vectorTwoByte(opcode)
    }
  }

  /// CLFLUSH, CLFLUSHOPT and CLWB write nothing that is not there already.
  private mutating func cacheLine() throws(DecodeFailure) {
    try memoryOperand()
    let isWriteBack = digit == 6 && hasOperandSize
    guard repeatPrefix == 0, digit == 7 || isWriteBack else { throw .unknown }
  }

  private mutating func scan(_ opcode: UInt8) throws(DecodeFailure) {
    try operands(operandSize)
    switch (opcode, repeatPrefix) {
    case (0xB8, 0xF3): result.operation = .scan(.population)
    case (0xBC, 0xF3): result.operation = .scan(.trailingZeros)
    case (0xBD, 0xF3): result.operation = .scan(.leadingZeros)
    case (0xBC, 0): result.operation = .scan(.forward)
    case (0xBD, 0): result.operation = .scan(.reverse)
    default: throw .unknown
    }
  }

  private mutating func threeByte38() throws(DecodeFailure) {
    let opcode = try window.next()
    switch (opcode, repeatPrefix) {
    case (0xF0, 0xF2), (0xF1, 0xF2):
      result.operation = .checksum
      try operands(rexW ? 8 : 4)
      result.width = size(opcode)
    case (0xF0, 0), (0xF1, 0):
      result.operation = opcode == 0xF0 ? .loadSwapped : .storeSwapped
      try operands(operandSize)
    case (0xF6, 0xF3),
      (0xF6, 0) where hasOperandSize:
      result.operation = .addCarry(overflow: repeatPrefix != 0)
      try operands(rexW ? 8 : 4)
    case (0xF8, 0xF2), (0xF8, 0xF3):
      result.operation = .enqueue(supervisor: repeatPrefix == 0xF3)
      try operands(8)
    case (0xF8, 0) where hasOperandSize:
      result.operation = .directStore
      try operands(8)
    case (0xF9, 0) where !hasOperandSize:
      result.operation = .storeDirect
      try operands(rexW ? 8 : 4)
    default: try vectorThreeByte38(opcode)
    }
  }
}
