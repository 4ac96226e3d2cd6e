// SPDX-License-Identifier: Apache-2.0
//
// A lock with waiting, and threads, for device models and for an IOMMU that have one of their own:
// the thread sleeps until there is work, and who resets a device waits until the thread has let go.

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// State under a mutex, with a condition to wait on. Thread-safe.
@safe
package final class Monitor<State: Sendable>: @unchecked Sendable {
  // Unchecked: `state` is touched with the mutex held only; the pointers never change.
  @usableFromInline let mutex: UnsafeMutablePointer<pthread_mutex_t>
  @usableFromInline let changed: UnsafeMutablePointer<pthread_cond_t>
  @usableFromInline var state: State

  package init(_ state: State) {
    self.state = state
    // SAFETY: both are allocated and initialized here, once, and freed in deinit.
    unsafe mutex = .allocate(capacity: 1)
    unsafe changed = .allocate(capacity: 1)
    unsafe mutex.initialize(to: pthread_mutex_t())
    unsafe changed.initialize(to: pthread_cond_t())
    unsafe pthread_mutex_init(mutex, nil)
    unsafe pthread_cond_init(changed, nil)
  }

  deinit {
    // SAFETY: nobody waits or holds the lock: they would hold a reference.
    unsafe pthread_cond_destroy(changed)
    unsafe pthread_mutex_destroy(mutex)
    unsafe changed.deallocate()
    unsafe mutex.deallocate()
  }

  @inlinable
  package func withLock<Result>(_ body: (inout State) -> Result) -> Result {
    // SAFETY: initialized in init; unlocked by the thread that locked it.
    unsafe pthread_mutex_lock(mutex)
    defer { unsafe pthread_mutex_unlock(mutex) }
    return body(&state)
  }

  /// Like `withLock`, then wakes all who wait.
  @inlinable
  package func change<Result>(_ body: (inout State) -> Result) -> Result {
    // SAFETY: as in `withLock`.
    unsafe pthread_mutex_lock(mutex)
    defer {
      unsafe pthread_cond_broadcast(changed)
      unsafe pthread_mutex_unlock(mutex)
    }
    return body(&state)
  }

  /// Calls `body` at once and after each change until it returns something; sleeps between.
  @inlinable
  package func wait<Result>(_ body: (inout State) -> Result?) -> Result {
    // SAFETY: as in `withLock`; waiting gives the mutex up and takes it again.
    unsafe pthread_mutex_lock(mutex)
    defer { unsafe pthread_mutex_unlock(mutex) }
    while true {
      if let result = body(&state) { return result }
      unsafe pthread_cond_wait(changed, mutex)
    }
  }
}

/// A thread of a device model, which whoever started it joins.
@safe
package final class DeviceThread: Sendable {
  private let thread: pthread_t

  private final class Start: Sendable {
    let body: @Sendable () -> Void
    init(_ body: @escaping @Sendable () -> Void) { self.body = body }
  }

  /// Starts a thread; nil where the system has none left.
  package init?(_ body: @escaping @Sendable () -> Void) {
    var thread = pthread_t()
    // SAFETY: the retained box is taken over, once, by the thread that is started, or released
    // here where none was.
    let box = unsafe Unmanaged.passRetained(Start(body))
    // Signals are for the program's own threads; but what an access itself raises must reach
    // its handler: memory of a truncated file is SIGBUS, and fatal where it is blocked.
    var blocked = sigset_t()
    var old = sigset_t()
    unsafe sigfillset(&blocked)
    for signal in [SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS] {
      unsafe sigdelset(&blocked, signal)
    }
    unsafe pthread_sigmask(SIG_SETMASK, &blocked, &old)
    let result = unsafe pthread_create(
      &thread, nil,
      { argument in
        guard let argument = unsafe argument else { return nil }
        unsafe Unmanaged<Start>.fromOpaque(argument).takeRetainedValue().body()
        return nil
      }, box.toOpaque())
    unsafe pthread_sigmask(SIG_SETMASK, &old, nil)
    guard result == 0 else {
      unsafe box.release()
      return nil
    }
    self.thread = thread
  }

  /// Lets the calling thread sleep.
  package static func sleep(microseconds: UInt32) { usleep(microseconds) }

  /// Waits for the thread's end; on the thread itself, lets it end alone. Called once.
  package func join() {
    if pthread_equal(pthread_self(), thread) != 0 {
      pthread_detach(thread)
    } else {
      pthread_join(thread, nil)
    }
  }
}
