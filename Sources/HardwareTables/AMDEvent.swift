// SPDX-License-Identifier: Apache-2.0
//
// Entries of an AMD IOMMU's event log: AMD I/O Virtualization Technology (48882), sections
// 2.5.2 to 2.5.9, events 01h to 08h.

/// An event log entry of 16 bytes; the event's code is in bits 63 to 60.
public struct AMDEvent: Hashable, Sendable {
  public enum Code: UInt8, Hashable, Sendable, CaseIterable {
    case illegalDeviceTableEntry = 1
    case pageFault = 2
    case deviceTableHardwareError = 3
    case pageTableHardwareError = 4
    case illegalCommand = 5
    case commandHardwareError = 6
    case iotlbInvalidationTimeout = 7
    case invalidDeviceRequest = 8

    /// Events about commands have no device.
    var hasDevice: Bool { self != .illegalCommand && self != .commandHardwareError }
    /// The PASID or the domain ID.
    var hasTag: Bool {
      switch self {
      case .illegalDeviceTableEntry, .pageFault, .pageTableHardwareError,
        .invalidDeviceRequest:
        true
      default: false
      }
    }
    /// Where the type ends; it begins at bit 57.
    var typeEnd: Int? {
      switch self {
      case .deviceTableHardwareError, .pageTableHardwareError, .commandHardwareError: 58
      case .invalidDeviceRequest: 59
      default: nil
      }
    }
  }

  /// What is told of a request, by the number of its bit in the entry.
  public struct Flags: OptionSet, Hashable, Sendable {
    public var rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// GN: an address of a guest's table; `tag` is the PASID's.
    public static let guest = Flags(rawValue: 1 << 48)
    /// NX: execution was asked for.
    public static let execute = Flags(rawValue: 1 << 49)
    /// US: user privilege was asked for.
    public static let user = Flags(rawValue: 1 << 50)
    /// I: an interrupt.
    public static let interrupt = Flags(rawValue: 1 << 51)
    /// PR: what faulted was present.
    public static let present = Flags(rawValue: 1 << 52)
    /// RW: a write.
    public static let write = Flags(rawValue: 1 << 53)
    /// PE: the permissions did not suffice.
    public static let permission = Flags(rawValue: 1 << 54)
    /// RZ: a reserved bit was set; else a level was not encoded right.
    public static let reservedBits = Flags(rawValue: 1 << 55)
    /// TR: a translation request.
    public static let translation = Flags(rawValue: 1 << 56)

    /// Those that each event has; others are not written.
    static func allowed(_ code: Code) -> Flags {
      switch code {
      case .illegalDeviceTableEntry:
        [.guest, .interrupt, .write, .reservedBits, .translation]
      case .pageFault:
        [
          .guest, .execute, .user, .interrupt, .present, .write, .permission, .reservedBits,
          .translation,
        ]
      case .deviceTableHardwareError: [.interrupt, .write, .translation]
      case .pageTableHardwareError: [.guest, .interrupt, .write, .translation]
      case .invalidDeviceRequest: [.guest, .translation]
      case .illegalCommand, .commandHardwareError, .iotlbInvalidationTimeout: []
      }
    }
  }

  public var code: Code
  /// Not of events about commands.
  public var device: UInt16
  /// The PASID, 20 bits, with the flag `guest`; else the domain ID, of page faults and page
  /// table errors.
  public var tag: UInt32
  public var flags: Flags
  /// Of hardware errors and invalid device requests, 2 or 3 bits; else 0.
  public var type: UInt8
  /// The IOVA of a request; the host-physical address of a table's entry or of a command.
  public var address: UInt64

  public init(
    _ code: Code, device: UInt16 = 0, tag: UInt32 = 0, flags: Flags = [], type: UInt8 = 0,
    address: UInt64
  ) {
    self.code = code
    self.device = device
    self.tag = tag
    self.flags = flags
    self.type = type
    self.address = address
  }

  /// The event that a lookup's fault is logged as.
  /// - Parameters:
  ///   - iova: Of the request, in bytes.
  ///   - flags: What kind of request it was: `write`, `execute`, `user`, `translation`.
  public init(
    _ fault: AMDFault, device: UInt16, domain: UInt16, pasid: UInt32?, iova: UInt64,
    flags: Flags
  ) {
    self.init(.pageFault, device: device, flags: flags, address: iova)
    switch fault {
    case .illegalDeviceTableEntry(let reservedBits):
      code = .illegalDeviceTableEntry
      if let pasid {
        tag = pasid
        self.flags.insert(.guest)
      }
      if reservedBits { self.flags.insert(.reservedBits) }
    case .pageFault(let fault):
      tag = fault.isGuest ? pasid ?? 0 : UInt32(domain)
      if fault.isGuest { self.flags.insert(.guest) }
      if fault.isPresent { self.flags.insert(.present) }
      if fault.hasReservedBits { self.flags.insert(.reservedBits) }
    case .deviceTableHardwareError(let entry, let error):
      code = .deviceTableHardwareError
      address = entry
      type = error.rawValue
    case .pageTableHardwareError(let entry, let error):
      code = .pageTableHardwareError
      tag = pasid ?? 0
      self.flags.insert(.guest)
      address = entry
      type = error.rawValue
    }
  }

  /// As in memory.
  public var words: Words2 {
    var low: UInt64 = .place(code.rawValue, 63, 60)
    low |= flags.intersection(.allowed(code)).rawValue
    if code.hasDevice { low |= .place(device, 15, 0) }
    if code.hasTag { low |= .place(tag, 47, 32) | .place(tag >> 16, 19, 16) }
    if let end = code.typeEnd { low |= .place(type, end, 57) }
    return Words2(low, address)
  }

  /// Nil for a code that is not one of these.
  public init?(decoding words: Words2) {
    let low = words[0]
    guard let code = Code(rawValue: UInt8(low.bits(63, 60))) else { return nil }
    self.init(
      code, device: code.hasDevice ? UInt16(low.bits(15, 0)) : 0,
      tag: code.hasTag ? UInt32(low.bits(19, 16) &<< 16 | low.bits(47, 32)) : 0,
      flags: Flags(rawValue: low).intersection(.allowed(code)), address: words[1])
    if let end = code.typeEnd { type = UInt8(low.bits(end, 57)) }
  }
}
