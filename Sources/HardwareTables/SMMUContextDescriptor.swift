// SPDX-License-Identifier: Apache-2.0
//
// The context descriptor of an SMMUv3 and which are ILLEGAL: Arm System Memory Management Unit
// Architecture version 3 (IHI 0070), sections 5.4 and 5.4.2, CdIllegal(), for the Non-secure
// interface of SMMUv3.1 and later.

/// A context descriptor (CD) of 64 bytes: the fields, without any check.
public struct SMMUContextDescriptor: Hashable, Sendable {
  public var words: Words8

  @inlinable
  public init(_ words: Words8) { self.words = words }

  /// One of the two halves of the virtual address space.
  public enum Half: Hashable, Sendable, CaseIterable {
    /// TTB0: addresses whose upper bits are clear.
    case low
    /// TTB1: addresses whose upper bits are set.
    case high
  }

  /// T0SZ and T1SZ: the half has 64 - TxSZ bits.
  @inlinable
  public func size(_ half: Half) -> UInt8 {
    UInt8(half == .low ? words[0].bits(5, 0) : words[0].bits(21, 16))
  }
  /// TG0 and TG1; nil for the reserved value.
  @inlinable
  public func granule(_ half: Half) -> SMMUGranule? {
    half == .low
      ? SMMUGranule(tg0: words[0].bits(7, 6)) : SMMUGranule(tg1: words[0].bits(23, 22))
  }
  /// EPD0 and EPD1: walks of the half fault.
  @inlinable
  public func disablesWalks(_ half: Half) -> Bool { words[0].bit(half == .low ? 14 : 30) }
  /// TBI0 and TBI1: the top byte is ignored.
  @inlinable
  public func ignoresTopByte(_ half: Half) -> Bool { words[0].bit(half == .low ? 38 : 39) }
  /// HAD0 and HAD1: permissions of tables are ignored.
  @inlinable
  public func disablesTableAttributes(_ half: Half) -> Bool {
    half == .low ? words[1].bit(1) : words[2].bit(1)
  }
  /// TTB0 and TTB1, in bytes; intermediate physical where there is a stage 2.
  @inlinable
  public func table(_ half: Half) -> UInt64 {
    (half == .low ? words[1] : words[2]) & .mask(51, 4)
  }

  /// ENDI.
  @inlinable public var isBigEndian: Bool { words[0].bit(15) }
  /// V.
  @inlinable public var isValid: Bool { words[0].bit(31) }
  /// IPS, in bits.
  @inlinable
  public var outputWidth: Int { SMMUCapabilities.addressWidth(Int(words[0].bits(34, 32))) }
  /// AFFD: access flags count as set.
  @inlinable public var ignoresAccessFlag: Bool { words[0].bit(35) }
  /// WXN and UWXN.
  @inlinable public var writableIsNotExecutable: Bool { words[0].bit(36) }
  @inlinable public var userWritableIsNotExecutable: Bool { words[0].bit(37) }
  /// PAN.
  @inlinable public var keepsPrivilegedFromUserPages: Bool { words[0].bit(40) }
  /// AA64.
  @inlinable public var isAArch64: Bool { words[0].bit(41) }
  /// HD and HA.
  @inlinable public var updatesDirty: Bool { words[0].bit(42) }
  @inlinable public var updatesAccessFlag: Bool { words[0].bit(43) }
  /// S, R and A: faults stall, are recorded, are aborted.
  @inlinable public var stalls: Bool { words[0].bit(44) }
  @inlinable public var records: Bool { words[0].bit(45) }
  @inlinable public var aborts: Bool { words[0].bit(46) }
  /// ASET: broadcast invalidation does not reach its entries.
  @inlinable public var isPrivateASID: Bool { words[0].bit(47) }
  /// ASID.
  @inlinable public var asid: UInt16 { UInt16(words[0].bits(63, 48)) }
  /// HAFT: of tables too.
  @inlinable public var updatesTables: Bool { words[1].bit(3) }
  /// DS: 52-bit addresses with granules of 4 and 16 KiB.
  @inlinable public var hasLargeAddresses: Bool { words[2].bit(58) }
  /// MAIR1 and MAIR0.
  @inlinable public var memoryAttributes: UInt64 { words[3] }

  /// What makes a descriptor ILLEGAL; a transaction that uses it records C_BAD_CD.
  public enum Illegality: Hashable, Sendable, CaseIterable {
    case notValid
    case stallDisabled, abortRequired, stallNotSupported, stallForced
    case endianness, format, hardwareUpdate, asidWidth
    case size, granule, tableRange
  }

  /// The first check that fails, in the order of CdIllegal(); nil where it may be used.
  /// - Parameter entry: The stream table entry that it was found by.
  public func illegality(_ entry: SMMUStreamTableEntry, _ smmu: SMMUCapabilities)
    -> Illegality?
  {
    if !isValid { return .notValid }
    if entry.disablesStage1Stall, stalls { return .stallDisabled }
    if smmu.alwaysAborts, !aborts { return .abortRequired }
    if smmu.stallModel == 1, stalls { return .stallNotSupported }
    if smmu.stallModel == 2, !stalls { return .stallForced }

    // StreamWorld EL2 has one half, no ASID, and no way to disable walks.
    let isEL2 = entry.config == 5 && smmu.hasHypervisorStreams && entry.streamWorld == 2
    let usesLow = isEL2 || !disablesWalks(.low)
    let usesHigh = !isEL2 && !disablesWalks(.high)
    if usesLow || usesHigh,
      smmu.endianness == 2 && isBigEndian || smmu.endianness == 3 && !isBigEndian
    {
      return .endianness
    }
    if isAArch64
      ? !smmu.hasAArch64Tables || entry.hasStage2 && !entry.stage2IsAArch64
      : !smmu.hasAArch32Tables
    {
      return .format
    }
    if isAArch64,
      updatesAccessFlag || updatesDirty, smmu.hardwareUpdate == 0
    {
      return .hardwareUpdate
    }
    if isAArch64,
      updatesDirty && smmu.hardwareUpdate == 1
        || smmu.hardwareUpdate == 3 && updatesTables && !updatesAccessFlag
    {
      return .hardwareUpdate
    }
    if !isEL2, !smmu.has16BitASID, asid > 255 { return .asidWidth }
    if isAArch64,
      usesLow && hasInvalidSize(.low, smmu) || usesHigh && hasInvalidSize(.high, smmu)
    {
      return .size
    }
    if usesLow, let reason = tableIllegality(.low, smmu) { return reason }
    if usesHigh, let reason = tableIllegality(.high, smmu) { return reason }
    return nil
  }

  /// CDTxSZInvalid().
  private func hasInvalidSize(_ half: Half, _ smmu: SMMUCapabilities) -> Bool {
    let granule = granule(half)
    let most =
      smmu.hasSmallTables ? granule == .size4KiB || granule == .size16KiB ? 48 : 47 : 39
    let isWide =
      smmu.has52BitVirtual
      && (granule == .size64KiB || smmu.hasLargeAddresses && hasLargeAddresses)
    let size = Int(size(half))
    return size < (isWide ? 12 : 16) || size > most
  }

  private func tableIllegality(_ half: Half, _ smmu: SMMUCapabilities) -> Illegality? {
    var width = 40
    if isAArch64 {
      guard let granule = granule(half), smmu.supports(granule) else { return .granule }
      width = Swift.min(outputWidth, smmu.outputAddressWidth)
      if granule != .size64KiB, !(smmu.hasLargeAddresses && hasLargeAddresses) {
        width = Swift.min(width, 48)
      }
    }
    return table(half) >> UInt64(width) != 0 ? .tableRange : nil
  }
}
