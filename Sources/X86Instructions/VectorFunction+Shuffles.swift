// SPDX-License-Identifier: Apache-2.0
//
// What moves elements of vector registers around: within each 16 bytes ("lane"), or across.

/// What a function has besides its two operands.
struct VectorContext {
  /// Bytes of an element of the result.
  var element: Int
  /// Bytes of the registers.
  var length: Int
  /// Bytes that came from memory.
  var width: Int
  var immediate: UInt64
  /// What the result's register held, or whose elements' signs choose (BLENDV).
  var other = VectorValue()
}

extension VectorFunction {
  func result(
    _ left: VectorValue, _ right: VectorValue, _ context: VectorContext
  ) -> VectorValue {
    var result = VectorValue()
    if self == .minimumPosition { return Self.minimumPosition(right) }
    for offset in stride(from: 0, to: context.length, by: context.element) {
      let value =
        isElementwise
        ? element(
          left.element(offset, context.element), right.element(offset, context.element),
          context.element)
        : moved(left, right, offset, context)
      result.setElement(offset, context.element, value)
    }
    return result
  }

  /// The element of the result at `offset`.
  private func moved(
    _ left: VectorValue, _ right: VectorValue, _ offset: Int, _ context: VectorContext
  ) -> UInt64 {
    let size = context.element
    let lane = offset & ~15
    let index = (offset & 15) / size
    let half = 8 / size
    let immediate = Int(context.immediate & 0xFF)
    // What two bits of the immediate say, for each element of a lane.
    let pair = immediate >> (2 * (index & 3)) & 3
    switch self {
    case .shiftAllLeft, .shiftAllRight, .shiftAllArithmetic:
      let function: VectorFunction =
        self == .shiftAllLeft
        ? .shiftLeft : self == .shiftAllRight ? .shiftRight : .shiftArithmetic
      return function.element(left.element(offset, size), right.words[0], size)
    case .interleaveLow, .interleaveHigh:
      let place = (self == .interleaveHigh ? half : 0) + index / 2
      return (index & 1 == 0 ? left : right).element(lane + place * size, size)
    case .packSigned, .packUnsigned:
      let from = index < half ? left : right
      let wide = from.element(lane + (index % half) * size * 2, size * 2)
      let value = Int64(bitPattern: Width.signExtended(wide, size * 2))
      return self == .packSigned
        ? UInt64(bitPattern: Self.saturated(value, size)) : Self.saturatedUnsigned(value, size)
    case .shuffleBytes:
      let place = right.element(offset, 1)
      return place & 0x80 != 0 ? 0 : left.element(lane + Int(place & 15), 1)
    case .shuffle:
      let place = size == 8 ? immediate >> (offset / 8) & 1 : pair
      return right.element(lane + place * size, size)
    case .shuffleLowWords: return right.element(index < 4 ? lane + pair * 2 : offset, 2)
    case .shuffleHighWords: return right.element(index < 4 ? offset : lane + 8 + pair * 2, 2)
    case .shuffleTwo:
      let place = size == 8 ? immediate >> (offset / 8) & 1 : pair
      return (index < half ? left : right).element(lane + place * size, size)
    case .shuffleBlocks:
      let isLong = context.length == 64
      let block = offset / 16
      let place = isLong ? immediate >> (2 * block) & 3 : immediate >> block & 1
      let from = block < (isLong ? 2 : 1) ? left : right
      return from.element(place * 16 + (offset & 15), size)
    case .align:
      let place = (offset & 15) + immediate
      return place < 16
        ? right.element(lane + place, 1) : place < 32 ? left.element(lane + place - 16, 1) : 0
    case .alignElements:
      let place = offset + (immediate & (context.length / size - 1)) * size
      return place < context.length
        ? right.element(place, size) : left.element(place - context.length, size)
    case .addPairs, .addPairsSigned, .subtractPairs, .subtractPairsSigned:
      let from = index < half ? left : right
      let place = lane + (index % half) * size * 2
      let function: VectorFunction =
        switch self {
        case .addPairs: .add
        case .addPairsSigned: .addSigned
        case .subtractPairs: .subtract
        default: .subtractSigned
        }
      return function.element(from.element(place, size), from.element(place + size, size), size)
    case .blendImmediate:
      let bit = size == 2 ? index : offset / size
      return (immediate >> bit & 1 != 0 ? right : left).element(offset, size)
    case .blendVariable:
      let isRight = context.other.element(offset, size) & Width.signBit(size) != 0
      return (isRight ? right : left).element(offset, size)
    case .extendSigned, .extendZero:
      let from = context.width * size / context.length
      let value = right.element(offset / size * from, from)
      return self == .extendZero ? value : Width.signExtended(value, from)
    case .duplicateEven, .duplicateOdd:
      let place = offset & ~(2 * size - 1)
      return right.element(self == .duplicateOdd ? place + size : place, size)
    case .permute:
      let place = Int(left.element(offset, size) & UInt64(context.length / size - 1))
      return right.element(place * size, size)
    case .permuteTables, .permuteByResult:
      // The result's register is the first of two tables, or says which elements to take of them.
      let (places, first) =
        self == .permuteTables ? (left, context.other) : (context.other, left)
      let count = context.length / size
      let place = Int(places.element(offset, size) & UInt64(2 * count - 1))
      return (place < count ? first : right).element((place & (count - 1)) * size, size)
    case .permuteImmediate:
      let place = immediate >> (2 * (offset & 31) / 8) & 3
      return right.element((offset & ~31) + place * 8, 8)
    case .permuteInLane:
      let control = Int(right.element(offset, size) & 3)
      return left.element(lane + (size == 8 ? control >> 1 : control) * size, size)
    case .permuteBlocks:
      let control = immediate >> (offset / 16 * 4)
      if control & 8 != 0 { return 0 }
      return (control & 2 != 0 ? right : left).element((control & 1) * 16 + (offset & 15), size)
    case .insertBlock:
      let place = immediate & (context.length / context.width - 1)
      let isInside = offset / context.width == place
      return isInside
        ? right.element(offset - place * context.width, size) : left.element(offset, size)
    case .insertElement:
      if immediate >> index & 1 != 0 { return 0 }
      return index == immediate >> 4 & 3 ? right.element(0, 4) : left.element(offset, 4)
    default: return 0
    }
  }

  /// PHMINPOSUW: the smallest word, and where it is.
  private static func minimumPosition(_ value: VectorValue) -> VectorValue {
    var (least, place) = (value.element(0, 2), 0)
    for index in 1..<8 where value.element(index * 2, 2) < least {
      least = value.element(index * 2, 2)
      place = index
    }
    var result = VectorValue()
    result.words[0] = least | UInt64(place) << 16
    return result
  }
}
