// SPDX-License-Identifier: Apache-2.0
//
// What a device asks of its IOMMU where a page is missing, and what it is answered (MODEL H1;
// PCI Express: page request interface; Linux: `iommu_fault_page_request`).

import PageTables

/// One page that a device asks for. The requests of a group are answered together.
public struct PageRequest: Hashable, Sendable {
  /// Nil for DMA without one.
  public var pasid: PASID?
  /// Chosen by the device, which has one answer for all requests of the number.
  public var group: UInt32
  /// What the device wants to do there.
  public var access: Access
  /// The address that was missed, in bytes, in the table that the device's DMA goes through.
  public var address: IOVA
  /// Whether the group is complete with this one.
  public var isLast: Bool

  public init(
    pasid: PASID? = nil, group: UInt32, access: Access, address: IOVA, isLast: Bool = true
  ) {
    self.pasid = pasid
    self.group = group
    self.access = access
    self.address = address
    self.isLast = isLast
  }

  /// `IOMMU_PGFAULT_PERM_…`; other bits are passed on as they come.
  public struct Access: OptionSet, Hashable, Sendable {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    public static let read = Access(rawValue: 1)
    public static let write = Access(rawValue: 2)
    public static let execute = Access(rawValue: 4)
    public static let privileged = Access(rawValue: 8)
  }
}

/// The one answer to a group of page requests. Linux: `struct iommu_page_response`.
public struct PageResponse: Hashable, Sendable {
  public var pasid: PASID?
  public var group: UInt32
  public var code: Code

  public init(pasid: PASID? = nil, group: UInt32, code: Code) {
    self.pasid = pasid
    self.group = group
    self.code = code
  }

  /// `IOMMUFD_PAGE_RESP_…`.
  public enum Code: UInt32, Hashable, Sendable {
    /// The pages are there: the device tries again.
    case success = 0
    /// They will not be: the device gives the access up.
    case invalid = 1
  }
}

/// Where the page requests of one device go while it is attached to a page table with a fault
/// queue (Linux: `struct iommufd_attach_handle`). The driver reports to it; thread-safe.
///
/// A driver holds none of its own locks when it reports: it is answered under the queue's.
public final class PageRequestPort: Sendable {
  let queue: FaultQueue
  let table: ObjectID
  let space: ObjectID
  let device: ObjectID
  let cookie: UInt64
  private let driver: any IOMMUDriver
  private let requester: RequesterID
  /// What the device's requests carry, and what its user calls that (MODEL E4).
  private let physical: PASID?
  private let virtual: PASID?

  /// - Parameter pasid: What the user attached; nil for DMA without one.
  init(queue: FaultQueue, table: HWPT, object: DeviceObject, pasid: PASID?) {
    virtual = pasid
    physical = object.endpoint.physicalPASID(for: pasid)
    self.queue = queue
    self.table = table.id
    space = table.space.id
    device = object.id
    cookie = object.cookie ?? 0
    driver = object.device.driver
    requester = object.device.requester
  }

  /// Takes one request.
  ///
  /// Requests wait for the last of their group. From then on the group has exactly one answer:
  /// `IOMMUDriver.respond`, from any thread and maybe before this call returns, or what this
  /// call returns. Linux: `iommu_report_device_fault`.
  /// - Returns: The answer to the group, where the device has been detached or nobody can answer
  ///   any more; nil where the answer comes later, and for a request that is not the last.
  public func report(_ request: PageRequest) -> PageResponse.Code? {
    var request = request
    // Below a table that stands for several PASIDs, the others are the user's own.
    if request.pasid == physical { request.pasid = virtual }
    return queue.take(request, through: self)
  }

  /// Ends the attachment. MODEL H3.
  func close() { queue.close(self) }

  /// Answers a group by its last request.
  func answer(_ request: PageRequest, with code: PageResponse.Code) {
    let pasid = request.pasid == virtual ? physical : request.pasid
    driver.respond(
      to: requester, with: PageResponse(pasid: pasid, group: request.group, code: code))
  }
}
