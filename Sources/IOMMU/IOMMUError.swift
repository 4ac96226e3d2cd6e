// SPDX-License-Identifier: Apache-2.0
//
// The one error of the engine: the errno that Linux returns, and a sentence for a person.

import SystemPackage

/// Why a call failed.
///
/// The errno is part of the interface (programs depend on it, tests check it); the sentence
/// names the object, the value and, where there is one, the remedy. It is what
/// `iommu run --explain` prints.
public struct IOMMUError: Error, Hashable, Sendable {
  /// The number that Linux would return for this failure.
  public let errno: Errno
  /// One sentence without a final full stop: which object, which value, what to do.
  public let reason: String

  public init(_ errno: Errno, _ reason: String) {
    self.errno = errno
    self.reason = reason
  }
}

extension IOMMUError: CustomStringConvertible {
  public var description: String { "\(reason) (\(errno.symbol))" }
}

/// Writes a number the way the field reads addresses and sizes: `0x1000`.
package func hex(_ value: some BinaryInteger) -> String { "0x" + String(value, radix: 16) }
