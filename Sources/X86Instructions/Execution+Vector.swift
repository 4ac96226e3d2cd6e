// SPDX-License-Identifier: Apache-2.0
//
// Moves between memory and vector registers.

extension Instruction {
  func executeVector<Vectors: VectorState, Memory: InstructionMemory>(
    _ registers: Registers, _ vectors: inout Vectors, _ memory: inout Memory
  ) throws(ExecutionFault) {
    let address = address(registers)
    if vector.isAligned && address & UInt64(width - 1) != 0 { throw .generalProtection }
    let number = Int(register.number)
    switch operation {
    case .vectorLoad:
      var result = vectors.read(number)
      if vector.mask != 0 {
        let mask = vectors.readMask(Int(vector.mask))
        try loadElements(mask, address, &memory, zeroes: vector.zeroes, &result)
      } else {
        let value = try loadValue(&memory, address)
        for word in 0..<max(width / 8, 2) { result.words[word] = value.words[word] }
      }
      if !vector.isLegacy { result.clear(from: max(width, 16)) }
      vectors.write(number, result)
    case .vectorInsert:
      var result = vectors.read(Int(vector.source))
      let value = try loadValue(&memory, address)
      if width == 16 {
        result.words[vector.offset / 8] = value.words[0]
        result.words[vector.offset / 8 + 1] = value.words[1]
      } else {
        result.setElement(vector.offset, width, value.words[0])
      }
      if !vector.isLegacy { result.clear(from: vector.length) }
      vectors.write(number, result)
    case .vectorBroadcast, .vectorDuplicate:
      let value = try loadValue(&memory, address)
      var result = vectors.read(number)
      if case .vectorBroadcast = operation {
        fill(&result, value)
      } else {
        let element = vector.element
        for offset in stride(from: 0, to: vector.length, by: element) {
          let pair = offset & ~(2 * element - 1)
          result.setElement(offset, element, value.element(pair + vector.offset, element))
        }
      }
      if !vector.isLegacy { result.clear(from: vector.length) }
      vectors.write(number, result)
    case .vectorStore:
      let value = vectors.read(number)
      if vector.mask != 0 {
        let mask = vectors.readMask(Int(vector.mask))
        try storeElements(mask, address, &memory, value)
      } else if width >= 16 {
        var part = VectorValue()
        for word in 0..<(width / 8) { part.words[word] = value.words[vector.offset / 8 + word] }
        try storeBlock(&memory, address, width, part)
      } else {
        try store(&memory, address, width, value.element(vector.offset, width))
      }
    case .vectorMaskedLoad:
      var result = VectorValue()
      let mask = signs(vectors.read(Int(vector.source)))
      try loadElements(mask, address, &memory, zeroes: true, &result)
      vectors.write(number, result)
    case .vectorMaskedStore:
      let mask = signs(vectors.read(Int(vector.source)))
      try storeElements(mask, address, &memory, vectors.read(number))
    default:
      let value = vectors.read(number)
      let mask = vectors.read(Int(vector.source))
      for offset in 0..<16 where mask.element(offset, 1) & 0x80 != 0 {
        try store(&memory, address &+ UInt64(offset), 1, value.element(offset, 1))
      }
    }
  }

  /// The memory operand, whatever its width, with zeros above.
  private func loadValue<Memory: InstructionMemory>(
    _ memory: inout Memory, _ address: UInt64
  ) throws(ExecutionFault) -> VectorValue {
    if width >= 16 { return try loadBlock(&memory, address, width) }
    var value = VectorValue()
    value.words[0] = try load(&memory, address, width)
    return value
  }

  /// Repeats `value`, of `width` bytes, over the register's length.
  private func fill(_ result: inout VectorValue, _ value: VectorValue) {
    if width == 16 {
      for word in 0..<(vector.length / 8) { result.words[word] = value.words[word & 1] }
    } else {
      for offset in stride(from: 0, to: vector.length, by: width) {
        result.setElement(offset, width, value.words[0])
      }
    }
  }

  /// One bit for each element: its highest.
  private func signs(_ value: VectorValue) -> UInt64 {
    var mask: UInt64 = 0
    let sign = Width.signBit(vector.element)
    for index in 0..<(width / vector.element)
    where value.element(index * vector.element, vector.element) & sign != 0 {
      mask |= 1 << UInt64(index)
    }
    return mask
  }

  /// Elements that are masked out are not accessed.
  private func loadElements<Memory: InstructionMemory>(
    _ mask: UInt64, _ address: UInt64, _ memory: inout Memory, zeroes: Bool,
    _ result: inout VectorValue
  ) throws(ExecutionFault) {
    let element = vector.element
    let old = result
    result = VectorValue()
    for index in 0..<(width / element) {
      let offset = index * element
      if mask >> UInt64(index) & 1 != 0 {
        let value = try load(&memory, address &+ UInt64(offset), element)
        result.setElement(offset, element, value)
      } else if !zeroes {
        result.setElement(offset, element, old.element(offset, element))
      }
    }
  }

  func storeElements<Memory: InstructionMemory>(
    _ mask: UInt64, _ address: UInt64, _ memory: inout Memory, _ value: VectorValue
  ) throws(ExecutionFault) {
    let element = vector.element
    for index in 0..<(width / element) where mask >> UInt64(index) & 1 != 0 {
      let offset = index * element
      let part = value.element(vector.offset + offset, element)
      try store(&memory, address &+ UInt64(offset), element, part)
    }
  }
}
