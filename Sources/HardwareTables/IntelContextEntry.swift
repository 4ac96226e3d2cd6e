// SPDX-License-Identifier: Apache-2.0
//
// VT-d's root and context entries, of legacy and of scalable mode: Intel Virtualization
// Technology for Directed I/O, revision 4.1, sections 9.1 to 9.4.

/// A present root entry, or the half of a scalable one that a device selects (9.1, 9.2).
public struct IntelRootEntry: Hashable, Sendable {
  /// In bytes, a multiple of 4 KiB.
  public var contextTable: UInt64

  /// - Parameters:
  ///   - word: In legacy mode the low half; in scalable mode the low half for devices 0 to 15
  ///     and the high half for devices 16 to 31.
  ///   - high: In legacy mode the high half, which is reserved; else 0.
  @inlinable
  public init(
    decoding word: UInt64, high: UInt64 = 0, isScalable: Bool, _ unit: IntelCapabilities
  ) throws(IntelFaultReason) {
    if !word.bit(0) { throw isScalable ? .srt2 : .lrt2 }
    if word & (.mask(11, 1) | unit.reservedAddressBits) != 0 || high != 0 {
      throw isScalable ? .srt3 : .lrt3
    }
    contextTable = word & .mask(63, 12)
  }
}

/// A present context entry of legacy mode (9.3).
public struct IntelContextEntry: Hashable, Sendable {
  public enum Translation: UInt8, Hashable, Sendable {
    /// 00b: untranslated requests go through the table; others are blocked.
    case table = 0
    /// 01b: translation requests are served too.
    case tableWithDeviceTLB = 1
    /// 10b: untranslated requests go through untranslated; others are blocked.
    case passThrough = 2
  }

  public var translation: Translation
  /// SSPTPTR, in bytes. Not used for pass-through.
  public var secondStageTable: UInt64
  /// AW: 3, 4 or 5 levels.
  public var levels: Int
  public var domain: UInt16

  /// FPD, whether or not the entry is present.
  @inlinable
  public static func disablesFaults(_ words: Words2) -> Bool { words[0].bit(1) }

  @inlinable
  public init(decoding words: Words2, _ unit: IntelCapabilities) throws(IntelFaultReason) {
    let low = words[0]
    let high = words[1]
    if !low.bit(0) { throw .lct2 }
    // Bits 70 to 67 are ignored.
    if low & (.mask(11, 4) | unit.reservedAddressBits) != 0
      || high & (.mask(7, 7) | .mask(63, 24)) != 0
    {
      throw .lct3
    }
    guard let translation = Translation(rawValue: UInt8(low.bits(3, 2))) else { throw .lct4 }
    if translation == .tableWithDeviceTLB, !unit.has(.deviceTLB) { throw .lct4 }
    let levels = Int(high.bits(2, 0)) + 2
    if translation == .passThrough {
      // AW has to be the widest that the unit has.
      if !unit.has(.passThrough) || levels != unit.mostLevels { throw .lct4 }
    } else if !unit.hasSecondStage(levels: levels) {
      throw .lct4
    }
    self.translation = translation
    self.levels = levels
    secondStageTable = low & .mask(63, 12)
    domain = UInt16(high.bits(23, 8))
  }

  /// - Throws: LCT.5 where the translation type does not serve such a request.
  @inlinable
  public func check(_ request: IntelRequest) throws(IntelFaultReason) {
    if request != .untranslated, translation != .tableWithDeviceTLB { throw .lct5 }
  }
}

/// A present context entry of scalable mode (9.4).
public struct IntelScalableContextEntry: Hashable, Sendable {
  /// DTE: translation requests and translated requests are served.
  public var enablesDeviceTLB: Bool
  /// PASIDE: requests with PASID are served.
  public var enablesPASID: Bool
  /// PRE: page requests are served.
  public var enablesPageRequests: Bool
  /// PDTS: the PASID directory has 2^(7+PDTS) entries.
  public var directorySize: UInt8
  /// PASIDDIRPTR, in bytes.
  public var directory: UInt64
  /// RID_PASID: the PASID of requests that have none; 0 where the unit has no such field.
  public var ridPASID: UInt32
  /// RID_PRIV: requests without PASID ask for supervisor privilege.
  public var ridIsPrivileged: Bool

  /// FPD, whether or not the entry is present.
  @inlinable
  public static func disablesFaults(_ words: Words4) -> Bool { words[0].bit(1) }

  @inlinable
  public init(decoding words: Words4, _ unit: IntelCapabilities) throws(IntelFaultReason) {
    let low = words[0]
    let high = words[1]
    if !low.bit(0) { throw .sct2 }
    var reserved = Words4(.mask(8, 5) | unit.reservedAddressBits, .mask(63, 21), .max, .max)
    if !unit.has(.deviceTLB) { reserved[0] |= .mask(2, 2) }
    if !unit.has(.pasid) { reserved[0] |= .mask(3, 3) }
    if !unit.has(.pageRequests) { reserved[0] |= .mask(4, 4) }
    if !unit.has(.supervisorRequests) { reserved[1] |= .mask(20, 20) }
    if words.hasAny(of: reserved) { throw .sct3 }
    enablesDeviceTLB = low.bit(2)
    enablesPASID = low.bit(3)
    enablesPageRequests = low.bit(4)
    directorySize = UInt8(low.bits(11, 9))
    directory = low & .mask(63, 12)
    ridPASID = unit.has(.ridPASID) ? UInt32(high.bits(19, 0)) : 0
    ridIsPrivileged = high.bit(20)
  }

  /// Whether the directory tells this PASID apart: a directory entry has 64 of them.
  @inlinable
  public func covers(pasid: UInt32) -> Bool {
    UInt64(pasid) < 1 &<< (UInt64(directorySize) &+ 13)
  }

  /// What the entry allows, and which PASID a request uses.
  /// - Throws: SCT.5 to SCT.9.
  @inlinable
  public func pasid(of request: IntelRequest, _ pasid: UInt32?) throws(IntelFaultReason)
    -> UInt32
  {
    if request == .translated || request == .translation, !enablesDeviceTLB { throw .sct5 }
    if request == .page, !enablesPageRequests { throw .sct8 }
    guard let pasid else {
      if !covers(pasid: ridPASID) { throw .sct9 }
      return ridPASID
    }
    if !enablesPASID { throw .sct6 }
    if !covers(pasid: pasid) { throw .sct7 }
    return pasid
  }
}
