// SPDX-License-Identifier: Apache-2.0
//
// Which tables of users this IOMMU walks, nested on which of the engine's (MODEL B2).

import IOMMU
import PageTables

extension SoftwareIOMMU {
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
    switch configuration.architecture {
    case .intel:
      return try IntelNestedDomain(
        data, on: try nestParent(parent, as: IntelSecondStageDomain.self),
        unit: configuration.intelCapabilities, events: events)
    case .amd, .smmuV3, .riscv:
      throw IOMMUError(
        .operationNotSupported, "\(name) has no page tables of users on a page table alone")
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
