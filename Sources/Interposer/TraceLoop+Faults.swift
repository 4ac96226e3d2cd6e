// SPDX-License-Identifier: Apache-2.0
//
// A fault on a page of registers: the instruction that touched it is carried out here, against the
// device and the program's own memory, and the program goes on after it.

import CSyscalls
import IOMMU
import LinuxABI
import X86Instructions

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

extension TraceLoop {
  /// A thread is about to get SIGBUS: because it touched registers, or another one.
  func handleBusError(_ thread: TracedThread) {
    guard unsafe csys_trace_signal(thread.number, &signal) == 0 else { return }
    // As `isReplaced`.
    guard signal.number == SIGBUS else { return }
    // What another process sends has other codes.
    let isFault = Int(signal.code) == CSYS_BUS_ADDRESS_ERROR
    guard isFault else { return handleSent(thread) }
    guard let area = registerArea(at: signal.address, of: thread) else {
      return deliver(thread, isFault: true)
    }
    let wasBlocked =
      thread.verdict == nil && thread.mask.isUnchanged() ? false : hadBlocked(thread)
    switch emulate(thread, area) {
    case .done:
      if wasBlocked {
        blockAgain(thread)
      } else if thread.process.installed == .nothing {
        install(.mark, in: thread)
      } else if thread.mask.noteAccess() {
        _ = csys_trace_until_call(thread.number, 0)
        return
      }
      thread.mask.noteOther()
      proceed(thread)
    case .raises(var information):
      thread.mask.noteOther()
      // The next fault finds that there is no mark.
      if wasBlocked { thread.process.installed = .nothing }
      setBlocked(
        wasBlocked, in: thread, exceptFor: information.number)
      _ = unsafe csys_trace_set_signal(thread.number, &information)
      proceed(thread, signal: information.number)
    case .busError:
      thread.mask.noteOther()
      // The kernel has made it a default that ends the process.
      if wasBlocked { return proceed(thread, signal: SIGBUS) }
      deliver(thread, isFault: true)
    }
  }

  /// A SIGBUS that somebody has sent. A fault of a thread that had blocked it lets it through, and
  /// nothing is told of the fault then: Linux keeps one SIGBUS for each thread.
  private func handleSent(_ thread: TracedThread) {
    thread.mask.noteOther()
    guard hadBlocked(thread) else { return deliver(thread, isFault: false) }
    let information = signal
    guard unsafe csys_trace_registers(thread.number, &registers) == 0 else { return }
    guard let instruction = try? instruction(of: thread),
      let area = registerArea(at: instruction.address(Registers(registers)), of: thread),
      case .done = emulate(thread, area)
    else { return proceed(thread, signal: SIGBUS) }
    blockAgain(thread)
    send(information, to: thread)
    proceed(thread)
  }

  /// Registers that are mapped around an address; nil where there are none that the program may
  /// use.
  func registerArea(at address: UInt64, of thread: TracedThread) -> RegisterArea? {
    guard var area = MemoryArea.find(address, in: thread.process.maps(of: thread.number)),
      let file = tracer.handles.handle(mappedIn: &area)?.registers
    else { return nil }
    guard let place = file.registers(at: area.offset &+ (address &- area.start)) else {
      return nil
    }
    return RegisterArea(area: area, file: file, bar: place.bar, barSize: place.barSize)
  }

  /// What comes of an instruction.
  enum End {
    case done
    /// Another signal than the SIGBUS that the thread has stopped for.
    case raises(csys_signal_information)
    case busError
  }

  /// Carries out the instruction that a thread has stopped at.
  func emulate(_ thread: TracedThread, _ area: RegisterArea) -> End {
    guard unsafe csys_trace_registers(thread.number, &registers) == 0 else { return .busError }
    let instruction: Instruction
    do throws(DecodeError) {
      guard let found = try self.instruction(of: thread) else { return .busError }
      instruction = found
    } catch {
      tracer.reporter.note(
        "process \(thread.process.number) touches registers of \(area.file.name) with an "
          + "instruction that is not emulated, at \(hex(registers.rip)) (\(error)): it gets SIGBUS"
      )
      return .busError
    }
    var state = Registers(registers)
    var vectors = ThreadVectors(thread: thread.number, scratch: scratch)
    var memory = TracedMemory(loop: self, thread: thread, area: area)
    var fault: ExecutionFault?
    do throws(ExecutionFault) {
      // A repeated instruction is interrupted now and then, as on hardware.
      try instruction.execute(&state, &vectors, &memory, limit: Self.mostRounds)
    } catch {
      fault = error
    }
    state.store(in: &registers)
    if fault == nil || fault == .inexact { vectors.store() }
    _ = unsafe csys_trace_set_registers(thread.number, &registers)
    guard let fault else { return .done }
    return end(fault, memory.cause)
  }

  private static let mostRounds = 4096

  /// The instruction that a thread's registers are at; nil where there is none to be read.
  func instruction(of thread: TracedThread) throws(DecodeError) -> Instruction? {
    // SAFETY: 15 bytes of 4096; fewer where the code's page ends.
    let count = unsafe read(
      registers.rip, into: UnsafeMutableRawBufferPointer(rebasing: scratch.bytes[..<15]),
      of: thread)
    guard count > 0 else { return nil }
    let code = unsafe UnsafeRawBufferPointer(rebasing: scratch.bytes[..<count])
    return try unsafe Instruction.decode(code.bindMemory(to: UInt8.self).span)
  }

  /// `SI_KERNEL`: a general protection fault.
  static let kernelCode: Int32 = 0x80

  private func end(_ fault: ExecutionFault, _ cause: TracedMemory.Cause) -> End {
    var information = csys_signal_information()
    switch fault {
    case .access where cause == .noPASID:
      information.number = SIGSEGV
      information.code = Self.kernelCode
    case .access(let access):
      guard cause == .notMapped || cause == .notAllowed else {
        signal.address = access.address
        return .busError
      }
      information.number = SIGSEGV
      // SEGV_MAPERR, SEGV_ACCERR
      information.code = cause == .notMapped ? 1 : 2
      information.address = access.address
    case .generalProtection:
      information.number = SIGSEGV
      information.code = Self.kernelCode
    case .divideError:
      information.number = SIGFPE
      information.code = 1  // FPE_INTDIV
      information.address = registers.rip
    case .inexact:
      information.number = SIGFPE
      information.code = 6  // FPE_FLTRES
      information.address = registers.rip
    }
    return .raises(information)
  }
}

/// A mapping of registers.
struct RegisterArea {
  let area: MemoryArea
  let file: any RegisterFile
  let bar: Int
  let barSize: UInt64

  func contains(_ address: UInt64) -> Bool { address >= area.start && address < area.end }
}

extension Registers {
  init(_ from: csys_registers) {
    self.init()
    general[0] = from.rax
    general[1] = from.rcx
    general[2] = from.rdx
    general[3] = from.rbx
    general[4] = from.rsp
    general[5] = from.rbp
    general[6] = from.rsi
    general[7] = from.rdi
    general[8] = from.r8
    general[9] = from.r9
    general[10] = from.r10
    general[11] = from.r11
    general[12] = from.r12
    general[13] = from.r13
    general[14] = from.r14
    general[15] = from.r15
    rip = from.rip
    rflags = from.eflags
    fsBase = from.fs_base
    gsBase = from.gs_base
  }

  func store(in to: inout csys_registers) {
    to.rax = general[0]
    to.rcx = general[1]
    to.rdx = general[2]
    to.rbx = general[3]
    to.rsp = general[4]
    to.rbp = general[5]
    to.rsi = general[6]
    to.rdi = general[7]
    to.r8 = general[8]
    to.r9 = general[9]
    to.r10 = general[10]
    to.r11 = general[11]
    to.r12 = general[12]
    to.r13 = general[13]
    to.r14 = general[14]
    to.r15 = general[15]
    to.rip = rip
    to.eflags = rflags
  }
}
