// SPDX-License-Identifier: Apache-2.0
//
// Which tables of users this IOMMU walks, nested on which of the engine's (MODEL B2).

import IOMMU
import PageTables

extension SoftwareIOMMU {
  /// Linux 7.1's drivers of AMD's IOMMU and of SMMUv3 nest in virtual IOMMUs only; that of RISC-V's
  /// nothing.
  public func checkNesting(ofData type: UInt32, for device: RequesterID) throws(IOMMUError) {
    switch configuration.architecture {
    case .intel: return
    case .smmuV3:
      throw IOMMUError(
        .operationNotSupported,
        "\(name) has no page tables of users on a page table alone: make a virtual IOMMU of type "
          + "IOMMU_VIOMMU_TYPE_ARM_SMMUV3 (1) on it first, and name that as the parent")
    case .amd:
      throw IOMMUError(
        .operationNotSupported,
        "\(name) has no page tables of users on a page table alone: make a virtual IOMMU on it "
          + "first, and name that as the parent")
    case .riscv:
      guard type != RISCVNestedContext.dataType else { return }
      throw IOMMUError(
        .operationNotSupported,
        "\(name) nests device contexts (RISCVNestedContext), not data of type \(hex(type))")
    }
  }

  public func makeNestedDomain(
    for device: RequesterID, parent: any PagingDomain, attributes: PagingAttributes,
    data: UserData
  ) throws(IOMMUError) -> any NestedDomain {
    guard configuration.nests, attributes.isSubset(of: .pasid) else {
      throw IOMMUError(
        .operationNotSupported,
        configuration.nests
          ? "\(name) has no page tables of users with attributes \(hex(attributes.rawValue))"
          : "\(name) has no page tables of users (the machine file's nesting)")
    }
    try checkNesting(ofData: data.type, for: device)
    guard configuration.architecture == .intel else {
      return try RISCVNestedDomain(
        data, on: try nestParent(parent, as: RISCVSecondStageDomain.self),
        iommu: configuration.riscvCapabilities)
    }
    return try IntelNestedDomain(
      data, on: try nestParent(parent, as: IntelSecondStageDomain.self),
      unit: configuration.intelCapabilities)
  }

  public func supportsVirtualIOMMU(type: UInt32, for device: RequesterID) -> Bool {
    guard configuration.nests else { return false }
    return switch configuration.architecture {
    case .smmuV3: type == SMMUVirtualIOMMU.type
    // As Linux, whatever the type.
    case .amd: true
    case .riscv: type == RISCVVirtualIOMMU.type
    case .intel: false
    }
  }

  public func makeVirtualIOMMU(
    type: UInt32, for device: RequesterID, parent: any PagingDomain, data: UserData?,
    resources: VirtualIOMMUResources
  ) throws(IOMMUError) -> any VirtualIOMMU {
    guard supportsVirtualIOMMU(type: type, for: device) else {
      throw IOMMUError(
        .operationNotSupported, "\(name) has no virtual IOMMUs of type \(hex(type))")
    }
    switch configuration.architecture {
    case .amd:
      let parent = try nestParent(parent, as: AMDv1Domain.self)
      return AMDVirtualIOMMU(
        on: parent, iommu: configuration.amdCapabilities,
        service: QueueService(on: parent, memory: memory))
    case .riscv:
      let parent = try nestParent(parent, as: RISCVSecondStageDomain.self)
      return RISCVVirtualIOMMU(
        on: parent, iommu: configuration.riscvCapabilities,
        service: QueueService(on: parent, memory: memory))
    case .smmuV3, .intel:
      return SMMUVirtualIOMMU(
        on: try nestParent(parent, as: ArmStage2Domain.self),
        smmu: configuration.smmuCapabilities, events: resources.events)
    }
  }

  func refusal(of conflict: PASIDConflict, _ device: RequesterID) -> IOMMUError {
    switch conflict {
    case .userHasPASIDs:
      IOMMUError(
        .invalidArgument,
        "\(device) is on a user's table that has its PASIDs; none can be attached beside it")
    case .hostHasPASIDs:
      IOMMUError(
        .resourceBusy,
        "\(device) has PASIDs attached, and the user's table has PASIDs too; detach those first"
      )
    }
  }

  /// The parent as this IOMMU walks it.
  /// - Throws: `EINVAL` where it is another's, or was not made to be a parent.
  func nestParent<Domain: SoftwareDomain>(
    _ parent: any PagingDomain, as type: Domain.Type
  ) throws(IOMMUError) -> Domain {
    guard let own = parent as? Domain, own.kind.memory === memory, own.kind.isNestParent else {
      throw IOMMUError(
        .invalidArgument,
        "\(name) cannot nest on this page table: it is another's, or was made without "
          + "IOMMU_HWPT_ALLOC_NEST_PARENT")
    }
    return own
  }

  func fit(
    _ domain: any NestedDomain, to device: RequesterID, pasid: PASID?
  ) throws(IOMMUError) {
    guard let own = domain as? any SoftwareNestedDomain else {
      throw IOMMUError(
        .invalidArgument, "\(device) is behind \(name), and the page table is another driver's")
    }
    try fit(own.parent, to: device)
    try own.check(attaching: device, pasid: pasid)
  }
}
