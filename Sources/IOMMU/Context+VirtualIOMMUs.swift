// SPDX-License-Identifier: Apache-2.0
//
// Making virtual IOMMUs, and what has a place in one: devices under a guest's names, nested page
// tables and event queues: Linux's VIOMMU_ALLOC, VDEVICE_ALLOC and VEVENTQ_ALLOC.

import SystemPackage

extension Context {
  /// Makes a slice of a device's IOMMU for a guest, on top of a page table.
  ///
  /// Linux: `IOMMU_VIOMMU_ALLOC`.
  /// - Parameters:
  ///   - type: `IOMMU_VIOMMU_TYPE_…`.
  ///   - parent: A table that was made to be a nest parent.
  ///   - data: What the driver needs to know, and where it answers.
  /// - Throws: `EOPNOTSUPP` for type 0 or one that the IOMMU does not have; `ENOENT`; `EINVAL`
  ///   for a table that is no nest parent, or another IOMMU's; what the driver throws.
  public func allocateVirtualIOMMU(
    type: UInt32, for device: ObjectID, on parent: ObjectID, data: UserData? = nil
  ) throws(IOMMUError) -> ObjectID {
    guard type != 0 else {
      throw IOMMUError(.operationNotSupported, "a virtual IOMMU has a type other than 0")
    }
    return try configuration.withLock { (_) throws(IOMMUError) in
      let object = try self.device(device)
      let driver = object.device.driver
      guard driver.supportsVirtualIOMMU(type: type, for: object.device.requester) else {
        throw IOMMUError(
          .operationNotSupported,
          "\(driver.name), the IOMMU of \(object.device.name), has no virtual IOMMUs of type "
            + hex(type))
      }
      let (table, paging) = try nestParent(parent, of: object)
      let events = VirtualEvents()
      return try insert(dependingOn: table.id) { (id) throws(IOMMUError) in
        try FailurePoint.pass(.driverObject)
        let model = try driver.makeVirtualIOMMU(
          type: type, for: object.device.requester, parent: paging, data: data,
          resources: VirtualIOMMUResources(areas: areas, events: events))
        return .virtualIOMMU(
          VirtualIOMMUObject(
            id: id, type: type, parent: table, driver: driver, model: model, events: events))
      }
    }
  }

  private func nestParent(
    _ id: ObjectID, of object: DeviceObject
  ) throws(IOMMUError) -> (HWPT, any PagingDomain) {
    guard case .hwpt(let table)? = objects.withLock({ $0.table[id] }),
      case .paging(let domain) = table.kind
    else {
      throw noObject(id, wanted: "a kernel-managed page table")
    }
    guard table.attributes.contains(.nestParent) else {
      throw IOMMUError(
        .invalidArgument,
        "HWPT \(id) cannot be below a virtual IOMMU: it was made without "
          + "IOMMU_HWPT_ALLOC_NEST_PARENT")
    }
    guard table.driver === object.device.driver else {
      throw IOMMUError(
        .invalidArgument,
        "HWPT \(id) was made for \(table.driver.name); \(object.device.name) is behind "
          + object.device.driver.name)
    }
    return (table, domain)
  }

  /// Gives an id to what `make` makes, a user of another object. Nobody sees it before.
  func insert(
    dependingOn owner: ObjectID, _ make: (ObjectID) throws(IOMMUError) -> ContextObject
  ) throws(IOMMUError) -> ObjectID {
    let id = try objects.withLock { (objects) throws(IOMMUError) in
      try objects.table.reserve()
    }
    do throws(IOMMUError) {
      let object = try make(id)
      objects.withLock { objects in
        objects.table.publish(object, as: id)
        objects.table.addUser(of: owner)
      }
      return id
    } catch {
      objects.withLock { $0.table.cancel(id) }
      throw error
    }
  }

  /// Gives a bound device the name that a guest has for it. It has at most one.
  ///
  /// Linux: `IOMMU_VDEVICE_ALLOC`. Unbinding the device ends it; its id is never used again.
  /// - Parameter virtualID: Unique in the virtual IOMMU.
  /// - Throws: `ENOENT`; `EINVAL` where the device is behind another IOMMU; `EEXIST` where the
  ///   device or the name has a counterpart; what the driver throws.
  public func allocateVirtualDevice(
    _ device: ObjectID, in virtualIOMMU: ObjectID, virtualID: UInt64
  ) throws(IOMMUError) -> ObjectID {
    try configuration.withLock { (configuration) throws(IOMMUError) in
      let owner = try self.virtualIOMMU(virtualIOMMU)
      let object = try self.device(device)
      try check(object, isBehind: owner)
      let key = ObjectIdentifier(object)
      if let other = configuration.virtualDevices[key] {
        throw IOMMUError(
          .fileExists,
          "\(object.device.name) is virtual device \(other.id) already; destroy that first")
      }
      if let other = configuration.virtualDevices.values.first(where: {
        $0.virtualIOMMU === owner && $0.virtualID == virtualID
      }) {
        throw IOMMUError(
          .fileExists,
          "virtual IOMMU \(owner.id) calls \(other.device.device.name) \(hex(virtualID)) already"
        )
      }
      return try insert(dependingOn: owner.id) { (id) throws(IOMMUError) in
        let made = VirtualDeviceObject(
          id: id, virtualIOMMU: owner, device: object, virtualID: virtualID)
        try owner.model.addDevice(object.device.requester, virtualID: virtualID)
        configuration.virtualDevices[key] = made
        return .virtualDevice(made)
      }
    }
  }

  private func check(
    _ object: DeviceObject, isBehind owner: VirtualIOMMUObject
  ) throws(IOMMUError) {
    guard object.device.driver === owner.driver else {
      throw IOMMUError(
        .invalidArgument,
        "virtual IOMMU \(owner.id) is a slice of \(owner.driver.name); \(object.device.name) is "
          + "behind \(object.device.driver.name)")
    }
  }

  /// Makes a page table that the guest of a virtual IOMMU owns. As `allocateHWPT`, with a virtual
  /// IOMMU for a parent. The caller holds `configuration`.
  func makeNestedTable(
    for object: DeviceObject, in owner: VirtualIOMMUObject, attributes: PagingAttributes,
    data: UserData?, faultQueue: ObjectID?
  ) throws(IOMMUError) -> HWPT {
    try check(object, isBehind: owner)
    guard attributes.isSubset(of: .pasid) else {
      throw IOMMUError(
        .operationNotSupported,
        "a nested page table has no attributes \(hex(attributes.rawValue)); its parent has them"
      )
    }
    guard let data else {
      throw IOMMUError(
        .operationNotSupported,
        "a table in virtual IOMMU \(owner.id) needs user data that says where it is")
    }
    try FailurePoint.pass(.driverObject)
    let domain = try owner.model.makeNestedDomain(attributes: attributes, data: data)
    return try insertTable(dependingOn: owner.id, faultQueue: faultQueue) { id, queue in
      HWPT(
        id: id, addressSpace: owner.parent.addressSpace,
        kind: .nested(domain, parent: owner.parent), driver: owner.driver,
        attributes: attributes, faultQueue: queue, virtualIOMMU: owner)
    }
  }

  /// Makes a queue for what a virtual IOMMU tells its guest.
  ///
  /// Linux: `IOMMU_VEVENTQ_ALLOC`. Until `close(_:)` it keeps the context alive and cannot be
  /// destroyed, as its file descriptor does on Linux.
  /// - Parameters:
  ///   - type: `IOMMU_VEVENTQ_TYPE_…`; whether the driver ever reports such is not checked.
  ///   - depth: How many events wait at most; later ones are lost.
  /// - Throws: `EOPNOTSUPP` for type 0, `EINVAL` for no depth or too much, `ENOENT`; `EEXIST` where there is
  ///   one of the type; `EBADF` where the context was closed.
  public func makeEventQueue(
    in virtualIOMMU: ObjectID, type: UInt32, depth: UInt32
  ) throws(IOMMUError) -> VirtualEventQueue {
    guard type != 0 else {
      throw IOMMUError(.operationNotSupported, "an event queue has a type other than 0")
    }
    guard depth > 0, depth <= VirtualEventQueue.maximumDepth else {
      throw IOMMUError(
        .invalidArgument,
        "an event queue has room for 1 to \(VirtualEventQueue.maximumDepth) events, not \(depth)"
      )
    }
    return try configuration.withLock { (_) throws(IOMMUError) in
      let owner = try self.virtualIOMMU(virtualIOMMU)
      guard !owner.events.hasQueue(type: type) else {
        throw IOMMUError(
          .fileExists,
          "virtual IOMMU \(owner.id) has a queue for events of type \(hex(type)) already")
      }
      try addHolder()
      do throws(IOMMUError) {
        return try objects.withLock { (objects) throws(IOMMUError) in
          let queue = try objects.table.insert { id in
            let queue = VirtualEventQueue(
              id: id, virtualIOMMU: owner, type: type, depth: depth)
            return (.eventQueue(queue), queue)
          }
          objects.table.addUser(of: owner.id)
          objects.table.addUser(of: queue.id)
          owner.events.add(queue)
          return queue
        }
      } catch {
        dropHolder()
        throw error
      }
    }
  }

  /// Ends the user's side of an event queue. It keeps its events until it is destroyed. Call
  /// once.
  public func close(_ queue: VirtualEventQueue) {
    dropUser(of: queue.id)
    dropHolder()
  }

  /// The driver's part of a virtual IOMMU, for programs that carry its guest's commands to it.
  /// - Throws: `ENOENT`.
  public func virtualIOMMUModel(_ id: ObjectID) throws(IOMMUError) -> any VirtualIOMMU {
    try virtualIOMMU(id).model
  }

  func virtualIOMMU(_ id: ObjectID) throws(IOMMUError) -> VirtualIOMMUObject {
    guard case .virtualIOMMU(let object)? = objects.withLock({ $0.table[id] }) else {
      throw noObject(id, wanted: "a virtual IOMMU")
    }
    return object
  }

  // MARK: Taking apart

  /// Whether a program has pages of a virtual IOMMU mapped: then it stays.
  /// - Throws: `EBUSY`. Takes no lock while it looks at the run's processes.
  func checkUnmapped(_ id: ObjectID) throws(IOMMUError) {
    guard case .virtualIOMMU(let object)? = objects.withLock({ $0.table[id] }) else { return }
    if let area = object.model.areas.first(where: \.isMapped) {
      throw IOMMUError(
        .resourceBusy,
        "virtual IOMMU \(id)'s pages at offset \(hex(area.offset)) are mapped; munmap them first"
      )
    }
  }

  func dismantle(_ object: VirtualIOMMUObject) {
    object.model.destroy()
    for area in object.model.areas { areas.remove(area) }
    dropUser(of: object.parent.id)
  }

  func dismantle(_ object: VirtualDeviceObject, _ configuration: inout Configuration) {
    configuration.virtualDevices[ObjectIdentifier(object.device)] = nil
    object.virtualIOMMU.model.removeDevice(
      object.device.device.requester, virtualID: object.virtualID)
    dropUser(of: object.virtualIOMMU.id)
  }

  func dismantle(_ queue: VirtualEventQueue) {
    queue.virtualIOMMU.events.remove(queue)
    dropUser(of: queue.virtualIOMMU.id)
  }

  /// A device is unbound: its counterpart goes, and nothing else ever has that id, which a user
  /// may still hold.
  ///
  /// Linux: `iommufd_device_remove_vdev`, `iommufd_object_tombstone_user`.
  func entombVirtualDevice(of object: DeviceObject, _ configuration: inout Configuration) {
    guard let made = configuration.virtualDevices[ObjectIdentifier(object)] else { return }
    objects.withLock { $0.table.entomb(made.id) }
    dismantle(made, &configuration)
  }
}
