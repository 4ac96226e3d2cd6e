// SPDX-License-Identifier: Apache-2.0
//
// The forms that move vector registers.

import CNativeInstructions
import FuzzSupport

extension Form {
  private struct Move {
    var name: String
    var map: UInt8 = 1
    var prefix: UInt8
    var opcode: UInt8
    /// Bytes of memory; 0 is all of the register.
    var width = 0
    var isAligned = false
    var immediate = 0
    /// Whether VEX has a second operand.
    var hasSource = false
    /// Whether W says 8 bytes in place of 4.
    var isWide = false
    var longs = [0, 1]
    var legacy = true
    var feature: native_feature?
    var evex: (wide: Bool, masks: Bool)?
    /// Its EVEX prefix, where it differs.
    var evexOnly = false
  }

  private static let table: [Move] = [
    Move(name: "movups load", prefix: 0, opcode: 0x10, evex: (false, true)),
    Move(name: "movups store", prefix: 0, opcode: 0x11, evex: (false, true)),
    Move(name: "movupd load", prefix: 1, opcode: 0x10, evex: (true, true)),
    Move(name: "movupd store", prefix: 1, opcode: 0x11, evex: (true, true)),
    Move(
      name: "movss load", prefix: 2, opcode: 0x10, width: 4, longs: [0], evex: (false, true)),
    Move(
      name: "movss store", prefix: 2, opcode: 0x11, width: 4, longs: [0], evex: (false, true)),
    Move(name: "movsd load", prefix: 3, opcode: 0x10, width: 8, longs: [0], evex: (true, true)),
    Move(
      name: "movsd store", prefix: 3, opcode: 0x11, width: 8, longs: [0], evex: (true, true)),
    Move(name: "movlps load", prefix: 0, opcode: 0x12, width: 8, hasSource: true, longs: [0]),
    Move(name: "movlps store", prefix: 0, opcode: 0x13, width: 8, longs: [0]),
    Move(name: "movlpd load", prefix: 1, opcode: 0x12, width: 8, hasSource: true, longs: [0]),
    Move(name: "movlpd store", prefix: 1, opcode: 0x13, width: 8, longs: [0]),
    Move(name: "movhps load", prefix: 0, opcode: 0x16, width: 8, hasSource: true, longs: [0]),
    Move(name: "movhps store", prefix: 0, opcode: 0x17, width: 8, longs: [0]),
    Move(name: "movhpd load", prefix: 1, opcode: 0x16, width: 8, hasSource: true, longs: [0]),
    Move(name: "movhpd store", prefix: 1, opcode: 0x17, width: 8, longs: [0]),
    Move(name: "movddup", prefix: 3, opcode: 0x12, width: 8, longs: [0]),
    Move(name: "movddup 256", prefix: 3, opcode: 0x12, longs: [1], legacy: false),
    Move(name: "movsldup", prefix: 2, opcode: 0x12, isAligned: true),
    Move(name: "movshdup", prefix: 2, opcode: 0x16, isAligned: true),
    Move(name: "movaps load", prefix: 0, opcode: 0x28, isAligned: true, evex: (false, true)),
    Move(name: "movaps store", prefix: 0, opcode: 0x29, isAligned: true, evex: (false, true)),
    Move(name: "movapd load", prefix: 1, opcode: 0x28, isAligned: true, evex: (true, true)),
    Move(name: "movapd store", prefix: 1, opcode: 0x29, isAligned: true, evex: (true, true)),
    Move(name: "movntps", prefix: 0, opcode: 0x2B, isAligned: true, evex: (false, false)),
    Move(name: "movntpd", prefix: 1, opcode: 0x2B, isAligned: true, evex: (true, false)),
    Move(
      name: "movd load", prefix: 1, opcode: 0x6E, width: 4, longs: [0], evex: (false, false)),
    Move(
      name: "movd store", prefix: 1, opcode: 0x7E, width: 4, longs: [0], evex: (false, false)),
    Move(
      name: "movq load", prefix: 1, opcode: 0x6E, width: 8, isWide: true, longs: [0],
      evex: (true, false)),
    Move(
      name: "movq store", prefix: 1, opcode: 0x7E, width: 8, isWide: true, longs: [0],
      evex: (true, false)),
    Move(
      name: "movq load 7E", prefix: 2, opcode: 0x7E, width: 8, longs: [0], evex: (true, false)),
    Move(
      name: "movq store D6", prefix: 1, opcode: 0xD6, width: 8, longs: [0], evex: (true, false)),
    Move(name: "movdqa load", prefix: 1, opcode: 0x6F, isAligned: true, evex: (false, true)),
    Move(name: "movdqa store", prefix: 1, opcode: 0x7F, isAligned: true, evex: (false, true)),
    Move(name: "movdqu load", prefix: 2, opcode: 0x6F, evex: (false, true)),
    Move(name: "movdqu store", prefix: 2, opcode: 0x7F, evex: (false, true)),
    Move(
      name: "vmovdqa64 load", prefix: 1, opcode: 0x6F, isAligned: true, evex: (true, true),
      evexOnly: true),
    Move(
      name: "vmovdqa64 store", prefix: 1, opcode: 0x7F, isAligned: true, evex: (true, true),
      evexOnly: true),
    Move(name: "vmovdqu64 load", prefix: 2, opcode: 0x6F, evex: (true, true), evexOnly: true),
    Move(name: "vmovdqu64 store", prefix: 2, opcode: 0x7F, evex: (true, true), evexOnly: true),
    Move(name: "vmovdqu8 load", prefix: 3, opcode: 0x6F, evex: (false, true), evexOnly: true),
    Move(name: "vmovdqu8 store", prefix: 3, opcode: 0x7F, evex: (false, true), evexOnly: true),
    Move(name: "vmovdqu16 load", prefix: 3, opcode: 0x6F, evex: (true, true), evexOnly: true),
    Move(name: "vmovdqu16 store", prefix: 3, opcode: 0x7F, evex: (true, true), evexOnly: true),
    Move(name: "movntdq", prefix: 1, opcode: 0xE7, isAligned: true, evex: (false, false)),
    Move(name: "lddqu", prefix: 3, opcode: 0xF0),
    Move(
      name: "movntdqa", map: 2, prefix: 1, opcode: 0x2A, isAligned: true, evex: (false, false)),
    Move(
      name: "pinsrw", prefix: 1, opcode: 0xC4, width: 2, immediate: 1, hasSource: true,
      longs: [0]),
    Move(
      name: "pinsrb", map: 3, prefix: 1, opcode: 0x20, width: 1, immediate: 1, hasSource: true,
      longs: [0]),
    Move(
      name: "pinsrd", map: 3, prefix: 1, opcode: 0x22, width: 4, immediate: 1, hasSource: true,
      longs: [0]),
    Move(
      name: "pinsrq", map: 3, prefix: 1, opcode: 0x22, width: 8, immediate: 1, hasSource: true,
      isWide: true, longs: [0]),
    Move(name: "pextrb", map: 3, prefix: 1, opcode: 0x14, width: 1, immediate: 1, longs: [0]),
    Move(name: "pextrw", map: 3, prefix: 1, opcode: 0x15, width: 2, immediate: 1, longs: [0]),
    Move(name: "pextrd", map: 3, prefix: 1, opcode: 0x16, width: 4, immediate: 1, longs: [0]),
    Move(
      name: "pextrq", map: 3, prefix: 1, opcode: 0x16, width: 8, immediate: 1, isWide: true,
      longs: [0]),
    Move(
      name: "extractps", map: 3, prefix: 1, opcode: 0x17, width: 4, immediate: 1, longs: [0]),
    Move(
      name: "vinsertf128", map: 3, prefix: 1, opcode: 0x18, width: 16, immediate: 1,
      hasSource: true, longs: [1], legacy: false),
    Move(
      name: "vinserti128", map: 3, prefix: 1, opcode: 0x38, width: 16, immediate: 1,
      hasSource: true, longs: [1], legacy: false, feature: native_avx2),
    Move(
      name: "vextractf128", map: 3, prefix: 1, opcode: 0x19, width: 16, immediate: 1,
      longs: [1],
      legacy: false),
    Move(
      name: "vextracti128", map: 3, prefix: 1, opcode: 0x39, width: 16, immediate: 1,
      longs: [1],
      legacy: false, feature: native_avx2),
    Move(name: "vbroadcastss", map: 2, prefix: 1, opcode: 0x18, width: 4, legacy: false),
    Move(
      name: "vbroadcastsd", map: 2, prefix: 1, opcode: 0x19, width: 8, longs: [1], legacy: false
    ),
    Move(
      name: "vbroadcastf128", map: 2, prefix: 1, opcode: 0x1A, width: 16, longs: [1],
      legacy: false),
    Move(
      name: "vbroadcasti128", map: 2, prefix: 1, opcode: 0x5A, width: 16, longs: [1],
      legacy: false, feature: native_avx2),
    Move(
      name: "vpbroadcastd", map: 2, prefix: 1, opcode: 0x58, width: 4, legacy: false,
      feature: native_avx2),
    Move(
      name: "vpbroadcastq", map: 2, prefix: 1, opcode: 0x59, width: 8, legacy: false,
      feature: native_avx2),
    Move(
      name: "vpbroadcastb", map: 2, prefix: 1, opcode: 0x78, width: 1, legacy: false,
      feature: native_avx2),
    Move(
      name: "vpbroadcastw", map: 2, prefix: 1, opcode: 0x79, width: 2, legacy: false,
      feature: native_avx2),
    Move(
      name: "vmaskmovps load", map: 2, prefix: 1, opcode: 0x2C, hasSource: true, legacy: false),
    Move(
      name: "vmaskmovpd load", map: 2, prefix: 1, opcode: 0x2D, hasSource: true, legacy: false),
    Move(
      name: "vmaskmovps store", map: 2, prefix: 1, opcode: 0x2E, hasSource: true, legacy: false),
    Move(
      name: "vmaskmovpd store", map: 2, prefix: 1, opcode: 0x2F, hasSource: true, legacy: false),
    Move(
      name: "vpmaskmovd load", map: 2, prefix: 1, opcode: 0x8C, hasSource: true, legacy: false,
      feature: native_avx2),
    Move(
      name: "vpmaskmovd store", map: 2, prefix: 1, opcode: 0x8E, hasSource: true, legacy: false,
      feature: native_avx2),
    Move(
      name: "vpmaskmovq load", map: 2, prefix: 1, opcode: 0x8C, hasSource: true, isWide: true,
      legacy: false, feature: native_avx2),
    Move(
      name: "vpmaskmovq store", map: 2, prefix: 1, opcode: 0x8E, hasSource: true, isWide: true,
      legacy: false, feature: native_avx2),
  ]

  static let vectors: [Form] = table.flatMap { forms($0) } + special

  private static func forms(_ move: Move) -> [Form] {
    var forms: [Form] = []
    if move.legacy && !move.evexOnly {
      let prefixes: [UInt8] = [[], [0x66], [0xF3], [0xF2]][Int(move.prefix)]
      let escape: [UInt8] = [[0x0F], [0x0F, 0x38], [0x0F, 0x3A]][Int(move.map) - 1]
      let isAligned = move.isAligned
      forms.append(
        Form(
          name: move.name, prefixes: prefixes, wide: move.isWide,
          opcode: escape + [move.opcode],
          field: .vector, width: move.width == 0 ? 16 : move.width, immediate: move.immediate,
          alignment: isAligned ? 16 : 1))
    }
    for long in move.longs where !move.evexOnly {
      let all = long == 1 ? 32 : 16
      let isAligned = move.isAligned && !move.name.hasSuffix("dup")
      forms.append(
        Form(
          name: "v\(move.name) \(all * 8)",
          encoding: .vex(
            map: move.map, prefix: move.prefix, wide: move.isWide, length: UInt8(long),
            source: move.hasSource),
          opcode: [move.opcode], field: .vector, width: move.width == 0 ? all : move.width,
          immediate: move.immediate, alignment: isAligned ? all : 1,
          feature: move.feature ?? (long == 1 && move.opcode == 0x2A ? native_avx2 : native_avx)
        ))
    }
    guard let evex = move.evex else { return forms }
    let isStore = move.opcode & 1 != 0 && move.opcode != 0x6F || move.opcode == 0x7F
    for long in move.width == 0 ? [0, 1, 2] : [0] {
      let all = 16 << long
      forms.append(
        Form(
          name: "evex \(move.name) \(all * 8)",
          encoding: .evex(
            map: move.map, prefix: move.prefix, wide: evex.wide, length: UInt8(long),
            masks: evex.masks, zeroes: !isStore),
          opcode: [move.opcode], field: .vector, width: move.width == 0 ? all : move.width,
          alignment: move.isAligned ? all : 1, feature: native_avx512))
    }
    return forms
  }

  private static let special: [Form] = [
    Form(
      name: "movntss", prefixes: [0xF3], opcode: [0x0F, 0x2B], field: .vector, width: 4,
      feature: native_sse4a),
    Form(
      name: "movntsd", prefixes: [0xF2], opcode: [0x0F, 0x2B], field: .vector, width: 8,
      feature: native_sse4a),
    Form(
      name: "maskmovdqu", prefixes: [0x66], opcode: [0x0F, 0xF7, 0xD3], field: .digit(0),
      operand: .implied, width: 16,
      prepare: { instance, random in
        instance[general: 7] = instance.dataAddress + UInt64.random(in: 0..<256, using: &random)
        withUnsafeMutableBytes(of: &instance.state.vectors) { bytes in
          for register in [2, 3] {
            for word in 0..<2 {
              bytes.storeBytes(
                of: random.next(), toByteOffset: register * 64 + word * 8, as: UInt64.self)
            }
          }
        }
      }),
  ]
}
