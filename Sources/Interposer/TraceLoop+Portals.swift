// SPDX-License-Identifier: Apache-2.0
//
// MOVDIRI, MOVDIR64B and ENQCMD on a processor that does not have them, or, ENQCMD, that has no PASID
// for the thread: it refuses the instruction before it looks at the memory. Where that is registers, the
// instruction is carried out as after any other fault.

import CSyscalls
import X86Instructions

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

extension TraceLoop {
  /// The signals that a processor's refusal ends in.
  static func isRefusal(_ signal: Int32) -> Bool { signal == SIGILL || signal == SIGSEGV }

  /// ILL_ILLOPN, what Linux says of an instruction that is not there.
  private static let noInstruction: Int32 = 2

  /// A thread is about to get SIGILL or SIGSEGV.
  func handleRefusal(_ thread: TracedThread, _ number: Int32) {
    guard unsafe csys_trace_signal(thread.number, &signal) == 0 else { return }
    let isRefusal = signal.code == (number == SIGILL ? Self.noInstruction : Self.kernelCode)
    guard isRefusal, let (area, address) = portal(of: thread) else {
      return proceed(thread, signal: number)
    }
    switch emulate(thread, area) {
    case .done: proceed(thread)
    case .raises(var information):
      _ = unsafe csys_trace_set_signal(thread.number, &information)
      proceed(thread, signal: information.number)
    case .busError:
      signal = csys_signal_information()
      signal.number = SIGBUS
      signal.code = Int32(CSYS_BUS_ADDRESS_ERROR)
      signal.address = address
      guard let own = tracer.actions[thread.process.number], !thread.process.has(own) else {
        _ = unsafe csys_trace_set_signal(thread.number, &signal)
        return hand(thread)
      }
      // Refused again, with the program's own action in place.
      deliver(thread, isFault: true)
    }
  }

  /// The registers that a thread's instruction stores to, if it is one of these.
  private func portal(of thread: TracedThread) -> (RegisterArea, UInt64)? {
    guard unsafe csys_trace_registers(thread.number, &registers) == 0,
      let instruction = try? instruction(of: thread),
      let address = instruction.portal(Registers(registers)),
      let area = registerArea(at: address, of: thread)
    else { return nil }
    return (area, address)
  }
}
