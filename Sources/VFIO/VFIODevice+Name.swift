// SPDX-License-Identifier: Apache-2.0
//
// How GET_DEVICE_FD names a device: its address, and options after a space. Linux 6.12:
// `vfio_pci_core_match`.

import IOMMU
import SystemPackage

extension VFIODevice {
  /// Whether a text names this device. Options are looked at only where it does.
  ///
  /// - Parameter text: `0000:e0:04.0`, or `0000:e0:04.0 vf_token=` and a UUID.
  /// - Throws: `EINVAL` for an option that is unknown, given twice or no UUID; what
  ///   `checkToken` throws.
  public func matches(_ text: String) throws(IOMMUError) -> Bool {
    let name = function.name.utf8
    let bytes = text.utf8
    guard bytes.starts(with: name) else { return false }
    var rest = bytes.dropFirst(name.count)
    if let next = rest.first, next != Self.space { return false }
    var token: VFToken?
    while let byte = rest.first {
      if byte == Self.space {
        rest.removeFirst()
        continue
      }
      guard token == nil, rest.starts(with: Self.option.utf8) else {
        throw IOMMUError(
          .invalidArgument,
          "'\(String(decoding: rest, as: UTF8.self))' after \(function.name) is no option, or one "
            + "too many; there is vf_token=UUID")
      }
      rest = rest.dropFirst(Self.option.utf8.count)
      guard let uuid = VFToken(rest.prefix(VFToken.length)) else {
        throw IOMMUError(
          .invalidArgument,
          "vf_token of \(function.name) is not followed by a UUID of \(VFToken.length) characters"
        )
      }
      token = uuid
      rest = rest.dropFirst(VFToken.length)
    }
    try checkToken(token)
    return true
  }

  private static let space = UInt8(ascii: " ")
  private static let option = "vf_token="
}

/// A secret that the users of a physical function and of its virtual ones share: a UUID.
public struct VFToken: Hashable, Sendable {
  /// In the order of the text.
  public let bytes: [UInt8]

  public init(bytes: [UInt8]) { self.bytes = bytes }

  /// Characters of its text.
  static let length = 36

  /// Reads `8-4-4-4-12` hexadecimal digits; nil for anything else.
  public init?(_ text: some Collection<UInt8>) {
    guard text.count == Self.length else { return nil }
    var digits: [UInt8] = []
    for (index, byte) in text.enumerated() {
      if [8, 13, 18, 23].contains(index) {
        guard byte == UInt8(ascii: "-") else { return nil }
        continue
      }
      guard let digit = Self.digit(byte) else { return nil }
      digits.append(digit)
    }
    bytes = stride(from: 0, to: digits.count, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }
  }

  private static func digit(_ byte: UInt8) -> UInt8? {
    switch byte {
    case UInt8(ascii: "0")...UInt8(ascii: "9"): byte - UInt8(ascii: "0")
    case UInt8(ascii: "a")...UInt8(ascii: "f"): byte - UInt8(ascii: "a") + 10
    case UInt8(ascii: "A")...UInt8(ascii: "F"): byte - UInt8(ascii: "A") + 10
    default: nil
    }
  }
}
