// SPDX-License-Identifier: Apache-2.0
//
// Prefixes, ModRM, SIB and displacements: what all maps of opcodes share. Intel SDM volume 2,
// chapter 2.

enum DecodeFailure: Error { case truncated, unknown }

/// Up to 15 bytes, read from the front.
struct ByteWindow {
  private var bits: UInt128 = 0
  private var count = 0
  private(set) var consumed = 0

  init(_ bytes: Span<UInt8>) {
    count = min(bytes.count, 15)
    for index in 0..<count { bits |= UInt128(bytes[index]) &<< UInt128(index &* 8) }
  }

  mutating func next() throws(DecodeFailure) -> UInt8 {
    UInt8(truncatingIfNeeded: try take(1))
  }

  /// `byteCount` bytes, up to 8, zero-extended.
  mutating func take(_ byteCount: Int) throws(DecodeFailure) -> UInt64 {
    guard consumed &+ byteCount <= count else { throw .truncated }
    let value = UInt64(truncatingIfNeeded: bits) & Width.mask(byteCount)
    bits &>>= UInt128(byteCount &* 8)
    consumed &+= byteCount
    return value
  }

  /// The next byte, which is not taken.
  func peek() throws(DecodeFailure) -> UInt8 {
    guard consumed < count else { throw .truncated }
    return UInt8(truncatingIfNeeded: bits)
  }

  mutating func signed(_ byteCount: Int) throws(DecodeFailure) -> UInt64 {
    Width.signExtended(try take(byteCount), byteCount)
  }
}

/// The state of decoding one instruction.
struct Decoder {
  var window: ByteWindow
  var result = Instruction()
  /// 0x66.
  var hasOperandSize = false
  /// The last of 0xF2 and 0xF3, or 0.
  var repeatPrefix: UInt8 = 0
  var hasLock = false
  /// W R X B, as in REX.
  var rexW = false
  var rexR: UInt8 = 0
  var rexX: UInt8 = 0
  var rexB: UInt8 = 0
  var hasREX = false
  /// The middle field of ModRM, without REX: an opcode's extension.
  var digit: UInt8 = 0

  init(_ bytes: Span<UInt8>) { window = ByteWindow(bytes) }

  /// Operands of 2, 4 or 8 bytes.
  var operandSize: Int { rexW ? 8 : hasOperandSize ? 2 : 4 }

  /// Of the opcodes whose lowest bit tells bytes from larger operands.
  func size(_ opcode: UInt8) -> Int { opcode & 1 == 0 ? 1 : operandSize }

  mutating func decode() throws(DecodeFailure) -> Instruction {
    let opcode = try prefixes()
    switch opcode {
    case 0x0F: try twoByte()
    case 0xC4, 0xC5: try vex(opcode)
    case 0x62: try evex()
    default: try oneByte(opcode)
    }
    if hasLock && !result.allowsLock { throw .unknown }
    result.length = window.consumed
    return result
  }

  /// Reads all prefixes and the first byte of the opcode.
  private mutating func prefixes() throws(DecodeFailure) -> UInt8 {
    while true {
      let byte = try window.next()
      switch byte {
      case 0x26, 0x2E, 0x36, 0x3E: break  // Segments without a base in 64-bit mode.
      case 0x64: result.memory.segment = .fs
      case 0x65: result.memory.segment = .gs
      case 0x66: hasOperandSize = true
      case 0x67: result.memory.is32Bit = true
      case 0xF0: hasLock = true
      case 0xF2, 0xF3: repeatPrefix = byte
      case 0x40...0x4F:
        hasREX = true
        rexW = byte & 8 != 0
        rexR = byte & 4 != 0 ? 8 : 0
        rexX = byte & 2 != 0 ? 8 : 0
        rexB = byte & 1 != 0 ? 8 : 0
        continue
      default: return byte
      }
      // REX counts only right before the opcode.
      hasREX = false
      rexW = false
      rexR = 0
      rexX = 0
      rexB = 0
    }
  }

  /// ModRM with a memory operand, SIB and displacement. `displacementScale` is what a displacement
  /// of 8 bits is multiplied with (EVEX).
  mutating func memoryOperand(displacementScale: UInt64 = 1) throws(DecodeFailure) {
    let modrm = try window.next()
    let mode = modrm >> 6
    if mode == 3 { throw .unknown }
    digit = modrm >> 3 & 7
    result.register = RegisterName(number: digit | rexR)
    var base = modrm & 7
    var isDisplacementOnly = mode == 0 && base == 5
    if isDisplacementOnly {
      result.memory.base = MemoryOperand.instructionPointer
    } else if base == 4 {
      let sib = try window.next()
      base = sib & 7
      let index = sib >> 3 & 7 | rexX
      if index != 4 {
        result.memory.index = index
        result.memory.shift = sib >> 6
      }
      isDisplacementOnly = mode == 0 && base == 5
      if !isDisplacementOnly { result.memory.base = base | rexB }
    } else {
      result.memory.base = base | rexB
    }
    if isDisplacementOnly || mode == 2 {
      result.memory.displacement = try window.signed(4)
    } else if mode == 1 {
      result.memory.displacement = try window.signed(1) &* displacementScale
    }
  }

  /// A memory operand of `width` bytes, and a general register of as many.
  mutating func operands(_ width: Int) throws(DecodeFailure) {
    try memoryOperand()
    result.width = width
    generalRegister(width)
  }

  /// The register operand is a general one of `width` bytes.
  mutating func generalRegister(_ width: Int) {
    result.registerWidth = width
    let number = result.register.number
    if width == 1 && !hasREX && 4...7 ~= number {
      result.register.number = number + 12
    }
  }

  mutating func immediate(_ byteCount: Int) throws(DecodeFailure) {
    result.immediate = try window.signed(byteCount)
  }

  /// Immediates of a whole operand have at most four bytes.
  mutating func immediateOfOperand() throws(DecodeFailure) {
    try immediate(min(result.width, 4))
  }
}

extension Instruction {
  /// Decodes the instruction that `bytes` begin with; of more than 15 the rest is not looked at.
  /// - Throws: `DecodeError`, also for instructions that touch no memory.
  public static func decode(_ bytes: Span<UInt8>) throws(DecodeError) -> Instruction {
    var decoder = Decoder(bytes)
    do throws(DecodeFailure) {
      return try decoder.decode()
    } catch {
      var copy = InlineArray<15, UInt8>(repeating: 0)
      let count = min(bytes.count, 15)
      for index in 0..<count { copy[index] = bytes[index] }
      // 15 bytes and no end: the processor refuses it, too.
      let reason: DecodeError.Reason =
        error == .truncated && count < 15 ? .truncated : .unknown
      throw DecodeError(reason: reason, byteCount: count, bytes: copy)
    }
  }

  /// Instructions that 0xF0 may stand before, given that they have a memory operand.
  var allowsLock: Bool {
    switch operation {
    case .arithmetic(let kind, .registerToMemory), .arithmetic(let kind, .immediateToMemory):
      kind != .compare
    case .not, .negate, .increment, .decrement, .exchange, .exchangeAdd, .compareExchange,
      .compareExchangePair:
      true
    case .bitTest(let kind, _): kind != .test
    default: false
    }
  }
}
