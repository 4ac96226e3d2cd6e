// SPDX-License-Identifier: Apache-2.0
//
// Long calls whose caller is gone end early (Linux: `fatal_signal_pending`): what they did is
// taken back, and they fail with EINTR.

import Synchronization
import SystemPackage

/// Whether a call is still worth doing. Asked once for each 64 MiB that go into a page table, by
/// the thread that does the call: small calls never ask.
public enum Interruption {
  /// Bytes between two questions.
  static let step: UInt64 = 64 << 20

  private static let question = Guarded<(@Sendable () -> Bool)?>(nil)
  @TaskLocal private static var isSuspended = false

  /// Says how to find out, for all threads of this process.
  /// - Parameter isOver: Whether the caller of what the current thread does is gone. Called with
  ///   locks held: it must not call the engine. Nil is never.
  public static func ask(_ isOver: (@Sendable () -> Bool)?) {
    question.withLock { $0 = isOver }
  }

  /// - Throws: `EINTR` where the caller is gone.
  @inline(never)
  static func check() throws(IOMMUError) {
    guard !isSuspended, let isOver = question.withLock({ $0 }), isOver() else { return }
    throw IOMMUError(
      .interrupted, "the caller was killed; what its call had done is taken back")
  }

  /// Runs a way back, which restores what was there before, to its end.
  static func suspended(_ body: () -> Void) { $isSuspended.withValue(true) { body() } }
}
