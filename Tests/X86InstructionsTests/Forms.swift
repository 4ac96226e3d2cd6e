// SPDX-License-Identifier: Apache-2.0
//
// The forms of integer instructions.

import CNativeInstructions
import FuzzSupport

/// Bits of rflags.
enum Flag {
  static let carry: UInt64 = 1
  static let parity: UInt64 = 4
  static let adjust: UInt64 = 0x10
  static let zero: UInt64 = 0x40
  static let sign: UInt64 = 0x80
  static let overflow: UInt64 = 0x800
  static let status = carry | parity | adjust | zero | sign | overflow
}

extension Form {
  /// The sizes of operands that are not bytes: prefixes, REX.W, bytes.
  static let sizes: [(prefixes: [UInt8], wide: Bool, width: Int)] = [
    ([0x66], false, 2), ([], false, 4), ([], true, 8),
  ]

  /// `opcode` for bytes and `opcode` + 1 for the other sizes.
  static func all(
    _ name: String, _ opcode: [UInt8], _ field: Field? = nil, immediate: Int = 0,
    change: (inout Form) -> Void = { _ in }
  ) -> [Form] {
    var forms: [Form] = []
    var byte = Form(name: name + " 8", opcode: opcode, field: field ?? .byte, width: 1)
    byte.immediate = min(immediate, 1)
    forms.append(byte)
    var second = opcode
    second[second.count - 1] += 1
    forms += larger(name, second, field, immediate: immediate)
    for index in forms.indices { change(&forms[index]) }
    return forms
  }

  /// 16, 32 and 64 bits. `immediate` 4 means as many as the operand has, at most 4.
  static func larger(
    _ name: String, _ opcode: [UInt8], _ field: Field? = nil, immediate: Int = 0,
    change: (inout Form) -> Void = { _ in }
  ) -> [Form] {
    sizes.map { size in
      var form = Form(
        name: "\(name) \(size.width * 8)", prefixes: size.prefixes, wide: size.wide,
        opcode: opcode, field: field ?? .general, width: size.width)
      form.immediate = immediate == 4 ? min(size.width, 4) : immediate
      change(&form)
      return form
    }
  }

  static let logicUndefined: @Sendable (Instance) -> UInt64 = { _ in Flag.adjust }

  static let moves: [Form] = {
    var forms: [Form] = []
    forms += all("mov store", [0x88])
    forms += all("mov load", [0x8A])
    forms += all("mov immediate", [0xC6], .digit(0), immediate: 4)
    for opcode: UInt8 in [0xA0, 0xA2] {
      forms += all("mov absolute \(opcode)", [opcode], .digit(0)) { $0.operand = .absolute }
    }
    forms += larger("movzx 8 to", [0x0F, 0xB6]) { $0.width = 1 }
    forms += larger("movzx 16 to", [0x0F, 0xB7]) { $0.width = 2 }
    forms += larger("movsx 8 to", [0x0F, 0xBE]) { $0.width = 1 }
    forms += larger("movsx 16 to", [0x0F, 0xBF]) { $0.width = 2 }
    forms += larger("movsxd", [0x63]) { $0.width = min($0.width, 4) }
    for condition: UInt8 in 0..<16 {
      forms += larger("cmov \(condition)", [0x0F, 0x40 | condition])
      forms.append(
        Form(
          name: "set \(condition)", opcode: [0x0F, 0x90 | condition], field: .digit(0), width: 1
        ))
    }
    forms += larger("movbe load", [0x0F, 0x38, 0xF0]) { $0.feature = native_movbe }
    forms += larger("movbe store", [0x0F, 0x38, 0xF1]) { $0.feature = native_movbe }
    for (wide, width) in [(false, 4), (true, 8)] {
      forms.append(
        Form(name: "movnti \(width * 8)", wide: wide, opcode: [0x0F, 0xC3], width: width))
      forms.append(
        Form(
          name: "movdiri \(width * 8)", wide: wide, opcode: [0x0F, 0x38, 0xF9], width: width,
          feature: native_movdiri))
    }
    forms.append(
      Form(
        name: "xlat", opcode: [0xD7], field: .digit(0), operand: .implied, width: 1,
        prepare: { instance, _ in
          instance[general: 3] = instance.dataAddress + 128
        }))
    for opcode: UInt8 in [0x0D, 0x18, 0x1F] {
      forms.append(
        Form(name: "hint \(opcode)", opcode: [0x0F, opcode], field: .digit(0), width: 1))
    }
    forms.append(Form(name: "clflush", opcode: [0x0F, 0xAE], field: .digit(7), width: 1))
    return forms
  }()

  static let arithmetic: [Form] = {
    var forms: [Form] = []
    let names = ["add", "or", "adc", "sbb", "and", "sub", "xor", "cmp"]
    for (index, name) in names.enumerated() {
      let isLogic = [1, 4, 6].contains(index)
      let change: (inout Form) -> Void = { if isLogic { $0.undefined = logicUndefined } }
      let code = UInt8(index << 3)
      forms += all(name + " to memory", [code], change: change)
      forms += all(name + " to register", [code | 2], change: change)
      forms += all(
        name + " immediate", [0x80], .digit(UInt8(index)), immediate: 4, change: change)
      forms += larger(
        name + " immediate byte", [0x83], .digit(UInt8(index)), immediate: 1, change: change)
    }
    forms += all("test", [0x84]) { $0.undefined = logicUndefined }
    for digit: UInt8 in 0...1 {
      forms += all("test immediate \(digit)", [0xF6], .digit(digit), immediate: 4) {
        $0.undefined = logicUndefined
      }
    }
    forms += all("not", [0xF6], .digit(2))
    forms += all("neg", [0xF6], .digit(3))
    forms += all("inc", [0xFE], .digit(0))
    forms += all("dec", [0xFE], .digit(1))
    forms += all("xchg", [0x86])
    forms += all("xadd", [0x0F, 0xC0])
    forms += all("cmpxchg", [0x0F, 0xB0]) { form in
      let width = form.width
      form.implied = [0]
      form.prepare = { instance, random in
        if random.bool() { instance.setMemory(instance[general: 0], width) }
      }
    }
    // Locked, where that is allowed.
    forms += forms.filter {
      $0.name.contains("to memory") && !$0.name.contains("cmp ")
        || ["not", "neg", "inc", "dec", "xchg", "xadd", "cmpxchg"].contains { [form = $0] in
          form.name.hasPrefix($0)
        }
    }.map {
      var form = $0
      form.name = "lock " + form.name
      form.prefixes.append(0xF0)
      return form
    }
    for (wide, name) in [(false, "cmpxchg8b"), (true, "cmpxchg16b")] {
      let half = wide ? 8 : 4
      forms.append(
        Form(
          name: name, prefixes: [0xF0], wide: wide, opcode: [0x0F, 0xC7], field: .digit(1),
          width: half * 2, alignment: wide ? 16 : 1, implied: [0, 1, 2, 3],
          prepare: { instance, random in
            guard random.bool() else { return }
            instance.setMemory(instance[general: 0], half)
            instance.setMemory(instance[general: 2], half, at: half)
          }))
    }
    return forms
  }()

  static let bits: [Form] = {
    var forms: [Form] = []
    let names = ["bt", "bts", "btr", "btc"]
    for (index, name) in names.enumerated() {
      let undefined: @Sendable (Instance) -> UInt64 = { _ in
        Flag.overflow | Flag.sign | Flag.adjust | Flag.parity
      }
      for lock in [false, true] where !lock || index > 0 {
        let prefix: [UInt8] = lock ? [0xF0] : []
        forms += larger((lock ? "lock " : "") + name, [0x0F, 0xA3 | UInt8(index << 3)]) {
          form in
          form.prefixes += prefix
          form.undefined = undefined
          form.keepsRegister = true
          let width = form.width
          form.prepare = { instance, random in
            // Bits around the operand, above and below; what lies above its size is noise.
            let number = UInt64(bitPattern: Int64.random(in: -1000..<1000, using: &random))
            let mask: UInt64 = width == 8 ? .max : (1 << UInt64(width * 8)) - 1
            instance[general: instance.register & 15] = number & mask | random.next() & ~mask
          }
        }
        forms += larger(
          (lock ? "lock " : "") + name + " immediate", [0x0F, 0xBA], .digit(UInt8(index + 4)),
          immediate: 1
        ) {
          $0.prefixes += prefix
          $0.undefined = undefined
        }
      }
    }
    for digit: UInt8 in 0..<8 {
      let name = ["rol", "ror", "rcl", "rcr", "shl", "shr", "sal", "sar"][Int(digit)]
      for (place, count) in [(UInt8(0xC0), "immediate"), (0xD0, "1"), (0xD2, "cl")] {
        forms += all("\(name) \(count)", [place], .digit(digit)) { form in
          form.immediate = place == 0xC0 ? 1 : 0
          let width = form.width
          form.undefined = { instance in
            let given =
              place == 0xC0
              ? UInt64(instance.immediate[0]) : place == 0xD0 ? 1 : instance[general: 1] & 0xFF
            let count = given & (width == 8 ? 63 : 31)
            if count == 0 { return 0 }
            var mask = count == 1 ? 0 : Flag.overflow
            if digit >= 4 {
              mask |= Flag.adjust
              if digit != 7 && count > width * 8 { mask |= Flag.carry }
              if digit != 7 && count == width * 8 && width < 4 { mask |= Flag.carry }
            }
            return mask
          }
        }
      }
    }
    for (opcode, name) in [(UInt8(0xA4), "shld"), (0xAC, "shrd")] {
      for byRegister in [false, true] {
        forms += larger(
          name + (byRegister ? " cl" : " immediate"), [0x0F, opcode + (byRegister ? 1 : 0)],
          immediate: byRegister ? 0 : 1
        ) { form in
          let width = form.width
          form.implied = [1]
          form.prepare = { instance, random in
            // Counts above the operand's size leave everything undefined.
            let count = UInt8.random(in: 0...(width == 2 ? 16 : 255), using: &random)
            if byRegister {
              instance[general: 1] = instance[general: 1] & ~0xFF | UInt64(count)
            } else {
              instance.immediate = [count]
            }
          }
          form.undefined = { instance in
            let given =
              byRegister ? instance[general: 1] & 0xFF : UInt64(instance.immediate[0])
            let count = given & (width == 8 ? 63 : 31)
            return count == 0 ? 0 : Flag.adjust | (count == 1 ? 0 : Flag.overflow)
          }
        }
      }
    }
    return forms
  }()
}
