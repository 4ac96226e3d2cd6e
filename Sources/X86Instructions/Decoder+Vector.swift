// SPDX-License-Identifier: Apache-2.0
//
// Moves between memory and vector registers: SSE to SSE4.1, AVX, AVX2, AVX-512F and BW. Intel SDM
// volume 2, appendix A, tables.

extension Decoder {
  private var legacy: VectorEncoding {
    var encoding = VectorEncoding()
    encoding.prefix =
      repeatPrefix == 0xF2 ? 3 : repeatPrefix == 0xF3 ? 2 : hasOperandSize ? 1 : 0
    encoding.wide = rexW
    return encoding
  }

  mutating func vectorTwoByte(_ opcode: UInt8) throws(DecodeFailure) {
    if opcode == 0xF7 { return try maskedBytes() }
    try vector(map: 1, opcode, legacy)
  }

  mutating func vectorThreeByte38(_ opcode: UInt8) throws(DecodeFailure) {
    try vector(map: 2, opcode, legacy)
  }

  mutating func vectorThreeByte3A(_ opcode: UInt8) throws(DecodeFailure) {
    try vector(map: 3, opcode, legacy)
  }

  mutating func vector(
    map: UInt8, _ opcode: UInt8, _ encoding: VectorEncoding
  ) throws(DecodeFailure) {
    result.vector.isLegacy = encoding.kind == .legacy
    result.vector.length = encoding.length
    switch map {
    case 1: try vectorMap1(opcode, encoding)
    case 2: try vectorMap2(opcode, encoding)
    case 3: try vectorMap3(opcode, encoding)
    default: throw .unknown
    }
  }

  // MARK: Shapes

  /// A move of `width` bytes between memory and the register's lowest.
  private mutating func move(
    _ isStore: Bool, _ width: Int, _ encoding: VectorEncoding, aligned: Bool = false,
    element: Int = 0
  ) throws(DecodeFailure) {
    try memoryOperand(displacementScale: encoding.kind == .evex ? UInt64(width) : 1)
    result.operation = isStore ? .vectorStore : .vectorLoad
    result.width = width
    result.vector.isAligned = aligned
    result.vector.element = element
    if encoding.source != 0 || encoding.repeats { throw .unknown }
    if result.vector.mask != 0 {
      if element == 0 || isStore && result.vector.zeroes { throw .unknown }
    }
  }

  /// A whole register, of elements of `element` bytes.
  private mutating func moveAll(
    _ isStore: Bool, _ encoding: VectorEncoding, aligned: Bool, element: Int
  ) throws(DecodeFailure) {
    try move(isStore, encoding.length, encoding, aligned: aligned, element: element)
  }

  /// A part of a register, at `offset`; of a load the rest comes from the second operand.
  private mutating func movePart(
    _ isStore: Bool, _ width: Int, at offset: Int, _ encoding: VectorEncoding,
    element: Int = 0
  ) throws(DecodeFailure) {
    try memoryOperand(displacementScale: encoding.kind == .evex ? UInt64(width) : 1)
    result.operation = isStore ? .vectorStore : .vectorInsert
    result.width = width
    result.vector.offset = offset
    result.vector.element = element
    result.vector.source =
      encoding.kind == .legacy ? result.register.number : encoding.source
    if isStore && encoding.source != 0 || encoding.repeats { throw .unknown }
    if result.vector.mask != 0 && (element == 0 || result.vector.zeroes) { throw .unknown }
  }

  private mutating func broadcast(
    _ width: Int, _ encoding: VectorEncoding
  ) throws(DecodeFailure) {
    try memoryOperand(displacementScale: encoding.kind == .evex ? UInt64(width) : 1)
    result.operation = .vectorBroadcast
    result.width = width
    if encoding.source != 0 || result.vector.mask != 0 { throw .unknown }
  }

  /// Elements of 4 or 8 bytes, the even ones (`offset` 0) or odd ones twice.
  private mutating func duplicate(
    _ element: Int, odd: Bool, _ encoding: VectorEncoding
  ) throws(DecodeFailure) {
    try moveAll(false, encoding, aligned: encoding.kind == .legacy, element: 0)
    result.operation = .vectorDuplicate
    result.vector.element = element
    result.vector.offset = odd ? element : 0
  }

  /// MASKMOVDQU: its memory operand is rdi alone; both of ModRM are registers.
  private mutating func maskedBytes() throws(DecodeFailure) {
    let modrm = try window.next()
    guard hasOperandSize, repeatPrefix == 0, modrm >> 6 == 3 else { throw .unknown }
    result.operation = .storeMaskedBytes
    result.register = RegisterName(number: modrm >> 3 & 7 | rexR)
    result.vector.source = modrm & 7 | rexB
    result.memory.base = UInt8(Registers.Index.rdi)
    result.width = 16
  }

  // MARK: Maps

  private mutating func vectorMap1(
    _ opcode: UInt8, _ encoding: VectorEncoding
  ) throws(DecodeFailure) {
    let isEVEX = encoding.kind == .evex
    let isStore = opcode & 1 != 0
    // The forms for packed numbers: what 0x66 says EVEX's W has to say, too.
    let packed = encoding.prefix == 1 ? 8 : 4
    if isEVEX, encoding.prefix < 2, 0x10...0x2B ~= opcode, encoding.wide != (packed == 8) {
      throw .unknown
    }
    switch (opcode, encoding.prefix) {
    case (0x10, 0), (0x10, 1), (0x11, 0), (0x11, 1):
      try moveAll(isStore, encoding, aligned: false, element: packed)
    case (0x10, _), (0x11, _):
      let width = encoding.prefix == 2 ? 4 : 8
      if isEVEX && encoding.wide != (width == 8) { throw .unknown }
      try move(isStore, width, encoding, element: width)
      result.vector.length = 16
    case (0x12, 0), (0x12, 1), (0x13, 0), (0x13, 1), (0x16, 0), (0x16, 1), (0x17, 0), (0x17, 1):
      if encoding.length != 16 { throw .unknown }
      try movePart(isStore, 8, at: opcode < 0x16 ? 0 : 8, encoding)
    case (0x12, 3) where !isEVEX:
      if encoding.length == 16 {
        try broadcast(8, encoding)
      } else {
        try duplicate(8, odd: false, encoding)
      }
    case (0x12, 2) where !isEVEX, (0x16, 2) where !isEVEX:
      try duplicate(4, odd: opcode == 0x16, encoding)
    case (0x28, 0), (0x28, 1), (0x29, 0), (0x29, 1):
      try moveAll(isStore, encoding, aligned: true, element: packed)
    case (0x2B, 0), (0x2B, 1): try moveAll(true, encoding, aligned: true, element: 0)
    case (0x2B, _) where encoding.kind == .legacy:
      // SSE4A: MOVNTSS, MOVNTSD.
      try move(true, encoding.prefix == 2 ? 4 : 8, encoding)
    case (0x6E, 1), (0x7E, 1), (0x7E, 2), (0xD6, 1):
      if encoding.length != 16 { throw .unknown }
      let isEight = opcode == 0xD6 || encoding.prefix == 2 || encoding.wide
      if isEVEX && isEight && !encoding.wide { throw .unknown }
      try move(
        opcode == 0xD6 || opcode == 0x7E && encoding.prefix == 1, isEight ? 8 : 4, encoding)
    case (0x6F, 1), (0x6F, 2), (0x7F, 1), (0x7F, 2):
      try moveAll(
        opcode == 0x7F, encoding, aligned: encoding.prefix == 1, element: encoding.wide ? 8 : 4)
    case (0x6F, 3) where isEVEX, (0x7F, 3) where isEVEX:
      try moveAll(opcode == 0x7F, encoding, aligned: false, element: encoding.wide ? 2 : 1)
    case (0xC4, 1):
      if encoding.length != 16 { throw .unknown }
      try movePart(false, 2, at: 0, encoding)
      try immediate(1)
      result.vector.offset = Int(result.immediate & 7) * 2
    case (0xE7, 1):
      if isEVEX && encoding.wide { throw .unknown }
      try moveAll(true, encoding, aligned: true, element: 0)
    case (0xF0, 3) where !isEVEX: try moveAll(false, encoding, aligned: false, element: 0)
    case (0x90, _) where encoding.kind == .vex, (0x91, _) where encoding.kind == .vex:
      try maskMove(opcode, encoding)
    default: try combine(map: 1, opcode, encoding)
    }
  }

  private mutating func vectorMap2(
    _ opcode: UInt8, _ encoding: VectorEncoding
  ) throws(DecodeFailure) {
    if opcode == 0x2A, encoding.prefix == 1 {
      if encoding.kind == .evex && encoding.wide { throw .unknown }
      return try moveAll(false, encoding, aligned: true, element: 0)
    }
    guard encoding.kind == .vex, encoding.prefix == 1 else {
      return try blendOrCombine(opcode, encoding)
    }
    let isLong = encoding.length == 32
    switch opcode {
    case 0x18 where !encoding.wide, 0x58 where !encoding.wide: try broadcast(4, encoding)
    case 0x19 where isLong && !encoding.wide, 0x59 where !encoding.wide:
      try broadcast(8, encoding)
    case 0x1A where isLong && !encoding.wide, 0x5A where isLong && !encoding.wide:
      try broadcast(16, encoding)
    case 0x78 where !encoding.wide: try broadcast(1, encoding)
    case 0x79 where !encoding.wide: try broadcast(2, encoding)
    case 0x2C...0x2F where !encoding.wide:
      try maskedMove(opcode >= 0x2E, opcode & 1 != 0 ? 8 : 4, encoding)
    case 0x8C, 0x8E: try maskedMove(opcode == 0x8E, encoding.wide ? 8 : 4, encoding)
    default: try combine(map: 2, opcode, encoding)
    }
  }

  /// PBLENDVB, BLENDVPS and BLENDVPD: xmm0 chooses. With VEX they are in another map.
  private mutating func blendOrCombine(
    _ opcode: UInt8, _ encoding: VectorEncoding
  ) throws(DecodeFailure) {
    guard encoding.kind == .legacy, encoding.prefix == 1, [0x10, 0x14, 0x15].contains(opcode)
    else { return try combine(map: 2, opcode, encoding) }
    try memoryOperand()
    result.operation = .vectorCombine(.blendVariable)
    result.width = 16
    result.vector.element = opcode == 0x10 ? 1 : opcode == 0x14 ? 4 : 8
    result.vector.isAligned = true
    result.vector.source = result.register.number
  }

  /// VMASKMOVPS, VPMASKMOVD and the like: the second operand's sign bits choose the elements.
  private mutating func maskedMove(
    _ isStore: Bool, _ element: Int, _ encoding: VectorEncoding
  ) throws(DecodeFailure) {
    try memoryOperand()
    result.operation = isStore ? .vectorMaskedStore : .vectorMaskedLoad
    result.width = encoding.length
    result.vector.element = element
    result.vector.source = encoding.source
  }

  private mutating func vectorMap3(
    _ opcode: UInt8, _ encoding: VectorEncoding
  ) throws(DecodeFailure) {
    guard encoding.prefix == 1 else { throw .unknown }
    let isEVEX = encoding.kind == .evex
    let isWide = encoding.wide
    // Blocks of 16 and 32 bytes: AVX has no mask for them.
    let isBlock = !isWide && encoding.kind == .vex && encoding.length == 32
    let width: Int
    switch opcode {
    case 0x14, 0x20: width = 1
    case 0x15: width = 2
    case 0x16, 0x22: width = isWide ? 8 : 4
    case 0x17: width = 4
    case 0x18 where isBlock, 0x19 where isBlock, 0x38 where isBlock, 0x39 where isBlock,
      0x19 where isEVEX && encoding.length > 16, 0x39 where isEVEX && encoding.length > 16:
      width = 16
    case 0x1B where isEVEX && encoding.length == 64, 0x3B where isEVEX && encoding.length == 64:
      width = 32
    default: return try combine(map: 3, opcode, encoding)
    }
    if encoding.length != 16 && width < 16 { throw .unknown }
    let isInsert = opcode == 0x18 || opcode == 0x38 || opcode >= 0x20 && opcode <= 0x22
    try movePart(
      !isInsert, width, at: 0, encoding, element: width < 16 ? 0 : isWide ? 8 : 4)
    try immediate(1)
    let places = encoding.length / width
    result.vector.offset = (Int(truncatingIfNeeded: result.immediate) & (places - 1)) * width
  }
}
