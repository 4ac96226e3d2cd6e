// SPDX-License-Identifier: Apache-2.0
//
// SIGBUS of a traced program. The kernel raises it for every touch of a register, and where the
// thread has it blocked, or the process ignores it, first unblocks it and resets the action to the
// default: both are put back. A thread that had it blocked is known by the action, which is never the
// default while registers are mapped: where the program has no handler there is one of ours, the
// mark, that nobody ever enters. What the program's own action is we know from its `rt_sigaction`
// calls, and answer them. A SIGBUS that is not ours is delivered with that action in place.

import CSyscalls
import IOMMU
import LinuxABI

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

extension TraceLoop {
  /// SIGBUS as `rt_sigaction` takes it, without coming by our filter: that compares 64 bits, the
  /// kernel 32.
  private static let unfilteredBusError = 1 << 32 | UInt64(SIGBUS)
  private static let mark = csys_signal_action(
    handler: ~0xFFF, flags: 0x0400_0000, restorer: ~0xFFF, mask: 0)

  /// A process has its first mapping of registers: finds out what it does with SIGBUS.
  func setUp(_ thread: TracedThread) {
    let process = thread.process
    guard let old = exchange(Self.mark, in: thread) else { return }
    process.installed = .mark
    // What an orphan has of its parent is the mark.
    tracer.actions[process.number] =
      old.handler == Self.mark.handler ? csys_signal_action() : old
  }

  /// Puts an action in place.
  func install(_ which: TracedProcess.Installed, in thread: TracedThread) {
    let process = thread.process
    let own = tracer.actions[process.number]
    let action =
      switch which {
      case .own: own
      default: Self.mark as csys_signal_action?
      }
    guard let action, exchange(action, in: thread) != nil else { return }
    process.installed = which == .own && action.isDefault ? .nothing : which
    process.inPlace = action
  }

  /// Makes a stopped thread call `rt_sigaction(SIGBUS, …)`.
  /// - Returns: What the action was; nil where it could not be done.
  private func exchange(
    _ action: csys_signal_action, in thread: TracedThread
  ) -> csys_signal_action? {
    var registers = csys_registers()
    guard unsafe csys_trace_registers(thread.number, &registers) == 0 else { return nil }
    let place = spare(registers)
    let size = MemoryLayout<csys_signal_action>.size
    let call = InjectedCall(
      number: CSYS_NR_rt_sigaction,
      arguments: (Self.unfilteredBusError, place, place &+ 64, 8, 0, 0))
    return borrow(place, of: thread) {
      var action = action
      let written = unsafe withUnsafeBytes(of: &action) {
        unsafe write($0, to: place, of: thread)
      }
      guard written == size, inject(call, in: thread) == 0 else { return nil }
      var old = csys_signal_action()
      let read = unsafe withUnsafeMutableBytes(of: &old) {
        unsafe self.read(place &+ 64, into: $0, of: thread)
      }
      return read == size ? old : nil
    }
  }

  /// Whether a thread that has stopped by a fault had SIGBUS blocked.
  ///
  /// The action tells that one of those that have stopped had. Of several it is those that had at
  /// their last access.
  func hadBlocked(_ thread: TracedThread) -> Bool {
    if let verdict = thread.verdict {
      thread.verdict = nil
      return verdict
    }
    var isBlocked = isReset(by: thread)
    if isBlocked, thread.blocks != true,
      faulted(beside: thread).contains(where: { $0.blocks == true })
    {
      isBlocked = false
      putBack(in: thread)
    }
    thread.blocks = isBlocked
    return isBlocked
  }

  /// Threads of its process that have faulted, too: they have stopped; or they had SIGBUS blocked at their
  /// last access, and the kernel has one for them.
  private func faulted(beside thread: TracedThread) -> [TracedThread] {
    let process = thread.process
    guard process.threads.count > 1 else { return [] }
    let others = process.threads.values.filter { $0 !== thread && $0.blocks == true }
    let pending = others.filter { Self.hasBusError(signals(of: $0)?.pending ?? 0) }
    // Who has stopped meanwhile is not pending any more, and found here.
    gather()
    return pending
      + later.compactMap { event in
        guard event.isBusError, let other = threads[event.thread],
          other.process === process, other !== thread
        else { return nil }
        return other
      }
  }

  /// Puts the action back that the kernel has made a default. Who has faulted meanwhile did so with
  /// the default in place, which tells nothing any more.
  private func putBack(in thread: TracedThread) {
    let process = thread.process
    let isOwn = process.installed == .own
    process.installed = .nothing
    install(isOwn ? .own : .mark, in: thread)
    for other in faulted(beside: thread) { other.verdict = other.blocks ?? false }
  }

  /// Whether the kernel has made the action for SIGBUS a default; and where the thread ran.
  private func isReset(by thread: TracedThread) -> Bool {
    guard let signals = signals(of: thread) else { return false }
    placement.note(signals.processor)
    return thread.process.installed != .nothing && !Self.hasBusError(signals.caught)
  }

  private static func hasBusError(_ set: UInt64) -> Bool { set & 1 << UInt64(SIGBUS - 1) != 0 }

  /// What `/proc/PID/task/TID/stat` says of a thread: the signals that it alone is to get, those that its
  /// process has a handler for, and where it ran; nil where it is gone.
  private func signals(
    of thread: TracedThread
  ) -> (pending: UInt64, caught: UInt64, processor: Int32)? {
    // SAFETY: the buffer's own size.
    let count = unsafe csys_pread(
      thread.status, scratch.bytes.baseAddress!, scratch.bytes.count, 0)
    guard count > 0 else { return nil }
    // The name, which is in parentheses, may have any bytes.
    var index = count - 1
    while index > 0, unsafe scratch.bytes[index] != UInt8(ascii: ")") { index -= 1 }
    var field = 2
    var (pending, caught, processor) = (0, 0, 0) as (UInt64, UInt64, UInt64)
    index += 1
    while index < count {
      let byte = unsafe scratch.bytes[index]
      if byte == UInt8(ascii: " ") {
        field += 1
      } else if byte >= 48 && byte < 58 {
        let digit = UInt64(byte &- 48)
        switch field {
        case 31: pending = pending &* 10 &+ digit
        case 34: caught = caught &* 10 &+ digit
        case 39: processor = processor &* 10 &+ digit
        default: break
        }
      }
      index += 1
    }
    return (pending, caught, Int32(truncatingIfNeeded: processor))
  }

  /// Undoes what the kernel did to let the signal through.
  func blockAgain(_ thread: TracedThread) {
    var mask: UInt64 = 0
    putBack(in: thread)
    guard unsafe csys_trace_mask(thread.number, &mask) == 0 else { return }
    _ = csys_trace_set_mask(thread.number, mask | 1 << UInt64(SIGBUS - 1))
  }

  /// Sets whether a thread blocks SIGBUS; and that it does not block a signal that it is to get.
  func setBlocked(_ isBlocked: Bool, in thread: TracedThread, exceptFor other: Int32) {
    var mask: UInt64 = 0
    guard unsafe csys_trace_mask(thread.number, &mask) == 0 else { return }
    let bit: UInt64 = 1 << UInt64(SIGBUS - 1)
    let new = (isBlocked ? mask | bit : mask) & ~(1 << UInt64(other - 1))
    if new != mask { _ = csys_trace_set_mask(thread.number, new) }
  }

  /// Gives the program a SIGBUS, with its own action in place.
  /// - Parameter isFault: Whether the instruction, run again, raises it again.
  func deliver(_ thread: TracedThread, isFault: Bool) {
    let process = thread.process
    thread.mask.noteOther()
    guard let own = tracer.actions[process.number], !process.has(own) else {
      // As the kernel would have it.
      return hand(thread)
    }
    if own.isIgnored, !isFault { return proceed(thread) }
    var information = signal
    if own.isIgnored {
      // What cannot be ignored takes the default.
      tracer.actions[process.number] = csys_signal_action()
    }
    install(.own, in: thread)
    if isFault {
      let action = own.isIgnored ? csys_signal_action() : own
      // A thread that is gone may have left its number to another one, which has done nothing.
      guard process.has(action) else { return hand(thread) }
      // It faults again, and finds the action in place.
      if !action.isDefault { return proceed(thread) }
    }
    // The signal is gone with the calls that were made; another one carries what it said.
    guard csys_thread_signal(process.number, thread.number, SIGBUS) == 0 else {
      return proceed(thread)
    }
    proceed(thread)
    var event = csys_trace_event()
    guard unsafe csys_trace_wait(thread.number, &event) == 0 else { return }
    guard event.exited == 0, event.signaled == 0, event.event == 0, event.code == SIGBUS else {
      return handle(event)
    }
    _ = unsafe csys_trace_set_signal(thread.number, &information)
    hand(thread)
  }

  /// Has a stopped thread send itself a signal as somebody else has sent it.
  func send(_ information: csys_signal_information, to thread: TracedThread) {
    var registers = csys_registers()
    guard unsafe csys_trace_registers(thread.number, &registers) == 0 else { return }
    let place = spare(registers)
    let call = InjectedCall(
      number: CSYS_NR_rt_tgsigqueueinfo,
      arguments: (
        UInt64(thread.process.number), UInt64(thread.number), UInt64(information.number), place,
        0, 0
      ))
    borrow(place, of: thread) {
      var information = information
      let written = unsafe withUnsafeBytes(of: &information) {
        unsafe write($0, to: place, of: thread)
      }
      guard written == MemoryLayout<csys_signal_information>.size else { return }
      _ = inject(call, in: thread)
    }
  }

  func hand(_ thread: TracedThread) {
    let process = thread.process
    thread.mask.noteOther()
    if let own = tracer.actions[process.number], own.resets, process.installed == .own {
      tracer.actions[process.number] = csys_signal_action()
      process.installed = .nothing
    }
    proceed(thread, signal: SIGBUS)
  }
}

// MARK: what programs ask

extension Server {
  /// `rt_sigaction` for SIGBUS: of a process that has registers mapped, the answer is ours.
  func busAction(_ call: SystemCall, _ caller: ClientCaller) -> Answer {
    let process = caller.processID
    guard call[3] == 8, tracer.actions[process] != nil else { return .goOn }
    do throws(IOMMUError) {
      var new: csys_signal_action?
      if call[1] != 0 {
        var action = csys_signal_action()
        try unsafe withUnsafeMutableBytes(of: &action) { (bytes) throws(IOMMUError) in
          try unsafe caller.copyIn(from: call[1], into: bytes)
        }
        // What Linux knows of flags, and signals that nobody blocks.
        action.flags &= 0xDC00_0807
        action.mask &= ~(1 << UInt64(SIGKILL - 1) | 1 << UInt64(SIGSTOP - 1))
        new = action
      }
      guard var old = tracer.actions.exchange(process, new) else { return .goOn }
      if call[2] != 0 {
        try unsafe withUnsafeBytes(of: &old) { (bytes) throws(IOMMUError) in
          try unsafe caller.copyOut(bytes, to: call[2])
        }
      }
      return .result(0)
    } catch {
      return .failure(error)
    }
  }
}
