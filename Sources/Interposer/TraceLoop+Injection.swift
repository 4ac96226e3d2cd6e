// SPDX-License-Identifier: Apache-2.0
//
// System calls that a stopped thread makes for us: the tracer sets its registers on a `syscall`
// instruction, lets it run that, and puts everything back. While it does, its signals are blocked.

import CSyscalls
import IOMMU

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// Memory that each stop uses again. The tracing thread's own.
@safe
final class TraceScratch {
  /// Of the program's code, and what passes between it and a device.
  let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 64)
  /// The XSAVE area.
  let extended = UnsafeMutableRawBufferPointer.allocate(byteCount: 16_384, alignment: 64)

  deinit {
    // SAFETY: both are this object's own.
    unsafe bytes.deallocate()
    unsafe extended.deallocate()
  }
}

/// A system call to be made by a thread.
struct InjectedCall: Sendable {
  var number: Int32
  var arguments: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0, 0, 0)
}

extension TraceLoop {
  /// Below what a function may use of the stack below its frame.
  static let redZone: UInt64 = 128

  /// Where in a thread's memory 128 bytes are that it has no use for while it is stopped.
  func spare(_ registers: csys_registers) -> UInt64 {
    (registers.rsp &- Self.redZone &- 512) & ~63
  }

  /// Uses them, and puts back what was there: a small stack may end above them.
  func borrow<Result>(
    _ place: UInt64, of thread: TracedThread, _ body: () -> Result?
  ) -> Result? {
    var saved = InlineArray<16, UInt64>(repeating: 0)
    let read = unsafe withUnsafeMutableBytes(of: &saved) {
      unsafe self.read(place, into: $0, of: thread)
    }
    guard read == 128 else { return nil }
    defer { _ = unsafe withUnsafeBytes(of: &saved) { unsafe write($0, to: place, of: thread) } }
    return body()
  }

  // MARK: a thread's memory

  /// Reads what is mapped at an address, whatever the program may do there.
  /// - Returns: Bytes; 0 or less where there are none.
  func read(
    _ address: UInt64, into bytes: UnsafeMutableRawBufferPointer, of thread: TracedThread
  ) -> Int {
    // SAFETY: the buffer's own size.
    unsafe csys_pread(
      thread.process.memory(of: thread.number), bytes.baseAddress!, bytes.count, address)
  }

  /// As `read`; also where the program may not write.
  func write(
    _ bytes: UnsafeRawBufferPointer, to address: UInt64, of thread: TracedThread
  ) -> Int {
    // SAFETY: as in `read`.
    unsafe csys_pwrite(
      thread.process.memory(of: thread.number), bytes.baseAddress!, bytes.count, address)
  }

  /// Makes a call in a stopped thread, which is as it was afterwards.
  /// - Returns: What the call returns; nil where it could not be made, or the thread is gone.
  func inject(_ call: InjectedCall, in thread: TracedThread) -> Int64? {
    var saved = csys_registers()
    guard unsafe csys_trace_registers(thread.number, &saved) == 0 else { return nil }
    Self.endRestart(&saved)
    guard let mask = enter(call, in: thread, from: saved) else { return nil }
    defer { tracer.setInjected(false, thread.number) }
    var result: Int64?
    if runToCall(thread) {
      var after = csys_registers()
      if unsafe csys_trace_registers(thread.number, &after) == 0 {
        result = Int64(bitPattern: after.rax)
      }
    }
    guard threads[thread.number] === thread else { return nil }
    _ = unsafe csys_trace_set_registers(thread.number, &saved)
    _ = csys_trace_set_mask(thread.number, mask)
    sendHeld(thread)
    return result
  }

  /// Has a stopped thread run to the begin of a call. Its signals are blocked from here on.
  /// - Returns: Those that it has blocked itself; nil where the call cannot be made: the thread is as it
  ///   was, or gone.
  func enter(
    _ call: InjectedCall, in thread: TracedThread, from saved: csys_registers
  ) -> UInt64? {
    var mask: UInt64 = 0
    guard unsafe csys_trace_mask(thread.number, &mask) == 0 else { return nil }
    let place = callAddress(of: thread, saved)
    guard place != 0, csys_trace_set_mask(thread.number, ~0) == 0 else { return nil }
    var changed = saved
    changed.rip = place
    changed.rax = UInt64(UInt32(bitPattern: call.number))
    changed.orig_rax = ~0
    (changed.rdi, changed.rsi, changed.rdx) =
      (call.arguments.0, call.arguments.1, call.arguments.2)
    (changed.r10, changed.r8, changed.r9) =
      (call.arguments.3, call.arguments.4, call.arguments.5)
    tracer.setInjected(true, thread.number)
    if unsafe csys_trace_set_registers(thread.number, &changed) == 0, runToCall(thread) {
      return mask
    }
    tracer.setInjected(false, thread.number)
    guard threads[thread.number] === thread else { return nil }
    var saved = saved
    _ = unsafe csys_trace_set_registers(thread.number, &saved)
    _ = csys_trace_set_mask(thread.number, mask)
    return nil
  }

  /// A stopped thread's call that a stop has interrupted is begun again by the kernel as it leaves
  /// that stop; as it will have made another call by then, it is put on the instruction itself.
  private static func endRestart(_ registers: inout csys_registers) {
    guard Int64(bitPattern: registers.orig_rax) >= 0 else { return }
    switch Int64(bitPattern: registers.rax) {
    // ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND
    case -512, -513, -514: registers.rax = registers.orig_rax
    // ERESTART_RESTARTBLOCK: restart_syscall
    case -516: registers.rax = 219
    default: return
    }
    registers.rip &-= 2
    registers.orig_rax = ~0
  }

  /// Lets a thread run to the begin or the end of a system call.
  private func runToCall(_ thread: TracedThread) -> Bool {
    while true {
      guard csys_trace_until_call(thread.number, 0) == 0 else { return false }
      guard let event = nextStop(of: thread) else { return false }
      if event.is_call != 0 { return true }
      // What cannot be blocked, SIGSTOP, and a stop of the process: they come again when this is done.
      if event.event == 0 || Int(event.event) == CSYS_TRACE_STOP, event.code != SIGTRAP {
        thread.held.append(event.event == 0 ? event.code : 0)
      }
    }
  }

  /// Has a thread get what came while it made a call for us.
  func sendHeld(_ thread: TracedThread) {
    for signal in thread.held {
      if signal == 0 {
        _ = csys_trace_interrupt(thread.number)
      } else {
        _ = csys_thread_signal(thread.process.number, thread.number, signal)
      }
    }
    thread.held = []
  }

  /// Waits for a thread's next stop; nil where it ends or executes another program.
  ///
  /// Of the others it takes what they do meanwhile, which is looked at later, but for their ends:
  /// the end of a first thread is told when those of all others have been seen.
  func nextStop(of thread: TracedThread) -> csys_trace_event? {
    var event = csys_trace_event()
    if let index = later.firstIndex(where: { $0.thread == thread.number }) {
      return later.remove(at: index)
    }
    while threads[thread.number] === thread {
      let result = unsafe csys_trace_wait(-1, &event)
      if result == -EINTR { continue }
      guard result == 0 else { return nil }
      if event.thread == thread.number, !event.isEnd, Int(event.event) != CSYS_TRACE_EXEC {
        return event
      }
      if event.isEnd || event.thread == thread.number {
        handle(event)
      } else {
        later.append(event)
      }
    }
    return nil
  }

  /// Lets a thread that has stopped in a system call run to its end.
  func finishCall(_ thread: TracedThread) -> Bool { runToCall(thread) }

  /// A `syscall` instruction in a thread's memory; 0 where there is none.
  private func callAddress(of thread: TracedThread, _ registers: csys_registers) -> UInt64 {
    let process = thread.process
    // The one that it has just made a call with, or one of before, which may be gone.
    for address in [process.callAddress, registers.rip &- 2]
    where address != 0 && isCall(address, thread) {
      process.callAddress = address
      return address
    }
    process.callAddress = callInVDSO(thread)
    return process.callAddress
  }

  private func isCall(_ address: UInt64, _ thread: TracedThread) -> Bool {
    var word: UInt16 = 0
    let count = unsafe withUnsafeMutableBytes(of: &word) {
      unsafe read(address, into: $0, of: thread)
    }
    return count == 2 && word == 0x050F
  }

  /// The kernel's own code in each process has some.
  private func callInVDSO(_ thread: TracedThread) -> UInt64 {
    guard let text = System.contents("/proc/\(thread.number)/auxv") else { return 0 }
    func word(_ index: Int) -> UInt64 {
      text[index..<index + 8].reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }
    var base: UInt64 = 0
    // AT_SYSINFO_EHDR
    for index in stride(from: 0, to: text.count - 15, by: 16) where word(index) == 33 {
      base = word(index + 8)
    }
    guard base != 0 else { return 0 }
    for page in 0..<4 as Range<UInt64> {
      let start = base &+ page * 4096
      let count = unsafe read(start, into: scratch.bytes, of: thread)
      guard count > 1 else { break }
      for index in 0..<count - 1 {
        let word = unsafe scratch.bytes.loadUnaligned(fromByteOffset: index, as: UInt16.self)
        if word == 0x050F { return start &+ UInt64(index) }
      }
    }
    return 0
  }
}
