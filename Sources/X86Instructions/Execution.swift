// SPDX-License-Identifier: Apache-2.0
//
// Carrying an instruction out: its address, its accesses, and which of the rooms it belongs to.

extension Instruction {
  /// Carries the instruction out, and leaves `rip` after it.
  ///
  /// One that repeats stops after `limit` rounds with `rip` still on it, as at an interrupt.
  /// - Throws: `ExecutionFault`. Registers and memory are then as before, but for rounds that
  ///   were done, as the processor leaves them.
  public func execute<Vectors: VectorState, Memory: InstructionMemory>(
    _ registers: inout Registers, _ vectors: inout Vectors, _ memory: inout Memory,
    limit: Int = .max
  ) throws(ExecutionFault) {
    switch operation {
    case .nothing: break
    case .string(let kind):
      guard try executeString(kind, &registers, &memory, limit: limit) else { return }
    case .push, .pop, .call, .jump:
      if try executeTransfer(&registers, &memory) { return }
    case .vectorLoad, .vectorStore, .vectorInsert, .vectorBroadcast, .vectorDuplicate,
      .vectorMaskedLoad, .vectorMaskedStore, .storeMaskedBytes:
      try executeVector(registers, &vectors, &memory)
    case .vectorCombine, .vectorCompare, .vectorNarrow, .vectorConvert, .maskLoad, .maskStore:
      try executeVectorFunction(&registers, &vectors, &memory)
    case .directStore, .enqueue: try executePortal(&registers, &memory)
    case .load, .store, .storeDirect, .storeImmediate, .loadSwapped, .storeSwapped, .loadIf,
      .storeCondition,
      .translate:
      try executeMove(&registers, &memory)
    case .multiply, .divide, .multiplyToRegister, .multiplyImmediate, .scan, .checksum,
      .addCarry, .manipulate:
      try executeToRegister(&registers, &memory)
    default: try executeInteger(&registers, &memory)
    }
    registers.rip &+= UInt64(length)
    registers.rflags &= ~Flags.resume
  }

  /// Address of the memory operand.
  public func address(_ registers: Registers) -> UInt64 {
    var address = self.memory.displacement
    switch self.memory.base {
    case MemoryOperand.none: break
    case MemoryOperand.instructionPointer: address &+= registers.rip &+ UInt64(length)
    default: address &+= registers.general[Int(self.memory.base)]
    }
    if self.memory.index != MemoryOperand.none {
      address &+= registers.general[Int(self.memory.index)] &<< UInt64(self.memory.shift)
    }
    return inSegment(address, registers)
  }

  /// An offset, cut to the size of addresses, in the operand's segment.
  func inSegment(_ offset: UInt64, _ registers: Registers) -> UInt64 {
    let offset = self.memory.is32Bit ? offset & 0xFFFF_FFFF : offset
    return switch self.memory.segment {
    case .flat: offset
    case .fs: offset &+ registers.fsBase
    case .gs: offset &+ registers.gsBase
    }
  }

  func load<Memory: InstructionMemory>(
    _ memory: inout Memory, _ address: UInt64, _ byteCount: Int
  ) throws(ExecutionFault) -> UInt64 {
    do { return try memory.load(address, byteCount) } catch { throw .access(error) }
  }

  func store<Memory: InstructionMemory>(
    _ memory: inout Memory, _ address: UInt64, _ byteCount: Int, _ value: UInt64
  ) throws(ExecutionFault) {
    do { try memory.store(address, byteCount, value) } catch { throw .access(error) }
  }

  func loadBlock<Memory: InstructionMemory>(
    _ memory: inout Memory, _ address: UInt64, _ byteCount: Int
  ) throws(ExecutionFault) -> VectorValue {
    var value = VectorValue()
    do { try memory.load(address, byteCount, into: &value) } catch { throw .access(error) }
    return value
  }

  func storeBlock<Memory: InstructionMemory>(
    _ memory: inout Memory, _ address: UInt64, _ byteCount: Int, _ value: VectorValue
  ) throws(ExecutionFault) {
    do { try memory.store(address, byteCount, from: value) } catch { throw .access(error) }
  }

  private func executeMove<Memory: InstructionMemory>(
    _ registers: inout Registers, _ memory: inout Memory
  ) throws(ExecutionFault) {
    let address = address(registers)
    switch operation {
    case .load(let signExtends):
      let value = try load(&memory, address, width)
      registers.write(
        register, registerWidth, signExtends ? Width.signExtended(value, width) : value)
    case .store, .storeDirect:
      try store(&memory, address, width, registers.read(register, width))
    case .storeImmediate: try store(&memory, address, width, immediate & Width.mask(width))
    case .loadSwapped:
      let value = try load(&memory, address, width)
      registers.write(register, width, value.byteSwapped >> UInt64(64 - width * 8))
    case .storeSwapped:
      let value = registers.read(register, width).byteSwapped >> UInt64(64 - width * 8)
      try store(&memory, address, width, value)
    case .loadIf(let condition):
      // Read whether it holds or not, and 32 bits clear the upper half either way.
      let value = try load(&memory, address, width)
      let kept = registers.read(register, width)
      registers.write(register, width, registers.holds(condition: condition) ? value : kept)
    case .storeCondition(let condition):
      try store(&memory, address, 1, registers.holds(condition: condition) ? 1 : 0)
    default:
      // XLAT.
      let offset = registers.general[Registers.Index.rbx] &+ registers.read(.accumulator, 1)
      let value = try load(&memory, inSegment(offset, registers), 1)
      registers.write(.accumulator, 1, value)
    }
  }

  /// PUSH, POP, CALL and JMP. Returns whether `rip` is where it belongs already.
  private func executeTransfer<Memory: InstructionMemory>(
    _ registers: inout Registers, _ memory: inout Memory
  ) throws(ExecutionFault) -> Bool {
    let stack = registers.general[Registers.Index.rsp]
    switch operation {
    case .push:
      let value = try load(&memory, address(registers), width)
      try store(&memory, stack &- UInt64(width), width, value)
      registers.general[Registers.Index.rsp] = stack &- UInt64(width)
      return false
    case .pop:
      let value = try load(&memory, stack, width)
      // An address that is based on rsp is computed after it has moved.
      var moved = registers
      moved.general[Registers.Index.rsp] = stack &+ UInt64(width)
      try store(&memory, address(moved), width, value)
      registers.general[Registers.Index.rsp] = stack &+ UInt64(width)
      return false
    case .call:
      let target = try load(&memory, address(registers), 8)
      try store(&memory, stack &- 8, 8, registers.rip &+ UInt64(length))
      registers.general[Registers.Index.rsp] = stack &- 8
      registers.rip = target
    default: registers.rip = try load(&memory, address(registers), 8)
    }
    registers.rflags &= ~Flags.resume
    return true
  }

  /// The address in the register.
  func portalAddress(_ registers: Registers) -> UInt64 {
    registers.read(register, self.memory.is32Bit ? 4 : 8)
  }

  /// MOVDIR64B, ENQCMD and ENQCMDS: 64 bytes to the address in the register.
  private func executePortal<Memory: InstructionMemory>(
    _ registers: inout Registers, _ memory: inout Memory
  ) throws(ExecutionFault) {
    let target = portalAddress(registers)
    if target & 63 != 0 { throw .generalProtection }
    if case .enqueue(true) = operation { throw .generalProtection }
    var block = try loadBlock(&memory, address(registers), 64)
    guard case .enqueue = operation else {
      return try storeBlock(&memory, target, 64, block)
    }
    block.words[0] &= ~0xFFFF_FFFF
    let isTaken: Bool
    do { isTaken = try memory.enqueue(target, block) } catch { throw .access(error) }
    registers.setFlags(isTaken ? 0 : Flags.zero, of: Flags.status)
  }
}
