// SPDX-License-Identifier: Apache-2.0
//
// The mediated work-queue engine: a host's driver that gives queues of one device to several users
// (MODEL D2, E2 kinds 6 and 8, J2). Commands name virtual PASIDs; what the bus sees are others.

import IOMMU
import SoftwareIOMMU
import SystemPackage
import VFIO

/// The driver `wq-mdev` of one work-queue engine. Thread-safe.
///
/// The parent's own security context is never touched: what slices do carries a PASID.
public final class MediatedWorkQueue: MediatingDriver {
  public static let driverName = "wq-mdev"

  /// A queue that CPUs submit to with PASIDs, which are translated on the way (kind 8).
  public static let sharedType = MediatedType(
    name: "shared", title: "Shared work queue",
    summary: "A work portal for CPUs whose VM translates PASIDs.")
  /// A queue that is programmed by registers, with virtual PASIDs (kind 6).
  public static let dedicatedType = MediatedType(
    name: "dedicated", title: "Dedicated work queue",
    summary: "Its registers say which of its user's PASIDs a command is for.")

  public let name = MediatedWorkQueue.driverName
  public let types = [MediatedWorkQueue.sharedType, MediatedWorkQueue.dedicatedType]

  private let system: IOMMUSystem
  private let parent: PhysicalDevice
  private let iommu: SoftwareIOMMU
  private let depth: Int

  private struct Slice: Sendable {
    let function: PCIFunction
    let device: MediatedDevice
  }

  private let slices: SliceStore<Slice>

  /// - Parameters:
  ///   - parent: A work-queue engine behind `iommu`, which has PASIDs, bound to this driver.
  ///   - depth: Commands that wait at most in each queue.
  ///   - capacity: Most slices that there may be at once, of both types together.
  public init(
    parent: PhysicalDevice, iommu: SoftwareIOMMU, system: IOMMUSystem, depth: Int = 16,
    capacity: Int = 8
  ) {
    self.parent = parent
    self.iommu = iommu
    self.system = system
    self.depth = depth
    slices = SliceStore(
      capacity: min(capacity, (1 << Int(parent.capabilities.pasidBits)) - 1))
  }

  deinit {
    for slice in slices.all { slice.function.remove() }
  }

  public func availableInstances(of type: MediatedType) -> Int {
    slices.occupancy.left
  }

  public func makeSlice(
    of type: MediatedType, uuid: UUID
  ) throws(IOMMUError) -> MediatedSlice {
    let full = "\(parent.name) has no more queues"
    let slice = try slices.add(uuid, full: full) { () throws(IOMMUError) in
      let isShared = type == Self.sharedType
      let device = try system.addMediatedDevice(
        name: "\(uuid)", parent: parent, kind: isShared ? .mediatedWithWorkQueue : .mediated)
      let function = PCIFunction(
        device: device,
        model: WorkQueueEngine(
          configuration: WorkQueueEngine.Configuration(isShared: isShared, depth: depth)),
        upstream: SoftwareIOMMUBus(
          iommu: iommu, requester: parent.requester, pasid: device.defaultPASID))
      return Slice(function: function, device: device)
    }
    return MediatedSlice(function: slice.function, group: slice.device.group)
  }

  public func removeSlice(_ uuid: UUID) throws(IOMMUError) {
    guard let slice = slices[uuid] else {
      throw IOMMUError(.noSuchDevice, "\(parent.name) has no queue \(uuid)")
    }
    // What can be refused comes first. Nobody has the function any more, so it does no DMA.
    try system.removeMediatedDevice(slice.device)
    slice.function.remove()
    slices.remove(uuid)
  }
}
