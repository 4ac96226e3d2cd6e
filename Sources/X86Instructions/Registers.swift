// SPDX-License-Identifier: Apache-2.0
//
// What an instruction changes of a thread: its general registers, its flags, and where it goes on.

/// A thread's general registers, as the instruction finds and leaves them.
public struct Registers: Sendable {
  /// In the order of their encoding: rax rcx rdx rbx rsp rbp rsi rdi r8 … r15.
  public var general: InlineArray<16, UInt64>
  /// Of the instruction; after it, of the next.
  public var rip: UInt64
  public var rflags: UInt64
  public var fsBase: UInt64
  public var gsBase: UInt64

  /// All zero, but for the bit of `rflags` that is always one.
  public init() {
    general = InlineArray(repeating: 0)
    rip = 0
    rflags = 2
    fsBase = 0
    gsBase = 0
  }
}

/// Bits of `rflags`. Intel SDM volume 1, 3.4.3.
enum Flags {
  static let carry: UInt64 = 1 << 0
  static let parity: UInt64 = 1 << 2
  static let adjust: UInt64 = 1 << 4
  static let zero: UInt64 = 1 << 6
  static let sign: UInt64 = 1 << 7
  static let direction: UInt64 = 1 << 10
  static let overflow: UInt64 = 1 << 11
  /// Set in what a fault saves, clear once the instruction is through.
  static let resume: UInt64 = 1 << 16
  /// What arithmetic sets.
  static let status = carry | parity | adjust | zero | sign | overflow
}

/// A general register as an instruction names it: 0 to 15 in encoding order, and from 16 on
/// bits 8 to 15 of the first four (ah ch dh bh), which byte instructions without REX reach.
struct RegisterName: Equatable, Sendable {
  var number: UInt8

  static let accumulator = RegisterName(number: 0)
}

extension Registers {
  /// Index of a named register.
  enum Index {
    static let rax = 0
    static let rcx = 1
    static let rdx = 2
    static let rbx = 3
    static let rsp = 4
    static let rsi = 6
    static let rdi = 7
  }

  /// The low `byteCount` bytes of a register, zero-extended.
  func read(_ name: RegisterName, _ byteCount: Int) -> UInt64 {
    if name.number >= 16 { return general[Int(name.number & 3)] >> 8 & 0xFF }
    return general[Int(name.number)] & Width.mask(byteCount)
  }

  /// Writes as instructions do: 32 bits clear the upper half, 8 and 16 leave the rest.
  mutating func write(_ name: RegisterName, _ byteCount: Int, _ value: UInt64) {
    let index = Int(name.number & 15)
    switch byteCount {
    case 8: general[index] = value
    case 4: general[index] = value & 0xFFFF_FFFF
    case 2: general[index] = general[index] & ~0xFFFF | value & 0xFFFF
    default:
      let shift: UInt64 = name.number >= 16 ? 8 : 0
      let place = Int(name.number >= 16 ? name.number & 3 : name.number)
      general[place] = general[place] & ~(0xFF << shift) | (value & 0xFF) << shift
    }
  }

  /// Sets the flags of `mask` to those of `values`.
  mutating func setFlags(_ values: UInt64, of mask: UInt64) {
    rflags = rflags & ~mask | values & mask
  }

  /// Whether a condition code holds: the low four bits of Jcc, SETcc and CMOVcc.
  func holds(condition: UInt8) -> Bool {
    let sign = rflags & Flags.sign != 0
    let overflow = rflags & Flags.overflow != 0
    let zero = rflags & Flags.zero != 0
    let carry = rflags & Flags.carry != 0
    let result =
      switch condition >> 1 {
      case 0: overflow
      case 1: carry
      case 2: zero
      case 3: carry || zero
      case 4: sign
      case 5: rflags & Flags.parity != 0
      case 6: sign != overflow
      default: zero || sign != overflow
      }
    return result != (condition & 1 != 0)
  }
}

/// Arithmetic of operands of 1, 2, 4 and 8 bytes.
enum Width {
  static func mask(_ byteCount: Int) -> UInt64 {
    byteCount >= 8 ? .max : (1 << UInt64(byteCount &* 8)) &- 1
  }

  static func signBit(_ byteCount: Int) -> UInt64 { 1 << UInt64(byteCount &* 8 &- 1) }

  static func signExtended(_ value: UInt64, _ byteCount: Int) -> UInt64 {
    let sign = signBit(byteCount)
    return ((value & mask(byteCount)) ^ sign) &- sign
  }
}
