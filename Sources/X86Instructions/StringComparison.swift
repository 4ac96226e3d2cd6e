// SPDX-License-Identifier: Apache-2.0
//
// PCMPESTRM, PCMPESTRI, PCMPISTRM and PCMPISTRI. Intel SDM volume 2, 4.1.

/// One comparison of two strings of up to 16 bytes or 8 words.
struct StringComparison {
  private let control: UInt8
  private let left: VectorValue
  private let right: VectorValue
  private var leftCount: Int
  private var rightCount: Int
  /// One bit for each element.
  private var found: UInt64 = 0

  private var size: Int { control & 1 != 0 ? 2 : 1 }
  private var most: Int { 16 / size }

  /// Strings end before their first zero.
  init(control: UInt8, left: VectorValue, right: VectorValue) {
    self.control = control
    self.left = left
    self.right = right
    let size = control & 1 != 0 ? 2 : 1
    leftCount = Self.length(left, size)
    rightCount = Self.length(right, size)
  }

  /// Strings have the lengths that rax and rdx say, or what is left of them without their signs.
  mutating func setLengths(_ registers: Registers, isWide: Bool) {
    func count(_ index: Int) -> Int {
      let value = registers.general[index]
      let number = isWide ? Int64(bitPattern: value) : Int64(Int32(truncatingIfNeeded: value))
      return Int(min(number.magnitude, UInt64(most)))
    }
    leftCount = count(Registers.Index.rax)
    rightCount = count(Registers.Index.rdx)
  }

  private static func length(_ value: VectorValue, _ size: Int) -> Int {
    for index in 0..<(16 / size) where value.element(index * size, size) == 0 { return index }
    return 16 / size
  }

  private func number(_ value: VectorValue, _ index: Int) -> Int64 {
    let bits = value.element(index * size, size)
    return Int64(bitPattern: control & 2 != 0 ? Width.signExtended(bits, size) : bits)
  }

  mutating func run() {
    found = 0
    for index in 0..<most where isFound(index) { found |= 1 << UInt64(index) }
    let all = UInt64(1) << UInt64(most) - 1
    switch control >> 4 & 3 {
    case 1: found = ~found & all
    // What lies after the string stays as it is.
    case 3: found ^= UInt64(1) << UInt64(rightCount) - 1
    default: break
    }
  }

  private func isFound(_ index: Int) -> Bool {
    switch control >> 2 & 3 {
    case 0:  // Equal to any of the left.
      guard index < rightCount else { return false }
      for other in 0..<leftCount where number(left, other) == number(right, index) {
        return true
      }
      return false
    case 1:  // In any of the left's ranges.
      guard index < rightCount else { return false }
      for other in stride(from: 0, to: leftCount - 1, by: 2)
      where number(left, other) <= number(right, index)
        && number(right, index) <= number(left, other + 1)
      {
        return true
      }
      return false
    case 2:  // Equal at its place; both ended are equal.
      if index >= leftCount || index >= rightCount {
        return index >= leftCount && index >= rightCount
      }
      return number(left, index) == number(right, index)
    default:  // The left begins here, as far as there is room.
      for other in 0..<min(leftCount, most - index) {
        guard index + other < rightCount, number(left, other) == number(right, index + other)
        else { return false }
      }
      return true
    }
  }

  /// For ecx.
  var index: UInt64 {
    if found == 0 { return UInt64(most) }
    return UInt64(
      control & 0x40 != 0 ? 63 - found.leadingZeroBitCount : found.trailingZeroBitCount)
  }

  /// For xmm0: the bits, or elements of ones.
  var mask: VectorValue {
    var value = VectorValue()
    guard control & 0x40 != 0 else {
      value.words[0] = found
      return value
    }
    for index in 0..<most where found >> UInt64(index) & 1 != 0 {
      value.setElement(index * size, size, .max)
    }
    return value
  }

  var flags: UInt64 {
    (found != 0 ? Flags.carry : 0) | (rightCount < most ? Flags.zero : 0)
      | (leftCount < most ? Flags.sign : 0) | (found & 1 != 0 ? Flags.overflow : 0)
  }
}
