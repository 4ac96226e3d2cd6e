// SPDX-License-Identifier: Apache-2.0
//
// The lock order of the engine, written once (MODEL A4), and the lock that checks it in debug
// builds. A thread takes locks in ascending rank only; nothing calls upward, so there is no
// other way in.

import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// Locks in the order in which a thread may take them.
enum LockRank: Int, Comparable, Sendable {
  /// `Context.configuration`: bind, attach, replace, detach and page-table allocation, one at
  /// a time.
  case configuration = 1
  /// `DeviceGroup.state`: who owns a group, and what is attached to it.
  case group
  /// `Accessor.state`: which address space a software device is on.
  case accessor
  /// `AddressSpace.state`: areas, reserved ranges and the page tables that mirror them. Held
  /// while memory is pinned and tables are filled, because a map is all or nothing.
  case addressSpace
  /// `Pages.pins`: where one piece of memory is pinned.
  case pages
  /// `Context.objects`: ids. A leaf: nothing is called under it.
  case objects
  /// `FaultQueue.state`: page requests. A driver is told the answer under it, and holds none of
  /// its own locks when it reports a request.
  case faultQueue
  // Below the engine, each after all of the above: the driver's own locks, then
  // `PhysicalMemory.slots`, then `EventLog.state`. Leaves: `MmapAreas.state`, and
  // `Readiness.state` below the lock of its queue; a carrier's signal is set under that one.

  static func < (left: LockRank, right: LockRank) -> Bool { left.rawValue < right.rawValue }
}

/// A mutex that knows its place in the order.
struct RankedMutex<State: ~Copyable>: ~Copyable, Sendable {
  private let mutex: Guarded<State>
  private let rank: LockRank

  init(_ rank: LockRank, _ state: consuming sending State) {
    mutex = Guarded(state)
    self.rank = rank
  }

  @inline(__always)
  borrowing func withLock<Result: ~Copyable, Failure: Error>(
    _ body: (inout sending State) throws(Failure) -> sending Result
  ) throws(Failure) -> sending Result {
    #if DEBUG
      HeldRanks.push(rank)
      defer { HeldRanks.pop(rank) }
    #endif
    return try mutex.withLock(body)
  }
}

#if DEBUG
  /// The ranks that the current thread holds, as a bit set in thread-local storage.
  enum HeldRanks {
    private static let key: pthread_key_t = {
      var key = pthread_key_t()
      unsafe pthread_key_create(&key, nil)
      return key
    }()

    // SAFETY: the value is an integer in pointer's clothing; it is never dereferenced.
    private static var bits: UInt {
      get { unsafe UInt(bitPattern: pthread_getspecific(key)) }
      set { unsafe pthread_setspecific(key, UnsafeRawPointer(bitPattern: newValue)) }
    }

    static func push(_ rank: LockRank) {
      precondition(
        bits >> UInt(rank.rawValue) == 0,
        "lock order: \(rank) is taken under a lock of the same or a later rank")
      bits |= 1 << UInt(rank.rawValue)
    }

    static func pop(_ rank: LockRank) { bits &= ~(1 << UInt(rank.rawValue)) }
  }
#endif
