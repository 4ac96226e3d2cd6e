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
  private let capacity: Int

  private struct Slice: Sendable {
    let function: PCIFunction
    let device: MediatedDevice
  }

  private struct State: Sendable {
    var slices: [UUID: Slice] = [:]
    /// Slices that there are or that are being made.
    var count = 0
  }

  // Nothing is called under it.
  private let state = Guarded(State())

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
    self.capacity = max(0, min(capacity, (1 << Int(parent.capabilities.pasidBits)) - 1))
  }

  deinit {
    for slice in state.withLock({ Array($0.slices.values) }) { slice.function.remove() }
  }

  public func availableInstances(of type: MediatedType) -> Int {
    state.withLock { capacity - $0.count }
  }

  public func makeSlice(
    of type: MediatedType, uuid: UUID
  ) throws(IOMMUError) -> MediatedSlice {
    let isThere = state.withLock { state -> Bool in
      guard state.count < capacity else { return false }
      state.count += 1
      return true
    }
    guard isThere else {
      throw IOMMUError(
        .tooManyUsers, "\(parent.name) has no more queues; it has \(capacity)")
    }
    do throws(IOMMUError) {
      let isShared = type == Self.sharedType
      let device = try system.addMediatedDevice(
        name: "\(uuid)", parent: parent, kind: isShared ? .mediatedWithWorkQueue : .mediated)
      let function = PCIFunction(
        device: device,
        model: WorkQueueEngine(
          configuration: WorkQueueEngine.Configuration(isShared: isShared, depth: depth)),
        upstream: SoftwareIOMMUBus(
          iommu: iommu, requester: parent.requester, pasid: device.defaultPASID))
      state.withLock { $0.slices[uuid] = Slice(function: function, device: device) }
      return MediatedSlice(function: function, group: device.group)
    } catch {
      state.withLock { $0.count -= 1 }
      throw error
    }
  }

  public func removeSlice(_ uuid: UUID) throws(IOMMUError) {
    guard let slice = state.withLock({ $0.slices[uuid] }) else {
      throw IOMMUError(.noSuchDevice, "\(parent.name) has no queue \(uuid)")
    }
    // What can be refused comes first. Nobody has the function any more, so it does no DMA.
    try system.removeMediatedDevice(slice.device)
    slice.function.remove()
    state.withLock { state in
      state.slices[uuid] = nil
      state.count -= 1
    }
  }
}
