// SPDX-License-Identifier: Apache-2.0
//
// The registers of the copy engine's BAR: where each is, how wide, what it reads as and what
// writing it does. An access may meet several registers, or a part of one.

/// One register.
struct CopyRegister: Hashable, Sendable {
  enum Name: Sendable {
    case channelCount, transferCapacity, generalControl, interruptControl, attention, version
    case interruptDelay, deviceStatus, capability, prefetchLimit
    case control, compatibility, command, doorbell, status, chain, completion, current, errors,
      errorMask
    case cacheHint, ringSize, latencyChoice, latencyActive, latencyIdle
  }

  let name: Name
  /// From the start of BAR 0, in bytes.
  let offset: UInt64
  /// In bytes.
  let width: Int

  /// In order of offset: that is the order in which a wide write reaches them.
  static let all: [CopyRegister] = [
    CopyRegister(name: .channelCount, offset: 0x00, width: 1),
    CopyRegister(name: .transferCapacity, offset: 0x01, width: 1),
    CopyRegister(name: .generalControl, offset: 0x02, width: 1),
    CopyRegister(name: .interruptControl, offset: 0x03, width: 1),
    CopyRegister(name: .attention, offset: 0x04, width: 4),
    CopyRegister(name: .version, offset: 0x08, width: 1),
    CopyRegister(name: .interruptDelay, offset: 0x0C, width: 2),
    CopyRegister(name: .deviceStatus, offset: 0x0E, width: 2),
    CopyRegister(name: .capability, offset: 0x10, width: 4),
    CopyRegister(name: .prefetchLimit, offset: 0x4C, width: 1),
    CopyRegister(name: .control, offset: 0x80, width: 2),
    CopyRegister(name: .compatibility, offset: 0x82, width: 2),
    CopyRegister(name: .command, offset: 0x84, width: 1),
    CopyRegister(name: .doorbell, offset: 0x86, width: 2),
    CopyRegister(name: .status, offset: 0x88, width: 8),
    CopyRegister(name: .chain, offset: 0x90, width: 8),
    CopyRegister(name: .completion, offset: 0x98, width: 8),
    CopyRegister(name: .current, offset: 0xA0, width: 8),
    CopyRegister(name: .errors, offset: 0xA8, width: 4),
    CopyRegister(name: .errorMask, offset: 0xAC, width: 4),
    CopyRegister(name: .cacheHint, offset: 0xB0, width: 4),
    CopyRegister(name: .ringSize, offset: 0xB6, width: 2),
    CopyRegister(name: .latencyChoice, offset: 0xBC, width: 1),
    CopyRegister(name: .latencyActive, offset: 0xC0, width: 4),
    CopyRegister(name: .latencyIdle, offset: 0xC4, width: 4),
  ]

  func meets(_ start: UInt64, _ width: Int) -> Bool {
    offset < start + UInt64(width) && start < offset + UInt64(self.width)
  }

  private var mask: UInt64 { width == 8 ? .max : 1 << UInt64(width * 8) - 1 }

  /// Moves the register's value to where an access at `start` sees it.
  func place(_ value: UInt64, at start: UInt64) -> UInt64 {
    offset >= start ? value << ((offset - start) * 8) : value >> ((start - offset) * 8)
  }

  /// Moves what an access at `start` writes to where the register sees it.
  func extract(_ value: UInt64, from start: UInt64) -> UInt64 {
    mask & (offset >= start ? value >> ((offset - start) * 8) : value << ((start - offset) * 8))
  }
}

/// Registers that drivers set up and that change nothing here: DMA by software is coherent, fetches
/// nothing ahead and never sleeps. They read as they were written, until power-on.
struct CopyHints: Equatable, Sendable {
  /// PREFETCH_LIMIT: how many descriptors are fetched ahead.
  var prefetchLimit: UInt8 = 0
  /// DCACTRL: which processor's cache takes completions.
  var cacheHint: UInt32 = 0
  /// DRSCTL: where a ring of descriptors without links wraps. There are links always
  /// (DMACAPABILITY says that there is no such ring).
  var ringSize: UInt16 = 0
  /// LTR_SWSEL, LTR_ACTIVE, LTR_IDLE: what latency the engine tolerates.
  var latencyChoice: UInt8 = 0
  var latencyActive: UInt32 = 0
  var latencyIdle: UInt32 = 0
}

/// Everything in the engine that a register access can see or change.
struct CopyEngineState: Sendable {
  /// Bits of INTRCTRL.
  enum InterruptControl {
    static let master: UInt8 = 0x01
    static let status: UInt8 = 0x02
    static let interrupt: UInt8 = 0x04
    static let vectorControl: UInt8 = 0x08
  }

  let configuration: CopyEngine.Configuration
  var channel = CopyChannel()
  /// GENCTRL keeps its debug bit, which does nothing.
  var generalControl: UInt8 = 0
  var interruptControl: UInt8 = 0
  /// INTRDELAY keeps what is written; interrupts are not delayed.
  var interruptDelay: UInt16 = 0
  var hints = CopyHints()
  /// A thread exists, or nobody needs one again.
  var hasThread = false
  var isStopping = false
  /// Stopped so that the state can move: nothing is taken in hand.
  var isQuiesced = false
  /// An interrupt came due meanwhile.
  var owesInterrupt = false
  /// The driver has read ATTNSTATUS since the channel signalled, or INTRCTRL since it wrote that:
  /// the interrupt line is let go.
  private var isAttended = false
  private var isHeldBack = false
  /// What the function's line is driven to.
  var drivesLine = false

  init(configuration: CopyEngine.Configuration) { self.configuration = configuration }

  /// The channel has signalled and was not re-armed since.
  private var attention: Bool { !channel.interruptArmed }

  /// Whether interrupts leave the device: by the master switch, or by MSI-X alone.
  var interruptsEnabled: Bool {
    interruptControl & (InterruptControl.master | InterruptControl.vectorControl) != 0
  }

  /// Whether the interrupt line is asserted: the channel has signalled, the master switch is on, and
  /// no driver has looked yet.
  var wantsLine: Bool {
    attention && !isAttended && !isHeldBack && !isQuiesced
      && interruptControl & InterruptControl.master != 0
  }

  /// What reading a register does. Reading INTRCTRL lets the line go until INTRCTRL is written or
  /// the channel is re-armed, and reading ATTNSTATUS until the channel signals again.
  mutating func noteRead(_ register: CopyRegister) {
    switch register.name {
    case .attention: isAttended = attention
    case .interruptControl: isHeldBack = attention
    default: break
    }
  }

  private mutating func rearmLine() {
    isAttended = false
    isHeldBack = false
  }

  func read(_ register: CopyRegister) -> UInt64 {
    switch register.name {
    case .channelCount: 1
    case .transferCapacity: UInt64(configuration.transferCapacity)
    case .generalControl: UInt64(generalControl)
    case .interruptControl: UInt64(interruptControlValue)
    case .attention: attention ? 1 : 0
    case .version: UInt64(configuration.version)
    case .interruptDelay: UInt64(interruptDelay)
    case .deviceStatus: 0
    case .prefetchLimit: UInt64(hints.prefetchLimit)
    case .current: channel.currentAddress
    case .cacheHint: UInt64(hints.cacheHint)
    case .ringSize: UInt64(hints.ringSize)
    case .latencyChoice: UInt64(hints.latencyChoice)
    case .latencyActive: UInt64(hints.latencyActive)
    case .latencyIdle: UInt64(hints.latencyIdle)
    case .capability:
      (configuration.canFill ? 0x40 : 0) | (configuration.takesPASIDs ? 0x8000_0000 : 0)
    case .control: UInt64(channel.control)
    case .compatibility: 0x02
    case .command: channel.isResetting ? UInt64(CopyChannel.Command.reset) : 0
    case .doorbell: UInt64(channel.doorbell)
    case .status: channel.statusRegister
    case .chain: channel.chainAddress
    case .completion: channel.completionAddress
    case .errors: UInt64(channel.errors.rawValue)
    case .errorMask: UInt64(channel.errorMask.rawValue)
    }
  }

  private var interruptControlValue: UInt8 {
    var value = interruptControl
    if attention {
      value |= InterruptControl.status
      if value & InterruptControl.master != 0 { value |= InterruptControl.interrupt }
    }
    return value
  }

  /// - Parameters:
  ///   - written: What the access writes, where the register sees it.
  ///   - bits: Which bits of the register it reaches; the others keep their value.
  mutating func write(
    _ register: CopyRegister, _ written: UInt64, bits: UInt64
  ) -> CopyChannel.Actions {
    func merged(_ old: UInt64) -> UInt64 { old & ~bits | written & bits }
    switch register.name {
    case .generalControl:
      generalControl = UInt8(truncatingIfNeeded: merged(UInt64(generalControl))) & 0x01
    case .interruptControl:
      isHeldBack = false
      interruptControl =
        UInt8(truncatingIfNeeded: merged(UInt64(interruptControl)))
        & (InterruptControl.master | InterruptControl.vectorControl)
    case .interruptDelay:
      interruptDelay = UInt16(truncatingIfNeeded: merged(UInt64(interruptDelay)))
    case .control:
      let control = UInt16(truncatingIfNeeded: merged(UInt64(channel.control)))
      if control & CopyChannel.Control.interruptRearm != 0 { rearmLine() }
      return channel.writeControl(control)
    case .command:
      if UInt8(truncatingIfNeeded: written) == CopyChannel.Command.reset { rearmLine() }
      return channel.writeCommand(UInt8(truncatingIfNeeded: written))
    case .doorbell:
      return channel.writeDoorbell(
        UInt16(truncatingIfNeeded: merged(UInt64(channel.doorbell))))
    case .chain:
      return channel.writeChainAddress(merged(channel.chainAddress))
    case .completion:
      channel.completionAddress = merged(channel.completionAddress)
    case .errors:
      channel.clearErrors(ChannelErrors(rawValue: UInt32(truncatingIfNeeded: written & bits)))
    case .errorMask:
      channel.errorMask = ChannelErrors(
        rawValue: UInt32(truncatingIfNeeded: merged(UInt64(channel.errorMask.rawValue))))
    case .prefetchLimit:
      hints.prefetchLimit = UInt8(truncatingIfNeeded: merged(UInt64(hints.prefetchLimit)))
    case .cacheHint:
      hints.cacheHint = UInt32(truncatingIfNeeded: merged(UInt64(hints.cacheHint)))
    case .ringSize: hints.ringSize = UInt16(truncatingIfNeeded: merged(UInt64(hints.ringSize)))
    case .latencyChoice:
      hints.latencyChoice = UInt8(truncatingIfNeeded: merged(UInt64(hints.latencyChoice)))
    case .latencyActive:
      hints.latencyActive = UInt32(truncatingIfNeeded: merged(UInt64(hints.latencyActive)))
    case .latencyIdle:
      hints.latencyIdle = UInt32(truncatingIfNeeded: merged(UInt64(hints.latencyIdle)))
    case .channelCount, .transferCapacity, .attention, .version, .deviceStatus, .capability,
      .compatibility, .status, .current:
      break
    }
    return []
  }

  /// As after power-on; the thread has nothing in hand.
  mutating func powerOn() {
    channel.powerOn()
    generalControl = 0
    interruptControl = 0
    interruptDelay = 0
    hints = CopyHints()
    owesInterrupt = false
    rearmLine()
  }
}
