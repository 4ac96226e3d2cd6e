// SPDX-License-Identifier: Apache-2.0
//
// MOVS, STOS, LODS, SCAS and CMPS, once or repeated, up and down.

extension Instruction {
  /// - Returns: Whether the instruction is through; if not, `limit` rounds are.
  func executeString<Memory: InstructionMemory>(
    _ kind: StringOperation, _ registers: inout Registers, _ memory: inout Memory, limit: Int
  ) throws(ExecutionFault) -> Bool {
    if repetition == .none {
      try executeRound(kind, &registers, &memory)
      return true
    }
    let addressSize = self.memory.is32Bit ? 4 : 8
    let counter = RegisterName(number: 1)
    let compares = kind == .scan || kind == .compare
    var rounds = 0
    while registers.read(counter, addressSize) != 0 {
      if rounds == limit { return false }
      try executeRound(kind, &registers, &memory)
      registers.write(counter, addressSize, registers.read(counter, addressSize) &- 1)
      rounds += 1
      let isEqual = registers.rflags & Flags.zero != 0
      if compares && isEqual != (repetition == .whileEqual) { break }
    }
    return true
  }

  private func executeRound<Memory: InstructionMemory>(
    _ kind: StringOperation, _ registers: inout Registers, _ memory: inout Memory
  ) throws(ExecutionFault) {
    let addressSize = self.memory.is32Bit ? 4 : 8
    let source = RegisterName(number: UInt8(Registers.Index.rsi))
    let target = RegisterName(number: UInt8(Registers.Index.rdi))
    let sourceOffset = registers.read(source, addressSize)
    // Only the source can be in another segment.
    let targetAddress = registers.read(target, addressSize)
    let sourceAddress = inSegment(sourceOffset, registers)
    switch kind {
    case .move:
      let value = try load(&memory, sourceAddress, width)
      try store(&memory, targetAddress, width, value)
    case .store: try store(&memory, targetAddress, width, registers.read(.accumulator, width))
    case .load:
      let value = try load(&memory, sourceAddress, width)
      registers.write(.accumulator, width, value)
    case .scan:
      let value = try load(&memory, targetAddress, width)
      let outcome = Outcome.subtract(
        registers.read(.accumulator, width), value, borrow: false, width)
      registers.setFlags(outcome.flags, of: Flags.status)
    case .compare:
      let left = try load(&memory, sourceAddress, width)
      let right = try load(&memory, targetAddress, width)
      let outcome = Outcome.subtract(left, right, borrow: false, width)
      registers.setFlags(outcome.flags, of: Flags.status)
    }
    let isDown = registers.rflags & Flags.direction != 0
    let step = isDown ? 0 &- UInt64(width) : UInt64(width)
    if kind == .move || kind == .load || kind == .compare {
      registers.write(source, addressSize, sourceOffset &+ step)
    }
    if kind != .load { registers.write(target, addressSize, targetAddress &+ step) }
  }
}
