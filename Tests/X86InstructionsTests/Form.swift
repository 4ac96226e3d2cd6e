// SPDX-License-Identifier: Apache-2.0
//
// A form of an instruction, as tests make it: its bytes, with a memory operand of every kind.

import CNativeInstructions
import FuzzSupport

/// One form: all of its instances differ in registers, addresses and values only.
struct Form: Sendable, CustomStringConvertible {
  enum Encoding: Sendable {
    case legacy
    /// `source`: whether its second operand is a register.
    case vex(map: UInt8, prefix: UInt8, wide: Bool, length: UInt8, source: Bool)
    /// `zeroes`: whether elements that are masked out can become zero. `repeats`: memory is one
    /// element.
    case evex(
      map: UInt8, prefix: UInt8, wide: Bool, length: UInt8, masks: Bool, zeroes: Bool,
      source: Bool = false, repeats: Bool = false)
  }
  /// What the register field of ModRM is.
  enum Field: Sendable, Equatable {
    case general, byte, vector, mask
    case digit(UInt8)
  }
  enum Operand: Sendable { case modrm, absolute, implied }

  var name: String
  var prefixes: [UInt8] = []
  var encoding = Encoding.legacy
  var wide = false
  var opcode: [UInt8]
  var field = Field.general
  var operand = Operand.modrm
  /// Bytes of memory.
  var width: Int
  var immediate = 0
  var alignment = 1
  /// Registers that the instruction uses unsaid: no part of the address.
  var implied: Set<Int> = []
  /// Whether the register operand has to keep what `prepare` gave it.
  var keepsRegister = false
  var undefined: @Sendable (Instance) -> UInt64 = { _ in 0 }
  var feature: native_feature?
  var prepare: @Sendable (inout Instance, inout Random) -> Void = { _, _ in }

  var description: String { name }
}

/// One instruction with all that it meets.
struct Instance {
  var bytes: [UInt8] = []
  var state = native_state()
  var data: [UInt8] = []
  /// Of the operand, within `data`.
  var offset = 0
  /// The register field, 0 to 31, and the second operand.
  var register = 0
  var source = 0
  var immediate: [UInt8] = []
  var fsBase: UInt64 = 0
  var dataAddress: UInt64 = 0
  var endAddress: UInt64 = 0

  subscript(general index: Int) -> UInt64 {
    get {
      withUnsafeBytes(of: state.general) { $0.load(fromByteOffset: index * 8, as: UInt64.self) }
    }
    set {
      withUnsafeMutableBytes(of: &state.general) {
        $0.storeBytes(of: newValue, toByteOffset: index * 8, as: UInt64.self)
      }
    }
  }

  /// Little-endian, up to 8 bytes of the memory operand.
  func memory(_ byteCount: Int, at place: Int = 0) -> UInt64 {
    (0..<byteCount).reduce(0) { $0 | UInt64(data[offset + place + $1]) << UInt64($1 * 8) }
  }

  mutating func setMemory(_ value: UInt64, _ byteCount: Int, at place: Int = 0) {
    for index in 0..<byteCount {
      data[offset + place + index] = UInt8(truncatingIfNeeded: value >> UInt64(index * 8))
    }
  }
}

extension Form {
  static let dataBytes = 512

  /// A random instance: `data` lies at `dataAddress`, the instruction at `codeAddress`.
  func instance(
    dataAddress: UInt64, codeAddress: UInt64, _ random: inout Random
  ) -> Instance {
    var instance = Instance()
    var data = [UInt8](repeating: 0, count: Self.dataBytes)
    native_fill(&data, UInt64(data.count), random.next())
    if Int.random(in: 0..<4, using: &random) == 0 {
      // Some memory of zeros and ones, where flags change.
      let word: UInt64 = [0, .max, 1 << 63, 1, 0x80, 0x8000_0000].randomElement(using: &random)!
      for index in 160..<336 {
        data[index] = UInt8(truncatingIfNeeded: word >> UInt64(index % 8 * 8))
      }
    }
    instance.data = data
    instance.offset = Int.random(in: 160..<320, using: &random) / alignment * alignment
    for index in 0..<16 {
      let value = random.next()
      instance[general: index] =
        value & 7 == 0 ? [0, .max, 1, 1 << 63][Int(value >> 3 & 3)] : value
    }
    instance.state.rflags = random.next() & 0x8D5 | 2
    // All ways to round, and now and then one who wants to be told.
    instance.state.mxcsr = 0x0F80 | UInt32(random.next() & 0x603F)
    if random.next() & 7 != 0 {
      instance.state.mxcsr |= 0x1000
    } else {
      instance.state.mxcsr &= ~0x20
    }
    fillVectors(&instance, &random)
    instance.fsBase = native_fs_base()
    instance.dataAddress = dataAddress
    instance.endAddress = codeAddress + 0x400
    choose(&instance, &random)
    prepare(&instance, &random)
    encode(&instance, dataAddress: dataAddress, codeAddress: codeAddress, &random)
    return instance
  }

  var usesVectors: Bool {
    if case .evex = encoding { return true }
    return field == .vector || field == .mask
  }

  private func fillVectors(_ instance: inout Instance, _ random: inout Random) {
    guard usesVectors else { return }
    let level = native_vector_level()
    let words = [2, 4, 8][Int(level)]
    let count = level == 2 ? 32 : 16
    if words == 8 {
      native_fill(&instance.state.vectors, UInt64(count * 64), random.next())
      native_fill(&instance.state.masks, 64, random.next())
    } else {
      withUnsafeMutableBytes(of: &instance.state.vectors) { bytes in
        for register in 0..<count {
          native_fill(bytes.baseAddress! + register * 64, UInt64(words * 8), random.next())
        }
      }
    }
  }

  /// Registers and immediate.
  private func choose(_ instance: inout Instance, _ random: inout Random) {
    let isEVEX = if case .evex = encoding { true } else { false }
    instance.register = Int.random(
      in: 0..<(isEVEX && field == .vector ? 32 : 16), using: &random)
    if field == .mask { instance.register &= 7 }
    if case .digit(let digit) = field { instance.register = Int(digit) }
    instance.source = Int.random(in: 0..<(isEVEX ? 32 : 16), using: &random)
    instance.immediate = (0..<immediate).map { _ in UInt8.random(in: 0...255, using: &random) }
  }

  private func encode(
    _ instance: inout Instance, dataAddress: UInt64, codeAddress: UInt64,
    _ random: inout Random
  ) {
    var address = AddressBuilder(
      target: dataAddress + UInt64(instance.offset), implied: implied, instance: instance)
    if operand == .modrm {
      if keepsRegister { address.implied.insert(instance.register & 15) }
      address.choose(&random)
    } else {
      address.chooseSegment(&random)
    }
    var bytes = address.prefixes
    bytes += prefixes.shuffled(using: &random)
    let register = UInt8(instance.register)
    var displacementScale = 1
    switch encoding {
    case .legacy:
      let rex: UInt8 =
        (wide ? 8 : 0) | (register & 8 != 0 ? 4 : 0) | address.x << 1 | address.b
      if rex != 0 || random.bool() { bytes.append(0x40 | rex) }
      // ah to bh: registers 4 to 7 of a byte instruction that has no REX.
      bytes += opcode
    case .vex(let map, let prefix, let wide, let length, let source):
      let second = source ? UInt8(instance.source) : 0
      let tail = (~second & 15) << 3 | length << 2 | prefix
      let r: UInt8 = register & 8 != 0 ? 0 : 0x80
      if map == 1, !wide, address.x == 0, address.b == 0, random.bool() {
        bytes += [0xC5, r | tail]
      } else {
        let x: UInt8 = address.x != 0 ? 0 : 0x40
        let b: UInt8 = address.b != 0 ? 0 : 0x20
        bytes += [0xC4, r | x | b | map, (wide ? 0x80 : 0) | tail]
      }
      bytes += opcode
    case .evex(
      let map, let prefix, let wide, let length, let masks, let zeroes, let source, let repeats):
      var p0: UInt8 = map
      p0 |= register & 8 != 0 ? 0 : 0x80
      p0 |= register & 16 != 0 ? 0 : 0x10
      p0 |= (address.x != 0 ? 0 : 0x40) | (address.b != 0 ? 0 : 0x20)
      let mask: UInt8 = masks && random.bool() ? UInt8.random(in: 1...7, using: &random) : 0
      let second = source ? UInt8(instance.source) : 0
      let p1 = (wide ? 0x80 : 0) | (~second & 15) << 3 | 4 | prefix
      var p2 = length << 5 | (second & 16 != 0 ? 0 : 8) | mask
      if repeats { p2 |= 0x10 }
      if mask != 0 && zeroes && random.bool() { p2 |= 0x80 }
      bytes += [0x62, p0, p1, p2]
      bytes += opcode
      displacementScale = width
    }
    switch operand {
    case .modrm:
      bytes += address.modrm(
        register: register & 7, before: bytes.count, after: immediate, codeAddress: codeAddress,
        displacementScale: displacementScale, &random)
    case .absolute:
      let is32Bit = address.prefixes.contains(0x67)
      let target = dataAddress + UInt64(instance.offset) &- address.segmentBase
      let place = is32Bit ? dataAddress + UInt64(instance.offset) : target
      bytes += (0..<(is32Bit ? 4 : 8)).map {
        UInt8(truncatingIfNeeded: place >> UInt64($0 * 8))
      }
    case .implied: break
    }
    bytes += instance.immediate
    instance.bytes = bytes
    instance.state = address.instance.state
  }
}
