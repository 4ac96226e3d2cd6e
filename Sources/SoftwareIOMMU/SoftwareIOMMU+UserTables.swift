// SPDX-License-Identifier: Apache-2.0
//
// Tables of users as the proposal's calls describe them (MODEL B2, B9, G1), put into the words of
// each architecture: what Linux's IOMMU_HWPT_ALLOC and IOMMU_HWPT_INVALIDATE take.

import HardwareTables
import IOMMU
import PageTables
import SystemPackage

extension SoftwareIOMMU {
  public func userTables(for device: RequesterID) -> [UserTable.Support] {
    guard configuration.nests else { return [] }
    switch configuration.architecture {
    case .intel:
      let hasFiveLevels = configuration.intelCapabilities.hasFiveLevelFirstStage
      return [UserTable.Support(.intelFirstStage, widths: hasFiveLevels ? [48, 57] : [48])]
    case .smmuV3:
      let smmu = configuration.smmuCapabilities
      let formats: [UserTable.Format] =
        smmu.hasTwoLevelContextTables
        ? [.armContextDescriptors, .armContextDescriptors4K, .armContextDescriptors64K]
        : [.armContextDescriptors]
      return formats.compactMap { format in
        let widths = format.widths.rawValue & (2 << UInt64(smmu.substreamIDWidth) - 1)
        return widths == 0 ? nil : UserTable.Support(format, widths: .init(rawValue: widths))
      }
    case .amd:
      let iommu = configuration.amdCapabilities
      guard iommu.has(.guestTranslation) else { return [] }
      let widths = UserTable.Widths(
        rawValue: [9, 18, 20].prefix(iommu.mostCR3Levels).reduce(0) { $0 | 1 << $1 })
      let formats: [UserTable.Format] =
        iommu.mostGuestLevels > 4 ? [.amdGuestCR3, .amdGuestCR3FiveLevels] : [.amdGuestCR3]
      return formats.map { UserTable.Support($0, widths: widths) }
    case .riscv:
      let iommu = configuration.riscvCapabilities
      func support(
        _ format: UserTable.Format, _ features: [(Int, RISCVCapabilities.Feature)]
      ) -> UserTable.Support? {
        let bits = features.reduce(0 as UInt64) {
          iommu.has($1.1) ? $0 | 1 << UInt64($1.0) : $0
        }
        return bits == 0 ? nil : UserTable.Support(format, widths: .init(rawValue: bits))
      }
      return [
        support(.riscvFirstStage, [(39, .sv39), (48, .sv48), (57, .sv57)]),
        support(.riscvProcessDirectory, [(8, .pd8), (17, .pd17), (20, .pd20)]),
      ].compactMap { $0 }
    }
  }

  public func makeUserTable(
    _ table: UserTable, for device: RequesterID, parent: any PagingDomain,
    attributes: PagingAttributes
  ) throws(IOMMUError) -> any NestedDomain {
    switch table.format {
    case .intelFirstStage where configuration.architecture == .intel:
      return try makeNestedDomain(
        for: device, parent: parent, attributes: attributes,
        data: UserData(
          // Flags, the table, its width, 0.
          type: IntelNestedDomain.dataType, words: [0, table.root, UInt64(table.width)]))
    case .armContextDescriptors, .armContextDescriptors4K, .armContextDescriptors64K:
      guard configuration.architecture == .smmuV3, configuration.nests else { break }
      let smmu = configuration.smmuCapabilities
      // A slice of the SMMU for this table alone, in which devices have their own names.
      let owner = SMMUVirtualIOMMU(
        on: try nestParent(parent, as: ArmStage2Domain.self), smmu: smmu,
        events: VirtualEvents(), namesAll: true)
      return try owner.makeNestedDomain(
        attributes: attributes,
        data: UserData(
          type: SMMUVirtualIOMMU.dataType,
          words: Self.streamTableEntry(table, hasATS: smmu.hasATS)))
    case .amdGuestCR3, .amdGuestCR3FiveLevels:
      guard configuration.architecture == .amd, configuration.nests else { break }
      return try AMDNestedDomain(
        UserData(
          type: AMDNestedDomain.dataType,
          words: Self.deviceTableEntry(table, configuration.amdCapabilities)),
        on: try nestParent(parent, as: AMDv1Domain.self), iommu: configuration.amdCapabilities)
    case .riscvFirstStage, .riscvProcessDirectory:
      guard configuration.architecture == .riscv, configuration.nests else { break }
      return try RISCVNestedDomain(
        Self.deviceContext(table, configuration.riscvCapabilities).userData,
        on: try nestParent(parent, as: RISCVSecondStageDomain.self),
        iommu: configuration.riscvCapabilities)
    default: break
    }
    throw IOMMUError(.operationNotSupported, "\(name) does not walk \(table.format)")
  }

  /// The guest's half of a device table entry (AMD 48882, 2.2.2.1).
  private static func deviceTableEntry(
    _ table: UserTable, _ iommu: AMDCapabilities
  ) -> [UInt64] {
    let levels: UInt64 = table.width <= 9 ? 0 : table.width <= 18 ? 1 : 2
    let root = table.root
    // V, TV, GV, GLX, and the root in three pieces.
    var first: UInt64 = 3 | 1 << 55 | levels << 56 | (root >> 12 & 7) << 58
    // PPR, and GIoV: requests without a PASID are those of PASID 0.
    if iommu.has(.pageRequests) { first |= 1 << 52 }
    if iommu.has(.guestIO) { first |= 1 << 54 }
    let second = (root >> 15 & 0xFFFF) << 16 | (root >> 31 & 0x1F_FFFF) << 43
    return [first, second, table.format == .amdGuestCR3FiveLevels ? 1 << 54 : 0, 0]
  }

  /// The user's part of a device context (RISC-V IOMMU 1.0, 2.1.3).
  private static func deviceContext(
    _ table: UserTable, _ iommu: RISCVCapabilities
  ) -> RISCVNestedContext {
    // V; SADE; EN_ATS and EN_PRI.
    var control: UInt64 = 1
    if iommu.has(.updatesAccessedDirty) { control |= 1 << 8 }
    if iommu.has(.ats) { control |= 1 << 1 | 1 << 2 }
    let mode: UInt64
    if table.format.isPASIDTable {
      // PDTV, and DPE: requests without a PASID are those of process 0. PD8 to PD20 are 1 to 3.
      control |= 1 << 5 | 1 << 9
      mode = table.width <= 8 ? 1 : table.width <= 17 ? 2 : 3
    } else {
      // Sv39 to Sv57 are 8 to 10.
      mode = UInt64(table.width - 39) / 9 + 8
    }
    return RISCVNestedContext(
      translationControl: control, firstStageContext: mode << 60 | table.root >> 12)
  }

  /// The words of a stream table entry that are the user's (IHI 0070, 5.2).
  private static func streamTableEntry(_ table: UserTable, hasATS: Bool) -> [UInt64] {
    let format: UInt64 =
      switch table.format {
      case .armContextDescriptors4K: 1
      case .armContextDescriptors64K: 2
      default: 0
      }
    // V, Config 5, S1Fmt, S1ContextPtr, S1CDMax.
    let first = 1 | 5 << 1 | format << 4 | table.root | UInt64(table.width) << 59
    // S1DSS 2: DMA without a substream is that of descriptor 0. S1CIR, S1COR write-back, S1CSH
    // inner shareable; EATS.
    let second: UInt64 =
      (table.width > 0 ? 2 : 0) | 1 << 2 | 1 << 4 | 3 << 6 | (hasATS ? 1 << 28 : 0)
    return [first, second]
  }
}

extension IntelNestedDomain {
  /// An entry of VTD_S1 for the IOTLB is for the device TLBs too, as in Linux.
  func invalidate(
    _ request: CacheInvalidation, of device: RequesterID?
  ) throws(IOMMUError) {
    let failure = invalidate(
      UserDataArray(
        type: Self.invalidateType, entries: [Self.entry(for: request.granularity)])
    ).failure
    if let failure { throw failure }
  }

  /// `struct iommu_hwpt_vtd_s1_invalidate`: address, pages, flags.
  static func entry(for granularity: CacheInvalidation.Granularity) -> [UInt64] {
    guard case .range(_, let range) = granularity else { return [0, .max, 0] }
    let first = range.lowerBound >> 12
    return [first << 12, range.upperBound >> 12 - first + 1, 0]
  }
}

extension SMMUNestedDomain {
  func invalidate(
    _ request: CacheInvalidation, of device: RequesterID?
  ) throws(IOMMUError) {
    let failure = owner.invalidate(
      UserDataArray(
        type: SMMUVirtualIOMMU.invalidateType, entries: Self.commands(for: request, of: device))
    ).failure
    if let failure { throw failure }
  }

  /// IHI 0070, 4.3 to 4.5. PASIDs are not what the IOTLB goes by: all of the table's is forgotten.
  private static func commands(
    for request: CacheInvalidation, of device: RequesterID?
  ) -> [[UInt64]] {
    var commands: [[UInt64]] = []
    let stream = UInt64(device?.rawValue ?? 0) << 32
    if request.caches.contains(.pasid) {
      if case .pasid(let pasid) = request.granularity {
        commands.append([0x05 | UInt64(pasid.rawValue) << 12 | stream, 1])  // CFGI_CD, Leaf
      } else {
        commands.append([0x06 | stream, 0])  // CFGI_CD_ALL
      }
    }
    if request.caches.contains(.iotlb) {
      if case .range(_, let range) = request.granularity,
        case let pages = range.lowerBound >> 12...range.upperBound >> 12,
        pages.upperBound - pages.lowerBound < 16
      {
        commands += pages.map { [0x13, $0 << 12] }  // TLBI_NH_VAA
      } else {
        commands.append([0x30, 0])  // TLBI_NSNH_ALL
      }
    }
    if request.caches.contains(.deviceTLB) {
      commands.append([0x40 | stream, translations(for: request.granularity)])  // ATC_INV
    }
    return commands
  }

  /// Address and size of ATC_INV: the smallest power of two of pages, naturally aligned, that has
  /// the range.
  private static func translations(
    for granularity: CacheInvalidation.Granularity
  ) -> UInt64 {
    guard case .range(_, let range) = granularity else { return 52 }
    let (first, last) = (range.lowerBound >> 12, range.upperBound >> 12)
    let shift = UInt64(64 - (first ^ last).leadingZeroBitCount)
    return ((first >> shift) << shift) << 12 | shift
  }
}

extension AMDNestedDomain {
  func invalidate(
    _ request: CacheInvalidation, of device: RequesterID?
  ) throws(IOMMUError) {
    below.table.forget(request, of: device)
  }
}

extension RISCVNestedDomain {
  func invalidate(
    _ request: CacheInvalidation, of device: RequesterID?
  ) throws(IOMMUError) {
    below.table.forget(request, of: device)
  }
}

extension DomainTable {
  /// As the commands of a guest's queue would: translations go by the parent's domain (GSCID), not
  /// by PASID.
  fileprivate func forget(_ request: CacheInvalidation, of device: RequesterID?) {
    if request.caches.contains(.pasid) {
      forget(.configuration) { port in
        guard port.source.requester == device else { return false }
        guard case .pasid(let pasid) = request.granularity else { return true }
        // DMA without a PASID is that of entry 0.
        return (port.source.pasid?.rawValue ?? 0) == pasid.rawValue
      }
    }
    let range =
      if case .range(_, let range) = request.granularity {
        IOVARange(first: range.lowerBound, last: range.upperBound)
      } else {
        IOVARange.all
      }
    if request.caches.contains(.iotlb) {
      forget(.translations(range))
    } else if request.caches.contains(.deviceTLB) {
      forget(.translations(range)) { $0.source.requester == device }
    }
  }
}
