// SPDX-License-Identifier: Apache-2.0
//
// MODEL J1: whatever bytes a program faults on, and whatever its registers hold, decoding and
// executing come to an end.

import FuzzSupport
import Testing

@testable import X86Instructions

@Suite("Instruction fuzzer") struct InstructionFuzzTests {
  @Test("J1: no bytes and no registers trap, and no byte past the instruction matters")
  func bytes() {
    var accepted = 0
    Fuzzing.run("InstructionFuzzTests", least: 20_000) { random in
      let bytes = Self.bytes(&random)
      guard let instruction = try? Instruction.decode(bytes.span) else { return }
      accepted += 1
      let length = instruction.length
      try #require(1...15 ~= length)
      let exact = Array(bytes[..<length])
      #expect(try Instruction.decode(exact.span).length == length)
      for count in 0..<length {
        let part = Array(bytes[..<count])
        #expect {
          try Instruction.decode(part.span)
        } throws: {
          ($0 as? DecodeError)?.reason == .truncated
        }
      }
      try execute(instruction, &random)
    }
    #expect(accepted > 0)
  }

  /// Prefixes and opcodes more often than chance would have them.
  private static func bytes(_ random: inout Random) -> [UInt8] {
    var bytes: [UInt8] = []
    for _ in 0..<Int.random(in: 0...3, using: &random) {
      bytes.append(
        [0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x64, 0x65, 0x2E].randomElement(using: &random)!)
    }
    if random.bool() { bytes.append(0x40 | UInt8.random(in: 0...15, using: &random)) }
    switch Int.random(in: 0..<5, using: &random) {
    case 0: bytes.append(0x0F)
    case 1: bytes += [0x0F, random.bool() ? 0x38 : 0x3A]
    case 2:
      bytes = [
        0xC4,
        UInt8.random(in: 0...7, using: &random) << 5 | UInt8.random(in: 1...3, using: &random),
      ]
    case 3:
      let map = UInt8.random(in: 1...3, using: &random)
      bytes = [
        0x62, 0xF0 | map, UInt8.random(in: 0...255, using: &random) | 4,
        UInt8.random(in: 0...255, using: &random),
      ]
    default: break
    }
    while bytes.count < 20 { bytes.append(UInt8.random(in: 0...255, using: &random)) }
    return bytes
  }

  private func execute(_ instruction: Instruction, _ random: inout Random) throws {
    var registers = Registers()
    for index in 0..<16 {
      registers.general[index] =
        random.bool() ? random.next() : [0, .max, 1 << 63, 1].randomElement(using: &random)!
    }
    registers.rip = random.next()
    registers.rflags = random.next() & 0x10CD5 | 2
    registers.fsBase = random.next()
    registers.gsBase = .max
    let before = registers
    var vectors = RandomVectors(random: random)
    var memory = EndlessMemory(
      random: random, failsAfter: Int.random(in: 0..<12, using: &random))
    do throws(ExecutionFault) {
      try instruction.execute(&registers, &vectors, &memory, limit: 8)
      let isThrough = registers.rip == before.rip &+ UInt64(instruction.length)
      switch instruction.operation {
      case .call, .jump: break
      default: #expect(isThrough || instruction.repeats && registers.rip == before.rip)
      }
      #expect(registers.rflags & 0x10000 == 0 || !isThrough)
    } catch {
      // A fault leaves all as it was, but for the rounds of what repeats.
      #expect(registers.rip == before.rip)
      for index in 0..<16 where !instruction.repeats || ![0, 1, 6, 7].contains(index) {
        #expect(registers.general[index] == before.general[index])
      }
      if !instruction.repeats { #expect(registers.rflags == before.rflags) }
    }
  }
}

/// Memory everywhere, until it has had enough.
private struct EndlessMemory: InstructionMemory {
  var random: Random
  var failsAfter: Int

  private mutating func access(_ address: UInt64, isStore: Bool) throws(AccessFault) {
    if failsAfter == 0 { throw AccessFault(address: address, isStore: isStore) }
    failsAfter -= 1
  }

  mutating func load(_ address: UInt64, _ byteCount: Int) throws(AccessFault) -> UInt64 {
    try access(address, isStore: false)
    return random.next() & Width.mask(byteCount)
  }

  mutating func store(_ address: UInt64, _ byteCount: Int, _ value: UInt64) throws(AccessFault)
  {
    try access(address, isStore: true)
    #expect(value & ~Width.mask(byteCount) == 0, "a store of more than its width")
  }

  mutating func load(
    _ address: UInt64, _ byteCount: Int, into value: inout VectorValue
  ) throws(AccessFault) {
    try access(address, isStore: false)
    for word in 0..<(byteCount / 8) { value.words[word] = random.next() }
  }

  mutating func store(
    _ address: UInt64, _ byteCount: Int, from value: VectorValue
  ) throws(AccessFault) {
    try access(address, isStore: true)
  }

  mutating func enqueue(_ address: UInt64, _ command: VectorValue) throws(AccessFault) -> Bool {
    try access(address, isStore: true)
    return random.bool()
  }
}

private struct RandomVectors: VectorState {
  var random: Random

  mutating func read(_ number: Int) -> VectorValue {
    #expect(0..<32 ~= number)
    var value = VectorValue()
    for word in 0..<8 { value.words[word] = random.next() }
    return value
  }

  mutating func write(_ number: Int, _ value: VectorValue) { #expect(0..<32 ~= number) }
  mutating func readMask(_ number: Int) -> UInt64 { random.next() }
  mutating func writeMask(_ number: Int, _ value: UInt64) {}
  mutating func readStatus() -> UInt32 { UInt32(truncatingIfNeeded: random.next()) }
  mutating func writeStatus(_ value: UInt32) {}
}
