// SPDX-License-Identifier: Apache-2.0
//
// Who traces programs: for good, where they have registers mapped (MODEL J1), or for the length of an
// errand. It is one thread, which is started when there is something to trace. The thread that watches
// over the program waits for it; while the program is traced, it hears of it from here.

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
  /// A thread that is to be traced before its call goes on.
  final class Admission: Sendable {
    let caller: WaitingThread
    /// What the thread is to do at the end of its call.
    let errand: Errand?
    fileprivate let outcome = Guarded<Outcome?>(nil)

    init(_ caller: WaitingThread, errand: Errand?) {
      self.caller = caller
      self.errand = errand
    }

    /// Whether its whole process is traced from here on, since it maps registers.
    var isForGood: Bool { errand?.isForGood ?? true }

    func end(_ outcome: Outcome) { self.outcome.withLock { $0 = outcome } }
  }

  /// What became of an admission.
  enum Outcome: Sendable {
    case traced
    /// By a debugger; its number, 0 where it is not known.
    case isTraced(by: Int32)
    case refused(Int32)
    /// There is no thread to trace with.
    case hasNoThread
  }

  private struct State {
    var isRunning = false
    /// Whether stops of children are told of by the tracing thread alone.
    var ignoresStops = false
    var admissions: [Admission] = []
    /// Whether the program is traced, so that the tracing thread alone hears of it.
    var tracesProgram = false
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
  /// The threads that make a call for us, and whether that has come by.
  private let injected = Guarded([Int32: Bool]())
  private let injectedCount = Atomic(0)
  /// Readable when a child has changed.
  private let bell: OwnedDescriptor?
  /// Our child.
  private let program: Int32

  init(handles: HandleTable, reporter: Reporter, program: Int32) {
    self.handles = handles
    self.reporter = reporter
    self.program = program
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
  ///   - caller: One of its threads, whose `mmap` waits for an answer.
  ///   - overlay: What it maps over what its call maps.
  /// - Throws: `EPERM` where it cannot be.
  func admit(
    _ caller: WaitingThread, overlay: MapOverlay? = nil
  ) throws(IOMMUError) {
    let outcome = admit(caller, errand: overlay.map { .overlay($0) })
    try check(outcome, of: caller.process)
  }

  /// As the other one, for any errand or none.
  func admit(_ caller: WaitingThread, errand: Errand?) -> Outcome {
    let admission = Admission(caller, errand: errand)
    let (starts, ignores) = state.withLock { state in
      state.admissions.append(admission)
      defer {
        state.isRunning = true
        if admission.isForGood { state.ignoresStops = true }
      }
      return (!state.isRunning, admission.isForGood && !state.ignoresStops)
    }
    hasAdmissions.store(true, ordering: .sequentiallyConsistent)
    // Each access to a register is a stop, which nobody but the tracing thread shall wake for.
    if ignores { _ = csys_ignore_stops() }
    if starts {
      guard System.startThread({ TraceLoop(self).run() }) else {
        state.withLock { state in
          state.isRunning = false
          state.admissions.removeAll { $0 === admission }
        }
        return .hasNoThread
      }
    }
    var pause: UInt32 = 20
    while true {
      if let outcome = admission.outcome.withLock({ $0 }) { return outcome }
      // Again and again: the first may come just before it waits.
      let thread = self.thread.load(ordering: .sequentiallyConsistent)
      if thread != 0 { _ = csys_thread_signal(getpid(), thread, Self.interruption) }
      usleep(pause)
      pause = min(pause * 2, 1000)
    }
  }

  private func check(_ outcome: Outcome, of process: Int32) throws(IOMMUError) {
    try outcome.check(
      of: process,
      debugged:
        "its accesses to mapped registers could not be carried out; registers can be read "
        + "and written with pread and pwrite",
      refused: "mapped registers need; registers can be read and written with pread and pwrite")
  }

  /// Whether there is any thread that the tracing thread makes do a call.
  var hasInjected: Bool { injectedCount.load(ordering: .sequentiallyConsistent) > 0 }

  /// Whether the call of a thread is one that the tracing thread makes it do.
  func isInjected(_ thread: Int32) -> Bool {
    hasInjected
      && injected.withLock { threads in
        guard threads[thread] != nil else { return false }
        threads[thread] = true
        return true
      }
  }

  // MARK: for who watches over the program

  /// Readable when `nextChange` has something; negative where nothing can be told.
  var descriptor: Int32 { bell?.number ?? -1 }

  /// What has become of a child, as `waitpid` has it.
  /// - Returns: Its number; 0 where there is nothing new.
  func nextChange(_ change: inout csys_wait) -> Int32 {
    let next = state.withLock { state -> (Int32, csys_wait) in
      guard !state.changes.isEmpty else {
        var seen = csys_wait()
        if state.tracesProgram { return (0, seen) }
        // Under the lock: who traces the program shall not lose what it waits for.
        let result = unsafe csys_wait_change(program, &seen)
        return (result, seen)
      }
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

  /// - Parameter isInjected: Whether a thread makes a call for us from here on.
  /// - Returns: Whether the call that it made before has come by.
  @discardableResult
  func setInjected(_ isInjected: Bool, _ thread: Int32) -> Bool {
    injected.withLock { threads in
      let wasSeen = threads[thread] ?? false
      threads[thread] = isInjected ? false : nil
      injectedCount.store(threads.count, ordering: .sequentiallyConsistent)
      return wasSeen
    }
  }

  /// Threads of a process are traced from here on.
  func willTrace(_ process: Int32) {
    guard process == program else { return }
    state.withLock { $0.tracesProgram = true }
  }

  /// No thread of a process is traced any more.
  func hasLeft(_ process: Int32) {
    guard process == program else { return }
    state.withLock { $0.tracesProgram = false }
    // What happened meanwhile nobody has been told.
    _ = csys_eventfd_signal(descriptor)
  }

  func takeAdmissions() -> [Admission] {
    guard hasAdmissions.load(ordering: .relaxed) else { return [] }
    return state.withLock { state in
      hasAdmissions.store(false, ordering: .sequentiallyConsistent)
      defer { state.admissions = [] }
      return state.admissions
    }
  }

  /// What could not be done before other stops have been looked at. Who asked for it goes on interrupting.
  func putBack(_ admission: Admission) {
    state.withLock { $0.admissions.append(admission) }
    hasAdmissions.store(true, ordering: .sequentiallyConsistent)
  }

  func tell(_ change: csys_wait) {
    state.withLock { $0.changes.append(change) }
    _ = csys_eventfd_signal(descriptor)
  }
}

extension Tracer.Outcome {
  /// - Parameters:
  ///   - debugged: What is not possible under a debugger.
  ///   - refused: What needs the tracing, and what to do without.
  /// - Throws: `EPERM` where the process is not traced.
  func check(
    of process: Int32, debugged: String, refused: String
  ) throws(IOMMUError) {
    switch self {
    case .traced: return
    case .isTraced(let debugger):
      throw IOMMUError(
        .notPermitted,
        "process \(process) is under a debugger"
          + (debugger > 0 ? " (process \(debugger))" : "") + ": " + debugged)
    case .refused(let result):
      throw IOMMUError(
        .notPermitted,
        "process \(process) cannot be traced (\(System.message(result))), which " + refused)
    case .hasNoThread:
      throw IOMMUError(.noMemory, "the thread that traces programs cannot be started")
    }
  }
}
