// SPDX-License-Identifier: Apache-2.0
//
// How a port refers to what it goes through: inside a transaction nothing counts references.

/// A reference that is not counted. Whoever posts it to a port keeps the object alive until the
/// port has taken a later one.
@safe
struct Uncounted<Object: AnyObject & Sendable>: Sendable {
  private let object: Unmanaged<Object>

  init(_ object: Object) { unsafe self.object = .passUnretained(object) }

  /// - Parameter value: Does not keep the object.
  @inline(__always)
  func with<Value>(_ value: (Object) -> Value) -> Value {
    // SAFETY: the object lives, see above.
    unsafe object._withUnsafeGuaranteedRef { value($0) }
  }
}
