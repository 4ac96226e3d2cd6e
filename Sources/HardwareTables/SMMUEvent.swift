// SPDX-License-Identifier: Apache-2.0
//
// Records of an SMMUv3's event queue: Arm System Memory Management Unit Architecture version 3
// (IHI 0070), sections 7.3.1 to 7.3.19, but F_BAD_ATS_TREQ and E_PAGE_REQUEST, of which nothing
// here has reason to tell: see Faults.md of SoftwareIOMMU.

/// A record of the event queue: 32 bytes. Fields that its event has not are written as 0.
public struct SMMUEvent: Hashable, Sendable {
  /// The event's number (7.3, table of event types).
  public enum Code: UInt8, Hashable, Sendable, CaseIterable {
    /// F_UUT.
    case unsupportedTransaction = 0x01
    /// C_BAD_STREAMID.
    case badStreamID = 0x02
    /// F_STE_FETCH.
    case streamTableFetch = 0x03
    /// C_BAD_STE.
    case badStreamTableEntry = 0x04
    /// F_STREAM_DISABLED.
    case streamDisabled = 0x06
    /// F_TRANSL_FORBIDDEN.
    case translationForbidden = 0x07
    /// C_BAD_SUBSTREAMID.
    case badSubstreamID = 0x08
    /// F_CD_FETCH.
    case contextFetch = 0x09
    /// C_BAD_CD.
    case badContextDescriptor = 0x0A
    /// F_WALK_EABT.
    case walkAbort = 0x0B
    /// F_TRANSLATION.
    case translation = 0x10
    /// F_ADDR_SIZE.
    case addressSize = 0x11
    /// F_ACCESS.
    case access = 0x12
    /// F_PERMISSION.
    case permission = 0x13
    /// F_TLB_CONFLICT.
    case tlbConflict = 0x20
    /// F_CFG_CONFLICT.
    case configurationConflict = 0x21

    /// SSV says whether there is a SubstreamID.
    var hasSubstream: Bool {
      switch self {
      case .streamDisabled, .translationForbidden, .badSubstreamID: false
      default: true
      }
    }
    /// REASON, that the implementation defines.
    var hasReason: Bool {
      switch self {
      case .unsupportedTransaction, .streamTableFetch, .contextFetch, .walkAbort,
        .tlbConflict, .configurationConflict:
        true
      default: false
      }
    }
    /// The faults of 7.3.13 to 7.3.16, which may stall.
    var isTranslationRelated: Bool { rawValue >= 0x10 && rawValue <= 0x13 }
    /// What the transaction was: RnW, InD, PnU.
    var hasAccess: Bool {
      switch self {
      case .unsupportedTransaction, .translationForbidden, .walkAbort, .tlbConflict: true
      default: isTranslationRelated
      }
    }
    /// S2 and CLASS.
    var hasStage: Bool {
      switch self {
      case .walkAbort, .tlbConflict: true
      default: isTranslationRelated
      }
    }
    /// IPA, where the fault is of stage 2.
    var hasIntermediate: Bool { isTranslationRelated || self == .tlbConflict }
    var hasFetchAddress: Bool {
      switch self {
      case .streamTableFetch, .contextFetch, .walkAbort: true
      default: false
      }
    }
  }

  /// CLASS: what the access was for.
  public enum Purpose: UInt8, Hashable, Sendable, CaseIterable {
    /// CD: to fetch a context descriptor.
    case contextDescriptor = 0
    /// TT: to fetch from a translation table.
    case table = 1
    /// IN: the transaction's own.
    case input = 2
  }

  /// What is told of a transaction, by the number of its bit in the second word.
  public struct Flags: OptionSet, Hashable, Sendable {
    public var rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// PnU: privileged.
    public static let privileged = Flags(rawValue: 1 << 33)
    /// InD: an instruction; of reads only.
    public static let instruction = Flags(rawValue: 1 << 34)
    /// RnW: a read.
    public static let read = Flags(rawValue: 1 << 35)
    /// S2: the fault is of stage 2.
    public static let stage2 = Flags(rawValue: 1 << 39)
    /// TTRnW: the table's access was a read; of F_PERMISSION with CLASS = TT.
    public static let tableRead = Flags(rawValue: 1 << 44)

    static func allowed(_ code: Code) -> Flags {
      var all: Flags = code.hasAccess ? [.privileged, .instruction, .read] : []
      if code.hasStage { all.insert(.stage2) }
      if code == .permission { all.insert(.tableRead) }
      return all
    }
  }

  public var code: Code
  public var stream: UInt32
  /// 20 bits. Of C_BAD_SUBSTREAMID what the transaction had.
  public var substream: UInt32?
  public var flags: Flags
  /// Of walks and of the translation-related events.
  public var purpose: Purpose
  /// STAG: where the transaction stalls (Stall = 1), what CMD_RESUME names it by.
  public var stallTag: UInt16?
  /// REASON.
  public var reason: UInt16
  /// InputAddr.
  public var address: UInt64
  /// IPA, bits 55 to 12, of stage 2's translation-related events and conflicts; FetchAddr, bits
  /// 55 to 3, of fetches and walks.
  public var secondAddress: UInt64

  public init(
    _ code: Code, stream: UInt32, substream: UInt32? = nil, flags: Flags = [],
    purpose: Purpose = .contextDescriptor, stallTag: UInt16? = nil, reason: UInt16 = 0,
    address: UInt64 = 0, secondAddress: UInt64 = 0
  ) {
    self.code = code
    self.stream = stream
    self.substream = substream
    self.flags = flags
    self.purpose = purpose
    self.stallTag = stallTag
    self.reason = reason
    self.address = address
    self.secondAddress = secondAddress
  }

  /// The event that a lookup's fault is recorded as.
  /// - Parameters:
  ///   - address: Of the transaction.
  ///   - flags: What kind of transaction it was: `read`, `instruction`, `privileged`.
  public init(
    _ fault: SMMUFault, stream: UInt32, substream: UInt32?, address: UInt64, flags: Flags
  ) {
    self.init(fault.event, stream: stream, substream: substream)
    switch fault {
    case .badSubstreamID(let substream): self.substream = substream
    case .streamTableFetch(let place), .contextFetch(let place): secondAddress = place
    case .contextTranslation(let place):
      self.address = address
      self.flags = flags.union(.stage2)
      secondAddress = place
    case .badStreamID, .badStreamTableEntry, .streamDisabled, .badContextDescriptor: break
    }
  }

  /// As in memory, little-endian.
  public var words: Words4 {
    var first: UInt64 = .place(code.rawValue, 7, 0) | .place(stream, 63, 32)
    if let substream {
      if code == .badSubstreamID { first |= .place(substream, 31, 12) }
      if code.hasSubstream { first |= .place(substream, 31, 12) | .place(true, 11) }
    }
    var flags = flags.intersection(.allowed(code))
    // InD is 0 of writes; TTRnW is of walks only (7.3.16).
    if !flags.contains(.read) { flags.remove(.instruction) }
    if purpose != .table { flags.remove(.tableRead) }
    var second = flags.rawValue
    if code.hasReason { second |= .place(reason, 15, 0) }
    if code.hasStage { second |= .place(purpose.rawValue, 41, 40) }
    if code.isTranslationRelated, let stallTag {
      second |= .place(stallTag, 15, 0) | .place(true, 31)
    }
    let last: UInt64 =
      if code.hasFetchAddress {
        secondAddress & .mask(55, 3)
      } else if code.hasIntermediate, flags.contains(.stage2) {
        secondAddress & .mask(55, 12)
      } else { 0 }
    return Words4(first, second, code.hasAccess ? address : 0, last)
  }

  /// Nil for a number or a CLASS that is not one of these.
  public init?(decoding words: Words4) {
    let first = words[0]
    let second = words[1]
    guard let code = Code(rawValue: UInt8(first.bits(7, 0))) else { return nil }
    guard let purpose = Purpose(rawValue: code.hasStage ? UInt8(second.bits(41, 40)) : 0)
    else { return nil }
    let hasSubstream = code == .badSubstreamID || code.hasSubstream && first.bit(11)
    self.init(
      code, stream: UInt32(first.bits(63, 32)),
      substream: hasSubstream ? UInt32(first.bits(31, 12)) : nil,
      flags: Flags(rawValue: second).intersection(.allowed(code)), purpose: purpose,
      stallTag: code.isTranslationRelated && second.bit(31) ? UInt16(second.bits(15, 0)) : nil,
      reason: code.hasReason ? UInt16(second.bits(15, 0)) : 0,
      address: code.hasAccess ? words[2] : 0,
      secondAddress: code.hasFetchAddress
        ? words[3] & .mask(55, 3)
        : code.hasIntermediate && second.bit(39) ? words[3] & .mask(55, 12) : 0)
  }
}
