// SPDX-License-Identifier: Apache-2.0
//
// Errands: what a thread does for us at the end of a call that waits for an answer, before it goes on
// with its program. The tracing thread has it do them (TraceLoop+Errands); who serves the call asks for
// them and then answers.

import CSyscalls
import IOMMU

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// A thread whose call waits for an answer.
struct WaitingThread: Sendable {
  let thread: Int32
  let process: Int32
  let listener: Int32
  let call: UInt64

  /// Whether it still does: the thread may have been killed, and its number be another one's, as that of a
  /// first thread is when another one executes a program.
  var isWaiting: Bool { csys_notif_id_valid(listener, call) == 0 }
}

/// What a thread is to do at the end of its call.
enum Errand: Sendable {
  /// Map something over what its call has mapped.
  case overlay(MapOverlay)
  /// Make another call in place of its own, which was not made.
  case replacement(ReplacementCall)
  /// Send copies of its descriptors and begin its call, which was not made, anew.
  case handOver(HandOver)
  /// Make its own call, which was not made and which changes its user, and allow to be looked at then.
  case changeUser(InjectedCall)

  /// What a call that changes a user ends with where the errand comes to nothing: nobody shall believe to
  /// be another user that it is not.
  static let noChange = ENOMEM

  /// What its call was answered with.
  var answer: Int32 {
    switch self {
    case .overlay, .replacement, .handOver: 0
    case .changeUser: -Self.noChange
    }
  }

  /// Whether its whole process is traced from then on.
  var isForGood: Bool {
    switch self {
    case .overlay: true
    case .replacement, .handOver, .changeUser: false
    }
  }
}

/// One argument of a call that a thread makes for us.
enum ErrandArgument: Sendable {
  case value(UInt64)
  /// Without its terminator. It is in the thread's memory while the call lasts.
  case path([UInt8])
}

/// A call that a thread makes in place of its own.
struct ReplacementCall: Sendable {
  var number: Int32
  /// At most six.
  var arguments: [ErrandArgument]
  /// What the thread gets where the call succeeds; nil is what the call returns.
  var result: UInt64?

  init(number: Int32, arguments: [ErrandArgument], result: UInt64? = nil) {
    self.number = number
    self.arguments = arguments
    self.result = result
  }
}

/// What a thread's memory holds for a call, and what was there before.
enum Loan {
  case none
  /// Below what the thread has on its stack.
  case stack(address: UInt64, saved: [UInt8])
  /// Pages that were mapped for it.
  case pages(address: UInt64, length: UInt64)
}

/// A call that a thread makes in place of its own, and that it may wait in for as long as it likes.
struct ReplacedCall {
  let call: ReplacementCall
  /// As the thread has them at the end of its own call.
  let registers: csys_registers
  let loan: Loan
}

extension Tracer {
  /// Has a thread, whose call waits for an answer, make another call in its place. The call is answered
  /// with `.result(0)` after this has returned; the thread gets what the other call returns. Where a
  /// signal interrupts that one, the thread's own call begins anew as Linux has it.
  ///
  /// It may be one that executes another program, or one that waits for long: nobody else waits for it.
  /// The other call comes by the filter too, and is let through (`isInjected`).
  /// - Throws: `EPERM` where the thread cannot be traced.
  func replace(
    _ caller: WaitingThread, by call: ReplacementCall
  ) throws(IOMMUError) {
    try admit(caller, errand: .replacement(call)).check(
      of: caller.process,
      debugged: "it cannot be made to do in its call's place what that call means here",
      refused:
        "it takes to do in its call's place what that call means here; `iommu doctor` says "
        + "what to allow")
  }

  /// Has a thread, whose call waits for an answer, make that call, which changes its user. The kernel has it
  /// that nobody may look at the process from then on; the thread allows it by its own hand
  /// (PR_SET_DUMPABLE). The call is answered with `Errand.noChange` after this has returned.
  /// - Returns: False where it cannot be traced.
  func changeUser(_ caller: WaitingThread, by call: SystemCall) -> Bool {
    let same = InjectedCall(
      number: call.number, arguments: (call[0], call[1], call[2], call[3], call[4], call[5]))
    if case .traced = admit(caller, errand: .changeUser(same)) { return true }
    return false
  }

  /// Has a thread, whose call waits for an answer, send copies of its descriptors and begin that call anew.
  /// The call is answered with `.result(0)` after this has returned.
  /// - Throws: `EPERM` where the thread cannot be traced.
  func handOver(
    _ handOver: HandOver, of caller: WaitingThread
  ) throws(IOMMUError) {
    try admit(caller, errand: .handOver(handOver)).check(
      of: caller.process,
      debugged:
        "it cannot be made to hand over its descriptors, and pidfd_getfd(2), which takes "
        + "copies under a debugger too, is not allowed here",
      refused:
        "it takes to have it hand over its descriptors where pidfd_getfd(2) is not allowed; "
        + "`iommu doctor` says what to allow")
  }
}
