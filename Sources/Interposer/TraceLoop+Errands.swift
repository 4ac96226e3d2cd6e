// SPDX-License-Identifier: Apache-2.0
//
// Errands that a thread has at the end of its call. What they take is bounded, but for a call that it
// makes in place of its own: the thread is brought to that call's begin and let run, and its end is
// one more stop, or another program's begin.

import CSyscalls
import IOMMU

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

extension TraceLoop {
  /// A thread is at the end of its call.
  func doErrands(_ thread: TracedThread) {
    while !thread.errands.isEmpty {
      switch thread.errands.removeFirst() {
      case .overlay(let overlay):
        map(overlay, in: thread)
      case .replacement(let call):
        if begin(call, in: thread) { return }
      case .handOver(let handOver):
        send(handOver, in: thread)
      case .changeUser(let call):
        changeUser(by: call, in: thread)
      }
    }
    letGo(thread)
  }

  /// A stop of a thread that is traced for an errand alone.
  func handlePassing(_ thread: TracedThread, _ event: csys_trace_event) {
    switch Int(event.event) {
    case 0:
      if event.is_call == 0, !thread.errands.isEmpty {
        // It has its errand's stop still before it, and the signal's handler first.
        let answer = thread.errands[0].answer
        thread.errands = []
        beginAnew(thread, answer: answer)
      }
      letGo(thread, signal: event.is_call == 0 ? event.code : 0)
    case Int(CSYS_TRACE_FORK), Int(CSYS_TRACE_VFORK), Int(CSYS_TRACE_CLONE):
      follow(thread)
    case Int(CSYS_TRACE_EXEC):
      handleExec(thread)
    case Int(CSYS_TRACE_STOP):
      handleStop(thread, event.code)
    default:
      letGo(thread)
    }
  }

  // MARK: a call in place of another one

  /// What the kernel has as the result of a call that a signal has interrupted: ERESTARTSYS,
  /// ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK.
  private static let restarts: Set<Int64> = [-512, -513, -514, -516]
  /// Of these the one that begins the call anew whatever the signal's handler says.
  private static let restartsAlways: Int64 = -513

  /// Whether a thread is at the end of a call that was answered, or that was interrupted before it was.
  private static func isAtEnd(_ registers: csys_registers, answer: Int32 = 0) -> Bool {
    let result = Int64(bitPattern: registers.rax)
    return Int64(bitPattern: registers.orig_rax) >= 0
      && (result == answer || restarts.contains(result))
  }

  /// Has a thread begin its call anew, after the handlers of signals that it is to get.
  private func beginAnew(_ thread: TracedThread, answer: Int32 = 0) {
    var registers = csys_registers()
    guard unsafe csys_trace_registers(thread.number, &registers) == 0,
      Self.isAtEnd(registers, answer: answer)
    else { return }
    registers.rax = UInt64(bitPattern: Self.restartsAlways)
    _ = unsafe csys_trace_set_registers(thread.number, &registers)
  }

  /// Brings a thread, which is at the end of its call, to the begin of another one and lets it run.
  /// - Returns: False where there is nothing to wait for: the call could not be made.
  private func begin(_ call: ReplacementCall, in thread: TracedThread) -> Bool {
    var saved = csys_registers()
    guard unsafe csys_trace_registers(thread.number, &saved) == 0, Self.isAtEnd(saved) else {
      return false
    }
    var bytes: [UInt8] = []
    let places = call.arguments.map { argument in
      guard case .path(let path) = argument else { return 0 }
      defer {
        bytes += path + [0]
        bytes += [UInt8](repeating: 0, count: -bytes.count & 7)
      }
      return bytes.count
    }
    guard let (address, loan) = lend(bytes.count, to: thread, saved) else {
      fail(thread, saved)
      return threads[thread.number] !== thread
    }
    _ = put(bytes, at: address, of: thread)
    let values = zip(call.arguments, places).map { argument, place in
      if case .value(let value) = argument { value } else { address &+ UInt64(place) }
    }
    func value(_ index: Int) -> UInt64 { index < values.count ? values[index] : 0 }
    let injected = InjectedCall(
      number: call.number,
      arguments: (value(0), value(1), value(2), value(3), value(4), value(5)))
    guard let mask = enter(injected, in: thread, from: saved) else {
      guard threads[thread.number] === thread else { return true }
      returnLoan(loan, in: thread)
      fail(thread, saved)
      return threads[thread.number] !== thread
    }
    // In the call itself, signals are as ever.
    _ = csys_trace_set_mask(thread.number, mask)
    sendHeld(thread)
    thread.replaced = ReplacedCall(call: call, registers: saved, loan: loan)
    _ = csys_trace_until_call(thread.number, 0)
    return true
  }

  /// The thread's call ends with ENOMEM.
  private func fail(_ thread: TracedThread, _ saved: csys_registers) {
    var registers = saved
    registers.rax = UInt64(bitPattern: Int64(-ENOMEM))
    _ = unsafe csys_trace_set_registers(thread.number, &registers)
  }

  /// A stop of a thread that makes a call in place of its own: as a rule the call's end.
  func finishReplaced(_ thread: TracedThread, _ event: csys_trace_event) {
    guard let replaced = thread.replaced else { return }
    guard event.is_call != 0 else {
      _ = csys_trace_until_call(thread.number, 0)
      return
    }
    thread.replaced = nil
    let wasSeen = tracer.setInjected(false, thread.number)
    var registers = csys_registers()
    guard unsafe csys_trace_registers(thread.number, &registers) == 0 else { return }
    let result = Int64(bitPattern: registers.rax)
    registers = replaced.registers
    if Self.restarts.contains(result) {
      // It is its own call that begins anew. Where the other one was not even begun, no handler makes
      // that EINTR: Linux would not have waited there.
      registers.rax = UInt64(bitPattern: wasSeen ? result : Self.restartsAlways)
    } else if result >= 0, let own = replaced.call.result {
      registers.rax = own
    } else {
      registers.rax = UInt64(bitPattern: result)
    }
    returnLoan(replaced.loan, in: thread)
    guard threads[thread.number] === thread else { return }
    _ = unsafe csys_trace_set_registers(thread.number, &registers)
    guard !Self.restarts.contains(Int64(bitPattern: registers.rax)) else {
      // The kernel looks at that where a thread has a signal; which may be gone by now. One more stop
      // is as good.
      _ = csys_trace_interrupt(thread.number)
      return proceed(thread)
    }
    doErrands(thread)
  }

  // MARK: users

  /// PR_SET_DUMPABLE.
  private static let setDumpable: UInt64 = 4

  /// Has a thread, which is at the end of its call, make that call. In between nobody may look at its
  /// process, not even we: what is needed of its memory is open by then.
  private func changeUser(by call: InjectedCall, in thread: TracedThread) {
    var registers = csys_registers()
    guard unsafe csys_trace_registers(thread.number, &registers) == 0,
      Self.isAtEnd(registers, answer: -Errand.noChange)
    else { return }
    _ = thread.process.memory(of: thread.number)
    let result = OtherUser.change { () -> Int64? in
      let result = inject(call, in: thread) ?? -Int64(Errand.noChange)
      guard threads[thread.number] === thread else { return nil }
      guard result >= 0 else { return result }
      let allow = InjectedCall(
        number: CSYS_NR_prctl, arguments: (Self.setDumpable, 1, 0, 0, 0, 0))
      _ = inject(allow, in: thread)
      return result
    }
    guard let result, threads[thread.number] === thread else { return }
    registers.rax = UInt64(bitPattern: result)
    _ = unsafe csys_trace_set_registers(thread.number, &registers)
  }

  // MARK: descriptors

  /// How many descriptors go into one message.
  private static let mostInMessage = 64

  /// Has a thread, which is at the end of its call, send copies of descriptors and begin its call anew.
  private func send(_ handOver: HandOver, in thread: TracedThread) {
    var registers = csys_registers()
    guard unsafe csys_trace_registers(thread.number, &registers) == 0, Self.isAtEnd(registers)
    else { return }
    let size = Message.byteCount(min(handOver.descriptors.count, Self.mostInMessage))
    if let (address, loan) = lend(size, to: thread, registers) {
      var rest = handOver.descriptors[...]
      while !rest.isEmpty, handOver.failure == 0 {
        send(Array(rest.prefix(Self.mostInMessage)), of: handOver, at: address, in: thread)
        rest = rest.dropFirst(Self.mostInMessage)
      }
      returnLoan(loan, in: thread)
    } else {
      handOver.fail(-ENOMEM)
    }
    let socket = UInt64(UInt32(bitPattern: handOver.socket))
    _ = inject(
      InjectedCall(number: CSYS_NR_close, arguments: (socket, 0, 0, 0, 0, 0)), in: thread)
    guard threads[thread.number] === thread else { return }
    // On the instruction itself: the kernel would do that for who has a signal alone.
    registers.rax = registers.orig_rax
    registers.rip &-= 2
    registers.orig_rax = ~0
    _ = unsafe csys_trace_set_registers(thread.number, &registers)
  }

  private func send(
    _ descriptors: [Int32], of handOver: HandOver, at address: UInt64, in thread: TracedThread
  ) {
    guard put(Message(descriptors, at: address).bytes, at: address, of: thread) else {
      return handOver.fail(-EFAULT)
    }
    let call = InjectedCall(
      number: CSYS_NR_sendmsg,
      arguments: (
        UInt64(UInt32(bitPattern: handOver.socket)), address,
        UInt64(Message.doesNotWait | Message.raisesNothing), 0, 0, 0
      ))
    guard let result = inject(call, in: thread) else { return handOver.fail(-ESRCH) }
    guard result >= 0 else { return handOver.fail(Int32(clamping: result)) }
    var copies = [Int32](repeating: -1, count: Self.mostInMessage)
    // SAFETY: the array's own count.
    let count = unsafe csys_receive_fds(handOver.ours.number, &copies, Int32(copies.count))
    guard count >= 0 else { return handOver.fail(count) }
    for (copy, number) in zip(copies.prefix(Int(count)), descriptors) {
      handOver.take(OwnedDescriptor(copy), of: number)
    }
    // What we had no descriptors for is left out.
    if Int(count) < descriptors.count { handOver.fail(-ENFILE) }
  }

  // MARK: memory

  /// How much may be put below what a thread has on its stack. Runtimes with small stacks leave a
  /// thread that makes a call that much.
  private static let mostOnStack = 448

  /// Finds memory of a thread for so many bytes: below its stack, as long as nobody else can have that in
  /// use; else in pages that it maps for them.
  /// - Returns: nil where there is no room, or the thread is gone.
  private func lend(
    _ byteCount: Int, to thread: TracedThread, _ registers: csys_registers
  ) -> (address: UInt64, loan: Loan)? {
    guard byteCount > 0 else { return (0, .none) }
    let count = UInt64(byteCount)
    let place = (registers.rsp &- Self.redZone &- count) & ~15
    if byteCount <= Self.mostOnStack, Self.isAlone(thread.process),
      let area = MemoryArea.find(place, in: thread.process.maps(of: thread.number)),
      area.start <= place, area.end >= place &+ count, area.isReadable, area.isWritable
    {
      var saved = [UInt8](repeating: 0, count: byteCount)
      let read = unsafe saved.withUnsafeMutableBytes {
        unsafe self.read(place, into: $0, of: thread)
      }
      if read == byteCount { return (place, .stack(address: place, saved: saved)) }
    }
    let length = (count + 4095) & ~4095
    let map = InjectedCall(
      number: CSYS_NR_mmap,
      arguments: (
        0, length, UInt64(PROT_READ | PROT_WRITE), UInt64(MAP_PRIVATE | MAP_ANONYMOUS), ~0, 0
      ))
    guard let address = inject(map, in: thread), address > 0 else { return nil }
    let start = UInt64(address)
    return (start, .pages(address: start, length: length))
  }

  /// Whether a process has one thread.
  private static func isAlone(_ process: TracedProcess) -> Bool {
    var status = stat()
    // The directory itself, `..` and each thread.
    return unsafe stat("/proc/\(process.number)/task", &status) == 0 && status.st_nlink == 3
  }

  private func put(_ bytes: [UInt8], at address: UInt64, of thread: TracedThread) -> Bool {
    unsafe bytes.withUnsafeBytes { unsafe write($0, to: address, of: thread) } == bytes.count
  }

  private func returnLoan(_ loan: Loan, in thread: TracedThread) {
    switch loan {
    case .none: break
    case .stack(let address, let saved): _ = put(saved, at: address, of: thread)
    case .pages(let address, let length):
      _ = inject(
        InjectedCall(number: CSYS_NR_munmap, arguments: (address, length, 0, 0, 0, 0)),
        in: thread)
    }
  }

  /// A thread executes another program. The memory that it had may be its parent's (`vfork`), whose stack
  /// is to be as it was; pages that were mapped there stay.
  func returnLoan(after thread: TracedThread) {
    guard case .stack(let address, let saved)? = thread.replaced?.loan else { return }
    _ = put(saved, at: address, of: thread)
  }
}
