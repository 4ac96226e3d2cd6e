// SPDX-License-Identifier: Apache-2.0
//
// Binding devices, and switching what their DMA reaches (MODEL C, D): Linux's
// iommufd_device_bind, attach, replace and detach.

import PageTables
import SystemPackage

extension Context {
  /// Binds a device: its group comes under this context's ownership, blocked. A slice of a
  /// device brings its parent and its default PASID, and only that PASID is blocked.
  ///
  /// Linux: `iommufd_device_bind`; the proposal's `iommu_register_device`. MODEL C1, C2, C3.
  /// The binding unbinds when it goes.
  /// - Parameter cookie: The user's own name for the device, which no other device of the context
  ///   has; nil gives it none.
  /// - Throws: `EPERM` where the group is owned by another context or is not viable, or its
  ///   interrupts are not isolated; `EINVAL` where its DMA is not coherent; `EBUSY` where this
  ///   context has bound it already; `EEXIST` where the cookie is taken; `EBADF` where the
  ///   context was closed.
  public func register(
    _ device: any BindableDevice, cookie: UInt64? = nil
  ) throws(IOMMUError) -> Binding {
    try Binding(
      context: self, object: makeDevice(device, cookie: cookie), keepsContext: true)
  }

  /// Binds a device on behalf of an object of this context, which goes when the context is
  /// closed: the binding does not keep the context alive.
  public func registerInternally(
    _ device: any BindableDevice
  ) throws(IOMMUError) -> Binding {
    try Binding(context: self, object: makeDevice(device, cookie: nil), keepsContext: false)
  }

  /// The device that was registered with a cookie.
  /// - Throws: `ENOENT`.
  public func device(cookie: UInt64) throws(IOMMUError) -> ObjectID {
    guard let object = boundDevice(where: { $0.cookie == cookie }) else {
      throw IOMMUError(
        .noSuchFileOrDirectory, "no device was registered with cookie \(hex(cookie))")
    }
    return object.id
  }

  private func makeDevice(
    _ device: any BindableDevice, cookie: UInt64?
  ) throws(IOMMUError) -> DeviceObject {
    let capabilities = device.physical.capabilities
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
    let owner = ObjectIdentifier(self)
    return try configuration.withLock { (_) throws(IOMMUError) in
      try checkUnbound(device, cookie: cookie)
      try device.group.claim(for: owner, device: device)
      return try insert(device) { id in
        DeviceObject(id: id, owner: owner, endpoint: device, cookie: cookie)
      }
    }
  }

  /// Gives the holder of a binding's device its PASIDs in this context too (MODEL C7).
  func share(
    _ object: DeviceObject, cookie: UInt64?
  ) throws(IOMMUError) -> DeviceObject {
    let owner = ObjectIdentifier(self)
    let device = object.endpoint
    return try configuration.withLock { (_) throws(IOMMUError) in
      try checkUnbound(device, cookie: cookie)
      try device.group.share(with: owner, by: object.owner, device: device)
      return try insert(device) { id in
        DeviceObject(
          id: id, owner: owner, endpoint: device, cookie: cookie, hasPASIDsOnly: true)
      }
    }
  }

  private func checkUnbound(
    _ device: any BindableDevice, cookie: UInt64?
  ) throws(IOMMUError) {
    guard boundDevice(where: { $0.endpoint === device }) == nil else {
      throw IOMMUError(.resourceBusy, "\(device.name) is already bound to this context")
    }
    if let cookie, let other = boundDevice(where: { $0.cookie == cookie }) {
      throw IOMMUError(
        .fileExists,
        "cookie \(hex(cookie)) is \(other.name)'s already; each device of a context has its own"
      )
    }
  }

  /// Adds the record of a device whose group was claimed.
  private func insert(
    _ device: any BindableDevice, _ make: (ObjectID) -> DeviceObject
  ) throws(IOMMUError) -> DeviceObject {
    do throws(IOMMUError) {
      return try objects.withLock { (objects) throws(IOMMUError) in
        let object = try objects.table.insert { id in
          let object = make(id)
          return (.device(object), object)
        }
        // The binding is a user: the id cannot be destroyed under it.
        objects.table.addUser(of: object.id)
        return object
      }
    } catch {
      device.group.release(device, by: ObjectIdentifier(self))
      throw error
    }
  }

  private func boundDevice(where condition: (DeviceObject) -> Bool) -> DeviceObject? {
    boundDevices.first(where: condition)
  }

  var boundDevices: [DeviceObject] {
    objects.withLock { objects in
      objects.table.ids.compactMap { id in
        if case .device(let object)? = objects.table[id] { object } else { nil }
      }
    }
  }

  /// Undoes a bind, and the attachments before it.
  func unbind(_ object: DeviceObject, keepsContext: Bool) {
    for pasid in object.group.attachedPASIDs(of: object) {
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
  ///   - hint: What the user promises of the group's DMA (MODEL F2).
  /// - Returns: The page table.
  /// - Throws: `ENOENT`; `EINVAL` where a neighbour in the group uses another table or the
  ///   table does not fit the device or the PASID; `EBUSY` and `EINVAL` where `mode` expects
  ///   another state; `EADDRINUSE` where something is mapped that the device must not reach;
  ///   what filling a new table throws. Nothing has changed then.
  func attach(
    _ object: DeviceObject, pasid: PASID? = nil, to target: ObjectID,
    mode: AttachMode = .attachOrReplace, snoop hint: SnoopHint = .none
  ) throws(IOMMUError) -> ObjectID {
    try configuration.withLock { (configuration) throws(IOMMUError) in
      defer { updateNoSnoop() }
      let change = AttachmentChange(object: object, pasid: pasid, mode: mode, hint: hint)
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
          "this context has no object \(target) to attach \(object.name) to")
      }
    }
  }

  struct AttachmentChange {
    let object: DeviceObject
    let pasid: PASID?
    let mode: AttachMode
    let hint: SnoopHint
  }

  /// The first automatic table of the space that takes the device, or a new one.
  /// - Returns: The page table.
  func attachAutomatically(
    _ change: AttachmentChange, to space: AddressSpace, _ configuration: inout Configuration
  ) throws(IOMMUError) -> ObjectID {
    if let use = configuration.userTables[space.id], !use.isLeaving {
      return try attach(change, to: space, use: use, &configuration)
    }
    let queue = configuration.faultQueues[space.id]
    let hasPASIDs =
      space.attributes.allowsPASIDs && change.object.device.capabilities.pasidBits > 0
    let tables = (configuration.automaticTables[space.id] ?? []).filter {
      $0.faultQueue === queue && (!hasPASIDs || $0.attributes.contains(.pasid))
    }
    return try attach(change, toOneOf: tables, &configuration) {
      configuration throws(IOMMUError) in
      let table = try makeTable(
        for: change.object, space: space, attributes: hasPASIDs ? .pasid : [], data: nil,
        faultQueue: queue?.id, isAutomatic: true)
      configuration.automaticTables[space.id, default: []].append(table)
      return table
    }
  }

  /// Attaches a device to the first table that takes it, or to a new one.
  /// - Returns: The page table.
  func attach(
    _ change: AttachmentChange, toOneOf tables: [HWPT], _ configuration: inout Configuration,
    orMake make: (inout Configuration) throws(IOMMUError) -> HWPT
  ) throws(IOMMUError) -> ObjectID {
    for table in tables {
      do throws(IOMMUError) {
        try connect(change, to: table, &configuration)
        return table.id
      } catch  where error.errno == .invalidArgument {
        continue
      }
    }
    let table = try make(&configuration)
    do throws(IOMMUError) {
      try connect(change, to: table, &configuration)
    } catch {
      destroyIfUnused(table, &configuration)
      throw error
    }
    return table.id
  }

  /// Moves a device, and its group with it, to a table.
  func connect(
    _ change: AttachmentChange, to table: HWPT, _ configuration: inout Configuration
  ) throws(IOMMUError) {
    let object = change.object
    let old = try object.group.connect(
      object, pasid: change.pasid, to: table, mode: change.mode, snoop: change.hint)
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
      guard let table = object.group.disconnect(object, pasid: pasid) else { return }
      defer { updateNoSnoop() }
      objects.withLock { objects in
        objects.table.dropUser(of: table.id)
        objects.table.dropUser(of: object.id)
      }
      destroyIfUnused(table, &configuration)
    }
  }
}
