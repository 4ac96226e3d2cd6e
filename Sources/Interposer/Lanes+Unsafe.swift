// SPDX-License-Identifier: Apache-2.0
//
// How many threads serve. One does as a rule. While a call takes long (a map of very much memory,
// or one that waits for such a map), others take the calls of everybody else, and go again when they
// are not needed any more. Who sees the first such call sleeps while nobody calls; from then on a
// thread that takes a call sees to it that another one waits for the next. A process whose calls
// take very many threads has the rest of them put aside (`Shares`).

import CSyscalls
import IOMMU
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

  /// The process whose share counts its call; nil where it is not counted. Its own thread's.
  fileprivate(set) var process: Int32?

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

  /// How many may be ready for the next call while another call takes long.
  private static let spare = 2
  /// Up to so many, nobody counts whose calls they do.
  private static let free = 8
  /// A lane's stack, in bytes.
  private static let stack = 1 << 20
  /// How long nothing may have ended while all lanes are busy, in microseconds.
  private static let patience: UInt32 = 10_000

  /// No more than so many calls may take long at once.
  private let goal: Int
  /// As `goal`, or how many there were when the system had no more threads.
  private let most: Atomic<Int>
  private let count = Atomic(1)
  /// How many wait for a call.
  private let waiting = Atomic(0)
  /// Calls that have ended.
  private let ended = Atomic<UInt64>(0)
  /// Whether the watcher sleeps until a call comes.
  private let isAsleep = Atomic(false)
  /// What wakes it; it takes no descriptor. There for good, as the lanes are.
  private let bell: UnsafeMutablePointer<sem_t>
  private let shares = Guarded(Shares())
  private let isAlive: @Sendable (UInt64) -> Bool
  private let serve: @Sendable (Lanes) -> Void

  /// - Parameters:
  ///   - files: How many descriptors this process may have: a call takes some.
  ///   - isAlive: Whether the caller of a notification still waits.
  ///   - serve: What a further lane does.
  init(
    files: UInt64, isAlive: @escaping @Sendable (UInt64) -> Bool,
    serve: @escaping @Sendable (Lanes) -> Void
  ) {
    goal = Int(min(4096, max(16, files / 8)))
    most = Atomic(goal)
    self.isAlive = isAlive
    self.serve = serve
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

  /// What a lane does with the call that it took.
  /// - Parameter notification: The call. Where the process has its share of lanes already, it is
  ///   put aside until one of them is done.
  /// - Returns: False where the call is put aside.
  func admit(_ notification: csys_notif, _ lane: Lane) -> Bool {
    let lanes = count.load(ordering: .relaxed)
    guard lanes > 1 else { return true }
    // The next caller shall not wait for this call.
    if waiting.load(ordering: .sequentiallyConsistent) == 0 { add() }
    guard lanes > Self.free else { return true }
    let thread = Int32(bitPattern: notification.pid)
    // Callers that cannot be told apart share one share.
    let process = Tasks.group(of: thread) ?? 0
    let share = Shares.share(of: lanes, most: most.load(ordering: .relaxed))
    guard shares.withLock({ $0.take(notification, of: process, share, isAlive) }) else {
      return false
    }
    lane.process = process
    return true
  }

  /// A lane's call has been answered.
  /// - Parameter next: Gets a call that was put aside, which is the lane's now.
  /// - Returns: False where there is none.
  func end(_ lane: Lane, next: inout csys_notif) -> Bool {
    ended.add(1, ordering: .relaxed)
    guard let process = lane.process else { return false }
    guard let call = shares.withLock({ $0.end(process) }) else {
      lane.process = nil
      return false
    }
    next = call
    return true
  }

  /// Whether a lane that has ended its call is one too many; it is gone then.
  func mayLeave(_ lane: Lane) -> Bool {
    let others = waiting.load(ordering: .sequentiallyConsistent)
    // One that waits is enough where no call takes long.
    guard !lane.isFirst, others > 0,
      others >= Self.spare || others >= count.load(ordering: .relaxed) - 1
    else { return false }
    leave()
    return true
  }

  /// Starts another lane, where there may be one.
  private func add() {
    guard
      count.add(1, ordering: .relaxed).newValue <= most.load(ordering: .relaxed)
    else { return leave() }
    guard !System.startThread(stack: Self.stack, { self.serve(self) }) else { return }
    leave()
    most.store(max(2, count.load(ordering: .relaxed)), ordering: .relaxed)
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
  func watch() {
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
        // There may be threads again.
        if count.load(ordering: .relaxed) == 1 { most.store(goal, ordering: .relaxed) }
        sleep()
      } else {
        add()
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
