// SPDX-License-Identifier: Apache-2.0
//
// What the tracer remembers of the processes that have registers mapped, or an errand to do, and of
// their threads.

import CSyscalls
import IOMMU
import LinuxABI

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// A process under the tracer. Its own thread's.
final class TracedProcess {
  /// What the kernel has as the process's action for SIGBUS.
  enum Installed {
    /// The default: a fault in a thread that blocks SIGBUS does that, or nobody has set another.
    case nothing
    /// A handler of ours that is never entered. A fault that finds SIGBUS blocked replaces it, so
    /// that we see it; before a SIGBUS is delivered, the program's own action takes its place.
    case mark
    /// The program's own.
    case own
  }

  let number: Int32
  var threads: [Int32: TracedThread] = [:]
  /// Whether it has registers mapped: all of its threads are traced, for good. Else only those are
  /// that have an errand, for as long as that takes.
  var isForGood: Bool
  var installed = Installed.nothing
  /// The program's own as it was when it took its place: it may have another one by now.
  var inPlace = csys_signal_action()
  /// Taken as it was, since nobody that is traced had said so far that it made it.
  var isOrphan = false
  /// Stopped by a signal, as a shell stops a job.
  var isStopped = false
  /// A `syscall` instruction of the program; 0 where none is known.
  var callAddress: UInt64 = 0
  private var openMaps: OwnedDescriptor?
  private var openMemory: OwnedDescriptor?

  init(number: Int32, isForGood: Bool = false) {
    self.number = number
    self.isForGood = isForGood
  }

  /// Another process's child, which has its memory and its actions.
  init(number: Int32, childOf parent: TracedProcess) {
    self.number = number
    isForGood = parent.isForGood
    installed = parent.installed
    inPlace = parent.inPlace
    callAddress = parent.callAddress
  }

  /// It executes another program: it has other memory.
  func beginAnew() {
    callAddress = 0
    openMaps = nil
    openMemory = nil
  }

  /// Whether the kernel has an action of the program's for SIGBUS, and it is this one.
  func has(_ own: csys_signal_action) -> Bool {
    if own.isDefault { return installed == .nothing }
    return installed == .own && inPlace.handler == own.handler && inPlace.flags == own.flags
      && inPlace.restorer == own.restorer && inPlace.mask == own.mask
  }

  /// `/proc/PID/maps`; negative where it cannot be had.
  /// - Parameter thread: One that lives; the first may have ended.
  func maps(of thread: Int32) -> Int32 {
    if let openMaps { return openMaps.number }
    let number = System.open("/proc/\(thread)/maps", O_RDONLY)
    guard number >= 0 else { return -1 }
    openMaps = OwnedDescriptor(number)
    return number
  }

  /// `/proc/PID/mem`; negative where it cannot be had. An access that waits for somebody
  /// (`userfaultfd(2)`) fails by it, where one by the process's number would make all wait.
  func memory(of thread: Int32) -> Int32 {
    if let openMemory { return openMemory.number }
    let number = System.open("/proc/\(thread)/mem", O_RDWR)
    guard number >= 0 else { return -1 }
    openMemory = OwnedDescriptor(number)
    return number
  }
}

/// A thread under the tracer. The tracer's own thread's.
final class TracedThread {
  let number: Int32
  let process: TracedProcess
  /// The next stop that was asked for is the one at the end of its first `mmap` of registers.
  var awaitsSetUp = false
  /// What it is to do at the end of its call, in this order.
  var errands: [Errand] = []
  /// The call that it makes in place of its own.
  var replaced: ReplacedCall?
  /// Signals that cannot be blocked, and that came while it made a call for us.
  var held: [Int32] = []
  var mask = MaskWatch()
  /// Whether it had SIGBUS blocked at its last access that was looked at; nil before the first.
  var blocks: Bool?
  /// Whether it has SIGBUS blocked, of a fault that the kernel's action cannot tell it of any more.
  var verdict: Bool?
  private var openStatus: OwnedDescriptor?

  init(number: Int32, process: TracedProcess) {
    self.number = number
    self.process = process
  }

  /// `/proc/PID/task/TID/stat`; negative where it cannot be had.
  var status: Int32 {
    if let openStatus { return openStatus.number }
    let path = "/proc/\(process.number)/task/\(number)/stat"
    let number = System.open(path, O_RDONLY)
    guard number >= 0 else { return -1 }
    openStatus = OwnedDescriptor(number)
    return number
  }
}

/// Whether a thread can have blocked SIGBUS since its last access: to look takes a third of the time
/// of an access. It cannot without a system call; so a thread that makes none between its accesses,
/// as in a loop that polls, is let run until its next one, whichever comes first. A thread that does
/// make calls is asked for that rarely: each such stop costs as much as an access.
struct MaskWatch {
  /// The thread runs until its next system call.
  private(set) var isOn = false
  private var rest = first
  private var patience = first
  private static let first = 8
  private static let most = 1024
  /// So often it is looked in any case: where the thread runs may have changed.
  private static let period = 64
  private var accesses = 0

  /// An access, by a thread that did not have SIGBUS blocked.
  /// - Returns: Whether to let it run until its next system call.
  mutating func noteAccess() -> Bool {
    if isOn {
      patience = Self.first
      return true
    }
    rest -= 1
    isOn = rest <= 0
    return isOn
  }

  /// Whether the mask is what it was at the last access.
  mutating func isUnchanged() -> Bool {
    accesses &+= 1
    return isOn && accesses % Self.period != 0
  }

  /// A system call, or another signal: its handler may have another mask.
  mutating func noteOther() {
    guard isOn else { return }
    isOn = false
    patience = min(patience * 2, Self.most)
    rest = patience
  }
}

/// What programs do with SIGBUS, by process: who has registers mapped has its answer from here, as
/// the kernel has another. Thread-safe.
final class BusActions: Sendable {
  private let actions = Guarded([Int32: csys_signal_action]())

  subscript(process: Int32) -> csys_signal_action? {
    get { actions.withLock { $0[process] } }
    set { actions.withLock { $0[process] = newValue } }
  }

  /// Replaces an action.
  /// - Returns: What it was; nil where the process is not traced.
  func exchange(
    _ process: Int32, _ new: csys_signal_action?
  ) -> csys_signal_action? {
    actions.withLock { actions in
      guard let old = actions[process] else { return nil }
      if let new { actions[process] = new }
      return old
    }
  }
}

extension csys_signal_action {
  /// `SIG_DFL` and `SIG_IGN`.
  var isDefault: Bool { handler == 0 }
  var isIgnored: Bool { handler == 1 }
  /// Linux: `SA_RESETHAND`.
  var resets: Bool { flags & 0x8000_0000 != 0 }
}
