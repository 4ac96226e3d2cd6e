// SPDX-License-Identifier: Apache-2.0
//
// The lock of the engine and the modules above it: a mutex whose order the thread sanitizer can see.

import Synchronization

/// A value behind a mutex.
///
/// The standard library's mutex is not built for the thread sanitizer, which then takes what
/// it guards for a race. Debug builds pass a token from one holder to the next with atomics
/// that the sanitizer does see. Release builds have the mutex alone.
///
/// Inlinable: the modules above specialize it, or every lock would cost a generic call.
@usableFromInline
package struct Guarded<Value: ~Copyable>: ~Copyable, Sendable {
  @usableFromInline let mutex: Mutex<Value>
  #if DEBUG
    @usableFromInline let token = Atomic<UInt>(0)
  #endif

  @inlinable
  package init(_ value: consuming sending Value) { mutex = Mutex(value) }

  @inlinable @inline(__always)
  package borrowing func withLock<Result: ~Copyable, Failure: Error>(
    _ body: (inout sending Value) throws(Failure) -> sending Result
  ) throws(Failure) -> sending Result {
    #if DEBUG
      return try mutex.withLock { value throws(Failure) in
        _ = token.load(ordering: .acquiring)
        defer { token.store(0, ordering: .releasing) }
        return try body(&value)
      }
    #else
      return try mutex.withLock(body)
    #endif
  }
}
