// SPDX-License-Identifier: Apache-2.0
//
// The tracing thread's work: who is traced, and what each stop of a traced thread asks for. Faults
// on registers are in TraceLoop+Faults.

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
/// nothing that another traced thread would have to do. A thread may be killed at any moment; calls
/// on it fail then, and its end is the next that is heard of it.
final class TraceLoop {
  let tracer: Tracer
  var processes: [Int32: TracedProcess] = [:]
  var threads: [Int32: TracedThread] = [:]
  /// Tasks that have stopped before their parent said that it has them.
  private var early: Set<Int32> = []
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
      for admission in tracer.takeAdmissions() { admission.end(admit(admission)) }
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

  // MARK: who is traced

  private func admit(_ admission: Tracer.Admission) -> Tracer.Outcome {
    let known = processes[admission.process]
    let process = known ?? TracedProcess(number: admission.process)
    if known == nil || process.threads[admission.thread] == nil {
      if case .some(let failure) = seize(all: process) { return failure }
    }
    guard let thread = process.threads[admission.thread] else { return .refused(-ESRCH) }
    if known == nil {
      processes[process.number] = process
      // When its call is done: before it can touch what it has mapped.
      thread.awaitsSetUp = true
    }
    if let overlay = admission.overlay { thread.overlays.append(overlay) }
    if thread.awaitsSetUp || !thread.overlays.isEmpty {
      _ = csys_trace_interrupt(thread.number)
    }
    return .traced
  }

  /// Attaches to all threads that a process has and makes meanwhile.
  private func seize(all process: TracedProcess) -> Tracer.Outcome? {
    while true {
      var isComplete = true
      for entry in System.entries("/proc/\(process.number)/task") ?? [] {
        guard let number = Int32(entry.name), threads[number] == nil else { continue }
        let result = csys_trace_seize(number)
        if result == 0 {
          isComplete = false
          add(number, to: process)
        } else if result != -ESRCH, !TaskStatus(number).hasEnded {
          release(process)
          let debugger = TaskStatus(number).tracer
          return debugger > 0 ? .isTraced(by: debugger) : .refused(result)
        }
      }
      if isComplete { return nil }
    }
  }

  private func add(_ number: Int32, to process: TracedProcess) {
    let thread = TracedThread(number: number, process: process)
    threads[number] = thread
    process.threads[number] = thread
  }

  /// Lets go of a process that could not be traced whole.
  private func release(_ process: TracedProcess) {
    for thread in Array(process.threads.values) {
      // Only who has stopped can be let go.
      _ = csys_trace_interrupt(thread.number)
      guard let event = nextStop(of: thread) else { continue }
      forget(thread)
      _ = csys_trace_detach(thread.number, event.event == 0 ? event.code : 0)
    }
  }

  private func forget(_ thread: TracedThread) {
    later.removeAll { $0.thread == thread.number }
    threads[thread.number] = nil
    thread.process.threads[thread.number] = nil
    guard thread.process.threads.isEmpty else { return }
    processes[thread.process.number] = nil
    tracer.actions[thread.process.number] = nil
    adoptOrphans()
  }

  /// Who was killed as it made a task never says so: the task is taken as it is, or it would stand still
  /// for ever.
  private func adoptOrphans() {
    for number in early {
      let status = TaskStatus(number)
      guard status.tracer != 0 else {
        early.remove(number)
        continue
      }
      guard let group = Tasks.group(of: number), processes[group] == nil,
        processes[status.parent] == nil
      else { continue }
      early.remove(number)
      let process = TracedProcess(number: group)
      process.isOrphan = true
      processes[group] = process
      add(number, to: process)
      guard let thread = threads[number] else { continue }
      thread.awaitsSetUp = true
      handleStop(thread, SIGTRAP)
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

  /// A thread has made a task, which is traced as it is.
  private func follow(_ parent: TracedThread) {
    var message: UInt64 = 0
    if unsafe csys_trace_message(parent.number, &message) == 0 {
      let number = Int32(truncatingIfNeeded: message)
      // Who was killed at once has been let go by now.
      guard TaskStatus(number).tracer != 0 else {
        early.remove(number)
        return proceed(parent)
      }
      let group = Tasks.group(of: number) ?? number
      if group == parent.process.number {
        add(number, to: parent.process)
      } else if threads[number] == nil {
        let process =
          processes[group] ?? TracedProcess(number: group, childOf: parent.process)
        tracer.actions[group] = tracer.actions[parent.process.number]
        processes[group] = process
        add(number, to: process)
      } else if let orphan = processes[group], orphan.isOrphan {
        // With CLONE_PARENT it has a parent that nobody traces.
        orphan.isOrphan = false
        tracer.actions[group] = tracer.actions[parent.process.number]
      }
      // Its first stop, where it came before this.
      if early.remove(number) != nil, let child = threads[number] { proceed(child) }
    }
    proceed(parent)
  }

  /// A thread that executes another program has the number of the first from then on, which has
  /// ended by then.
  private func successor(_ event: csys_trace_event) -> TracedThread? {
    var former: UInt64 = 0
    guard Int(event.event) == CSYS_TRACE_EXEC,
      unsafe csys_trace_message(event.thread, &former) == 0,
      let old = threads[Int32(truncatingIfNeeded: former)]
    else { return nil }
    add(event.thread, to: old.process)
    return threads[event.thread]
  }

  /// A process executes another program: nothing is mapped any more. Its other threads are gone,
  /// and the one that executes has the number of the first.
  private func handleExec(_ thread: TracedThread) {
    let process = thread.process
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
  private func handleStop(_ thread: TracedThread, _ signal: Int32) {
    let process = thread.process
    if signal != SIGTRAP {
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
    if !thread.overlays.isEmpty {
      let overlays = thread.overlays
      thread.overlays = []
      for overlay in overlays { map(overlay, in: thread) }
    }
    proceed(thread)
  }

  private func tell(_ process: TracedProcess, stopped signal: Int32) {
    tracer.tell(
      csys_wait(
        pid: process.number, exited: 0, signaled: 0, stopped: signal != 0 ? 1 : 0,
        continued: signal == 0 ? 1 : 0, code: signal))
  }
}

/// What `/proc/TID/status` says of a task.
private struct TaskStatus {
  var hasEnded = true
  var tracer: Int32 = 0
  var parent: Int32 = 0

  init(_ task: Int32) {
    guard let text = System.contents("/proc/\(task)/status") else { return }
    for line in String(decoding: text, as: UTF8.self).split(separator: "\n") {
      if line.hasPrefix("State:") {
        hasEnded = line.contains("(zombie)") || line.contains("(dead)")
      }
      if line.hasPrefix("PPid:\t") { parent = Int32(line.dropFirst(6)) ?? 0 }
      if line.hasPrefix("TracerPid:\t") { tracer = Int32(line.dropFirst(11)) ?? 0 }
    }
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
