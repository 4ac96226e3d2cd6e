// SPDX-License-Identifier: Apache-2.0
//
// Vector instructions whose memory operand is a source of a computation: to a vector register, to
// a mask register, to flags, or, the other way round, narrowed on its way to memory.

extension Decoder {
  /// What the moves of `map` do not have.
  mutating func combine(
    map: UInt8, _ opcode: UInt8, _ encoding: VectorEncoding
  ) throws(DecodeFailure) {
    if try comparison(map: map, opcode, encoding) { return }
    if map == 1, encoding.prefix >= 2,
      opcode == 0x2A || opcode == 0x7B && encoding.kind == .evex
    {
      return try conversion(opcode, encoding)
    }
    if map == 2, encoding.prefix == 2, encoding.kind == .evex {
      return try narrow(opcode, encoding)
    }
    let isShift = map == 1 && 0x71...0x73 ~= opcode && encoding.prefix == 1
    if isShift, encoding.kind == .evex {
      return try shift(opcode, encoding)
    }
    let row: VectorRow? =
      switch map {
      case 1: VectorRow.map1(opcode, encoding.prefix, encoding.length)
      case 2: encoding.prefix == 1 ? VectorRow.map2(opcode, encoding.length) : nil
      default: encoding.prefix == 1 ? VectorRow.map3(opcode) : nil
      }
    guard let row else { throw .unknown }
    try combine(row, encoding)
  }

  private mutating func combine(
    _ row: VectorRow, _ encoding: VectorEncoding
  ) throws(DecodeFailure) {
    guard row.lengths.contains(encoding.length) else { throw .unknown }
    var element = row.element
    var repeated = 0
    switch encoding.kind {
    case .legacy: if !row.isLegacy { throw .unknown }
    case .vex:
      switch row.vex {
      case .none: throw .unknown
      case .ignored: break
      case .narrow: if encoding.wide { throw .unknown }
      case .wide: if !encoding.wide { throw .unknown }
      }
      // VPSLLVQ and the like.
      if row.vex == .ignored && !row.isLegacy && encoding.wide { element = 8 }
    case .evex: (element, repeated) = try evexElement(row, encoding)
    }
    // A value of fewer bytes than the register has, all over it.
    let fills = row.function == .right
    var width = row.width == 0 ? encoding.length : row.width
    if encoding.repeats {
      if repeated == 0 { throw .unknown }
      width = repeated
    }
    try memoryOperand(displacementScale: encoding.kind == .evex ? UInt64(width) : 1)
    result.operation = .vectorCombine(row.function)
    result.width = width
    result.vector.element = element
    result.vector.repeats = encoding.repeats || fills
    result.vector.isAligned = encoding.kind == .legacy && width == 16
    result.vector.source =
      encoding.kind == .legacy ? result.register.number : encoding.source
    if row.function.isUnary && encoding.source != 0 { throw .unknown }
    let maskless: [VectorFunction] = [.sumDifferences, .insertElement]
    if result.vector.mask != 0 && maskless.contains(row.function) { throw .unknown }
    if row.hasImmediate { try immediate(1) }
  }

  /// An integer of 4 or 8 bytes to a number of 4 or 8; the rest of the register is the second
  /// operand's.
  private mutating func conversion(
    _ opcode: UInt8, _ encoding: VectorEncoding
  ) throws(DecodeFailure) {
    let width = encoding.wide ? 8 : 4
    try memoryOperand(displacementScale: encoding.kind == .evex ? UInt64(width) : 1)
    result.operation = .vectorConvert(signed: opcode == 0x2A)
    result.width = width
    result.vector.length = 16
    result.vector.element = encoding.prefix == 2 ? 4 : 8
    result.vector.source =
      encoding.kind == .legacy ? result.register.number : encoding.source
    if encoding.repeats || result.vector.mask != 0 { throw .unknown }
  }

  /// A shift of memory by an immediate, to the second operand's register.
  private mutating func shift(
    _ opcode: UInt8, _ encoding: VectorEncoding
  ) throws(DecodeFailure) {
    let digit = try window.peek() >> 3 & 7
    guard let row = VectorRow.shift(opcode, digit: digit) else { throw .unknown }
    try combine(row, encoding)
    result.register = RegisterName(number: encoding.source)
    result.vector.isCounted = true
  }

  /// Bytes of an element, and of one that is broadcast (0: it cannot be).
  private func evexElement(
    _ row: VectorRow, _ encoding: VectorEncoding
  ) throws(DecodeFailure) -> (element: Int, repeated: Int) {
    let isWide = encoding.wide
    switch row.evex {
    case .none: throw .unknown
    case .ignored: return (row.element, 0)
    case .narrow, .narrowRepeated:
      if isWide { throw .unknown }
      return (row.element, row.evex == .narrow ? 0 : 4)
    case .wide, .wideRepeated:
      if !isWide { throw .unknown }
      return (row.element, row.evex == .wide ? 0 : 8)
    case .both: return isWide ? (8, 8) : (4, 4)
    case .doubled: return (isWide ? row.element * 2 : row.element, 0)
    }
  }

  /// To masks: VPCMP, VPTESTM; to flags: PTEST and VTESTPS; to general registers: PCMPISTRI and its
  /// kin. Returns whether it was one.
  private mutating func comparison(
    map: UInt8, _ opcode: UInt8, _ encoding: VectorEncoding
  ) throws(DecodeFailure) -> Bool {
    let isEVEX = encoding.kind == .evex
    let (element, kind): (Int, VectorComparison)
    switch (map, opcode, encoding.prefix) {
    case (1, 0x64...0x66, 1) where isEVEX:
      (element, kind) = (1 << Int(opcode - 0x64), .greater)
    case (1, 0x74...0x76, 1) where isEVEX: (element, kind) = (1 << Int(opcode - 0x74), .equal)
    case (2, 0x29, 1) where isEVEX: (element, kind) = (8, .equal)
    case (2, 0x37, 1) where isEVEX: (element, kind) = (8, .greater)
    case (2, 0x26...0x27, 1...2) where isEVEX:
      element = (opcode == 0x26 ? 1 : 4) * (encoding.wide ? 2 : 1)
      kind = encoding.prefix == 1 ? .anyBit : .noBit
    case (3, 0x1E...0x1F, 1) where isEVEX, (3, 0x3E...0x3F, 1) where isEVEX:
      element = (opcode < 0x30 ? 4 : 1) * (encoding.wide ? 2 : 1)
      kind = opcode & 1 == 0 ? .unsigned : .signed
    case (2, 0x17, 1) where !isEVEX: (element, kind) = (8, .test)
    case (2, 0x0E, 1) where encoding.kind == .vex && !encoding.wide,
      (2, 0x0F, 1) where encoding.kind == .vex && !encoding.wide:
      (element, kind) = (opcode == 0x0E ? 4 : 8, .testSigns)
    case (3, 0x60...0x63, 1) where !isEVEX && encoding.length == 16:
      (element, kind) = (1, .string)
    default: return false
    }
    if map != 3, element >= 4, isEVEX, opcode != 0x27, encoding.wide != (element == 8) {
      throw .unknown
    }
    if encoding.repeats && element < 4 { throw .unknown }
    let width = encoding.repeats ? element : encoding.length
    try memoryOperand(displacementScale: isEVEX ? UInt64(width) : 1)
    result.operation = .vectorCompare(kind)
    result.width = width
    result.vector.element = element
    result.vector.repeats = encoding.repeats
    result.vector.source = encoding.source
    result.vector.isAligned = encoding.kind == .legacy && kind != .string
    if isEVEX {
      // To a mask register: what is masked out is zero in any case.
      if result.register.number > 7 || result.vector.zeroes { throw .unknown }
    } else if encoding.source != 0 {
      throw .unknown
    }
    if map == 3 { try immediate(1) }
    if kind == .string {
      result.vector.opcode = opcode & 3
      result.vector.isWide = encoding.wide
    }
    return true
  }

  /// VPMOVWB and the like, plain and saturating.
  private mutating func narrow(
    _ opcode: UInt8, _ encoding: VectorEncoding
  ) throws(DecodeFailure) {
    let saturation = opcode >> 4
    guard 1...3 ~= saturation, opcode & 15 <= 5, !encoding.wide, !encoding.repeats,
      encoding.source == 0, !result.vector.zeroes
    else { throw .unknown }
    let (narrow, wide) = VectorRow.sizes(opcode)
    let width = encoding.length * narrow / wide
    try memoryOperand(displacementScale: UInt64(width))
    result.operation = .vectorNarrow(
      saturation == 1 ? .unsigned : saturation == 2 ? .signed : .none)
    result.width = width
    result.vector.element = narrow
  }

  /// KMOVB, KMOVW, KMOVD, KMOVQ.
  mutating func maskMove(_ opcode: UInt8, _ encoding: VectorEncoding) throws(DecodeFailure) {
    guard encoding.length == 16, encoding.source == 0 else { throw .unknown }
    try memoryOperand()
    switch (encoding.prefix, encoding.wide) {
    case (0, false): result.width = 2
    case (0, true): result.width = 8
    case (1, false): result.width = 1
    case (1, true): result.width = 4
    default: throw .unknown
    }
    if result.register.number > 7 { throw .unknown }
    result.operation = opcode == 0x90 ? .maskLoad : .maskStore
  }
}
