// SPDX-License-Identifier: Apache-2.0
//
// The device context of a RISC-V IOMMU, in the base and the extended format, and the checks
// of its configuration: RISC-V IOMMU Architecture 1.0, sections 2.1.2 to 2.1.4.

/// A device context (`DC`): 32 bytes in the base format, 64 in the extended one.
public struct RISCVDeviceContext: Hashable, Sendable {
  /// Translation control.
  public var tc: UInt64
  /// Second-stage root, GSCID and mode.
  public var iohgatp: UInt64
  /// Translation attributes.
  public var ta: UInt64
  /// First-stage context: `iosatp`, or `pdtp` where PDTV is set.
  public var fsc: UInt64
  /// The rest is there in the extended format only, and 0 else.
  public var msiptp: UInt64
  public var messageAddressMask: UInt64
  public var messageAddressPattern: UInt64
  public var reserved: UInt64

  /// The base format.
  @inlinable
  public init(_ words: Words4) {
    tc = words[0]
    iohgatp = words[1]
    ta = words[2]
    fsc = words[3]
    msiptp = 0
    messageAddressMask = 0
    messageAddressPattern = 0
    reserved = 0
  }

  /// The extended format.
  @inlinable
  public init(_ words: Words8) {
    self.init(words.lowHalf)
    msiptp = words[4]
    messageAddressMask = words[5]
    messageAddressPattern = words[6]
    reserved = words[7]
  }

  // MARK: Fields (2.1.3)

  /// V. Where it is clear the rest belongs to software.
  @inlinable public var isValid: Bool { tc.bit(0) }
  /// EN_ATS: translation requests and translated transactions are served.
  @inlinable public var enablesATS: Bool { tc.bit(1) }
  /// EN_PRI: page requests are served.
  @inlinable public var enablesPRI: Bool { tc.bit(2) }
  /// T2GPA: translation requests get guest-physical addresses.
  @inlinable public var translatesToGuest: Bool { tc.bit(3) }
  /// DTF: translation faults are not reported.
  @inlinable public var disablesTranslationFaults: Bool { tc.bit(4) }
  /// PDTV: `fsc` is `pdtp`.
  @inlinable public var hasProcessDirectory: Bool { tc.bit(5) }
  /// PRPR: responses that the IOMMU makes carry the PASID.
  @inlinable public var responsesHavePASID: Bool { tc.bit(6) }
  /// GADE: A and D of second-stage entries are set by the IOMMU.
  @inlinable public var updatesSecondStage: Bool { tc.bit(7) }
  /// SADE: A and D of first-stage entries are set by the IOMMU.
  @inlinable public var updatesFirstStage: Bool { tc.bit(8) }
  /// DPE: process 0 stands for transactions without a process ID.
  @inlinable public var hasDefaultProcess: Bool { tc.bit(9) }
  /// SBE: the process directory and first-stage tables are big-endian.
  @inlinable public var isBigEndian: Bool { tc.bit(10) }
  /// SXL: first-stage tables are those of 32-bit systems.
  @inlinable public var is32Bit: Bool { tc.bit(11) }

  /// `iohgatp.MODE`: 0 is Bare; 8, 9, 10 are Sv39x4, Sv48x4, Sv57x4 (or 8 is Sv32x4).
  @inlinable public var secondStageMode: UInt8 { UInt8(iohgatp.bits(63, 60)) }
  /// GSCID: the address space of the guest, in invalidations.
  @inlinable public var guestSoftContextID: UInt16 { UInt16(iohgatp.bits(59, 44)) }
  /// In bytes; host-physical.
  @inlinable public var secondStageRoot: UInt64 { iohgatp.bits(43, 0) &<< 12 }
  @inlinable public var hasSecondStage: Bool { secondStageMode != 0 }

  /// PSCID: the address space of the first stage, in invalidations, unless PDTV is set.
  @inlinable public var processSoftContextID: UInt32 { UInt32(ta.bits(31, 12)) }
  @inlinable public var resourceID: UInt16 { UInt16(ta.bits(51, 40)) }
  @inlinable public var monitoringID: UInt16 { UInt16(ta.bits(63, 52)) }

  /// `iosatp.MODE` (0 Bare; 8, 9, 10 Sv39, Sv48, Sv57, or 8 Sv32) or `pdtp.MODE` (0 Bare;
  /// 1, 2, 3 PD8, PD17, PD20).
  @inlinable public var firstStageMode: UInt8 { UInt8(fsc.bits(63, 60)) }
  /// In bytes; guest-physical where there is a second stage.
  @inlinable public var firstStageRoot: UInt64 { fsc.bits(43, 0) &<< 12 }

  /// `msiptp.MODE`: 0 Off, 1 Flat.
  @inlinable public var messageTableMode: UInt8 { UInt8(msiptp.bits(63, 60)) }
  /// In bytes; host-physical.
  @inlinable public var messageTableRoot: UInt64 { msiptp.bits(43, 0) &<< 12 }

  /// Whether a guest-physical address is one of a virtual interrupt file (2.1.3.6).
  @inlinable
  public func isMessageAddress(_ address: UInt64) -> Bool {
    messageTableMode == 1
      && (address &>> 12) & ~messageAddressMask
        == messageAddressPattern & ~messageAddressMask & .mask(51, 0)
  }

  // MARK: Configuration checks (2.1.4)

  /// The first rule of 2.1.4 that the context breaks, by its number there; nil where it is
  /// well configured. A context that breaks one faults with cause 259.
  public func misconfiguration(_ iommu: RISCVCapabilities) -> Int? {
    if hasReservedBits(iommu) { return 1 }
    if !iommu.has(.ats), enablesATS || enablesPRI || responsesHavePASID { return 2 }
    if !enablesATS, translatesToGuest { return 3 }
    if !enablesATS, enablesPRI { return 4 }
    if !enablesPRI, responsesHavePASID { return 5 }
    if translatesToGuest, !iommu.has(.t2gpa) { return 6 }
    if translatesToGuest, !hasSecondStage { return 7 }
    if let rule = firstStageMisconfiguration(iommu) { return rule }
    if let rule = secondStageMisconfiguration(iommu) { return rule }
    if iommu.has(.flatMessageTable), messageTableMode > 1 { return 16 }
    if hasSecondStage, iohgatp.bits(1, 0) != 0 { return 17 }
    if !iommu.has(.updatesAccessedDirty), updatesFirstStage || updatesSecondStage {
      return 18
    }
    if !iommu.has(.bothEndiannesses), iommu.isBigEndian != isBigEndian { return 19 }
    if iommu.isGuest32Bit ? !is32Bit : is32Bit && !iommu.canChangeGuestWidth { return 20 }
    if !iommu.canChangeEndianness, iommu.isBigEndian != isBigEndian { return 21 }
    if iommu.has(.qualityOfService),
      resourceID >> UInt16(clamping: iommu.resourceIDWidth) != 0
        || monitoringID >> UInt16(clamping: iommu.monitoringIDWidth) != 0
    {
      return 22
    }
    return nil
  }

  private func hasReservedBits(_ iommu: RISCVCapabilities) -> Bool {
    // Bits 31 to 24 of tc are for custom use.
    var attributes = UInt64.mask(11, 0) | .mask(39, 32)
    if !iommu.has(.qualityOfService) { attributes |= .mask(63, 40) }
    if tc & (.mask(23, 12) | .mask(63, 32)) != 0 || ta & attributes != 0
      || fsc & .mask(59, 44) != 0
    {
      return true
    }
    return iommu.has(.flatMessageTable)
      && (msiptp & .mask(59, 44) != 0 || messageAddressMask & .mask(63, 52) != 0
        || messageAddressPattern & .mask(63, 52) != 0 || reserved != 0)
  }

  /// Rules 8 to 12.
  private func firstStageMisconfiguration(_ iommu: RISCVCapabilities) -> Int? {
    if hasProcessDirectory {
      switch firstStageMode {
      case 0: return nil
      case 1: return iommu.has(.pd8) ? nil : 8
      case 2: return iommu.has(.pd17) ? nil : 8
      case 3: return iommu.has(.pd20) ? nil : 8
      default: return 8
      }
    }
    switch RISCVFirstStage.check(mode: firstStageMode, is32Bit: is32Bit, iommu) {
    case .supported: break
    case .invalid: return 9
    case .unsupported: return is32Bit ? 11 : 10
    }
    return hasDefaultProcess ? 12 : nil
  }

  /// Rules 13 to 15.
  private func secondStageMisconfiguration(_ iommu: RISCVCapabilities) -> Int? {
    switch (secondStageMode, iommu.isGuest32Bit) {
    case (0, _): nil
    case (8, false): iommu.has(.sv39x4) ? nil : 14
    case (9, false): iommu.has(.sv48x4) ? nil : 14
    case (10, false): iommu.has(.sv57x4) ? nil : 14
    case (8, true): iommu.has(.sv32x4) ? nil : 15
    default: 13
    }
  }
}

/// Modes of the first stage (2.1.3.5, table "Encodings of iosatp.MODE field").
enum RISCVFirstStage {
  enum Support { case supported, unsupported, invalid }

  static func check(mode: UInt8, is32Bit: Bool, _ iommu: RISCVCapabilities) -> Support {
    switch (mode, is32Bit) {
    case (0, _): .supported
    case (8, true): iommu.has(.sv32) ? .supported : .unsupported
    case (8, false): iommu.has(.sv39) ? .supported : .unsupported
    case (9, false): iommu.has(.sv48) ? .supported : .unsupported
    case (10, false): iommu.has(.sv57) ? .supported : .unsupported
    default: .invalid
    }
  }
}
