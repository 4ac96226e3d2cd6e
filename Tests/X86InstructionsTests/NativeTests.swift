// SPDX-License-Identifier: Apache-2.0
//
// MODEL J1: each form does to registers, flags, memory and vectors what this processor does.

import CNativeInstructions
import Foundation
import FuzzSupport
import Testing

@testable import X86Instructions

@Suite("Instructions against the processor") struct NativeTests {
  @Test("J1: moves of general registers are the processor's", arguments: Form.moves)
  func moves(form: Form) throws { try compare(form) }

  @Test("J1: arithmetic with memory is the processor's", arguments: Form.arithmetic)
  func arithmetic(form: Form) throws { try compare(form) }

  @Test("J1: bits and shifts are the processor's", arguments: Form.bits)
  func bits(form: Form) throws { try compare(form) }

  @Test("J1: products, quotients and searches are the processor's", arguments: Form.toRegister)
  func toRegister(form: Form) throws { try compare(form) }

  @Test("J1: stack and jumps through memory are the processor's", arguments: Form.transfers)
  func transfers(form: Form) throws { try compare(form) }

  @Test("J1: strings, repeated or not, are the processor's", arguments: Form.strings)
  func strings(form: Form) throws { try compare(form) }

  @Test("J1: moves of vector registers are the processor's", arguments: Form.vectors)
  func vectors(form: Form) throws { try compare(form) }

  @Test("J1: computations of vector registers with memory are the processor's")
  func vectorFunctions() throws {
    // So many that each as a test would be mostly the tests' own work.
    #expect(Form.vectorFunctions.count > 1000)
    // A failure is recorded, and the others are looked at too.
    for form in Form.vectorFunctions { try? compare(form, rounds: Self.rounds / 10 + 1) }
  }

  /// How many instances of a form: INSTRUCTION_ROUNDS, or what a second or two take for all.
  private static let rounds =
    ProcessInfo.processInfo.environment["INSTRUCTION_ROUNDS"].flatMap { Int($0) } ?? 150

  /// Runs random instances of `form` here and there.
  private func compare(_ form: Form, rounds: Int = rounds) throws {
    let place = try #require(native_place_create())
    defer { native_place_destroy(place) }
    var random = Random(state: UInt64.random(in: 0 ... .max))
    let isNative = form.feature.map { native_has($0) != 0 } ?? true
    for _ in 0..<rounds {
      let instance = form.instance(
        dataAddress: UInt64(UInt(bitPattern: native_data(place))),
        codeAddress: native_code_address(place), &random)
      let found = Machine.model(instance, code: native_code_address(place))
      try #require(
        found.length == instance.bytes.count, "\(form) \(instance.listing): \(found.failure)")
      guard isNative else { continue }
      let expected = Machine.native(instance, place, length: instance.bytes.count)
      let difference = found.difference(from: expected, undefined: form.undefined(instance))
      try #require(difference == nil, "\(form) \(instance.listing): \(difference ?? "")")
    }
  }
}

extension Instance {
  /// Its bytes, as a disassembler prints them.
  var listing: String {
    bytes.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined(separator: " ")
  }
}

/// What an instruction left behind.
struct Machine {
  var state: native_state
  var data: [UInt8]
  var rip: UInt64
  /// The signal that stopped it, or 0.
  var signal: Int32 = 0
  var length = 0
  var failure = ""

  static func native(_ instance: Instance, _ place: OpaquePointer, length: Int) -> Machine {
    var machine = Machine(state: instance.state, data: [], rip: 0)
    let data = native_data(place)!
    data.update(from: instance.data, count: instance.data.count)
    machine.signal = native_run(
      place, instance.bytes, Int32(length), &machine.state, nil)
    machine.data = Array(UnsafeBufferPointer(start: data, count: instance.data.count))
    machine.length = length
    return machine
  }

  static func model(_ instance: Instance, code: UInt64) -> Machine {
    var machine = Machine(state: instance.state, data: instance.data, rip: code)
    do throws(DecodeError) {
      let instruction = try Instruction.decode(instance.bytes.span)
      machine.length = instruction.length
      machine.run(instruction, instance, code)
    } catch {
      machine.failure = "\(error)"
    }
    return machine
  }

  private mutating func run(_ instruction: Instruction, _ instance: Instance, _ code: UInt64) {
    var registers = Registers()
    for index in 0..<16 { registers.general[index] = instance[general: index] }
    registers.rflags = instance.state.rflags
    registers.rip = code
    registers.fsBase = instance.fsBase
    registers.gsBase = instance.state.gs_base
    var vectors = ModelVectors(state: state)
    var memory = ModelMemory(start: instance.dataAddress, bytes: instance.data)
    do throws(ExecutionFault) {
      try instruction.execute(&registers, &vectors, &memory)
    } catch {
      failure = "\(error)"
      signal = error == .divideError || error == .inexact ? 8 : 11
    }
    state = vectors.state
    withUnsafeMutableBytes(of: &state.general) {
      for index in 0..<16 {
        $0.storeBytes(of: registers.general[index], toByteOffset: index * 8, as: UInt64.self)
      }
    }
    state.rflags = registers.rflags
    rip = registers.rip
    data = memory.bytes
  }

  /// A sentence on the first difference, or nil.
  func difference(from expected: Machine, undefined: UInt64) -> String? {
    if signal != expected.signal {
      return "signal \(signal) \(failure), the processor's \(expected.signal)"
    }
    let place = withUnsafePointer(to: state) { one in
      withUnsafePointer(to: expected.state) { Int(native_difference(one, $0)) }
    }
    switch place {
    case -1: break
    case 0..<16:
      let (one, other) = (
        Self.word(state.general, place), Self.word(expected.state.general, place)
      )
      return "register \(place) 0x\(String(one, radix: 16)), not 0x\(String(other, radix: 16))"
    case 16..<24: return "mask \(place - 16)"
    default: return "vector \((place - 24) / 8) word \((place - 24) % 8)"
    }
    // What lies outside is the kernel's: IF.
    let mask = (Flag.status | 0x400) & ~(signal == 0 ? undefined : 0)
    if (state.rflags ^ expected.state.rflags) & mask != 0 {
      return "flags 0x\(String(state.rflags, radix: 16)), not "
        + "0x\(String(expected.state.rflags, radix: 16))"
    }
    if data != expected.data { return "memory" }
    if state.mxcsr != expected.state.mxcsr {
      return "MXCSR 0x\(String(state.mxcsr, radix: 16)), not "
        + "0x\(String(expected.state.mxcsr, radix: 16))"
    }
    return nil
  }

  private static func word<T>(_ words: T, _ index: Int) -> UInt64 {
    withUnsafeBytes(of: words) { $0.load(fromByteOffset: index * 8, as: UInt64.self) }
  }
}
