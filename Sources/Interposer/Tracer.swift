// SPDX-License-Identifier: Apache-2.0
//
// Who traces programs that have registers mapped (MODEL J1): one thread, which is started with the
// first such mapping. It waits for all children and all that it traces, in one call; so from then
// on the thread that watches over the program hears of it from here.

import CSyscalls
import IOMMU
import LinuxABI
import Synchronization
import SystemPackage

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// The face of the tracing thread. Thread-safe.
final class Tracer: Sendable {
  /// A process that is to be traced before a call of one of its threads goes on.
  final class Admission: Sendable {
    let thread: Int32
    let process: Int32
    /// What the thread is to map over what its call maps.
    let overlay: MapOverlay?
    fileprivate let outcome = Guarded<Outcome?>(nil)

    init(thread: Int32, process: Int32, overlay: MapOverlay?) {
      self.thread = thread
      self.process = process
      self.overlay = overlay
    }

    func end(_ outcome: Outcome) { self.outcome.withLock { $0 = outcome } }
  }

  /// What became of an admission.
  enum Outcome: Sendable {
    case traced
    /// By a debugger; its number, 0 where it is not known.
    case isTraced(by: Int32)
    case refused(Int32)
  }

  private struct State {
    var isRunning = false
    var admissions: [Admission] = []
    /// What became of children, until it is asked for.
    var changes: [csys_wait] = []
  }

  let handles: HandleTable
  let reporter: Reporter
  let actions = BusActions()
  private let state = Guarded(State())
  /// The tracing thread; 0 while there is none.
  private let thread = Atomic<Int32>(0)
  private let hasAdmissions = Atomic(false)
  /// The thread that makes a call for us; 0 where none does.
  private let injected = Atomic<Int32>(0)
  /// Readable when a child has changed.
  private let bell: OwnedDescriptor?

  init(handles: HandleTable, reporter: Reporter) {
    self.handles = handles
    self.reporter = reporter
    let number = eventfd(0, Int32(EFD_CLOEXEC | EFD_NONBLOCK))
    bell = number < 0 ? nil : OwnedDescriptor(number)
  }

  /// Why registers cannot be mapped on this host; nil where they can.
  static let impediment: String? = {
    #if arch(x86_64)
      // A process that nobody traces, and that may be asked for: other errors are refusals.
      let result = csys_trace_interrupt(getpid())
      guard result == -ESRCH else {
        return "ptrace(2) is not allowed (\(System.message(result)))"
      }
      let scope = System.contents("/proc/sys/kernel/yama/ptrace_scope") ?? []
      return scope.first == UInt8(ascii: "3")
        ? "kernel.yama.ptrace_scope is 3: nobody can be traced" : nil
    #else
      return "instructions of this architecture are not emulated"
    #endif
  }()

  // MARK: for who serves calls

  /// Sees to it that a process is traced from here on.
  /// - Parameters:
  ///   - thread: One of its threads, whose `mmap` waits for an answer.
  ///   - overlay: What it maps over what its call maps.
  /// - Throws: `EPERM` where it cannot be.
  func admit(
    thread: Int32, process: Int32, overlay: MapOverlay? = nil
  ) throws(IOMMUError) {
    let admission = Admission(thread: thread, process: process, overlay: overlay)
    let starts = state.withLock { state in
      state.admissions.append(admission)
      defer { state.isRunning = true }
      return !state.isRunning
    }
    hasAdmissions.store(true, ordering: .sequentiallyConsistent)
    if starts {
      _ = csys_ignore_stops()
      guard System.startThread({ TraceLoop(self).run() }) else {
        state.withLock { $0.isRunning = false }
        throw IOMMUError(.noMemory, "the thread that traces programs cannot be started")
      }
    }
    var pause: UInt32 = 20
    while true {
      if let outcome = admission.outcome.withLock({ $0 }) {
        return try check(outcome, of: process)
      }
      // Again and again: the first may come just before it waits.
      let thread = self.thread.load(ordering: .sequentiallyConsistent)
      if thread != 0 { _ = csys_thread_signal(getpid(), thread, Self.interruption) }
      usleep(pause)
      pause = min(pause * 2, 1000)
    }
  }

  private func check(_ outcome: Outcome, of process: Int32) throws(IOMMUError) {
    switch outcome {
    case .traced: return
    case .isTraced(let debugger):
      throw IOMMUError(
        .notPermitted,
        "process \(process) is under a debugger"
          + (debugger > 0 ? " (process \(debugger))" : "")
          + ": its accesses to mapped registers could not be carried out; registers can be read "
          + "and written with pread and pwrite")
    case .refused(let result):
      throw IOMMUError(
        .notPermitted,
        "process \(process) cannot be traced (\(System.message(result))), which mapped registers "
          + "need; registers can be read and written with pread and pwrite")
    }
  }

  /// Whether the call of a thread is one that the tracing thread makes it do, and waits for.
  func isInjected(_ thread: Int32) -> Bool {
    injected.load(ordering: .sequentiallyConsistent) == thread
  }

  // MARK: for who watches over the program

  /// Readable when `nextChange` has something; negative where nothing can be told.
  var descriptor: Int32 { bell?.number ?? -1 }

  /// What has become of a child, as `waitpid` has it.
  /// - Returns: Its number; 0 where there is nothing new.
  func nextChange(_ change: inout csys_wait) -> Int32 {
    let next = state.withLock { state -> (Int32, csys_wait) in
      guard state.isRunning else {
        var seen = csys_wait()
        // Under the lock: once somebody traces, nobody else may take what it waits for.
        let result = unsafe csys_wait_change(-1, &seen)
        return (result, seen)
      }
      guard !state.changes.isEmpty else { return (0, csys_wait()) }
      let first = state.changes.removeFirst()
      return (first.pid, first)
    }
    change = next.1
    return next.0
  }

  /// Makes the descriptor unreadable, until something is new.
  func clearBell() {
    var count: UInt64 = 0
    // SAFETY: eight bytes, as an eventfd wants.
    _ = unsafe withUnsafeMutableBytes(of: &count) { unsafe System.read(descriptor, into: $0) }
  }

  // MARK: for the tracing thread

  static let interruption = SIGUSR2

  func begin() {
    _ = csys_interruptible(Self.interruption)
    thread.store(csys_thread(), ordering: .sequentiallyConsistent)
  }

  /// - Parameter thread: Makes a call for us from here on; 0 where none does any more.
  func setInjected(_ thread: Int32) {
    injected.store(thread, ordering: .sequentiallyConsistent)
  }

  func takeAdmissions() -> [Admission] {
    guard hasAdmissions.load(ordering: .relaxed) else { return [] }
    return state.withLock { state in
      hasAdmissions.store(false, ordering: .sequentiallyConsistent)
      defer { state.admissions = [] }
      return state.admissions
    }
  }

  func tell(_ change: csys_wait) {
    state.withLock { $0.changes.append(change) }
    _ = csys_eventfd_signal(descriptor)
  }
}
