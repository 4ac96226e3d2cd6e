// SPDX-License-Identifier: Apache-2.0
//
// Integer instructions that read memory and leave their result in registers: products, quotients,
// searches for bits, checksums.

extension Instruction {
  func executeToRegister<Memory: InstructionMemory>(
    _ registers: inout Registers, _ memory: inout Memory
  ) throws(ExecutionFault) {
    let value = try load(&memory, address(registers), width)
    switch operation {
    case .multiply(let signed): multiply(value, signed: signed, &registers)
    case .divide(let signed):
      if signed { try divideSigned(value, &registers) } else { try divide(value, &registers) }
    case .multiplyToRegister: product(value, registers.read(register, width), &registers)
    case .multiplyImmediate: product(value, immediate, &registers)
    case .scan(let kind): scan(kind, value, &registers)
    case .checksum:
      let start = UInt32(truncatingIfNeeded: registers.read(register, 4))
      registers.write(register, 8, UInt64(Outcome.checksum(start, value, width)))
    case .addCarry(let overflow):
      let flag = overflow ? Flags.overflow : Flags.carry
      let carry = registers.rflags & flag != 0
      let outcome = Outcome.add(registers.read(register, width), value, carry: carry, width)
      registers.write(register, width, outcome.value)
      registers.setFlags(outcome.flags & Flags.carry != 0 ? flag : 0, of: flag)
    case .manipulate(let kind): manipulate(kind, value, &registers)
    default: break
    }
  }

  /// rdx:rax, or ax, = accumulator × value.
  private func multiply(_ value: UInt64, signed: Bool, _ registers: inout Registers) {
    let other = registers.read(.accumulator, width)
    let low: UInt64
    let high: UInt64
    let overflows: Bool
    if signed {
      let wide =
        Int128(Int64(bitPattern: Width.signExtended(value, width)))
        * Int128(Int64(bitPattern: Width.signExtended(other, width)))
      low = UInt64(truncatingIfNeeded: wide)
      high = UInt64(truncatingIfNeeded: wide >> Int128(width * 8))
      let extended = Int128(Int64(bitPattern: Width.signExtended(low, width)))
      overflows = extended != wide
    } else {
      let wide = UInt128(value) * UInt128(other)
      low = UInt64(truncatingIfNeeded: wide)
      high = UInt64(truncatingIfNeeded: wide >> UInt128(width * 8))
      overflows = high & Width.mask(width) != 0
    }
    if width == 1 {
      registers.write(.accumulator, 2, high << 8 | low & 0xFF)
    } else {
      registers.write(.accumulator, width, low & Width.mask(width))
      registers.write(RegisterName(number: 2), width, high & Width.mask(width))
    }
    setProductFlags(low, overflows, &registers)
  }

  private func product(_ left: UInt64, _ right: UInt64, _ registers: inout Registers) {
    let wide =
      Int128(Int64(bitPattern: Width.signExtended(left, width)))
      * Int128(Int64(bitPattern: Width.signExtended(right, width)))
    let low = UInt64(truncatingIfNeeded: wide)
    let extended = Int128(Int64(bitPattern: Width.signExtended(low, width)))
    registers.write(register, width, low & Width.mask(width))
    setProductFlags(low, extended != wide, &registers)
  }

  /// Carry and overflow are defined; the others stay as they are.
  private func setProductFlags(_ low: UInt64, _ overflows: Bool, _ registers: inout Registers) {
    registers.setFlags(
      overflows ? Flags.carry | Flags.overflow : 0, of: Flags.carry | Flags.overflow)
  }

  /// The dividend: rdx:rax of the operand's width, or ax.
  private func dividend(_ registers: Registers) -> UInt128 {
    if width == 1 { return UInt128(registers.read(.accumulator, 2)) }
    let high = UInt128(registers.read(RegisterName(number: 2), width))
    return high << UInt128(width * 8) | UInt128(registers.read(.accumulator, width))
  }

  private func setQuotient(
    _ quotient: UInt64, _ remainder: UInt64, _ registers: inout Registers
  ) {
    if width == 1 {
      registers.write(.accumulator, 2, remainder << 8 | quotient & 0xFF)
    } else {
      registers.write(.accumulator, width, quotient)
      registers.write(RegisterName(number: 2), width, remainder)
    }
  }

  private func divide(_ value: UInt64, _ registers: inout Registers) throws(ExecutionFault) {
    if value == 0 { throw .divideError }
    let dividend = dividend(registers)
    let (quotient, remainder) = dividend.quotientAndRemainder(dividingBy: UInt128(value))
    if quotient > UInt128(Width.mask(width)) { throw .divideError }
    setQuotient(UInt64(quotient), UInt64(remainder), &registers)
  }

  private func divideSigned(_ value: UInt64, _ registers: inout Registers)
    throws(ExecutionFault)
  {
    let divisor = Int128(Int64(bitPattern: Width.signExtended(value, width)))
    if divisor == 0 { throw .divideError }
    // Sign-extended from twice the operand's width.
    let unused = UInt128(128 - width * 16)
    let dividend = Int128(bitPattern: dividend(registers) << unused) >> Int128(unused)
    let (quotient, overflows) = dividend.dividedReportingOverflow(by: divisor)
    let limit = Int128(Width.signBit(width))
    guard !overflows, quotient >= -limit, quotient < limit else { throw .divideError }
    let remainder = dividend - quotient * divisor
    setQuotient(
      UInt64(truncatingIfNeeded: quotient) & Width.mask(width),
      UInt64(truncatingIfNeeded: remainder) & Width.mask(width), &registers)
  }

  private func scan(_ kind: Scan, _ value: UInt64, _ registers: inout Registers) {
    let bits = width * 8
    switch kind {
    case .population:
      registers.write(register, width, UInt64(value.nonzeroBitCount))
      registers.setFlags(value == 0 ? Flags.zero : 0, of: Flags.status)
    case .leadingZeros, .trailingZeros:
      let count =
        kind == .leadingZeros
        ? value.leadingZeroBitCount - (64 - bits) : min(value.trailingZeroBitCount, bits)
      registers.write(register, width, UInt64(count))
      registers.setFlags(
        (count == bits ? Flags.carry : 0) | (count == 0 ? Flags.zero : 0),
        of: Flags.carry | Flags.zero)
    case .forward, .reverse:
      // The destination of a zero stays as it is.
      if value != 0 {
        let index =
          kind == .forward ? value.trailingZeroBitCount : 63 - value.leadingZeroBitCount
        registers.write(register, width, UInt64(index))
      }
      registers.setFlags(value == 0 ? Flags.zero : 0, of: Flags.zero)
    }
  }

  private func manipulate(
    _ kind: BitManipulation, _ value: UInt64, _ registers: inout Registers
  ) {
    let other = registers.read(RegisterName(number: vector.source), width)
    let bits = UInt64(width * 8)
    let count = other & (bits - 1)
    var result: UInt64
    switch kind {
    case .andNot:
      result = ~other & value
      setLogicFlags(result, carry: false, &registers)
    case .lowestSet:
      result = value & (0 &- value)
      setLogicFlags(result, carry: value != 0, &registers)
    case .maskToLowest:
      result = value ^ (value &- 1)
      setLogicFlags(result, carry: value == 0, &registers)
    case .resetLowest:
      result = value & (value &- 1)
      setLogicFlags(result, carry: value == 0, &registers)
    case .extract:
      let start = other & 0xFF
      let length = other >> 8 & 0xFF
      result = start >= bits ? 0 : value >> start
      if length < 64 { result &= (1 << length) - 1 }
      setLogicFlags(result, carry: false, &registers)
    case .zeroHigh:
      let index = other & 0xFF
      result = index < bits ? value & ((1 << index) - 1) : value
      setLogicFlags(result, carry: index >= bits, &registers)
    case .shiftLeft: result = value << count
    case .shiftRight: result = value >> count
    case .shiftArithmetic:
      let extended = Int64(bitPattern: Width.signExtended(value, width))
      result = UInt64(bitPattern: extended >> Int64(count))
    case .rotate:
      let turn = immediate & (bits - 1)
      result = turn == 0 ? value : value >> turn | value << (bits - turn)
    case .multiply:
      let wide = UInt128(value) * UInt128(registers.read(RegisterName(number: 2), width))
      // Where both halves go to one register, it keeps the high one.
      registers.write(
        RegisterName(number: vector.source), width, UInt64(truncatingIfNeeded: wide))
      result = UInt64(truncatingIfNeeded: wide >> UInt128(bits))
    case .deposit: result = Self.deposit(other, mask: value)
    case .gather: result = Self.gather(other, mask: value)
    }
    registers.write(register, width, result & Width.mask(width))
  }

  private func setLogicFlags(_ value: UInt64, carry: Bool, _ registers: inout Registers) {
    let outcome = Outcome(value, width, carry: carry, overflow: false)
    registers.setFlags(outcome.flags, of: Flags.status & ~(Flags.parity | Flags.adjust))
  }

  /// PDEP: the low bits of `value` to where `mask` has ones.
  private static func deposit(_ value: UInt64, mask: UInt64) -> UInt64 {
    var (result, rest, places) = (UInt64(0), value, mask)
    while places != 0 {
      if rest & 1 != 0 { result |= places & (0 &- places) }
      rest >>= 1
      places &= places &- 1
    }
    return result
  }

  /// PEXT: the bits of `value` where `mask` has ones, gathered at the low end.
  private static func gather(_ value: UInt64, mask: UInt64) -> UInt64 {
    var (result, places, index) = (UInt64(0), mask, UInt64(0))
    while places != 0 {
      if value & (places & (0 &- places)) != 0 { result |= 1 << index }
      index += 1
      places &= places &- 1
    }
    return result
  }
}
