// SPDX-License-Identifier: Apache-2.0
//
// The forms that compute with vector registers: every encoding that the decoder takes, so that the
// processor says whether there is such an instruction, and what it does.

import CNativeInstructions
import FuzzSupport

@testable import X86Instructions

extension Form {
  /// An encoding without registers and addresses.
  struct VectorEncoding: Sendable {
    enum Kind: String, CaseIterable {
      case legacy = ""
      case vex = "v"
      case evex
    }
    var kind: Kind
    var map: UInt8
    var prefix: UInt8
    var opcode: UInt8
    var wide = false
    /// 0, 1 and 2 are 16, 32 and 64 bytes.
    var length: UInt8 = 0
    var repeats = false
    /// What ModRM's register is, where it belongs to the opcode.
    var digit: UInt8?

    /// One instance, with a memory operand at rsi: of mask register 1, or none.
    func bytes(mask: UInt8 = 0, zeroes: Bool = false) -> [UInt8] {
      let modrm = (digit ?? 0) << 3 | 6
      let second: UInt8 = 0x78
      switch kind {
      case .legacy:
        let prefixes: [UInt8] = [[], [0x66], [0xF3], [0xF2]][Int(prefix)]
        let escape: [UInt8] = [[0x0F], [0x0F, 0x38], [0x0F, 0x3A]][Int(map) - 1]
        return prefixes + (wide ? [0x48] : []) + escape + [opcode, modrm]
      case .vex:
        let last = (wide ? 0x80 : 0) | second | length << 2 | prefix
        return [0xC4, 0xE0 | map, last, opcode, modrm]
      case .evex:
        let tail = (zeroes ? 0x80 : 0) | length << 5 | (repeats ? 0x10 : 0) | 8 | mask
        return [
          0x62, 0xF0 | map, (wide ? 0x80 : 0) | second | 4 | prefix, tail, opcode, modrm,
        ]
      }
    }

    static let all: [VectorEncoding] = {
      var all: [VectorEncoding] = []
      for kind in Kind.allCases {
        for map: UInt8 in 1...3 {
          for prefix: UInt8 in 0...3 {
            // Of 0F, 38 and 3A lead to the other maps.
            for opcode: UInt8 in 0...255
            where kind != .legacy || map > 1 || opcode != 0x38 && opcode != 0x3A {
              for wide in [false, true] {
                for length: UInt8 in 0...(kind == .legacy ? 0 : kind == .vex ? 1 : 2) {
                  for repeats in [false, true] where !repeats || kind == .evex {
                    var encoding = VectorEncoding(
                      kind: kind, map: map, prefix: prefix, opcode: opcode, wide: wide,
                      length: length, repeats: repeats)
                    guard map == 1, 0x71...0x73 ~= opcode else {
                      all.append(encoding)
                      continue
                    }
                    for digit: UInt8 in 0...7 {
                      encoding.digit = digit
                      all.append(encoding)
                    }
                  }
                }
              }
            }
          }
        }
      }
      return all
    }()
  }

  static let vectorFunctions: [Form] = VectorEncoding.all.compactMap { form($0) }

  private static func decode(_ bytes: [UInt8]) -> Instruction? {
    try? Instruction.decode((bytes + [0, 0, 0, 0]).span)
  }

  /// What is moved is in the other table, but for what EVEX alone moves.
  private static func isComputed(_ instruction: Instruction, _ encoding: VectorEncoding) -> Bool
  {
    switch instruction.operation {
    case .vectorCombine, .vectorCompare, .vectorNarrow, .vectorConvert, .maskLoad, .maskStore:
      true
    case .vectorStore, .vectorInsert: encoding.kind == .evex && encoding.map == 3
    default: false
    }
  }

  private static func form(_ encoding: VectorEncoding) -> Form? {
    let bytes = encoding.bytes()
    guard let instruction = decode(bytes), isComputed(instruction, encoding) else { return nil }
    let isString = instruction.isStringComparison
    var form = Form(
      name: "\(encoding.kind) map \(encoding.map) \(encoding.prefix) "
        + "0x\(String(encoding.opcode, radix: 16)) W\(encoding.wide ? 1 : 0) "
        + "\(instruction.vector.length * 8) of \(instruction.width * 8)",
      opcode: [encoding.opcode], field: .vector, width: instruction.width,
      immediate: instruction.length - bytes.count,
      alignment: instruction.vector.isAligned ? 16 : 1, implied: isString ? [0, 1, 2] : [])
    if let digit = encoding.digit { form.field = .digit(digit) }
    switch instruction.operation {
    case .maskLoad, .maskStore: form.field = .mask
    case .vectorCompare where encoding.kind == .evex: form.field = .mask
    default: break
    }
    // Where there is one, the decoder takes others than 15.
    var second = bytes
    second[2] ^= 0x08
    switch encoding.kind {
    case .legacy:
      form.encoding = .legacy
      form.prefixes = [[], [0x66], [0xF3], [0xF2]][Int(encoding.prefix)]
      form.opcode = [[0x0F], [0x0F, 0x38], [0x0F, 0x3A]][Int(encoding.map) - 1] + form.opcode
      form.wide = encoding.wide
    case .vex:
      form.encoding = .vex(
        map: encoding.map, prefix: encoding.prefix, wide: encoding.wide,
        length: encoding.length, source: decode(second) != nil)
      form.feature = native_avx2
    case .evex:
      form.encoding = .evex(
        map: encoding.map, prefix: encoding.prefix, wide: encoding.wide,
        length: encoding.length, masks: decode(encoding.bytes(mask: 1)) != nil,
        zeroes: decode(encoding.bytes(mask: 1, zeroes: true)) != nil,
        source: decode(second) != nil,
        repeats: encoding.repeats)
      // VPERMB, VPERMI2B, VPERMT2B.
      let isBytes =
        encoding.map == 2 && [0x75, 0x7D, 0x8D].contains(encoding.opcode) && !encoding.wide
      form.feature = isBytes ? native_vbmi : native_avx512
    }
    let isLegacy = encoding.kind == .legacy
    form.prepare = { instance, random in
      if isString {
        return prepareStrings(&instance, &random)
      }
      prepareNumbers(
        &instance, register: isLegacy ? instance.register : instance.source, &random)
    }
    return form
  }

  /// Memory that is like the register here and there, and small numbers: counts, equal elements.
  private static func prepareNumbers(
    _ instance: inout Instance, register: Int, _ random: inout Random
  ) {
    let way = Int.random(in: 0..<4, using: &random)
    guard way > 0 else { return }
    for word in 0..<8 {
      var value = instance.vectorWord(register, word)
      switch way {
      case 1: value = UInt64.random(in: 0...70, using: &random)
      case 2: value ^= 0xFF << UInt64(Int.random(in: 0..<8, using: &random) * 8)
      default: if random.bool() { value = 0x7FFF_8000_FF00_0180 }
      }
      instance.setMemory(value, 8, at: word * 8)
    }
  }

  /// Few letters, ends, and lengths in rax and rdx.
  private static func prepareStrings(_ instance: inout Instance, _ random: inout Random) {
    let letters: [UInt8] = [1, 2, 2, 3, 0x80, 0xFF]
    let least = random.bool() ? 0 : 1
    for place in 0..<16 {
      let isEnd = Int.random(in: 0..<12, using: &random) < 1 - least
      instance.data[instance.offset + place] =
        isEnd ? 0 : letters.randomElement(using: &random)!
      let letter =
        Int.random(in: 0..<12, using: &random) == 0
        ? 0 : letters.randomElement(using: &random)!
      withUnsafeMutableBytes(of: &instance.state.vectors) {
        $0[instance.register * 64 + place] = letter
      }
    }
    for register in [0, 2] {
      let count = Int64.random(in: -20...20, using: &random)
      instance[general: register] = UInt64(bitPattern: count)
    }
  }
}

extension Instruction {
  fileprivate var isStringComparison: Bool {
    if case .vectorCompare(.string) = operation { true } else { false }
  }
}

extension Instance {
  func vectorWord(_ register: Int, _ word: Int) -> UInt64 {
    withUnsafeBytes(of: state.vectors) {
      $0.load(fromByteOffset: register * 64 + word * 8, as: UInt64.self)
    }
  }
}
