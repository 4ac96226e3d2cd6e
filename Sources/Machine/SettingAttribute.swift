// SPDX-License-Identifier: Apache-2.0
//
// Files in /sys that keep what is written to them, where Linux keeps it too and nothing here hangs
// on it: the power management of devices that have none, the switches of fault injection.

import IOMMU
import LinuxABI

/// A setting that is read back as it was written. Thread-safe.
final class SettingAttribute: Attribute {
  let mode: UInt16 = 0o644
  private let value: Guarded<String>
  private let accept: @Sendable (String) -> String?
  private let expected: String

  /// - Parameters:
  ///   - expected: What is accepted, for the sentence of `EINVAL`.
  ///   - accept: What is kept of a text; nil where it is no value.
  private init(
    _ start: String, expected: String, accept: @escaping @Sendable (String) -> String?
  ) {
    value = Guarded(start)
    self.expected = expected
    self.accept = accept
  }

  func show() -> String { value.withLock { $0 } + "\n" }

  /// - Throws: `EINVAL` for what is no value.
  func store(_ text: String, by caller: any Caller) throws(IOMMUError) {
    guard let new = accept(attributeValue(text)) else {
      throw IOMMUError(
        .invalidArgument, "'\(attributeValue(text))' is not \(expected)")
    }
    value.withLock { $0 = new }
  }

  /// One of some words.
  static func choice(_ start: String, of words: [String]) -> SettingAttribute {
    SettingAttribute(start, expected: words.joined(separator: " or ")) {
      words.contains($0) ? $0 : nil
    }
  }

  /// A whole number, as `debugfs_create_atomic_t` and `debugfs_create_ul` read it: -1 is no
  /// limit.
  static func number() -> SettingAttribute {
    SettingAttribute("0", expected: "a number") { text in
      if text == "-1" { return text }
      return VirtualFunctions.number(text).map { "\($0)" }
    }
  }

  /// Yes or no, as `debugfs_create_bool` reads it and shows it.
  static func flag() -> SettingAttribute {
    SettingAttribute("N", expected: "Y or N") { text in
      switch text.first {
      case "y", "Y", "t", "T", "1": "Y"
      case "n", "N", "f", "F", "0": "N"
      default: ["on": "Y", "of": "N"][text.prefix(2).lowercased()]
      }
    }
  }
}
