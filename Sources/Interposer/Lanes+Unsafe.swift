// SPDX-License-Identifier: Apache-2.0
//
// How many threads serve. One does as a rule. While a call takes long (a map of very much memory,
// or one that waits for such a map), another thread takes the calls of everybody else, and goes
// again when it is not needed any more. Who looks after that sleeps while nobody calls.

import CSyscalls
import Synchronization

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// One serving thread's own.
@safe
final class Lane {
  /// The first one is there for good, and is told of closes by signal.
  let isFirst: Bool
  /// What a caller has read ahead; used by one call at a time.
  let ahead = UnsafeMutableRawBufferPointer.allocate(byteCount: 256, alignment: 8)
  /// Reused between calls, for what passes through us.
  let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 65_536, alignment: 8)

  init(isFirst: Bool) { self.isFirst = isFirst }

  deinit {
    // SAFETY: both are this object's own.
    unsafe ahead.deallocate()
    unsafe buffer.deallocate()
  }
}

/// The threads that serve. Thread-safe.
@safe
final class Lanes: @unchecked Sendable {
  // Unchecked: the pointer is to a semaphore, which is for all threads.

  /// No more than so many calls may take long at once.
  private static let most = 256
  /// How long nothing may have ended while all lanes are busy, in microseconds.
  private static let patience: UInt32 = 10_000

  private let count = Atomic(1)
  /// How many wait for a call.
  private let waiting = Atomic(0)
  /// Calls that have ended.
  private let ended = Atomic<UInt64>(0)
  /// Whether the watcher sleeps until a call comes.
  private let isAsleep = Atomic(false)
  /// What wakes it; it takes no descriptor. There for good, as the lanes are.
  private let bell: UnsafeMutablePointer<sem_t>

  init() {
    // SAFETY: allocated for one, and initialized by `sem_init`, which cannot fail with these values.
    unsafe bell = .allocate(capacity: 1)
    unsafe sem_init(bell, 0, 0)
  }

  /// A lane waits for the next call.
  func wait() { waiting.add(1, ordering: .sequentiallyConsistent) }

  /// A lane has a call, or has been interrupted.
  func take() {
    waiting.subtract(1, ordering: .sequentiallyConsistent)
    if isAsleep.load(ordering: .sequentiallyConsistent) { wake() }
  }

  /// A lane's call has been answered.
  func end() { ended.add(1, ordering: .relaxed) }

  /// Whether a lane that has ended its call is one too many; it is gone then.
  func mayLeave(_ lane: Lane) -> Bool {
    guard !lane.isFirst, waiting.load(ordering: .sequentiallyConsistent) > 0 else {
      return false
    }
    leave()
    return true
  }

  /// A lane ends.
  func leave() { count.subtract(1, ordering: .relaxed) }

  @inline(never)
  private func wake() {
    guard isAsleep.exchange(false, ordering: .sequentiallyConsistent) else { return }
    // SAFETY: the semaphore lives as long as the process.
    unsafe sem_post(bell)
  }

  /// Watches for ever.
  /// - Parameter addLane: Starts another lane; false where that fails.
  func watch(_ addLane: () -> Bool) {
    var before: UInt64?
    while true {
      usleep(Self.patience)
      let now = ended.load(ordering: .relaxed)
      let isWaiting = waiting.load(ordering: .sequentiallyConsistent) > 0
      guard now == before else {
        before = now
        continue
      }
      if isWaiting {
        sleep()
      } else if count.load(ordering: .relaxed) < Self.most {
        count.add(1, ordering: .relaxed)
        if !addLane() { leave() }
      }
      before = nil
    }
  }

  /// Until a call comes.
  private func sleep() {
    isAsleep.store(true, ordering: .sequentiallyConsistent)
    guard waiting.load(ordering: .sequentiallyConsistent) > 0 else {
      // It came just now. Where its lane has rung, the next sleep is short.
      isAsleep.store(false, ordering: .sequentiallyConsistent)
      return
    }
    // SAFETY: as in `wake`. A signal ends the sleep early, which does no harm.
    unsafe sem_wait(bell)
  }
}
