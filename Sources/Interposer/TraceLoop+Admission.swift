// SPDX-License-Identifier: Apache-2.0
//
// Who is traced: processes that have registers mapped, whole and with all that they start; and single
// threads, from the call that an errand is asked for until it is done.

import CSyscalls
import IOMMU
import LinuxABI

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

extension TraceLoop {
  /// - Returns: nil where it is to be tried again: the attempt was interrupted.
  func admit(_ admission: Tracer.Admission) -> Tracer.Outcome? {
    let caller = admission.caller
    let process = processes[caller.process] ?? TracedProcess(number: caller.process)
    let isFirst = admission.isForGood && !process.isForGood
    processes[process.number] = process
    tracer.willTrace(process.number)
    let attempt =
      if !admission.isForGood {
        seize(caller.thread, of: process, isExpected: true)
      } else if isFirst || process.threads[caller.thread] == nil {
        seize(all: process)
      } else {
        .done as Attempt
      }
    guard case .done = attempt else {
      if !process.isForGood { release(process) }
      guard case .failed(let outcome) = attempt else { return nil }
      return outcome
    }
    // Who is attached has its number for as long as it lives, so that it is looked at now.
    guard let thread = process.threads[caller.thread], caller.isWaiting else {
      if !process.isForGood { release(process) }
      return .refused(-ESRCH)
    }
    if isFirst {
      process.isForGood = true
      // When its call is done: before it can touch what it has mapped.
      thread.awaitsSetUp = true
    }
    if let errand = admission.errand { thread.errands.append(errand) }
    if thread.awaitsSetUp || !thread.errands.isEmpty {
      _ = csys_trace_interrupt(thread.number)
    }
    return .traced
  }

  private enum Attempt {
    case done
    case failed(Tracer.Outcome)
    /// It would have waited for what others do that are traced.
    case interrupted
  }

  /// Attaches to all threads that a process has and makes meanwhile.
  private func seize(all process: TracedProcess) -> Attempt {
    while true {
      var isComplete = true
      for entry in System.entries("/proc/\(process.number)/task") ?? [] {
        guard let number = Int32(entry.name), threads[number] == nil else { continue }
        let attempt = seize(number, of: process)
        guard case .done = attempt else { return attempt }
        if threads[number] != nil { isComplete = false }
      }
      if isComplete { return .done }
    }
  }

  /// Attaches to one thread. One that is gone is no failure.
  /// - Parameter isExpected: Whether it waits for us.
  private func seize(
    _ number: Int32, of process: TracedProcess, isExpected: Bool = false
  ) -> Attempt {
    if let thread = process.threads[number] {
      // The end of a first thread is not told where another thread, which nobody traces, executes
      // another program: it has the number then.
      if csys_trace_interrupt(number) == 0 { return .done }
      forget(thread)
      processes[process.number] = process
      tracer.willTrace(process.number)
    }
    var result = OtherUser.reach("/proc/\(number)/") { csys_trace_seize(number) }
    if result == -EINTR {
      // It may have been interrupted when it was done.
      guard TaskStatus(number).tracer == csys_thread() else { return .interrupted }
      result = 0
    }
    if result == -ESRCH { return isExpected ? .failed(.refused(result)) : .done }
    guard result != 0 else {
      add(number, to: process)
      return .done
    }
    let status = TaskStatus(number)
    guard status.tracer != csys_thread() else {
      // Ours already: one that was made meanwhile.
      add(number, to: process)
      if early.remove(number) != nil { _ = csys_trace_continue(number, 0) }
      return .done
    }
    if status.hasEnded, !isExpected { return .done }
    return .failed(status.tracer > 0 ? .isTraced(by: status.tracer) : .refused(result))
  }

  private func add(_ number: Int32, to process: TracedProcess) {
    let thread = TracedThread(number: number, process: process)
    threads[number] = thread
    process.threads[number] = thread
  }

  /// Lets go of a process that could not be traced whole, or not yet: each thread at its next stop. Those
  /// that have an errand do it.
  private func release(_ process: TracedProcess) {
    for thread in process.threads.values where thread.errands.isEmpty && thread.replaced == nil
    {
      _ = csys_trace_interrupt(thread.number)
    }
    leaveIfEmpty(process)
  }

  /// Lets a stopped thread go on; and go, where it has been traced for an errand.
  func letGo(_ thread: TracedThread, signal: Int32 = 0) {
    guard !thread.process.isForGood else { return proceed(thread, signal: signal) }
    forget(thread)
    _ = csys_trace_detach(thread.number, signal)
  }

  func forget(_ thread: TracedThread) {
    later.removeAll { $0.thread == thread.number }
    if thread.replaced != nil { tracer.setInjected(false, thread.number) }
    threads[thread.number] = nil
    thread.process.threads[thread.number] = nil
    leaveIfEmpty(thread.process)
  }

  private func leaveIfEmpty(_ process: TracedProcess) {
    guard process.threads.isEmpty else { return }
    processes[process.number] = nil
    tracer.actions[process.number] = nil
    tracer.hasLeft(process.number)
    adoptOrphans()
  }

  /// Who was killed as it made a task never says so: the task is taken as it is, or it would stand still
  /// for ever.
  func adoptOrphans() {
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
      let process = TracedProcess(number: group, isForGood: true)
      process.isOrphan = true
      processes[group] = process
      add(number, to: process)
      guard let thread = threads[number] else { continue }
      thread.awaitsSetUp = true
      handleStop(thread, SIGTRAP)
    }
  }

  /// A thread has made a task, which is traced as it is.
  func follow(_ parent: TracedThread) {
    var message: UInt64 = 0
    if unsafe csys_trace_message(parent.number, &message) == 0 {
      let number = Int32(truncatingIfNeeded: message)
      // Who was killed at once has been let go by now.
      guard TaskStatus(number).tracer != 0 else {
        early.remove(number)
        return letGo(parent)
      }
      let group = Tasks.group(of: number) ?? number
      if group == parent.process.number {
        if threads[number] == nil { add(number, to: parent.process) }
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
      if early.remove(number) != nil, let child = threads[number] { letGo(child) }
    }
    letGo(parent)
  }

  /// A thread that executes another program has the number of the first from then on, which has
  /// ended by then.
  func successor(_ event: csys_trace_event) -> TracedThread? {
    var former: UInt64 = 0
    guard Int(event.event) == CSYS_TRACE_EXEC,
      unsafe csys_trace_message(event.thread, &former) == 0,
      let old = threads[Int32(truncatingIfNeeded: former)]
    else { return nil }
    add(event.thread, to: old.process)
    return threads[event.thread]
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
