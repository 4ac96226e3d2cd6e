// SPDX-License-Identifier: Apache-2.0
//
// Computations of vector registers with memory: operands, masks, and where the result goes.

extension Instruction {
  func executeVectorFunction<Vectors: VectorState, Memory: InstructionMemory>(
    _ registers: inout Registers, _ vectors: inout Vectors, _ memory: inout Memory
  ) throws(ExecutionFault) {
    let address = address(registers)
    if vector.isAligned && address & UInt64(width - 1) != 0 { throw .generalProtection }
    switch operation {
    case .vectorCombine(let function):
      try combine(function, address, &vectors, &memory)
    case .vectorCompare(.string):
      let right = try loadBlock(&memory, address, 16)
      var comparison = StringComparison(
        control: UInt8(truncatingIfNeeded: immediate), left: vectors.read(Int(register.number)),
        right: right)
      // Opcodes 60 and 61 are told the lengths, 60 and 62 give a mask.
      if vector.opcode < 2 {
        comparison.setLengths(registers, isWide: vector.isWide)
      }
      comparison.run()
      if vector.opcode & 1 == 0 {
        var result = comparison.mask
        if !vector.isLegacy {
          result.clear(from: 16)
        } else {
          let old = vectors.read(0)
          for word in 2..<8 { result.words[word] = old.words[word] }
        }
        vectors.write(0, result)
      } else {
        registers.write(RegisterName(number: 1), 8, comparison.index)
      }
      registers.setFlags(comparison.flags, of: Flags.status)
    case .vectorCompare(let kind):
      try compare(kind, address, &registers, &vectors, &memory)
    case .vectorNarrow(let saturation):
      try narrow(saturation, address, &vectors, &memory)
    case .vectorConvert(let signed):
      try convert(signed: signed, address, &vectors, &memory)
    case .maskLoad:
      vectors.writeMask(Int(register.number), try load(&memory, address, width))
    default:
      let value = vectors.readMask(Int(register.number)) & Width.mask(width)
      try store(&memory, address, width, value)
    }
  }

  // MARK: operands

  /// Bits of the elements that are not masked out.
  private func chosen<Vectors: VectorState>(_ vectors: inout Vectors) -> UInt64 {
    let all = UInt64.max >> UInt64(64 - vector.length / vector.element)
    return vector.mask == 0 ? all : all & vectors.readMask(Int(vector.mask))
  }

  /// The memory operand at the register's length. Elements that are masked out are not accessed
  /// where each has its own.
  private func operand<Memory: InstructionMemory>(
    _ chosen: UInt64, isElementwise: Bool, _ address: UInt64, _ memory: inout Memory
  ) throws(ExecutionFault) -> VectorValue {
    var value = VectorValue()
    let isMasked = vector.mask != 0 && isElementwise
    if isMasked && chosen == 0 { return value }
    if isMasked && !vector.repeats {
      for index in 0..<(width / vector.element) where chosen >> UInt64(index) & 1 != 0 {
        let offset = index * vector.element
        let part = try load(&memory, address &+ UInt64(offset), vector.element)
        value.setElement(offset, vector.element, part)
      }
      return value
    }
    if width >= 16 {
      value = try loadBlock(&memory, address, width)
    } else {
      value.words[0] = try load(&memory, address, width)
    }
    guard vector.repeats else { return value }
    let whole = value
    if width >= 16 {
      for word in 0..<8 { value.words[word] = whole.words[word & (width / 8 - 1)] }
    } else {
      for offset in stride(from: 0, to: vector.length, by: width) {
        value.setElement(offset, width, whole.words[0])
      }
    }
    return value
  }

  // MARK: results

  private func combine<Vectors: VectorState, Memory: InstructionMemory>(
    _ function: VectorFunction, _ address: UInt64, _ vectors: inout Vectors,
    _ memory: inout Memory
  ) throws(ExecutionFault) {
    let chosen = chosen(&vectors)
    var right = try operand(
      chosen, isElementwise: function.isElementwise, address, &memory)
    var left = vectors.read(Int(vector.source))
    let old = vectors.read(Int(register.number))
    var context = VectorContext(
      element: vector.element, length: vector.length,
      width: vector.repeats ? vector.length : width, immediate: immediate, other: old)
    if function == .blendVariable {
      let number = vector.isLegacy ? 0 : Int(immediate >> 4 & 15)
      context.other = vectors.read(number)
    }
    if vector.isCounted {
      left = right
      for offset in stride(from: 0, to: vector.length, by: vector.element) {
        right.setElement(offset, vector.element, immediate & 0xFF)
      }
    }
    var result =
      function == .ternary
      ? ternary(old, left, right) : function.result(left, right, context)
    if vector.mask != 0 {
      // A blend keeps its other operand, all else what was there.
      let kept = vector.zeroes ? VectorValue() : function == .blend ? left : old
      for offset in stride(from: 0, to: vector.length, by: vector.element)
      where chosen >> UInt64(offset / vector.element) & 1 == 0 {
        result.setElement(offset, vector.element, kept.element(offset, vector.element))
      }
    }
    result.clear(from: vector.length)
    if vector.isLegacy {
      for word in 2..<8 { result.words[word] = old.words[word] }
    }
    vectors.write(Int(register.number), result)
  }

  /// VPTERNLOG: bit by bit, the immediate is the table.
  private func ternary(
    _ first: VectorValue, _ second: VectorValue, _ third: VectorValue
  ) -> VectorValue {
    var result = VectorValue()
    for word in 0..<8 {
      let (one, two, three) = (first.words[word], second.words[word], third.words[word])
      for row in UInt64(0)..<8 where immediate >> row & 1 != 0 {
        result.words[word] |=
          (row & 4 != 0 ? one : ~one) & (row & 2 != 0 ? two : ~two)
          & (row & 1 != 0 ? three : ~three)
      }
    }
    return result
  }

  private func compare<Vectors: VectorState, Memory: InstructionMemory>(
    _ kind: VectorComparison, _ address: UInt64, _ registers: inout Registers,
    _ vectors: inout Vectors, _ memory: inout Memory
  ) throws(ExecutionFault) {
    let chosen = chosen(&vectors)
    let right = try operand(chosen, isElementwise: true, address, &memory)
    if kind == .test || kind == .testSigns {
      let left = vectors.read(Int(register.number))
      var (both, rightOnly) = (UInt64(0), UInt64(0))
      let bits: UInt64 =
        kind == .test ? .max : vector.element == 8 ? 1 << 63 : 0x8000_0000_8000_0000
      for word in 0..<(vector.length / 8) {
        both |= left.words[word] & right.words[word] & bits
        rightOnly |= ~left.words[word] & right.words[word] & bits
      }
      registers.setFlags(
        (both == 0 ? Flags.zero : 0) | (rightOnly == 0 ? Flags.carry : 0), of: Flags.status)
      return
    }
    let left = vectors.read(Int(vector.source))
    var result: UInt64 = 0
    for index in 0..<(vector.length / vector.element)
    where chosen >> UInt64(index) & 1 != 0 {
      let offset = index * vector.element
      let holds = kind.holds(
        left.element(offset, vector.element), right.element(offset, vector.element),
        vector.element, predicate: UInt8(immediate & 7))
      if holds { result |= 1 << UInt64(index) }
    }
    vectors.writeMask(Int(register.number), result)
  }

  private func narrow<Vectors: VectorState, Memory: InstructionMemory>(
    _ saturation: Saturation, _ address: UInt64, _ vectors: inout Vectors,
    _ memory: inout Memory
  ) throws(ExecutionFault) {
    let value = vectors.read(Int(register.number))
    let (narrow, wide) = (vector.element, vector.element * vector.length / width)
    var result = VectorValue()
    for index in 0..<(vector.length / wide) {
      let from = value.element(index * wide, wide)
      let to =
        switch saturation {
        case .none: from
        case .unsigned: min(from, Width.mask(narrow))
        case .signed:
          UInt64(
            bitPattern: VectorFunction.saturated(
              Int64(bitPattern: Width.signExtended(from, wide)), narrow))
        }
      result.setElement(index * narrow, narrow, to)
    }
    if vector.mask != 0 {
      try storeElements(
        vectors.readMask(Int(vector.mask)), address, &memory, result)
    } else if width >= 16 {
      try storeBlock(&memory, address, width, result)
    } else {
      try store(&memory, address, width, result.words[0] & Width.mask(width))
    }
  }
}

/// What a comparison of vectors asks, and where its answer goes.
enum VectorComparison: Sendable {
  // To a mask register.
  case equal, greater, anyBit, noBit
  /// By the immediate's three low bits.
  case signed, unsigned
  // To flags.
  case test, testSigns
  /// PCMPESTRM, PCMPESTRI, PCMPISTRM, PCMPISTRI.
  case string

  func holds(_ left: UInt64, _ right: UInt64, _ size: Int, predicate: UInt8) -> Bool {
    let sign = Width.signBit(size)
    switch self {
    case .equal: return left == right
    case .greater: return left ^ sign > right ^ sign
    case .anyBit: return left & right != 0
    case .noBit: return left & right == 0
    default:
      let (one, other) = self == .signed ? (left ^ sign, right ^ sign) : (left, right)
      let result =
        switch predicate & 3 {
        case 0: one == other
        case 1: one < other
        case 2: one <= other
        default: false
        }
      return result != (predicate & 4 != 0)
    }
  }
}

enum Saturation: Sendable { case none, signed, unsigned }
