// SPDX-License-Identifier: Apache-2.0
//
// The tracing thread's work: what each stop of a traced thread asks for. Who is traced is in
// TraceLoop+Admission, faults on registers in TraceLoop+Faults, errands in TraceLoop+Errands.

import CSyscalls
import IOMMU
import LinuxABI

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// The tracing thread's own.
///
/// A stop is answered at once, and what it takes is bounded: no call of a program is waited for, and
/// nothing that another traced thread would have to do. What a thread makes in place of a call of its
/// own may take long: its end is one more stop. A thread may be killed at any moment; calls on it fail
/// then, and its end is the next that is heard of it.
final class TraceLoop {
  let tracer: Tracer
  var processes: [Int32: TracedProcess] = [:]
  var threads: [Int32: TracedThread] = [:]
  /// Tasks that have stopped before their parent said that it has them.
  var early: Set<Int32> = []
  /// Stops that were seen while another thread's was waited for.
  var later: [csys_trace_event] = []
  private var turns = 0
  /// Reused for each stop.
  var signal = csys_signal_information()
  var registers = csys_registers()
  let scratch = TraceScratch()
  var placement = Placement()

  init(_ tracer: Tracer) { self.tracer = tracer }

  func run() -> Never {
    tracer.begin()
    var event = csys_trace_event()
    while true {
      for admission in tracer.takeAdmissions() {
        if let outcome = admit(admission) {
          admission.end(outcome)
        } else {
          tracer.putBack(admission)
        }
      }
      if !later.isEmpty {
        handle(later.removeFirst())
        continue
      }
      switch unsafe csys_trace_wait(-1, &event) {
      case 0:
        handle(event)
        takeTurns()
      case -ECHILD: sleep(3600)  // Until who wants something interrupts it.
      default: break
      }
    }
  }

  /// The kernel tells of who was attached first, as long as there is something: now and then all that
  /// have stopped are queued, so that each has its turn.
  private func takeTurns() {
    turns &+= 1
    if threads.count > 1, turns % 8 == 0 { gather() }
  }

  /// Queues the stops that there are.
  func gather() {
    var event = csys_trace_event()
    while unsafe csys_trace_poll(&event) == 1 {
      // Ends are others' to wait for.
      if event.isEnd { handle(event) } else { later.append(event) }
    }
  }

  // MARK: stops

  func handle(_ event: csys_trace_event) {
    if event.exited != 0 || event.signaled != 0 {
      early.remove(event.thread)
      if let thread = threads[event.thread] { forget(thread) }
      tracer.tell(
        csys_wait(
          pid: event.thread, exited: event.exited, signaled: event.signaled, stopped: 0,
          continued: 0, code: event.code))
      return
    }
    if Int(event.event) == CSYS_TRACE_EXIT {
      // Its end is its parent's to see at once: what is traced when it ends is the tracer's first,
      // and a parent that a pidfd has told of it would wait for nothing.
      early.remove(event.thread)
      if let thread = threads[event.thread] { forget(thread) }
      _ = csys_trace_detach(event.thread, 0)
      return
    }
    guard let thread = threads[event.thread] ?? successor(event) else {
      early.insert(event.thread)
      adoptOrphans()
      return
    }
    guard !isReplaced(thread, since: event) else { return }
    if thread.replaced != nil, Int(event.event) != CSYS_TRACE_EXEC {
      return finishReplaced(thread, event)
    }
    guard thread.process.isForGood else { return handlePassing(thread, event) }
    if event.event != 0 || event.is_call != 0 || event.code != SIGBUS {
      thread.mask.noteOther()
    }
    switch Int(event.event) {
    case 0:
      if event.is_call != 0 {
        proceed(thread)
      } else if event.code == SIGBUS {
        handleBusError(thread)
      } else if Self.isRefusal(event.code) {
        handleRefusal(thread, event.code)
      } else {
        proceed(thread, signal: event.code)
      }
    case Int(CSYS_TRACE_FORK), Int(CSYS_TRACE_VFORK),
      Int(CSYS_TRACE_CLONE):
      follow(thread)
    case Int(CSYS_TRACE_EXEC):
      handleExec(thread)
    case Int(CSYS_TRACE_STOP):
      handleStop(thread, event.code)
    default:
      proceed(thread)
    }
  }

  /// Whether a first thread is gone since it stopped, and has its number from who executes another
  /// program now: that stop is the next to hear of.
  private func isReplaced(_ thread: TracedThread, since event: csys_trace_event) -> Bool {
    guard !event.isBusError, thread.number == thread.process.number,
      Int(event.event) != CSYS_TRACE_EXEC,
      unsafe csys_trace_signal(thread.number, &signal) == 0
    else { return false }
    return signal.number == SIGTRAP && signal.code == Int32(CSYS_TRACE_EXEC) << 8 | SIGTRAP
  }

  func proceed(_ thread: TracedThread, signal: Int32 = 0) {
    _ = csys_trace_continue(thread.number, signal)
  }

  /// A process executes another program: nothing is mapped any more. Its other threads are gone,
  /// and the one that executes has the number of the first.
  func handleExec(_ thread: TracedThread) {
    let process = thread.process
    for other in process.threads.values { returnLoan(after: other) }
    for other in Array(process.threads.values) where other !== thread { forget(other) }
    // What was ignored stays so; the kernel has made a default of our mark.
    let isIgnored = tracer.actions[process.number]?.isIgnored ?? false
    if isIgnored, process.installed != .own || !process.inPlace.isIgnored {
      process.beginAnew()
      if finishCall(thread) { install(.own, in: thread) }
    }
    forget(thread)
    _ = csys_trace_detach(thread.number, 0)
  }

  /// A stop of the whole process, the first stop of a new task, or one that was asked for.
  func handleStop(_ thread: TracedThread, _ signal: Int32) {
    let process = thread.process
    if signal != SIGTRAP {
      guard process.isForGood || !thread.errands.isEmpty else { return letGo(thread) }
      _ = csys_trace_listen(thread.number)
      guard !process.isStopped else { return }
      process.isStopped = true
      tell(process, stopped: signal)
      return
    }
    if process.isStopped {
      process.isStopped = false
      tell(process, stopped: 0)
    }
    if thread.awaitsSetUp {
      thread.awaitsSetUp = false
      setUp(thread)
    }
    doErrands(thread)
  }

  private func tell(_ process: TracedProcess, stopped signal: Int32) {
    tracer.tell(
      csys_wait(
        pid: process.number, exited: 0, signaled: 0, stopped: signal != 0 ? 1 : 0,
        continued: signal == 0 ? 1 : 0, code: signal))
  }
}

extension csys_trace_event {
  /// Whether it tells of an end.
  var isEnd: Bool { exited != 0 || signaled != 0 || Int(event) == CSYS_TRACE_EXIT }
  /// Whether a thread has touched registers, or something else without a page.
  var isBusError: Bool { !isEnd && event == 0 && is_call == 0 && code == SIGBUS }
}

/// Where the tracing thread runs: on the processor of who waits for it, as waking another one takes
/// several times as long as the access. It follows a thread that stays elsewhere, not each one.
struct Placement {
  private var current: Int32 = -1
  private var wanted: Int32 = -1
  private var count = 0
  private static let patience = 4

  /// The thread that has stopped ran here.
  mutating func note(_ processor: Int32) {
    guard processor != current, processor >= 0 else {
      count = 0
      return
    }
    count = processor == wanted ? count + 1 : 1
    wanted = processor
    guard count >= Self.patience || current < 0 else { return }
    // Where it may not run there it stays where it is.
    _ = csys_run_on(processor)
    current = processor
    count = 0
  }
}
