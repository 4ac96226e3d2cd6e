// SPDX-License-Identifier: Apache-2.0
//
// Integer instructions that change memory or flags.

extension Instruction {
  func executeInteger<Memory: InstructionMemory>(
    _ registers: inout Registers, _ memory: inout Memory
  ) throws(ExecutionFault) {
    let address = address(registers)
    switch operation {
    case .arithmetic(let kind, let form):
      try executeArithmetic(kind, form, address, &registers, &memory)
    case .test(let form):
      let value = try load(&memory, address, width)
      let other = form == .immediateToMemory ? immediate : registers.read(register, width)
      let outcome = Outcome(value & other, width, carry: false, overflow: false)
      registers.setFlags(outcome.flags, of: Flags.status)
    case .not:
      let value = try load(&memory, address, width)
      try store(&memory, address, width, ~value & Width.mask(width))
    case .negate:
      let value = try load(&memory, address, width)
      let outcome = Outcome.subtract(0, value, borrow: false, width)
      try store(&memory, address, width, outcome.value)
      registers.setFlags(outcome.flags, of: Flags.status)
    case .increment, .decrement:
      let value = try load(&memory, address, width)
      var isIncrement = false
      if case .increment = operation { isIncrement = true }
      let outcome =
        isIncrement
        ? Outcome.add(value, 1, carry: false, width)
        : Outcome.subtract(value, 1, borrow: false, width)
      try store(&memory, address, width, outcome.value)
      registers.setFlags(outcome.flags, of: Flags.status & ~Flags.carry)
    case .shift(let kind, let source):
      let value = try load(&memory, address, width)
      let result = Outcome.shift(
        kind, value, count(source, registers), flags: registers.rflags, width)
      try store(&memory, address, width, result.value)
      registers.setFlags(result.flags, of: result.mask)
    case .doubleShift(let left, let source):
      let value = try load(&memory, address, width)
      let result = Outcome.doubleShift(
        left: left, value, registers.read(register, width), count(source, registers), width)
      try store(&memory, address, width, result.value)
      registers.setFlags(result.flags, of: result.mask)
    case .bitTest(let kind, let source):
      try executeBitTest(kind, source, address, &registers, &memory)
    case .exchange:
      let value = try load(&memory, address, width)
      try store(&memory, address, width, registers.read(register, width))
      registers.write(register, width, value)
    case .exchangeAdd:
      let value = try load(&memory, address, width)
      let outcome = Outcome.add(value, registers.read(register, width), carry: false, width)
      try store(&memory, address, width, outcome.value)
      registers.write(register, width, value)
      registers.setFlags(outcome.flags, of: Flags.status)
    case .compareExchange: try executeCompareExchange(address, &registers, &memory)
    default: try executeCompareExchangePair(address, &registers, &memory)
    }
  }

  private func count(_ source: Count, _ registers: Registers) -> UInt64 {
    source == .immediate ? immediate & 0xFF : registers.general[Registers.Index.rcx] & 0xFF
  }

  private func executeArithmetic<Memory: InstructionMemory>(
    _ kind: Arithmetic, _ form: Form, _ address: UInt64, _ registers: inout Registers,
    _ memory: inout Memory
  ) throws(ExecutionFault) {
    let value = try load(&memory, address, width)
    let carry = registers.rflags & Flags.carry != 0
    let outcome: Outcome
    switch form {
    case .memoryToRegister:
      outcome = .arithmetic(kind, registers.read(register, width), value, carry: carry, width)
      if kind != .compare { registers.write(register, width, outcome.value) }
    case .registerToMemory, .immediateToMemory:
      let other =
        form == .immediateToMemory
        ? immediate & Width.mask(width) : registers.read(register, width)
      outcome = .arithmetic(kind, value, other, carry: carry, width)
      if kind != .compare { try store(&memory, address, width, outcome.value) }
    }
    registers.setFlags(outcome.flags, of: Flags.status)
  }

  /// A bit number in a register may lie outside the operand: it then names another operand.
  private func executeBitTest<Memory: InstructionMemory>(
    _ kind: BitTest, _ source: Count, _ address: UInt64, _ registers: inout Registers,
    _ memory: inout Memory
  ) throws(ExecutionFault) {
    var address = address
    var number = immediate
    if source == .inRegister {
      number = Width.signExtended(registers.read(register, width), width)
      let shift: Int64 = width == 2 ? 4 : width == 4 ? 5 : 6
      let operands = Int64(bitPattern: number) >> shift
      address = moved(by: UInt64(bitPattern: operands &* Int64(width)), registers)
    }
    let bit: UInt64 = 1 << (number & UInt64(width * 8 - 1))
    let value = try load(&memory, address, width)
    switch kind {
    case .test: break
    case .set: try store(&memory, address, width, value | bit)
    case .reset: try store(&memory, address, width, value & ~bit)
    case .complement: try store(&memory, address, width, value ^ bit)
    }
    registers.setFlags(value & bit != 0 ? Flags.carry : 0, of: Flags.carry)
  }

  /// The operand's address with a displacement more.
  private func moved(by distance: UInt64, _ registers: Registers) -> UInt64 {
    var copy = self
    copy.memory.displacement &+= distance
    return copy.address(registers)
  }

  /// Memory is written either way: with what it had, if the comparison fails.
  private func executeCompareExchange<Memory: InstructionMemory>(
    _ address: UInt64, _ registers: inout Registers, _ memory: inout Memory
  ) throws(ExecutionFault) {
    let value = try load(&memory, address, width)
    let accumulator = registers.read(.accumulator, width)
    let isEqual = value == accumulator
    try store(&memory, address, width, isEqual ? registers.read(register, width) : value)
    if !isEqual { registers.write(.accumulator, width, value) }
    let outcome = Outcome.subtract(accumulator, value, borrow: false, width)
    registers.setFlags(outcome.flags, of: Flags.status)
  }

  /// CMPXCHG8B and CMPXCHG16B: rdx:rax against memory, which becomes rcx:rbx.
  private func executeCompareExchangePair<Memory: InstructionMemory>(
    _ address: UInt64, _ registers: inout Registers, _ memory: inout Memory
  ) throws(ExecutionFault) {
    typealias Index = Registers.Index
    let half = width / 2
    if half == 8 && address & 15 != 0 { throw .generalProtection }
    var low: UInt64
    var high: UInt64
    if half == 8 {
      let value = try loadBlock(&memory, address, 16)
      (low, high) = (value.words[0], value.words[1])
    } else {
      let value = try load(&memory, address, 8)
      (low, high) = (value & 0xFFFF_FFFF, value >> 32)
    }
    let mask = Width.mask(half)
    let isEqual =
      low == registers.general[Index.rax] & mask && high == registers.general[Index.rdx] & mask
    let found = (low, high)
    if isEqual {
      low = registers.general[Index.rbx] & mask
      high = registers.general[Index.rcx] & mask
    }
    if half == 8 {
      var value = VectorValue()
      value.words[0] = low
      value.words[1] = high
      try storeBlock(&memory, address, 16, value)
    } else {
      try store(&memory, address, 8, high << 32 | low)
    }
    if !isEqual {
      registers.write(RegisterName(number: 0), half, found.0)
      registers.write(RegisterName(number: 2), half, found.1)
    }
    registers.setFlags(isEqual ? Flags.zero : 0, of: Flags.zero)
  }
}
