// SPDX-License-Identifier: Apache-2.0
//
// The forms that leave results in registers, move the stack or repeat.

import CNativeInstructions
import FuzzSupport

extension Form {
  static let toRegister: [Form] = {
    var forms: [Form] = []
    let productUndefined: @Sendable (Instance) -> UInt64 = { _ in
      Flag.sign | Flag.zero | Flag.adjust | Flag.parity
    }
    forms += all("mul", [0xF6], .digit(4)) { $0.undefined = productUndefined }
    forms += all("imul", [0xF6], .digit(5)) { $0.undefined = productUndefined }
    for digit: UInt8 in [6, 7] {
      forms += all(digit == 6 ? "div" : "idiv", [0xF6], .digit(digit)) { form in
        let width = form.width
        form.implied = [0, 2]
        form.undefined = { _ in Flag.status }
        form.prepare = { instance, random in
          // Quotients that fit, most of the time: a small dividend.
          guard Int.random(in: 0..<8, using: &random) > 0 else { return }
          let isNegative = digit == 7 && random.bool()
          let high: UInt64 = isNegative ? .max : 0
          if width == 1 {
            instance[general: 0] = instance[general: 0] & 0x7F | (isNegative ? 0xFF80 : 0)
          } else {
            instance[general: 2] = high
            if digit == 7 {
              let sign: UInt64 = 1 << UInt64(width * 8 - 1)
              let value = instance[general: 0] & ~sign
              instance[general: 0] = isNegative ? value | sign : value
            }
          }
        }
      }
    }
    forms += larger("imul register", [0x0F, 0xAF]) { $0.undefined = productUndefined }
    forms += larger("imul immediate", [0x69], immediate: 4) { $0.undefined = productUndefined }
    forms += larger("imul immediate byte", [0x6B], immediate: 1) {
      $0.undefined = productUndefined
    }
    forms += larger("bsf", [0x0F, 0xBC]) { $0.undefined = { _ in Flag.status & ~Flag.zero } }
    forms += larger("bsr", [0x0F, 0xBD]) { $0.undefined = { _ in Flag.status & ~Flag.zero } }
    for (opcode, feature, name) in [
      (UInt8(0xB8), native_popcnt, "popcnt"), (0xBC, native_bmi1, "tzcnt"),
      (0xBD, native_lzcnt, "lzcnt"),
    ] {
      forms += larger(name, [0x0F, opcode]) {
        $0.prefixes.append(0xF3)
        $0.feature = feature
        if opcode != 0xB8 {
          $0.undefined = { _ in Flag.overflow | Flag.sign | Flag.parity | Flag.adjust }
        }
      }
    }
    forms.append(
      Form(name: "crc32 8", prefixes: [0xF2], opcode: [0x0F, 0x38, 0xF0], width: 1))
    forms += larger("crc32", [0x0F, 0x38, 0xF1]) { $0.prefixes.append(0xF2) }
    for wide in [false, true] {
      for (prefix, name) in [(UInt8(0x66), "adcx"), (0xF3, "adox")] {
        forms.append(
          Form(
            name: name + (wide ? " 64" : " 32"), prefixes: [prefix], wide: wide,
            opcode: [0x0F, 0x38, 0xF6], width: wide ? 8 : 4, feature: native_adx))
      }
    }
    return forms + manipulations
  }()

  /// BMI1 and BMI2.
  private static let manipulations: [Form] = {
    var forms: [Form] = []
    for wide in [false, true] {
      func form(
        _ name: String, map: UInt8 = 2, _ prefix: UInt8, _ opcode: UInt8,
        _ field: Field = .general,
        source: Bool = true, immediate: Int = 0, feature: native_feature = native_bmi2,
        undefined: UInt64 = 0
      ) {
        forms.append(
          Form(
            name: name + (wide ? " 64" : " 32"),
            encoding: .vex(map: map, prefix: prefix, wide: wide, length: 0, source: source),
            opcode: [opcode], field: field, width: wide ? 8 : 4, immediate: immediate,
            undefined: { _ in undefined }, feature: feature))
      }
      let two = Flag.adjust | Flag.parity
      form("andn", 0, 0xF2, feature: native_bmi1, undefined: two)
      form("blsr", 0, 0xF3, .digit(1), feature: native_bmi1, undefined: two)
      form("blsmsk", 0, 0xF3, .digit(2), feature: native_bmi1, undefined: two)
      form("blsi", 0, 0xF3, .digit(3), feature: native_bmi1, undefined: two)
      form("bzhi", 0, 0xF5, undefined: two)
      form("pext", 2, 0xF5)
      form("pdep", 3, 0xF5)
      form("mulx", 3, 0xF6)
      form("bextr", 0, 0xF7, feature: native_bmi1, undefined: two | Flag.sign)
      form("shlx", 1, 0xF7)
      form("sarx", 2, 0xF7)
      form("shrx", 3, 0xF7)
      form("rorx", map: 3, 3, 0xF0, source: false, immediate: 1)
    }
    return forms
  }()

  static let transfers: [Form] = {
    var forms: [Form] = []
    @Sendable func stack(_ instance: inout Instance, _ random: inout Random) {
      instance[general: 4] = instance.dataAddress + UInt64.random(in: 8..<128, using: &random)
    }
    for (prefixes, width) in [([UInt8](), 8), ([0x66], 2)] {
      forms.append(
        Form(
          name: "push \(width * 8)", prefixes: prefixes, opcode: [0xFF], field: .digit(6),
          width: width, implied: [4], prepare: { stack(&$0, &$1) }))
      forms.append(
        Form(
          name: "pop \(width * 8)", prefixes: prefixes, opcode: [0x8F], field: .digit(0),
          width: width, implied: [4], prepare: { stack(&$0, &$1) }))
    }
    for (digit, name) in [(UInt8(2), "call"), (4, "jmp")] {
      forms.append(
        Form(
          name: name, opcode: [0xFF], field: .digit(digit), width: 8, implied: [4],
          prepare: {
            stack(&$0, &$1)
            $0.setMemory($0.endAddress, 8)
          }))
    }
    return forms
  }()

  static let strings: [Form] = {
    var forms: [Form] = []
    let kinds: [(UInt8, String)] = [
      (0xA4, "movs"), (0xA6, "cmps"), (0xAA, "stos"), (0xAC, "lods"), (0xAE, "scas"),
    ]
    for (opcode, name) in kinds {
      for (prefix, prefixName) in [(UInt8(0), ""), (0xF3, "rep "), (0xF2, "repne ")] {
        forms += all(prefixName + name, [opcode], .digit(0)) { form in
          form.operand = .implied
          form.implied = [6, 7]
          if prefix != 0 { form.prefixes.append(prefix) }
          let width = form.width
          form.prepare = { instance, random in
            let isDown = random.bool()
            if isDown { instance.state.rflags |= 0x400 }
            let start = UInt64(isDown ? 320 : 40)
            for register in [6, 7] {
              instance[general: register] =
                instance.dataAddress + start + UInt64.random(in: 0..<32, using: &random)
            }
            instance[general: 1] = UInt64.random(in: 0..<20, using: &random)
            // Memory that compares equal for a while.
            if opcode == 0xA6 || opcode == 0xAE {
              let value = UInt8.random(in: 0...255, using: &random)
              let isEqual = random.bool()
              for index in instance.data.indices where !isEqual || index % 61 != 0 {
                if isEqual { instance.data[index] = value }
              }
              if isEqual && random.bool() {
                instance[general: 0] = 0x0101_0101_0101_0101 &* UInt64(value)
              }
            }
          }
        }
      }
    }
    return forms
  }()
}
