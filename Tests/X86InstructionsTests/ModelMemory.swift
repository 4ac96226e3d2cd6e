// SPDX-License-Identifier: Apache-2.0
//
// What instructions of the tests meet instead of a machine: some memory, and vector registers.

import CNativeInstructions
import X86Instructions

struct ModelMemory: InstructionMemory {
  /// Each access, in order.
  struct Access: Equatable {
    var address: UInt64
    var byteCount: Int
    var isStore: Bool
  }

  var start: UInt64
  var bytes: [UInt8]
  var accesses: [Access] = []
  var records = false
  var enqueued: VectorValue?
  var takes = true

  init(start: UInt64, bytes: [UInt8]) {
    self.start = start
    self.bytes = bytes
  }

  private mutating func place(
    _ address: UInt64, _ byteCount: Int, isStore: Bool
  ) throws(AccessFault) -> Int {
    let offset = address &- start
    guard offset < UInt64(bytes.count), offset + UInt64(byteCount) <= UInt64(bytes.count) else {
      throw AccessFault(address: address, isStore: isStore)
    }
    if records {
      accesses.append(Access(address: address, byteCount: byteCount, isStore: isStore))
    }
    return Int(offset)
  }

  mutating func load(_ address: UInt64, _ byteCount: Int) throws(AccessFault) -> UInt64 {
    let place = try place(address, byteCount, isStore: false)
    var value: UInt64 = 0
    for index in 0..<byteCount { value |= UInt64(bytes[place + index]) << UInt64(index * 8) }
    return value
  }

  mutating func store(
    _ address: UInt64, _ byteCount: Int, _ value: UInt64
  ) throws(AccessFault) {
    let place = try place(address, byteCount, isStore: true)
    for index in 0..<byteCount {
      bytes[place + index] = UInt8(truncatingIfNeeded: value >> UInt64(index * 8))
    }
  }

  mutating func load(
    _ address: UInt64, _ byteCount: Int, into value: inout VectorValue
  ) throws(AccessFault) {
    let place = try place(address, byteCount, isStore: false)
    for word in 0..<(byteCount / 8) {
      var part: UInt64 = 0
      for index in 0..<8 {
        part |= UInt64(bytes[place + word * 8 + index]) << UInt64(index * 8)
      }
      value.words[word] = part
    }
  }

  mutating func store(
    _ address: UInt64, _ byteCount: Int, from value: VectorValue
  ) throws(AccessFault) {
    let place = try place(address, byteCount, isStore: true)
    for index in 0..<byteCount {
      bytes[place + index] =
        UInt8(truncatingIfNeeded: value.words[index / 8] >> UInt64(index % 8 * 8))
    }
  }

  mutating func enqueue(
    _ address: UInt64, _ command: VectorValue
  ) throws(AccessFault) -> Bool {
    _ = try place(address, 64, isStore: true)
    enqueued = command
    return takes
  }
}

struct ModelVectors: VectorState {
  var state: native_state

  mutating func read(_ number: Int) -> VectorValue {
    var value = VectorValue()
    withUnsafeBytes(of: state.vectors) {
      for word in 0..<8 {
        value.words[word] = $0.load(fromByteOffset: number * 64 + word * 8, as: UInt64.self)
      }
    }
    return value
  }

  mutating func write(_ number: Int, _ value: VectorValue) {
    withUnsafeMutableBytes(of: &state.vectors) {
      for word in 0..<8 {
        $0.storeBytes(
          of: value.words[word], toByteOffset: number * 64 + word * 8, as: UInt64.self)
      }
    }
  }

  mutating func readMask(_ number: Int) -> UInt64 {
    withUnsafeBytes(of: state.masks) { $0.load(fromByteOffset: number * 8, as: UInt64.self) }
  }

  mutating func writeMask(_ number: Int, _ value: UInt64) {
    withUnsafeMutableBytes(of: &state.masks) {
      $0.storeBytes(of: value, toByteOffset: number * 8, as: UInt64.self)
    }
  }

  mutating func readStatus() -> UInt32 { state.mxcsr }
  mutating func writeStatus(_ value: UInt32) { state.mxcsr = value }
}
