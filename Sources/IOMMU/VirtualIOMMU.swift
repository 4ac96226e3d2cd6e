// SPDX-License-Identifier: Apache-2.0
//
// What a driver does for a virtual IOMMU: a slice of an IOMMU that a guest sees as its own, with
// the guest's names for devices, its invalidations, its events and its command queues.

import PageTables

/// A slice of an IOMMU for one guest, made by a driver (Linux: `struct iommufd_viommu` and its
/// `iommufd_viommu_ops`).
///
/// Thread-safe. Called with engine locks held (see LockOrder), so it never calls the engine.
public protocol VirtualIOMMU: AnyObject, Sendable {
  /// What it shares with the program; made with the `MmapAreas` that it was given. While a
  /// program has one mapped, the virtual IOMMU is not destroyed. Constant.
  var areas: [MmapArea] { get }

  /// Makes a page table that the guest owns (Linux: `alloc_domain_nested`).
  ///
  /// It is nested on the table that the virtual IOMMU was made on. MODEL B2.
  /// - Parameter attributes: `.pasid` or none.
  /// - Throws: `EOPNOTSUPP` for what this kind does not have; `EINVAL` for data it cannot use.
  func makeNestedDomain(
    attributes: PagingAttributes, data: UserData
  ) throws(IOMMUError) -> any NestedDomain

  /// Makes the hardware forget what it cached for the guest (Linux: `cache_invalidate`). As
  /// `NestedDomain.invalidate`; entries may name devices as the guest does. MODEL G1, G2.
  func invalidate(_ requests: UserDataArray) -> (handled: UInt32, failure: IOMMUError?)

  /// The guest has a name for a device from now on (Linux: `vdevice_init`).
  /// - Parameter virtualID: Unique in the virtual IOMMU.
  func addDevice(_ device: RequesterID, virtualID: UInt64) throws(IOMMUError)

  /// Undoes an `addDevice`. The device may still use a nested table.
  func removeDevice(_ device: RequesterID, virtualID: UInt64)

  /// Whether it has queues of this kind (Linux: `get_hw_queue_size`).
  func supportsHardwareQueue(type: UInt32) -> Bool

  /// Makes the hardware take commands from a queue in guest memory (Linux:
  /// `hw_queue_init_phys`).
  ///
  /// The memory stays where it is until after `HardwareQueue.destroy()`.
  /// - Throws: `EEXIST` where the number is taken; what the driver has rules for.
  func makeHardwareQueue(
    _ request: HardwareQueueRequest
  ) throws(IOMMUError) -> any HardwareQueue

  /// Called once, when nothing of the guest's is left in it.
  func destroy()
}

/// Which queue is asked for.
public struct HardwareQueueRequest: Sendable {
  /// `IOMMU_HW_QUEUE_TYPE_…`, one that `supportsHardwareQueue` knows.
  public let type: UInt32
  /// The queue's number in its virtual IOMMU.
  public let index: UInt32
  /// First byte, in the address space below the virtual IOMMU.
  public let base: IOVA
  /// First byte, in physical space; all bytes follow each other there.
  public let physical: PhysicalAddress
  /// In bytes, not zero.
  public let length: UInt64
}

/// A queue in guest memory that hardware reads (Linux: `struct iommufd_hw_queue`). Thread-safe.
public protocol HardwareQueue: AnyObject, Sendable {
  /// A queue that cannot be destroyed before this one (Linux: `iommufd_hw_queue_depend`).
  /// Constant.
  var predecessor: (any HardwareQueue)? { get }

  /// The hardware reads the queue no more when this returns. Called once.
  func destroy()
}

// What a virtual IOMMU without these parts answers, as Linux does where an operation is missing.
extension VirtualIOMMU {
  public var areas: [MmapArea] { [] }

  public func makeNestedDomain(
    attributes: PagingAttributes, data: UserData
  ) throws(IOMMUError) -> any NestedDomain {
    throw IOMMUError(
      .operationNotSupported, "this kind of virtual IOMMU has no nested page tables")
  }

  public func invalidate(
    _ requests: UserDataArray
  ) -> (handled: UInt32, failure: IOMMUError?) {
    (
      0,
      IOMMUError(
        .operationNotSupported,
        "this kind of virtual IOMMU takes no invalidations by call (Linux has none for it): attach "
          + "the changed table anew")
    )
  }

  public func addDevice(_ device: RequesterID, virtualID: UInt64) throws(IOMMUError) {}
  public func removeDevice(_ device: RequesterID, virtualID: UInt64) {}
  public func supportsHardwareQueue(type: UInt32) -> Bool { false }

  public func makeHardwareQueue(
    _ request: HardwareQueueRequest
  ) throws(IOMMUError) -> any HardwareQueue {
    throw IOMMUError(
      .operationNotSupported, "this kind of virtual IOMMU has no hardware queues")
  }

  public func destroy() {}
}

/// What the engine hands to a driver for a virtual IOMMU.
public struct VirtualIOMMUResources: Sendable {
  /// Pages to share with the program are made here.
  public let areas: MmapAreas
  /// Where the driver reports what the guest shall hear of.
  public let events: VirtualEvents
}
