// SPDX-License-Identifier: Apache-2.0
//
// MODEL J1: faults, rounds, portals and what is refused, where no processor has to be asked.

import Testing

@testable import X86Instructions

@Suite("Instructions") struct InstructionTests {
  private static let start: UInt64 = 0x10000

  private var memory: ModelMemory {
    var memory = ModelMemory(start: Self.start, bytes: (0..<256).map { UInt8($0) })
    memory.records = true
    return memory
  }

  private func decode(_ bytes: [UInt8]) throws -> Instruction {
    try Instruction.decode(bytes.span)
  }

  private func execute(
    _ bytes: [UInt8], _ registers: inout Registers, _ memory: inout ModelMemory,
    limit: Int = .max
  ) throws {
    var vectors = ModelVectors(state: .init())
    try decode(bytes).execute(&registers, &vectors, &memory, limit: limit)
  }

  @Test("J1: a repeated move that faults has done what lies before, and goes on from there")
  func faultInRounds() throws {
    var memory = memory
    var registers = Registers()
    registers.rip = 0x400
    registers.general[1] = 8
    registers.general[6] = Self.start
    registers.general[7] = Self.start + 256 - 12
    // rep movsd, whose fourth store lies past the end.
    #expect(
      throws: ExecutionFault.access(AccessFault(address: Self.start + 256, isStore: true))
    ) {
      try execute([0xF3, 0xA5], &registers, &memory)
    }
    #expect(registers.rip == 0x400)
    #expect(registers.general[1] == 5)
    #expect(registers.general[6] == Self.start + 12)
    #expect(registers.general[7] == Self.start + 256)
    #expect(memory.bytes[244...] == memory.bytes[..<12])
  }

  @Test("J1: what repeats stops where it is told, and is through where the count is")
  func limit() throws {
    var memory = memory
    var registers = Registers()
    registers.rip = 0x400
    registers.general[0] = 0xAA
    registers.general[1] = 5
    registers.general[7] = Self.start
    try execute([0xF3, 0xAA], &registers, &memory, limit: 3)
    #expect(registers.rip == 0x400)
    #expect(registers.general[1] == 2)
    try execute([0xF3, 0xAA], &registers, &memory, limit: 2)
    #expect(registers.rip == 0x402)
    #expect(registers.general[1] == 0)
    #expect(memory.accesses.count == 5)
    #expect(memory.bytes[..<6].elementsEqual([0xAA, 0xAA, 0xAA, 0xAA, 0xAA, 5]))
  }

  @Test("J1: a load or a store is one access of its width")
  func widths() throws {
    let table: [(bytes: [UInt8], width: Int, isStore: Bool)] = [
      ([0x8A, 0x06], 1, false), ([0x66, 0x8B, 0x06], 2, false), ([0x8B, 0x06], 4, false),
      ([0x48, 0x8B, 0x06], 8, false), ([0x0F, 0xB7, 0x06], 2, false), ([0x88, 0x06], 1, true),
      ([0xC7, 0x06, 1, 2, 3, 4], 4, true), ([0x48, 0x0F, 0xC3, 0x06], 8, true),
      ([0x0F, 0x10, 0x06], 16, false), ([0xC5, 0xFE, 0x7F, 0x06], 32, true),
      ([0x62, 0xF1, 0x7E, 0x48, 0x6F, 0x06], 64, false),
    ]
    for row in table {
      var memory = memory
      var registers = Registers()
      registers.general[6] = Self.start
      try execute(row.bytes, &registers, &memory)
      #expect(
        memory.accesses == [
          .init(address: Self.start, byteCount: row.width, isStore: row.isStore)
        ])
    }
  }

  @Test("J1: what changes memory reads it once and writes it once, also where nothing changes")
  func readAndWrite() throws {
    // lock cmpxchg that fails, shl by 0, lock or, xchg.
    let rows: [[UInt8]] = [
      [0xF0, 0x0F, 0xB1, 0x0E], [0xC1, 0x26, 0], [0xF0, 0x09, 0x0E], [0x87, 0x0E],
    ]
    for bytes in rows {
      var memory = memory
      var registers = Registers()
      registers.general[6] = Self.start
      try execute(bytes, &registers, &memory)
      #expect(
        memory.accesses == [
          .init(address: Self.start, byteCount: 4, isStore: false),
          .init(address: Self.start, byteCount: 4, isStore: true),
        ])
    }
  }

  @Test("J1: an aligned move of an odd address is a general protection fault and no access")
  func alignment() throws {
    // movaps, vmovdqa 256, movntdq, cmpxchg16b.
    let rows: [[UInt8]] = [
      [0x0F, 0x28, 0x06], [0xC5, 0xFD, 0x6F, 0x06], [0x66, 0x0F, 0xE7, 0x06],
      [0x48, 0x0F, 0xC7, 0x0E],
    ]
    for bytes in rows {
      var memory = memory
      var registers = Registers()
      registers.general[6] = Self.start + 8
      #expect(throws: ExecutionFault.generalProtection) {
        try execute(bytes, &registers, &memory)
      }
      #expect(memory.accesses.isEmpty)
      #expect(registers.rip == 0)
    }
  }

  @Test("J1: MOVDIR64B carries 64 bytes to an aligned address in one store")
  func directStore() throws {
    var memory = memory
    var registers = Registers()
    registers.general[0] = Self.start + 128
    registers.general[6] = Self.start + 3
    // movdir64b (%rsi), %rax
    let bytes: [UInt8] = [0x66, 0x0F, 0x38, 0xF8, 0x06]
    try execute(bytes, &registers, &memory)
    #expect(memory.bytes[128..<192].elementsEqual((3..<67).map { UInt8($0) }))
    #expect(
      memory.accesses == [
        .init(address: Self.start + 3, byteCount: 64, isStore: false),
        .init(address: Self.start + 128, byteCount: 64, isStore: true),
      ])
    registers.general[0] += 32
    #expect(throws: ExecutionFault.generalProtection) {
      try execute(bytes, &registers, &memory)
    }
  }

  @Test("J1: ENQCMD says in ZF whether it was taken, and leaves the PASID to who takes it")
  func enqueue() throws {
    for takes in [true, false] {
      var memory = memory
      memory.takes = takes
      var registers = Registers()
      registers.rflags |= 0x8D5
      registers.general[0] = Self.start + 128
      registers.general[6] = Self.start
      try execute([0xF2, 0x0F, 0x38, 0xF8, 0x06], &registers, &memory)
      #expect(registers.rflags & 0x8D5 == (takes ? 0 : 0x40))
      #expect(memory.enqueued?.words[0] == 0x0706_0504_0000_0000)
      #expect(memory.enqueued?.words[7] == 0x3F3E_3D3C_3B3A_3938)
      // ENQCMDS is the kernel's.
      #expect(throws: ExecutionFault.generalProtection) {
        try execute([0xF3, 0x0F, 0x38, 0xF8, 0x06], &registers, &memory)
      }
    }
  }

  @Test("J1: MOVDIRI, MOVDIR64B and ENQCMD say where they store to, other stores do not")
  func portals() throws {
    var registers = Registers()
    registers.general[0] = 0x1_0000_1000
    registers.general[6] = 0x3000
    let rows: [(bytes: [UInt8], place: UInt64?)] = [
      ([0x0F, 0x38, 0xF9, 0x46, 0x08], 0x3008),
      ([0x66, 0x0F, 0x38, 0xF8, 0x06], 0x1_0000_1000),
      ([0xF2, 0x0F, 0x38, 0xF8, 0x06], 0x1_0000_1000),
      ([0x67, 0xF3, 0x0F, 0x38, 0xF8, 0x06], 0x1000), ([0x89, 0x06], nil),
      ([0x0F, 0xC3, 0x06], nil),
    ]
    for row in rows { #expect(try decode(row.bytes).portal(registers) == row.place) }
  }

  @Test("J1: a division by zero, and one whose quotient has no room, are divide errors")
  func divideError() throws {
    var memory = memory
    var registers = Registers()
    registers.general[6] = Self.start
    registers.general[2] = 1 << 40
    let before = registers.general[2]
    #expect(throws: ExecutionFault.divideError) {
      try execute([0xF6, 0x36], &registers, &memory)
    }
    registers.general[2] = .max
    #expect(throws: ExecutionFault.divideError) {
      try execute([0x48, 0xF7, 0x36], &registers, &memory)
    }
    #expect(before == 1 << 40 && registers.rip == 0)
  }

  @Test("J1: what touches no memory, or is not known, is refused with its bytes")
  func refused() throws {
    let rows: [[UInt8]] = [
      [0x89, 0xC0], [0x90], [0xCC], [0x0F, 0x05], [0xF0, 0x8B, 0x06], [0x0F, 0xAE, 0x00],
      [0xF0, 0x39, 0x06], [0xDD, 0x06], [0xFF, 0x3E],
    ]
    for bytes in rows {
      let error = try #require(throws: DecodeError.self) { try decode(bytes) }
      #expect(error.reason == .unknown)
      #expect(error.byteCount == bytes.count)
    }
    let error = try #require(throws: DecodeError.self) { try decode([0x0F, 0x0B, 0x06]) }
    #expect(error.description == "unknown instruction: 0f 0b 06")
    // 15 prefixes are an instruction that is too long.
    let long = try #require(throws: DecodeError.self) {
      try decode([UInt8](repeating: 0x66, count: 16))
    }
    #expect(long.reason == .unknown && long.byteCount == 15)
  }

  @Test("J1: 32-bit addresses wrap before the segment's base is added")
  func shortAddresses() throws {
    var registers = Registers()
    registers.general[6] = 0xFFFF_FFFF_FFFF_FFF8
    registers.gsBase = 0x1_0000_0000
    let instruction = try decode([0x65, 0x67, 0x8B, 0x46, 0x10])
    #expect(instruction.address(registers) == 0x1_0000_0008)
  }

  @Test("J1: POP to an address based on the stack pointer reckons with it moved")
  func popToStack() throws {
    var memory = memory
    var registers = Registers()
    registers.general[4] = Self.start + 16
    // pop 8(%rsp)
    try execute([0x8F, 0x44, 0x24, 0x08], &registers, &memory)
    #expect(memory.bytes[32..<40].elementsEqual((16..<24).map { UInt8($0) }))
    #expect(registers.general[4] == Self.start + 24)
  }
}
