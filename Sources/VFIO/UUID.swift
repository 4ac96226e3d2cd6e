// SPDX-License-Identifier: Apache-2.0
//
// The names of mediated devices. Linux: `guid_t`, and `guid_parse` and `%pUl` for its text.

import IOMMU

/// 128 bits that name a device.
public struct UUID: Hashable, Sendable, LosslessStringConvertible {
  /// In the order of the text.
  private let high: UInt64
  private let low: UInt64

  /// Characters of its text.
  public static let textLength = 36

  /// Reads `8-4-4-4-12` hexadecimal digits of either case; nil for anything else.
  public init?(_ text: String) {
    let characters = text.utf8
    guard characters.count == Self.textLength else { return nil }
    var (high, low): (UInt64, UInt64) = (0, 0)
    for (index, character) in characters.enumerated() {
      if [8, 13, 18, 23].contains(index) {
        guard character == UInt8(ascii: "-") else { return nil }
        continue
      }
      guard let digit = Character(Unicode.Scalar(character)).hexDigitValue else { return nil }
      high = high << 4 | low >> 60
      low = low << 4 | UInt64(digit)
    }
    self.high = high
    self.low = low
  }

  /// In lower case, as sysfs names devices.
  public var description: String {
    let digits = Self.digits(high) + Self.digits(low)
    var text = ""
    for (index, digit) in digits.enumerated() {
      if [8, 12, 16, 20].contains(index) { text += "-" }
      text.append(digit)
    }
    return text
  }

  private static func digits(_ value: UInt64) -> String {
    let text = String(value, radix: 16)
    return String(repeating: "0", count: 16 - text.count) + text
  }
}
