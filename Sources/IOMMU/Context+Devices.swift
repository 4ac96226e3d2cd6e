// SPDX-License-Identifier: Apache-2.0
//
// Binding devices, and switching what their DMA reaches (MODEL C, D): Linux's
// iommufd_device_bind, attach, replace and detach.

import PageTables
import SystemPackage

extension Context {
  /// Binds a device: its group comes under this context's ownership, blocked.
  ///
  /// Linux: `iommufd_device_bind`; the proposal's `iommu_register_device`. MODEL C1, C2, C3.
  /// The binding unbinds when it goes.
  /// - Parameter cookie: The user's own name for the device.
  /// - Throws: `EPERM` where the group is owned by another context or is not viable, or its
  ///   interrupts are not isolated; `EINVAL` where its DMA is not coherent; `EBUSY` where this
  ///   context has bound it already; `EBADF` where the context was closed.
  public func bind(
    _ device: PhysicalDevice, cookie: UInt64 = 0
  ) throws(IOMMUError) -> Binding {
    try Binding(context: self, object: makeDevice(device, cookie: cookie), keepsContext: true)
  }

  /// Binds a device on behalf of an object of this context, which goes when the context is
  /// closed: the binding does not keep the context alive.
  public func bindInternally(_ device: PhysicalDevice) throws(IOMMUError) -> Binding {
    try Binding(context: self, object: makeDevice(device, cookie: 0), keepsContext: false)
  }

  private func makeDevice(
    _ device: PhysicalDevice, cookie: UInt64
  ) throws(IOMMUError) -> DeviceObject {
    let capabilities = device.capabilities
    guard capabilities.cacheCoherency else {
      throw IOMMUError(
        .invalidArgument,
        "\(device.name)'s DMA is not coherent with the CPU's caches, which binding needs")
    }
    guard capabilities.isolatedInterrupts else {
      throw IOMMUError(
        .notPermitted,
        "\(device.name)'s IOMMU cannot isolate interrupts, so its DMA could raise anybody's")
    }
    return try configuration.withLock { (_) throws(IOMMUError) in
      guard !isBound(device) else {
        throw IOMMUError(.resourceBusy, "\(device.name) is already bound to this context")
      }
      try device.group.claim(for: ObjectIdentifier(self), device: device)
      do throws(IOMMUError) {
        return try objects.withLock { (objects) throws(IOMMUError) in
          let object = try objects.table.insert { id in
            let object = DeviceObject(id: id, device: device, cookie: cookie)
            return (.device(object), object)
          }
          // The binding is a user: the id cannot be destroyed under it.
          objects.table.addUser(of: object.id)
          return object
        }
      } catch {
        device.group.release()
        throw error
      }
    }
  }

  private func isBound(_ device: PhysicalDevice) -> Bool {
    objects.withLock { objects in
      objects.table.ids.contains { id in
        if case .device(let object)? = objects.table[id] {
          object.device === device
        } else {
          false
        }
      }
    }
  }

  /// Undoes a bind, and the attachments before it.
  func unbind(_ object: DeviceObject, keepsContext: Bool) {
    for pasid in object.device.group.attachedPASIDs(of: object) {
      detach(object, pasid: pasid)
    }
    dropUser(of: object.id)
    do throws(IOMMUError) {
      try destroy(object.id)
    } catch {
      assertionFailure("\(object.device.name): \(error)")
    }
    if keepsContext { dropHolder() }
  }

  /// Attaches a bound device, or replaces what it is attached to, in one step.
  ///
  /// Linux: `iommufd_device_attach`, `iommufd_device_replace`. MODEL C2, D1, D3.
  /// - Parameters:
  ///   - pasid: Nil for DMA without one.
  ///   - target: A page table, or an address space: then a page table that serves the
  ///     device is found or made.
  /// - Returns: The page table.
  /// - Throws: `ENOENT`; `EINVAL` where a neighbour in the group uses another table or the
  ///   table does not fit the device or the PASID; `EBUSY` and `EINVAL` where `mode` expects
  ///   another state; `EADDRINUSE` where something is mapped that the device must not reach;
  ///   what filling a new table throws. Nothing has changed then.
  func attach(
    _ object: DeviceObject, pasid: PASID? = nil, to target: ObjectID,
    mode: AttachMode = .attachOrReplace
  ) throws(IOMMUError) -> ObjectID {
    try configuration.withLock { (configuration) throws(IOMMUError) in
      let change = AttachmentChange(object: object, pasid: pasid, mode: mode)
      switch objects.withLock({ $0.table[target] }) {
      case .hwpt(let table)?:
        try connect(change, to: table, &configuration)
        return table.id
      case .ioas(let space)?:
        return try attachAutomatically(change, to: space, &configuration)
      case let other?:
        throw IOMMUError(
          .invalidArgument,
          "object \(target) is \(other.kind); a device is attached to an IOAS or a page table")
      case nil:
        throw IOMMUError(
          .noSuchFileOrDirectory,
          "this context has no object \(target) to attach \(object.device.name) to")
      }
    }
  }

  private struct AttachmentChange {
    let object: DeviceObject
    let pasid: PASID?
    let mode: AttachMode
  }

  /// The first automatic table of the space that takes the device, or a new one.
  private func attachAutomatically(
    _ change: AttachmentChange, to space: AddressSpace, _ configuration: inout Configuration
  ) throws(IOMMUError) -> ObjectID {
    for table in configuration.automaticTables[space.id] ?? [] {
      do throws(IOMMUError) {
        try connect(change, to: table, &configuration)
        return table.id
      } catch  where error.errno == .invalidArgument {
        continue
      }
    }
    let table = try makeTable(
      for: change.object, space: space, attributes: [], data: nil, isAutomatic: true)
    configuration.automaticTables[space.id, default: []].append(table)
    do throws(IOMMUError) {
      try connect(change, to: table, &configuration)
    } catch {
      destroyIfUnused(table, &configuration)
      throw error
    }
    return table.id
  }

  /// Moves a device, and its group with it, to a table.
  private func connect(
    _ change: AttachmentChange, to table: HWPT, _ configuration: inout Configuration
  ) throws(IOMMUError) {
    let object = change.object
    let old = try object.device.group.connect(
      object, pasid: change.pasid, to: table, mode: change.mode)
    guard let old else { return }
    objects.withLock { objects in
      if let table = old.table {
        for _ in 0..<old.devices { objects.table.dropUser(of: table.id) }
      }
      objects.table.addUser(of: table.id, count: old.devices)
      if old.table == nil { objects.table.addUser(of: object.id) }
    }
    if let table = old.table { destroyIfUnused(table, &configuration) }
  }

  /// Sends a device back to blocked once the last of its group's devices is detached. Does
  /// nothing where it is not attached. Linux: `iommufd_device_detach`.
  func detach(_ object: DeviceObject, pasid: PASID? = nil) {
    configuration.withLock { configuration in
      guard let table = object.device.group.disconnect(object, pasid: pasid) else { return }
      objects.withLock { objects in
        objects.table.dropUser(of: table.id)
        objects.table.dropUser(of: object.id)
      }
      destroyIfUnused(table, &configuration)
    }
  }

  /// What a bound device's IOMMU is and can do. Linux: `IOMMU_GET_HW_INFO`. MODEL B8.
  /// - Throws: `ENOENT`.
  public func hardwareInformation(
    of device: ObjectID
  ) throws(IOMMUError) -> (information: HardwareInformation, capabilities: IOMMUCapabilities) {
    let device = try self.device(device).device
    return (device.driver.hardwareInformation(for: device.requester), device.capabilities)
  }
}
