// SPDX-License-Identifier: Apache-2.0
//
// Making page tables and invalidating those that users own: Linux's HWPT_ALLOC and
// HWPT_INVALIDATE (MODEL B2, B7, G1).

import PageTables
import SystemPackage

extension Context {
  /// Makes a page table for a device: from an address space one that the engine fills, from
  /// such a table one that is nested on it.
  ///
  /// Linux: `IOMMU_HWPT_ALLOC`. MODEL B2, B7.
  /// - Parameters:
  ///   - attributes: A nested table takes `.pasid` only.
  ///   - data: What the driver needs to know; a nested table cannot do without.
  ///   - faultQueue: Where the page requests of devices on the table go (MODEL H1); nil refuses
  ///     them. A nest parent has none.
  /// - Throws: `ENOENT` for the device or the fault queue; `EINVAL` for a parent that is neither, that was not
  ///   made to be one or is another driver's; `EOPNOTSUPP` for attributes or data that its
  ///   IOMMU does not have; what filling the table throws.
  public func allocateHWPT(
    for device: ObjectID, from parent: ObjectID, attributes: PagingAttributes = [],
    data: UserData? = nil, faultQueue: ObjectID? = nil
  ) throws(IOMMUError) -> ObjectID {
    let object = try self.device(device)
    return try configuration.withLock { (_) throws(IOMMUError) in
      switch objects.withLock({ $0.table[parent] }) {
      case .ioas(let space)?:
        return try makeTable(
          for: object, space: space, attributes: attributes, data: data,
          faultQueue: faultQueue, isAutomatic: false
        ).id
      case .hwpt(let table)? where !table.isNested:
        return try makeNestedTable(
          for: object, on: table, attributes: attributes, data: data, faultQueue: faultQueue
        ).id
      case .virtualIOMMU(let owner)?:
        return try makeNestedTable(
          for: object, in: owner, attributes: attributes, data: data, faultQueue: faultQueue
        ).id
      case let other:
        throw IOMMUError(
          .invalidArgument,
          "object \(parent) is \(other?.kind ?? "not there"); a page table is made from an "
            + "IOAS, from a page table that can be a nest parent or from a virtual IOMMU")
      }
    }
  }

  func makeTable(
    for object: DeviceObject, space: AddressSpace, attributes: PagingAttributes,
    data: UserData?, faultQueue: ObjectID? = nil, isAutomatic: Bool
  ) throws(IOMMUError) -> HWPT {
    let driver = object.device.driver
    guard !attributes.contains(.dirtyTracking) || object.device.capabilities.dirtyTracking
    else {
      throw IOMMUError(
        .operationNotSupported,
        "\(driver.name), the IOMMU of \(object.device.name), does not track dirty pages")
    }
    guard faultQueue == nil || !attributes.contains(.nestParent) else {
      throw IOMMUError(
        .operationNotSupported,
        "a nest parent's page requests cannot be delivered to a fault queue; those of the tables "
          + "on top of it can")
    }
    try FailurePoint.pass(.driverObject)
    // An IOMMU that cannot enforce need not be told not to.
    let allowsNoSnoop =
      space.attributes.snoop == .notEnforced && object.device.capabilities.snoopControl
    let domain = try driver.makePagingDomain(
      for: object.device.requester,
      attributes: allowsNoSnoop ? attributes.union(.allowsNoSnoop) : attributes, data: data)
    try space.add(domain)
    do throws(IOMMUError) {
      return try insertTable(dependingOn: space.id, faultQueue: faultQueue) { id, queue in
        HWPT(
          id: id, addressSpace: space, kind: .paging(domain), driver: driver,
          attributes: attributes, isAutomatic: isAutomatic, faultQueue: queue)
      }
    } catch {
      space.remove(domain)
      throw error
    }
  }

  private func makeNestedTable(
    for object: DeviceObject, on parent: HWPT, attributes: PagingAttributes, data: UserData?,
    faultQueue: ObjectID?
  ) throws(IOMMUError) -> HWPT {
    guard attributes.isSubset(of: .pasid) else {
      throw IOMMUError(
        .operationNotSupported,
        "a nested page table has no attributes \(hex(attributes.rawValue)); its parent has them"
      )
    }
    guard let data else {
      throw IOMMUError(
        .operationNotSupported,
        "a table nested on HWPT \(parent.id) needs user data that says where it is")
    }
    let driver = object.device.driver
    // As on Linux: what there is none of at all is told first, whatever the parent.
    try driver.checkNesting(ofData: data.type, for: object.device.requester)
    guard parent.attributes.contains(.nestParent), !parent.isAutomatic,
      parent.driver === driver, let paging = parent.paging
    else {
      throw IOMMUError(
        .invalidArgument,
        parent.isAutomatic
          ? "HWPT \(parent.id) was made by an attach and goes with it; make a parent with "
            + "IOMMU_HWPT_ALLOC_NEST_PARENT"
          : parent.driver === driver
            ? "HWPT \(parent.id) cannot be a parent: it was made without "
              + "IOMMU_HWPT_ALLOC_NEST_PARENT"
            : "HWPT \(parent.id) was made for \(parent.driver.name); \(object.device.name) is "
              + "behind \(driver.name)")
    }
    try FailurePoint.pass(.driverObject)
    let domain = try driver.makeNestedDomain(
      for: object.device.requester, parent: paging, attributes: attributes, data: data)
    return try insertTable(dependingOn: parent.id, faultQueue: faultQueue) { id, queue in
      HWPT(
        id: id, addressSpace: parent.addressSpace, kind: .nested(domain, parent: parent),
        driver: driver, attributes: attributes, faultQueue: queue)
    }
  }

  /// Gives a table its id and counts it as a user of what it was made from and of its queue.
  ///
  /// The queue is looked up last, as on Linux. The caller holds `configuration`, so that nothing
  /// is destroyed meanwhile.
  func insertTable(
    dependingOn parent: ObjectID?, faultQueue: ObjectID?,
    _ make: (ObjectID, FaultQueue?) -> HWPT
  ) throws(IOMMUError) -> HWPT {
    let queue: FaultQueue? =
      if let faultQueue { try self.faultQueue(faultQueue) } else { nil }
    return try objects.withLock { (objects) throws(IOMMUError) in
      let table = try objects.table.insert { id in
        let table = make(id, queue)
        return (.hwpt(table), table)
      }
      if let parent { objects.table.addUser(of: parent) }
      if let queue { objects.table.addUser(of: queue.id) }
      return table
    }
  }

  /// The table that a device's DMA goes through; nil where it is blocked.
  /// - Parameters:
  ///   - device: A bound device.
  ///   - pasid: Nil for DMA without one.
  /// - Throws: `ENOENT`.
  public func attachedHWPT(
    of device: ObjectID, pasid: PASID? = nil
  ) throws(IOMMUError) -> ObjectID? {
    let object = try self.device(device)
    return object.group.table(of: object, pasid: pasid?.nonzero)?.id
  }

  /// The address space that a device is attached to; nil where it is blocked. Of a table that the
  /// user nested by its id, the parent's.
  /// - Throws: `ENOENT`.
  public func attachedAddressSpace(
    of device: ObjectID, pasid: PASID? = nil
  ) throws(IOMMUError) -> ObjectID? {
    let object = try self.device(device)
    return object.group.table(of: object, pasid: pasid?.nonzero)?.space.id
  }

  /// The machine's device behind a bound one, for drivers that look into their own.
  /// - Throws: `ENOENT`.
  public func physicalDevice(_ id: ObjectID) throws(IOMMUError) -> PhysicalDevice {
    try device(id).device
  }

  /// The domain behind a page table that the engine fills, for drivers that look into their
  /// own.
  /// - Throws: `ENOENT`.
  public func pagingDomain(_ id: ObjectID) throws(IOMMUError) -> any PagingDomain {
    guard case .hwpt(let table)? = objects.withLock({ $0.table[id] }),
      case .paging(let domain) = table.kind
    else { throw noObject(id, wanted: "a kernel-managed page table") }
    return domain
  }

  /// The domain behind a page table that the user owns, for drivers that look into their own.
  /// - Throws: `ENOENT`.
  public func nestedDomain(_ id: ObjectID) throws(IOMMUError) -> any NestedDomain {
    guard case .hwpt(let table)? = objects.withLock({ $0.table[id] }),
      case .nested(let domain, _) = table.kind
    else { throw noObject(id, wanted: "a user-managed page table") }
    return domain
  }

  /// Checks that an id names a page table, of whichever kind.
  /// - Throws: `ENOENT` where there is no such object, `EINVAL` where it is another one.
  public func requireHWPT(_ id: ObjectID) throws(IOMMUError) {
    switch objects.withLock({ $0.table[id] }) {
    case .hwpt?: return
    case nil: throw noObject(id, wanted: "a page table")
    case let other?:
      throw IOMMUError(.invalidArgument, "object \(id) is \(other.kind), not a page table")
    }
  }

  /// Makes the IOMMU forget what it cached of a table that the user owns, or of all of a virtual
  /// IOMMU's guest.
  ///
  /// Linux: `IOMMU_HWPT_INVALIDATE`. MODEL G1, G2.
  /// - Returns: How many entries were handled, and why it stopped before the last.
  /// - Throws: `ENOENT` where there is no such object, `EINVAL` where it is neither.
  public func invalidate(
    _ target: ObjectID, _ requests: UserDataArray
  ) throws(IOMMUError) -> (handled: UInt32, failure: IOMMUError?) {
    let object = objects.withLock { $0.table[target] }
    var refusal = Errno.invalidArgument
    switch object {
    case .virtualIOMMU(let object)?: return object.model.invalidate(requests)
    case .hwpt(let table)?:
      switch table.kind {
      case .nested(let domain, _): return domain.invalidate(requests)
      case .paging(let domain): refusal = domain.refusalToInvalidate
      case .shared(let domain): throw sharedTableRefusal(table, domain)
      }
    case nil: throw noObject(target, wanted: "a user-managed page table")
    default: break
    }
    throw IOMMUError(
      refusal,
      "object \(target) is \(object?.kind ?? "not there"), with nothing of the user's to "
        + "invalidate; only tables that nest on another and virtual IOMMUs have that")
  }
}
