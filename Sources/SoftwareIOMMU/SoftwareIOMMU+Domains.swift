// SPDX-License-Identifier: Apache-2.0
//
// Which page tables this IOMMU makes for the engine to fill: a format for each stage, and what
// each can do.

import IOMMU
import PageTables

extension SoftwareIOMMU {
  public func makePagingDomain(
    for device: RequesterID, attributes: PagingAttributes, data: UserData?
  ) throws(IOMMUError) -> any PagingDomain {
    if let data {
      throw IOMMUError(
        .operationNotSupported,
        "\(name) makes its page tables without user data, not from type \(hex(data.type))")
    }
    let supported = pagingAttributes
    guard attributes.isSubset(of: supported) else {
      throw IOMMUError(
        .operationNotSupported,
        "\(name) has no page tables "
          + Self.describe(attributes.subtracting(supported)).joined(separator: " or "))
    }
    try checkCombination(attributes)
    let kind = DomainKind(
      iommu: name, configuration: configuration, memory: memory,
      tracksDirty: attributes.contains(.dirtyTracking),
      forcesSnoop: configuration.snoopControl && !attributes.contains(.allowsNoSnoop),
      isNestParent: attributes.contains(.nestParent))
    return switch (configuration.architecture, stage(for: attributes)) {
    case (.intel, .first): IntelFirstStageDomain(kind, events: events)
    case (.intel, .second): IntelSecondStageDomain(kind, events: events)
    case (.amd, .first): AMDv2Domain(kind, events: events)
    case (.amd, .second): AMDv1Domain(kind, events: events)
    case (.smmuV3, .first): ArmStage1Domain(kind, events: events)
    case (.smmuV3, .second): ArmStage2Domain(kind, events: events)
    case (.riscv, .first): RISCVFirstStageDomain(kind, events: events)
    case (.riscv, .second): RISCVSecondStageDomain(kind, events: events)
    }
  }

  /// What a table may be asked for.
  private var pagingAttributes: PagingAttributes {
    var supported: PagingAttributes = []
    if configuration.pasidBits > 0 { supported.insert(.pasid) }
    if configuration.tracksDirty || configuration.tracksDirtyInSoftware {
      supported.insert(.dirtyTracking)
    }
    if configuration.snoopControl { supported.insert(.allowsNoSnoop) }
    if configuration.nests { supported.insert(.nestParent) }
    return supported
  }

  /// Others nest on second stages only. All but VT-d have first stages through the PASID, and the
  /// second by the device alone (48882, 2.2.2; IHI 0070, 3.3; RISC-V IOMMU, 2.2).
  private func stage(for attributes: PagingAttributes) -> Stage {
    if attributes.contains(.nestParent) { return .second }
    if configuration.architecture != .intel, attributes.contains(.pasid) { return .first }
    return configuration.stage
  }

  /// Below a first stage that has PASIDs, AMD's and Arm's second stage has none of its own. Below
  /// a user's table protection would be seen by the user, as faults of its second stage.
  private func checkCombination(_ attributes: PagingAttributes) throws(IOMMUError) {
    if !configuration.tracksDirty, attributes.isSuperset(of: [.nestParent, .dirtyTracking]) {
      throw IOMMUError(
        .operationNotSupported,
        "\(name) has no dirty bits, and pages below a user's table (NEST_PARENT) cannot be "
          + "protected to find what is written (DIRTY_TRACKING); ask for one of the two")
    }
    switch configuration.architecture {
    case .intel: return
    case .amd, .smmuV3, .riscv:
      guard attributes.isSuperset(of: [.nestParent, .pasid]) else { return }
      throw IOMMUError(
        .operationNotSupported,
        "\(name) has no page tables to nest on (NEST_PARENT) that PASIDs can be attached to "
          + "(PASID): the PASIDs belong to the tables above; ask for one of the two")
    }
  }

  private static func describe(_ missing: PagingAttributes) -> [String] {
    var all: [String] = []
    if missing.contains(.nestParent) {
      all.append("to nest on (NEST_PARENT; the machine file's nesting)")
    }
    if missing.contains(.dirtyTracking) { all.append("with dirty bits (DIRTY_TRACKING)") }
    if missing.contains(.pasid) {
      all.append("for PASIDs (PASID; the machine file's pasid-bits)")
    }
    let unknown = missing.subtracting([.nestParent, .dirtyTracking, .pasid])
    if !unknown.isEmpty { all.append("with attributes \(hex(unknown.rawValue))") }
    return all
  }
}
