// SPDX-License-Identifier: Apache-2.0
//
// Which stream table entries are ILLEGAL: Arm System Memory Management Unit Architecture
// version 3 (IHI 0070), section 5.2.2, SteIllegal(), for the Non-secure interface of SMMUv3.1
// and later. Its order of checks.

extension SMMUStreamTableEntry {
  /// What makes an entry ILLEGAL; a transaction that uses it records C_BAD_STE.
  public enum Illegality: Hashable, Sendable, CaseIterable {
    case notValid
    case stage1NotSupported, stage2NotSupported
    case splitStageATS, fullATSWithStall, permissionTableATS
    case streamWorld
    case stage1StallDisabled, contextCount, contextTableFormat, contextTableRange
    case writeBackWithAArch32, stage2StallNotSupported, stage2StallForced
    case stage2Format, stage2HardwareUpdate, stage2DirtyUpdate, stage2TableUpdate
    case stage2Granule, stage2TableRange, stage2Size, stage2StartLevel
    case stage2Endianness
    case vmidWidth
  }

  /// The first check that fails; nil where the entry may be used.
  public func illegality(_ smmu: SMMUCapabilities) -> Illegality? {
    if !isValid { return .notValid }
    if !passesTraffic { return nil }
    if hasStage1, !smmu.hasStage1 { return .stage1NotSupported }
    if hasStage2, !smmu.hasStage2 { return .stage2NotSupported }
    if let reason = atsIllegality(smmu) { return reason }
    let usesStreamWorld = config == 5 && smmu.hasStage1 && smmu.hasHypervisorStreams
    if usesStreamWorld, streamWorld & 1 != 0 { return .streamWorld }
    if hasStage1, let reason = stage1Illegality(smmu) { return reason }
    if hasStage2, let reason = stage2Illegality(smmu) { return reason }
    let ignoresVMID = !smmu.hasStage2 || config == 4 || usesStreamWorld && streamWorld != 0
    if !ignoresVMID, !smmu.has16BitVMID, vmid > 255 { return .vmidWidth }
    return nil
  }

  private func atsIllegality(_ smmu: SMMUCapabilities) -> Illegality? {
    guard smmu.hasATS, config != 4 else { return nil }
    switch ats {
    case 1:
      return hasStage2 && stage2Stalls ? .fullATSWithStall : nil
    case 2:
      return config != 7 || stage2Stalls || smmu.lacksSplitStageATS ? .splitStageATS : nil
    case 3 where smmu.hasDevicePermissionTable:
      // StreamWorld has to be EL1, and stage 2 must not stall (EATS, 5.2).
      let isOther = config == 5 && smmu.hasHypervisorStreams && streamWorld != 0
      return isOther || hasStage2 && stage2Stalls ? .permissionTableATS : nil
    default: return nil
    }
  }

  private func stage1Illegality(_ smmu: SMMUCapabilities) -> Illegality? {
    if disablesStage1Stall, smmu.stallModel != 0 { return .stage1StallDisabled }
    if smmu.substreamIDWidth != 0 {
      if Int(contextCountShift) > smmu.substreamIDWidth { return .contextCount }
      if contextCountShift != 0, !smmu.hasTwoLevelContextTables,
        contextTableFormat == 1 || contextTableFormat == 2
      {
        return .contextTableFormat
      }
    }
    let width = hasStage2 ? smmu.inputAddressWidth : smmu.outputAddressWidth
    return contextTable >> UInt64(width) != 0 ? .contextTableRange : nil
  }

  private func stage2Illegality(_ smmu: SMMUCapabilities) -> Illegality? {
    let isAArch32 = !stage2IsAArch64
    if isAArch32, smmu.hasForcedWriteBack, forcesWriteBack { return .writeBackWithAArch32 }
    if stage2Stalls, smmu.stallModel == 1 { return .stage2StallNotSupported }
    if !stage2Stalls, smmu.stallModel == 2 { return .stage2StallForced }
    if isAArch32 ? !smmu.hasAArch32Tables : !smmu.hasAArch64Tables { return .stage2Format }
    if stage2UpdatesAccessFlag || stage2UpdatesDirty, isAArch32 || smmu.hardwareUpdate == 0 {
      return .stage2HardwareUpdate
    }
    if stage2UpdatesDirty, smmu.hardwareUpdate == 1 { return .stage2DirtyUpdate }
    if stage2UpdatesTables, !stage2UpdatesAccessFlag, smmu.hardwareUpdate == 3 {
      return .stage2TableUpdate
    }
    guard let granule = isAArch32 ? .size4KiB : stage2Granule,
      isAArch32 || smmu.supports(granule)
    else { return .stage2Granule }
    let isLarge = smmu.hasLargeAddresses && stage2HasLargeAddresses
    if stage2Table >> UInt64(stage2TableWidth(smmu, granule, isLarge: isLarge)) != 0 {
      return .stage2TableRange
    }
    if isAArch32 {
      if hasInconsistentAArch32Walk { return .stage2StartLevel }
    } else {
      let most = smmu.hasSmallTables ? granule == .size64KiB ? 47 : 48 : 39
      let least = granule == .size64KiB || isLarge ? 12 : 16
      if Int(stage2Size) > most
        || Int(stage2Size) < Swift.max(least, 64 - smmu.inputAddressWidth)
      {
        return .stage2Size
      }
      if hasInconsistentWalk(smmu, granule, isLarge: isLarge) { return .stage2StartLevel }
    }
    if smmu.endianness == 2 && stage2IsBigEndian
      || smmu.endianness == 3 && !stage2IsBigEndian
    {
      return .stage2Endianness
    }
    return nil
  }

  /// Bits that S2TTB may have: the smaller of S2PS and OAS, and 48 with small granules.
  private func stage2TableWidth(
    _ smmu: SMMUCapabilities, _ granule: SMMUGranule, isLarge: Bool
  ) -> Int {
    if !stage2IsAArch64 { return 40 }
    let width = Swift.min(stage2OutputWidth, smmu.outputAddressWidth)
    return granule == .size64KiB || isLarge ? width : Swift.min(width, 48)
  }

  /// Whether S2T0SZ, S2SL0 and S2TG do not go together (Arm ARM DDI 0487, D8.2, stage 2 start
  /// levels: a first table of 2 entries at least, and of 16 concatenated ones at most).
  private func hasInconsistentWalk(
    _ smmu: SMMUCapabilities, _ granule: SMMUGranule, isLarge: Bool
  ) -> Bool {
    guard let level = startLevel(smmu, granule, isLarge: isLarge) else { return true }
    let resolved = (3 - level) * granule.stride + Int(granule.rawValue)
    let first = 64 - Int(stage2Size) - resolved
    return first < 1 || first > granule.stride + 4
  }

  /// Nil for what is reserved, or needs wider addresses than there are.
  private func startLevel(
    _ smmu: SMMUCapabilities, _ granule: SMMUGranule, isLarge: Bool
  ) -> Int? {
    let code = isLarge && granule == .size4KiB ? stage2StartLevel : stage2StartLevel & 3
    let width = smmu.outputAddressWidth
    switch (granule, code) {
    case (.size4KiB, 0): return 2
    case (.size4KiB, 1): return 1
    case (.size4KiB, 2): return width < 44 ? nil : 0
    case (.size4KiB, 3): return smmu.hasSmallTables ? 3 : nil
    case (.size4KiB, 4): return width < 52 ? nil : -1
    case (.size4KiB, _): return nil
    case (_, 0): return 3
    case (_, 1): return 2
    case (.size16KiB, 2): return width < 42 ? nil : 1
    case (.size16KiB, _): return isLarge && width >= 52 ? 0 : nil
    case (.size64KiB, 2): return width < 44 ? nil : 1
    default: return nil
    }
  }

  /// AArch32: S2T0SZ is a signed field of 4 bits; SL0 is 0 for level 2 and 1 for level 1.
  private var hasInconsistentAArch32Walk: Bool {
    let field = Int(stage2Size & 15)
    let size = 32 - (field >= 8 ? field - 16 : field)
    let code = Int(stage2StartLevel & 3)
    if code > 1 { return true }
    let first = size - ((code + 1) * 9 + 12)
    return first < 1 || first > 9 + 4
  }
}
