// SPDX-License-Identifier: Apache-2.0
//
// Virtual IOMMUs, and what belongs to them, as objects of a context.

/// Linux: `struct iommufd_viommu`.
final class VirtualIOMMUObject: Sendable {
  let id: ObjectID
  let type: UInt32
  /// The table that the guest's tables are nested on.
  let parent: HWPT
  /// The IOMMU that it is a slice of.
  let driver: any IOMMUDriver
  /// The driver's part.
  let model: any VirtualIOMMU
  let events: VirtualEvents

  init(
    id: ObjectID, type: UInt32, parent: HWPT, driver: any IOMMUDriver,
    model: any VirtualIOMMU, events: VirtualEvents
  ) {
    self.id = id
    self.type = type
    self.parent = parent
    self.driver = driver
    self.model = model
    self.events = events
  }
}

/// A bound device under the guest's name for it (Linux: `struct iommufd_vdevice`).
final class VirtualDeviceObject: Sendable {
  let id: ObjectID
  let virtualIOMMU: VirtualIOMMUObject
  let device: DeviceObject
  let virtualID: UInt64

  init(
    id: ObjectID, virtualIOMMU: VirtualIOMMUObject, device: DeviceObject, virtualID: UInt64
  ) {
    self.id = id
    self.virtualIOMMU = virtualIOMMU
    self.device = device
    self.virtualID = virtualID
  }
}

/// A queue that hardware reads, with the memory that it holds in place (Linux: `struct
/// iommufd_hw_queue`).
final class HardwareQueueObject: Sendable {
  let id: ObjectID
  let virtualIOMMU: VirtualIOMMUObject
  /// The driver's part.
  let model: any HardwareQueue
  /// What keeps the memory.
  let access: QueueAccess
  /// The queue that this one depends on.
  let predecessor: ObjectID?

  init(
    id: ObjectID, virtualIOMMU: VirtualIOMMUObject, model: any HardwareQueue,
    access: QueueAccess, predecessor: ObjectID?
  ) {
    self.id = id
    self.virtualIOMMU = virtualIOMMU
    self.model = model
    self.access = access
    self.predecessor = predecessor
  }
}

/// Keeps the memory of one hardware queue pinned and mapped. It has an id, as on Linux, where it
/// is an `iommufd_access` inside the kernel; nobody can do anything with that.
final class QueueAccess: ForeignObject {
  let kind = "the access of a hardware queue"
  let id: ObjectID
  let space: AddressSpace

  init(id: ObjectID, space: AddressSpace) {
    self.id = id
    self.space = space
  }

  func destroy() {}
}
