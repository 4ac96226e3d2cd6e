// SPDX-License-Identifier: Apache-2.0
//
// Addresses of every form that ModRM and SIB have, made to reach one place.

import CNativeInstructions
import FuzzSupport

struct AddressBuilder {
  enum Kind: CaseIterable { case base, indexed, indexOnly, displacement, relative }

  let target: UInt64
  var implied: Set<Int>
  var instance: Instance
  var kind = Kind.base
  var prefixes: [UInt8] = []
  var segmentBase: UInt64 = 0
  var base = 0
  var index = 0
  var shift: UInt64 = 0
  var displacement: Int32 = 0
  /// High bits of index and base.
  var x: UInt8 = 0
  var b: UInt8 = 0

  init(target: UInt64, implied: Set<Int>, instance: Instance) {
    self.target = target
    self.implied = implied
    self.instance = instance
  }

  mutating func chooseSegment(_ random: inout Random) {
    switch Int.random(in: 0..<10, using: &random) {
    case 0 where !implied.contains(-1): prefixes.append(0x67)
    case 1: prefixes.append([0x26, 0x2E, 0x36, 0x3E].randomElement(using: &random)!)
    default: break
    }
  }

  mutating func choose(_ random: inout Random) {
    chooseSegment(&random)
    let is32Bit = prefixes.contains(0x67)
    kind = Kind.allCases.randomElement(using: &random)!
    if !is32Bit {
      switch Int.random(in: 0..<8, using: &random) {
      case 0 where kind == .base || kind == .indexed:
        prefixes.append(0x64)
        segmentBase = instance.fsBase
      case 1:
        prefixes.append(0x65)
        segmentBase = UInt64.random(in: 1..<1 << 40, using: &random)
        if kind != .base && kind != .indexed { segmentBase &= 0xFFFF }
        instance.state.gs_base = segmentBase
      default: break
      }
    }
    let free = (0..<16).filter { !implied.contains($0) }
    base = free.randomElement(using: &random)!
    index = free.filter { $0 != 4 && $0 != base }.randomElement(using: &random)!
    shift = UInt64.random(in: 0...3, using: &random)
    displacement =
      switch Int.random(in: 0..<3, using: &random) {
      case 0: 0
      case 1: Int32.random(in: -128...127, using: &random)
      default: Int32.random(in: .min ... .max, using: &random)
      }
    // What the registers and the displacement have to make, before the segment.
    let offset = target &- segmentBase
    let noise: UInt64 = is32Bit ? random.next() << 32 : 0
    let distance = UInt64(bitPattern: Int64(displacement))
    switch kind {
    case .base:
      instance[general: base] = (offset &- distance) & (is32Bit ? 0xFFFF_FFFF : .max) | noise
    case .indexed:
      let scaled = instance[general: index] << shift
      instance[general: base] =
        (offset &- distance &- scaled) & (is32Bit ? 0xFFFF_FFFF : .max) | noise
    case .indexOnly:
      displacement &= ~7
      let scaled = offset &- UInt64(bitPattern: Int64(displacement))
      let rest = scaled & 7
      displacement += Int32(rest)
      instance[general: index] = UInt64(
        bitPattern: Int64(bitPattern: scaled &- rest) >> Int64(shift))
      base = 0
    case .displacement, .relative: break
    }
    let usesIndex = kind == .indexed || kind == .indexOnly
    x = usesIndex && index >= 8 ? 1 : 0
    b = (kind == .base || kind == .indexed) && base >= 8 ? 1 : 0
  }

  /// ModRM, SIB and displacement. Addresses relative to rip need to know where they are.
  func modrm(
    register: UInt8, before: Int, after: Int, codeAddress: UInt64, displacementScale: Int,
    _ random: inout Random
  ) -> [UInt8] {
    func word(_ value: Int32) -> [UInt8] {
      (0..<4).map { UInt8(truncatingIfNeeded: value >> Int32($0 * 8)) }
    }
    let offset = target &- segmentBase
    let low = register << 3
    switch kind {
    case .displacement:
      return [low | 4, 0x25] + word(Int32(truncatingIfNeeded: Int64(bitPattern: offset)))
    case .relative:
      let next = codeAddress + UInt64(before + 5 + after)
      return [low | 5] + word(Int32(truncatingIfNeeded: Int64(bitPattern: offset &- next)))
    case .indexOnly:
      let sib = UInt8(shift) << 6 | UInt8(index & 7) << 3 | 5
      return [low | 4, sib] + word(displacement)
    case .base, .indexed:
      var mode: UInt8 = 2
      var tail = word(displacement)
      let scale = Int32(displacementScale)
      if displacement == 0 && base & 7 != 5 {
        mode = 0
        tail = []
      } else if displacement % scale == 0, -128...127 ~= displacement / scale {
        mode = 1
        tail = [UInt8(bitPattern: Int8(displacement / scale))]
      }
      if kind == .base && base & 7 != 4 {
        return [mode << 6 | low | UInt8(base & 7)] + tail
      }
      let place = kind == .indexed ? UInt8(index & 7) << 3 : 4 << 3
      return [mode << 6 | low | 4, UInt8(shift) << 6 | place | UInt8(base & 7)] + tail
    }
  }
}
