// SPDX-License-Identifier: Apache-2.0
//
// The state machine of the copy engine's channel: what each command, doorbell, completion and
// error does to it. No memory is touched here and no thread is known: the engine's thread asks
// what to do next and says how it went.

import IOMMU
import VFIO

/// The channel's registers and state. Every change goes through its methods.
struct CopyChannel: Sendable {
  /// The low 3 bits of CHANSTS.
  enum Status: UInt64, Sendable {
    case active = 0
    case done = 1
    case suspended = 2
    case halted = 3
    case armed = 4
  }

  /// Bits of CHANCTRL.
  enum Control {
    static let interruptRearm: UInt16 = 0x01
    static let errorCompletion: UInt16 = 0x04
    /// Every error that is not masked halts the channel, asked for or not.
    static let abortOnError: UInt16 = 0x08
    static let errorInterrupt: UInt16 = 0x10
    /// What reads back as it was written: re-arming is an action.
    static let kept: UInt16 = 0x013C
  }

  /// Bits of CHANCMD.
  enum Command {
    static let start: UInt8 = 0x01
    static let append: UInt8 = 0x02
    static let suspend: UInt8 = 0x04
    static let abort: UInt8 = 0x08
    static let resume: UInt8 = 0x10
    static let reset: UInt8 = 0x20
  }

  private(set) var status = Status.halted
  private(set) var control: UInt16 = 0
  /// DMACOUNT: the doorbell, modulo 65536.
  private(set) var doorbell: UInt16 = 0
  private(set) var chainAddress: UInt64 = 0
  var completionAddress: UInt64 = 0
  private(set) var errors: ChannelErrors = []
  var errorMask: ChannelErrors = []
  /// A reset was asked for while the thread is at work; CHANCMD reads back 0x20 meanwhile.
  private(set) var isResetting = false
  /// The thread has a descriptor in hand, or a status to write.
  private(set) var isBusy = false
  /// CHANSTS is to be written to CHANCMP, because of an error.
  private var owesStatus = false
  /// It has stopped for an error, and no chain was started since.
  private var isRecovering = false

  /// Whether CHAINADDR was written since the last reset.
  private var hasChain = false
  /// Where the next descriptor is, and whether it is the one CHAINADDR names.
  private var nextAddress: UInt64 = 0
  private var isFirst = true
  /// Descriptors completed since CHAINADDR was written, modulo 65536.
  private var completed: UInt16 = 0
  private var lastCompleted: UInt64 = 0
  /// The chain that the thread's descriptor belongs to; another CHAINADDR makes another one.
  private var chain: UInt64 = 0
  private var suspendWanted = false

  private(set) var interruptArmed = true
  /// A completion came while the interrupt was not armed: it fires when it is.
  private(set) var interruptWaiting = false

  init() {}

  /// CHANSTS. A channel whose reset is not done yet is still active.
  var statusRegister: UInt64 {
    isResetting ? Status.active.rawValue : lastCompleted | status.rawValue
  }

  /// CDAR: the descriptor in hand, or the one that is next.
  var currentAddress: UInt64 { nextAddress }

  /// Descriptors that the doorbell has announced and that are not completed.
  var pending: UInt16 { doorbell &- completed }

  /// What a register write asks the engine to do once the lock is released.
  struct Actions: OptionSet, Sendable {
    let rawValue: UInt8
    /// The descriptor in hand is to be dropped at once.
    static let cancel = Actions(rawValue: 1)
    static let interrupt = Actions(rawValue: 2)
  }

  // MARK: Registers written by the user

  mutating func writeControl(_ value: UInt16) -> Actions {
    control = value & Control.kept
    guard value & Control.interruptRearm != 0 else { return [] }
    interruptArmed = true
    guard interruptWaiting else { return [] }
    interruptWaiting = false
    interruptArmed = false
    return .interrupt
  }

  /// A new chain: the count starts over. After a reset it arms the channel.
  mutating func writeChainAddress(_ value: UInt64) -> Actions {
    chainAddress = value
    nextAddress = value
    hasChain = true
    isFirst = true
    completed = 0
    doorbell = 0
    chain &+= 1
    switch status {
    case .halted, .done, .armed:
      status = .armed
      lastCompleted = 0
      return []
    case .active:
      // The rest of the old chain is dropped.
      status = .armed
      lastCompleted = 0
      return .cancel
    case .suspended:
      lastCompleted = 0
      return []
    }
  }

  /// The doorbell. Starts a channel that is suspended, halted or armed.
  mutating func writeDoorbell(_ value: UInt16) -> Actions {
    let announced = value &- completed
    guard announced >= pending else {
      // What was announced cannot be taken back.
      return fail(.descriptorCount)
    }
    doorbell = value
    return start()
  }

  private mutating func start() -> Actions {
    guard pending != 0 else {
      if hasChain, status == .suspended { status = idleStatus }
      return []
    }
    guard hasChain else { return fail(.chainAddress) }
    suspendWanted = false
    status = .active
    return []
  }

  /// With nothing left to do: armed until a descriptor of the chain has been completed.
  private var idleStatus: Status { completed == 0 ? .armed : .done }

  /// CHANCMD: exactly one command. 0 is none; several at once are an error.
  mutating func writeCommand(_ value: UInt8) -> Actions {
    switch value {
    case 0: return []
    case Command.reset:
      // The registers are reset at once, so that what is written next stays; the reset is
      // done, for those who look, when the thread has let go.
      let (wasBusy, wasRecovering) = (isBusy, isRecovering)
      powerOn()
      isBusy = wasBusy
      isRecovering = wasRecovering
      isResetting = wasBusy
      return wasBusy ? .cancel : []
    case Command.abort:
      status = .halted
      suspendWanted = false
      return .cancel
    case Command.suspend:
      switch status {
      case .active where isBusy: suspendWanted = true
      case .active, .done, .armed: status = .suspended
      case .suspended, .halted: break
      }
      return []
    case Command.resume:
      guard status == .suspended || suspendWanted else { return [] }
      suspendWanted = false
      status = pending == 0 ? idleStatus : .active
      return []
    case Command.start, Command.append:
      return start()
    default:
      return fail(.command)
    }
  }

  mutating func clearErrors(_ bits: ChannelErrors) { errors.subtract(bits) }

  // MARK: Steps of the engine's thread

  /// Whether the thread has something to do that it has not in hand.
  var hasWork: Bool { owesStatus || (status == .active && pending != 0) }

  /// Whether the thread has to wait a little before it begins: once after each error that has
  /// stopped the channel. DPDK's driver announces the rest of its ring, and in its next line takes
  /// memory to show nothing new yet: it loses a completion that is there already. A doorbell is a
  /// posted write on hardware, and the first descriptor is under way while the driver goes on.
  mutating func takePause() -> Bool {
    guard isRecovering, status == .active, pending != 0 else { return false }
    isRecovering = false
    return true
  }

  /// What the thread is to fetch.
  struct Fetch: Sendable {
    var address: UInt64
    /// The error bits for an address that cannot be read, and for one that is not aligned.
    var addressError: ChannelErrors
    var alignmentError: ChannelErrors
    fileprivate var chain: UInt64
  }

  /// Takes the next descriptor in hand; nil where there is nothing to do.
  mutating func begin() -> Fetch? {
    guard status == .active, !isBusy, pending != 0 else { return nil }
    isBusy = true
    return Fetch(
      address: nextAddress, addressError: isFirst ? .chainAddress : .nextAddress,
      alignmentError: isFirst ? .chainAddress : .nextAlignment, chain: chain)
  }

  /// Takes the writing of CHANSTS after an error in hand.
  /// - Returns: Where to and what; nil where nothing of the kind is due.
  mutating func beginStatus() -> (address: UInt64, value: UInt64)? {
    guard owesStatus, !isBusy else { return nil }
    owesStatus = false
    isBusy = true
    return (completionAddress, statusRegister)
  }

  /// Whether the descriptor in hand still counts.
  func isCurrent(_ fetch: Fetch) -> Bool {
    status == .active && isOfThisChain(fetch)
  }

  /// False once CHAINADDR was written or the channel was reset.
  func isOfThisChain(_ fetch: Fetch) -> Bool { fetch.chain == chain }

  /// How far a chain has come.
  struct Progress: Sendable {
    fileprivate var nextAddress: UInt64
    fileprivate var isFirst: Bool
    fileprivate var completed: UInt16
    fileprivate var lastCompleted: UInt64
  }

  var progress: Progress {
    Progress(
      nextAddress: nextAddress, isFirst: isFirst, completed: completed,
      lastCompleted: lastCompleted)
  }

  /// Puts a descriptor back whose completion could not be delivered: it is done again.
  mutating func putBack(_ progress: Progress) {
    (nextAddress, isFirst) = (progress.nextAddress, progress.isFirst)
    (completed, lastCompleted) = (progress.completed, progress.lastCompleted)
  }

  /// The descriptor's work is done; its status is not delivered yet.
  /// - Returns: What CHANSTS is going to be.
  mutating func complete(_ fetch: Fetch, next: UInt64) -> UInt64 {
    lastCompleted = fetch.address
    nextAddress = next
    isFirst = false
    completed &+= 1
    let status: Status = suspendWanted ? .suspended : pending == 0 ? .done : .active
    return lastCompleted | status.rawValue
  }

  /// CHANSTS shows the completion from here on; an interrupt may still be under way.
  mutating func deliver() { settle() }

  /// Nothing is in hand any more.
  mutating func finish() {
    isBusy = false
    isResetting = false
    settle()
  }

  private mutating func settle() {
    if suspendWanted {
      suspendWanted = false
      if status == .active { status = .suspended }
    } else if status == .active, pending == 0 {
      status = .done
    }
  }

  /// A completion interrupt is due.
  /// - Returns: Whether it fires now.
  mutating func requestInterrupt() -> Bool {
    guard interruptArmed else {
      interruptWaiting = true
      return false
    }
    interruptArmed = false
    return true
  }

  /// Records an error. One that is not masked halts the channel.
  mutating func fail(_ error: ChannelErrors) -> Actions {
    errors.formUnion(error)
    let halts = !errorMask.isSuperset(of: error) || !error.isDisjoint(with: .chain)
    guard halts else { return [] }
    status = .halted
    isRecovering = true
    suspendWanted = false
    var actions: Actions = .cancel
    if control & Control.errorCompletion != 0 { owesStatus = true }
    if control & Control.errorInterrupt != 0, requestInterrupt() { actions.insert(.interrupt) }
    return actions
  }

  // MARK: Moving

  func save(to state: inout DeviceStateWriter) {
    state.append(UInt8(status.rawValue))
    state.append(control)
    for word in [doorbell, completed] { state.append(word) }
    for word in [chainAddress, completionAddress, nextAddress, lastCompleted] {
      state.append(word)
    }
    for word in [errors.rawValue, errorMask.rawValue] { state.append(word) }
    for flag in [
      owesStatus, hasChain, isFirst, suspendWanted, interruptArmed, interruptWaiting,
    ] {
      state.append(flag)
    }
  }

  /// What `save` wrote, of a channel that has nothing in hand.
  /// - Throws: `EINVAL` for what it cannot have written.
  init(from state: inout DeviceStateReader) throws(IOMMUError) {
    guard let status = Status(rawValue: UInt64(try state.read(UInt8.self))) else {
      throw DeviceStateReader.invalid("a channel has no such status")
    }
    self.status = status
    control = try state.read()
    doorbell = try state.read()
    completed = try state.read()
    chainAddress = try state.read()
    completionAddress = try state.read()
    nextAddress = try state.read()
    lastCompleted = try state.read()
    errors = ChannelErrors(rawValue: try state.read())
    errorMask = ChannelErrors(rawValue: try state.read())
    owesStatus = try state.readFlag()
    hasChain = try state.readFlag()
    isFirst = try state.readFlag()
    suspendWanted = try state.readFlag()
    interruptArmed = try state.readFlag()
    interruptWaiting = try state.readFlag()
    guard control & ~Control.kept == 0, lastCompleted % CopyDescriptor.size == 0 else {
      throw DeviceStateReader.invalid("a register has bits that it cannot have")
    }
    guard hasChain || status == .halted || status == .suspended else {
      throw DeviceStateReader.invalid("a channel without a chain cannot run")
    }
  }

  /// Becomes another one. What the thread had in hand belongs to no chain any more.
  mutating func become(_ other: CopyChannel) {
    let chain = chain
    self = other
    self.chain = chain &+ 1
  }

  /// As after power-on. What the thread has in hand belongs to no chain any more.
  mutating func powerOn() {
    let chain = chain
    self = CopyChannel()
    self.chain = chain &+ 1
  }
}
