// SPDX-License-Identifier: Apache-2.0
//
// The mediated copy engine: a host's driver that gives channels of one engine to several users
// (MODEL D2, J2). Each channel is a PCI function to its user; what it can reach is the matter of
// its kind: an IOMMU's, by a PASID of its own, or its driver's.

import IOMMU
import SoftwareIOMMU
import SystemPackage
import VFIO

/// The driver `ioat-mdev` of one copy engine. Thread-safe.
///
/// All slices share the engine's time: turns of 256 KiB, so that an endless ring starves nobody.
/// The parent's own security context is never touched: what slices do carries a PASID, or is no
/// DMA at all.
public final class MediatedCopyEngine: MediatingDriver {
  public static let driverName = "ioat-mdev"

  /// A channel whose DMA carries the parent's requester id and a PASID (MODEL D2 kind 2), its
  /// default one or one that its user attached and a descriptor names (MODEL E2 kind 6).
  public static let isolatedType = MediatedType(
    name: "pasid", title: "Copy engine channel, isolated by the IOMMU",
    summary: "DMA by a PASID of its own; the IOMMU keeps it to its user's memory.")
  /// A channel with its default PASID and no other (MODEL E2 kind 3).
  public static let fixedType = MediatedType(
    name: "fixed", title: "Copy engine channel, isolated by the IOMMU, without PASIDs",
    summary: "DMA by a PASID of its own, which its user need not know of.")
  /// A channel whose driver copies for it (MODEL D2 kind 3, E2 kind 2).
  public static let softwareType = MediatedType(
    name: "software", title: "Copy engine channel, copied for by its driver",
    summary: "No DMA; the driver reads and writes its user's memory.")

  public let name = MediatedCopyEngine.driverName
  /// `pasid` and `fixed` where the IOMMU has PASIDs, and `software`.
  public let types: [MediatedType]

  private let system: IOMMUSystem
  private let parent: PhysicalDevice
  private let iommu: SoftwareIOMMU
  private let configuration: CopyEngine.Configuration
  /// PASIDs of the parent. Those that users attach come out of the same store.
  private let pasidCount: Int
  private let engine = SharedCopyEngine()

  private struct Slice: Sendable {
    enum Kind: Sendable {
      /// And what the PASID's earlier owners left in the count of faults.
      case isolated(MediatedDevice, formerFaults: UInt64)
      case software(AccessorBus)
    }

    let function: PCIFunction
    let model: CopyEngine
    let group: DeviceGroup
    let kind: Kind

    var isIsolated: Bool { if case .isolated = kind { true } else { false } }
  }

  private let slices: SliceStore<Slice>

  /// - Parameters:
  ///   - parent: A copy engine behind `iommu`, bound to this driver.
  ///   - configuration: Of each channel.
  ///   - capacity: Most slices that there may be at once, of all types together.
  public init(
    parent: PhysicalDevice, iommu: SoftwareIOMMU, system: IOMMUSystem,
    configuration: CopyEngine.Configuration = CopyEngine.Configuration(), capacity: Int = 8
  ) {
    self.parent = parent
    self.iommu = iommu
    self.system = system
    self.configuration = configuration
    pasidCount = (1 << Int(parent.capabilities.pasidBits)) - 1
    slices = SliceStore(capacity: capacity)
    types =
      pasidCount > 0
      ? [Self.isolatedType, Self.fixedType, Self.softwareType] : [Self.softwareType]
  }

  deinit {
    for slice in slices.all { slice.function.remove() }
    engine.stop()
  }

  public func availableInstances(of type: MediatedType) -> Int {
    let (left, slices) = slices.occupancy
    guard type != Self.softwareType else { return left }
    return min(left, pasidCount - slices.count { $0.isIsolated })
  }

  // MARK: Slices

  public func makeSlice(
    of type: MediatedType, uuid: UUID
  ) throws(IOMMUError) -> MediatedSlice {
    let full = "\(parent.name) has no more slices"
    let slice = try slices.add(uuid, full: full) { () throws(IOMMUError) in
      try type == Self.softwareType
        ? makeSoftware(uuid) : makeIsolated(uuid, takesPASIDs: type == Self.isolatedType)
    }
    return MediatedSlice(function: slice.function, group: slice.group)
  }

  private func makeIsolated(
    _ uuid: UUID, takesPASIDs: Bool
  ) throws(IOMMUError) -> Slice {
    let device = try system.addMediatedDevice(
      name: "\(uuid)", parent: parent,
      kind: takesPASIDs ? .mediated : .mediatedWithoutPASIDs)
    let pasid = device.defaultPASID
    var configuration = configuration
    configuration.takesPASIDs = takesPASIDs
    let model = CopyEngine(configuration, engine: engine)
    let function = PCIFunction(
      device: device, model: model,
      upstream: SoftwareIOMMUBus(iommu: iommu, requester: parent.requester, pasid: pasid))
    return Slice(
      function: function, model: model, group: device.group,
      kind: .isolated(
        device, formerFaults: iommu.faults[parent.requester, pasid: pasid].count))
  }

  private func makeSoftware(_ uuid: UUID) throws(IOMMUError) -> Slice {
    let bus = AccessorBus(name: "\(uuid)", events: system.events)
    let model = CopyEngine(configuration, engine: engine)
    return Slice(
      function: PCIFunction(name: "\(uuid)", model: model, memory: bus), model: model,
      group: system.addGroup(), kind: .software(bus))
  }

  public func removeSlice(_ uuid: UUID) throws(IOMMUError) {
    guard let slice = slices[uuid] else {
      throw IOMMUError(.noSuchDevice, "\(parent.name) has no slice \(uuid)")
    }
    // What can be refused comes first. Nobody has the function any more, so it does no DMA.
    switch slice.kind {
    case .isolated(let device, _): try system.removeMediatedDevice(device)
    case .software: try system.removeGroup(slice.group)
    }
    slice.function.remove()
    slices.remove(uuid)
  }

  /// Descriptors and bytes that a slice has had of the engine, accesses of it that were refused,
  /// and descriptors that named a PASID which is not on its list.
  public func statistics(of uuid: UUID) -> [(name: String, value: UInt64)] {
    guard let slice = slices[uuid] else { return [] }
    let usage = engine.usage(of: slice.model.core)
    let faults =
      switch slice.kind {
      case .isolated(let device, let former):
        // The log may have let go of the record meanwhile.
        max(iommu.faults[parent.requester, pasid: device.defaultPASID].count, former) - former
      case .software(let bus): bus.faultCount
      }
    return [
      ("descriptors", usage.descriptors), ("bytes", usage.bytes), ("faults", faults),
      ("refused_pasids", slice.model.core.refusals.load(ordering: .relaxed)),
    ]
  }
}
