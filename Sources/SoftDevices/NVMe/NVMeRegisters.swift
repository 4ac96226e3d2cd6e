// SPDX-License-Identifier: Apache-2.0
//
// The registers of an NVMe controller (NVM Express 1.4, 3.1), and what writing them asks of its
// thread. Doorbells are apart: NVMeDoorbells.

/// What registers hold and what they have asked for. Plain data, under the core's monitor.
struct NVMeRegisters: Sendable {
  /// Offsets in BAR 0.
  enum Offset {
    static let capabilities: UInt64 = 0x00
    static let interruptMaskSet: UInt64 = 0x0C
    static let interruptMaskClear: UInt64 = 0x10
    static let configuration: UInt64 = 0x14
    static let status: UInt64 = 0x1C
    static let subsystemReset: UInt64 = 0x20
    static let adminQueueSizes: UInt64 = 0x24
    static let adminSubmission: UInt64 = 0x28
    static let adminCompletion: UInt64 = 0x30
    static let doorbells: Range<UInt64> = 0x1000..<0x2000
    static let vectors: UInt64 = 0x2000
    static let pendingVectors: UInt64 = 0x3000
    static let end: UInt64 = 0x4000
  }

  static let version: UInt32 = 0x0001_0400
  /// What a write to NSSR has to be: "NVMe".
  private static let resetWord: UInt32 = 0x4E56_4D65

  /// CC.
  struct Configuration: Hashable, Sendable {
    /// What stays as it is while the controller is enabled: command set, page size, arbitration.
    static let fixed: UInt32 = 0x3FF0

    var rawValue: UInt32 = 0
    var isEnabled: Bool { rawValue & 1 != 0 }
    var commandSet: UInt32 { rawValue >> 4 & 7 }
    /// Log2 of the page size, which is from 12 on.
    var pageShift: Int { 12 + Int(rawValue >> 7 & 0xF) }
    var arbitration: UInt32 { rawValue >> 11 & 7 }
    /// 0 for none, 1 normal, 2 abrupt.
    var shutdown: UInt32 { rawValue >> 14 & 3 }
    /// Log2 of the size of an I/O queue's entries.
    var submissionSize: UInt32 { rawValue >> 16 & 0xF }
    var completionSize: UInt32 { rawValue >> 20 & 0xF }
  }

  /// CSTS.
  struct Status: OptionSet, Hashable, Sendable {
    let rawValue: UInt32
    static let ready = Status(rawValue: 1 << 0)
    static let fatal = Status(rawValue: 1 << 1)
    static let shutdownOccurring = Status(rawValue: 1 << 2)
    static let shutdownComplete = Status(rawValue: 1 << 3)
    static let subsystemReset = Status(rawValue: 1 << 4)
  }

  /// What the thread is to do. In the order in which it does it.
  struct Requests: OptionSet, Hashable, Sendable {
    let rawValue: UInt8
    /// NSSR was written.
    static let subsystemReset = Requests(rawValue: 1 << 0)
    /// CC.EN went from 1 to 0.
    static let disable = Requests(rawValue: 1 << 1)
    /// CC.EN went from 0 to 1.
    static let enable = Requests(rawValue: 1 << 2)
    static let shutdown = Requests(rawValue: 1 << 3)
  }

  let queueEntries: Int
  var configuration = Configuration()
  var status: Status = []
  /// Vectors of the interrupt line that do not assert it.
  var interruptMask: UInt32 = 0
  var adminQueueSizes: UInt32 = 0
  var adminSubmission: UInt64 = 0
  var adminCompletion: UInt64 = 0
  var requests: Requests = []

  init(queueEntries: Int) { self.queueEntries = queueEntries }

  /// Log2 of the largest page, as CAP.MPSMAX counts.
  static let largestPage: UInt64 = 4

  private var capabilities: UInt64 {
    UInt64(queueEntries - 1)
      // Queues are contiguous; it is ready or done within 30 s; it can reset its subsystem; the
      // NVM command set.
      | 1 << 16 | 60 << 24 | 1 << 36 | 1 << 37 | Self.largestPage << 52
  }

  /// The 8 bytes at a multiple of 8.
  private func word(at offset: UInt64) -> UInt64 {
    switch offset {
    case 0x00: capabilities
    case 0x08: UInt64(Self.version) | UInt64(interruptMask) << 32
    case 0x10: UInt64(interruptMask) | UInt64(configuration.rawValue) << 32
    case 0x18: UInt64(status.rawValue) << 32
    case 0x20: UInt64(adminQueueSizes) << 32
    case 0x28: adminSubmission
    case 0x30: adminCompletion
    // No memory buffer, no boot partition, no persistent memory; doorbells read as 0.
    default: 0
    }
  }

  /// - Parameter width: 1, 2, 4 or 8; the access is aligned.
  func read(_ offset: UInt64, width: Int) -> UInt64 {
    let value = word(at: offset & ~7) >> (offset % 8 * 8)
    return width == 8 ? value : value & (1 << UInt64(width * 8) - 1)
  }

  /// One aligned write of 4 bytes below the doorbells.
  mutating func write(_ offset: UInt64, _ value: UInt32) {
    switch offset {
    case Offset.interruptMaskSet: interruptMask |= value
    case Offset.interruptMaskClear: interruptMask &= ~value
    case Offset.configuration: configure(value)
    case Offset.status:
      // The others only show something.
      status.remove(Status(rawValue: value).intersection(.subsystemReset))
    case Offset.subsystemReset:
      if value == Self.resetWord { resetSubsystem() }
    case Offset.adminQueueSizes: adminQueueSizes = value & 0x0FFF_0FFF
    case Offset.adminSubmission: Self.setLow(&adminSubmission, value & ~0xFFF)
    case Offset.adminSubmission + 4: Self.setHigh(&adminSubmission, value)
    case Offset.adminCompletion: Self.setLow(&adminCompletion, value & ~0xFFF)
    case Offset.adminCompletion + 4: Self.setHigh(&adminCompletion, value)
    default: break
    }
  }

  private static func setLow(_ register: inout UInt64, _ value: UInt32) {
    register = register & ~0xFFFF_FFFF | UInt64(value)
  }

  private static func setHigh(_ register: inout UInt64, _ value: UInt32) {
    register = register & 0xFFFF_FFFF | UInt64(value) << 32
  }

  private mutating func configure(_ value: UInt32) {
    let old = configuration
    configuration.rawValue = value & 0x00FF_FFF1
    if old.isEnabled, configuration.isEnabled {
      configuration.rawValue =
        configuration.rawValue & ~Configuration.fixed | old.rawValue & Configuration.fixed
    }
    if configuration.isEnabled != old.isEnabled {
      // A shutdown ends with a reset, and what is enabled then has to be shut down anew.
      status.subtract([.shutdownOccurring, .shutdownComplete])
      requests.remove(.shutdown)
      if configuration.isEnabled {
        requests.insert(.enable)
      } else {
        requests.insert(.disable)
        requests.remove(.enable)
      }
    }
    if configuration.shutdown != 0,
      status.isDisjoint(with: [.shutdownOccurring, .shutdownComplete])
    {
      status.insert(.shutdownOccurring)
      requests.insert(.shutdown)
    }
  }

  /// The registers are reset at once, as what is written to them from now on stays; the status
  /// when the thread has stopped.
  private mutating func resetSubsystem() {
    let status = status
    powerOn()
    self.status = status
    requests = .subsystemReset
  }

  /// After a reset by CC.EN the admin queues' registers stay, and so does a shutdown that was asked
  /// for with it or since.
  mutating func disable() {
    status.formIntersection([.subsystemReset, .shutdownOccurring, .shutdownComplete])
    interruptMask = 0
  }

  /// As after power-on.
  mutating func powerOn() { self = NVMeRegisters(queueEntries: queueEntries) }
}
