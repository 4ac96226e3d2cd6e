// SPDX-License-Identifier: Apache-2.0
//
// Files that were closed for the last time are closed by threads of their own: who calls next finds
// them closed, unless one takes long (it unmaps very much memory), which holds nobody up.

import IOMMU
import Synchronization

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// Closes that are under way. Thread-safe.
final class Closings: Sendable {
  /// How long anybody waits for them, in nanoseconds.
  private static let patience: UInt64 = 1_000_000_000

  /// Files that are closed together.
  final class Batch: Sendable {
    let handles: [Handle]
    /// Whether it is still waited for.
    fileprivate let isYoung = Atomic(true)

    fileprivate init(_ handles: [Handle]) { self.handles = handles }
  }

  /// Batches that are still waited for.
  private let young = Atomic(0)

  /// From here on others wait for these files to be closed: `close` has to follow.
  /// - Returns: Nil where there are none.
  func begin(_ handles: [Handle]) -> Batch? {
    guard !handles.isEmpty else { return nil }
    young.add(1, ordering: .sequentiallyConsistent)
    return Batch(handles)
  }

  /// Closes files, in their order, and waits for that and for all that others close.
  func close(_ batch: Batch?) {
    guard let batch else { return waitForAll() }
    let isStarted = System.startThread {
      for handle in batch.handles { handle.file.close() }
      self.end(batch)
    }
    guard isStarted else {
      for handle in batch.handles { handle.file.close() }
      return end(batch)
    }
    if !Self.wait(while: { batch.isYoung.load(ordering: .acquiring) }) { end(batch) }
    waitForAll()
  }

  /// It is done, or nobody waits for it any more.
  private func end(_ batch: Batch) {
    if batch.isYoung.exchange(false, ordering: .acquiringAndReleasing) {
      young.subtract(1, ordering: .sequentiallyConsistent)
    }
  }

  private func waitForAll() {
    _ = Self.wait { young.load(ordering: .sequentiallyConsistent) > 0 }
  }

  /// - Returns: False where it takes too long.
  private static func wait(while isSo: () -> Bool) -> Bool {
    guard isSo() else { return true }
    let end = Reporter.now() + patience
    var pause: UInt32 = 10
    while isSo() {
      guard Reporter.now() < end else { return false }
      usleep(pause)
      pause = min(pause * 2, 1000)
    }
    return true
  }
}
