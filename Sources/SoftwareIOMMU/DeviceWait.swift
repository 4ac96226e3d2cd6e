// SPDX-License-Identifier: Apache-2.0
//
// Where a thread of a device waits for its IOMMU, and what ends its wait early (MODEL H3).

import Synchronization

/// The waits of one thread of a device. Thread-safe.
///
/// What a device asks of its IOMMU may take as long as a user likes. Whoever resets the device or
/// gives its work up cancels: then no access of the thread waits, until the device renews.
public final class DeviceWait: Sendable {
  private let cancelled = Atomic(false)
  /// Counts wake-ups.
  private let monitor = Monitor<UInt64>(0)

  public init() {}

  /// Whether accesses do not wait.
  @inline(__always)
  public var isCancelled: Bool { cancelled.load(ordering: .relaxed) }

  /// Ends the thread's wait, and all that it would begin.
  public func cancel() {
    cancelled.store(true, ordering: .relaxed)
    wake()
  }

  /// Lets accesses wait again. Whoever calls this makes sure that it undoes no later `cancel`.
  public func renew() { cancelled.store(false, ordering: .relaxed) }

  /// What to sleep since: taken before looking whether there is a reason to sleep.
  var ticket: UInt64 { monitor.withLock { $0 } }

  /// Ends the sleep of the thread, once.
  func wake() { monitor.change { $0 &+= 1 } }

  /// Sleeps until a wake-up since the ticket was taken.
  /// - Returns: False where the wait was cancelled.
  func sleep(since ticket: UInt64) -> Bool {
    monitor.wait { count in
      if isCancelled { return false }
      return count == ticket ? nil : true
    }
  }
}
