// SPDX-License-Identifier: Apache-2.0
//
// Moving a group between page tables: one device asks, all of the group go (MODEL C2, D3);
// for DMA without a PASID and for each PASID on its own (D1).

import SystemPackage

/// What a call that attaches a device expects to find.
enum AttachMode: Sendable {
  /// The device is not attached yet. Linux: `iommufd_device_attach`.
  case attach
  /// It is. Linux: `iommufd_device_replace`.
  case replace
  /// Either.
  case attachOrReplace
}

extension DeviceGroup {
  /// What a device's attachment replaced: the table, nil for blocked, and how many devices'
  /// uses move with it.
  struct Replaced {
    let table: HWPT?
    let devices: Int
  }

  /// Attaches a bound device, or moves the group from its table to another.
  /// - Parameter pasid: Nil for DMA without one.
  /// - Returns: Nil where the device was on that table already.
  func connect(
    _ object: DeviceObject, pasid: PASID?, to table: HWPT, mode: AttachMode,
    snoop hint: SnoopHint = .none
  ) throws(IOMMUError) -> Replaced? {
    try state.withLock { (state) throws(IOMMUError) in
      let slot = try slot(of: object, pasid: pasid, state)
      if let old = state.attachments[slot], old.devices.contains(where: { $0 === object }) {
        guard mode != .attach else {
          throw IOMMUError(
            .resourceBusy,
            "\(Self.describe(object, pasid)) is attached to HWPT \(old.table.id) already; "
              + "replace that or detach it first")
        }
        var new = Attachment(table: table, devices: old.devices, promises: old.promises)
        new.note(hint, by: object)
        if old.table === table {
          try new.checkSnooping(of: state.devices(of: slot.subgroup))
          state.attachments[slot]?.promises = new.promises
          return nil
        }
        try replace(old, by: new, slot: slot, &state)
        return Replaced(table: old.table, devices: old.devices.count)
      }
      guard mode != .replace else {
        throw IOMMUError(
          .invalidArgument,
          "\(Self.describe(object, pasid)) is attached to nothing that could be replaced")
      }
      try attachFirst(object, slot: slot, to: table, snoop: hint, &state)
      return Replaced(table: nil, devices: 1)
    }
  }

  private static func describe(_ object: DeviceObject, _ pasid: PASID?) -> String {
    object.name + (pasid.map { " with PASID \($0.rawValue)" } ?? "")
  }

  /// Where a bound device's DMA is routed.
  /// - Throws: `EBADF` where it was unbound; `EPERM` for DMA without a PASID through a binding
  ///   that has only PASIDs.
  private func slot(
    of object: DeviceObject, pasid: PASID?, _ state: borrowing State
  ) throws(IOMMUError) -> Slot {
    guard let subgroup = state.subgroup(of: object.endpoint),
      state.owners[object.owner] != nil
    else {
      throw IOMMUError(.badFileDescriptor, "\(object.name) is not bound any more")
    }
    guard pasid != nil || !object.hasPASIDsOnly else {
      throw IOMMUError(
        .notPermitted,
        "\(object.name) is bound to this context for PASIDs only; another one holds the rest")
    }
    if let pasid, object.device.isBehindAlias {
      throw IOMMUError(
        .invalidArgument,
        "PASID \(pasid.rawValue) of \(object.name) would not reach the IOMMU: the bridge above "
          + "it sends its DMA on as \(object.device.requester), without PASIDs")
    }
    return Slot(subgroup: subgroup, pasid: pasid)
  }

  /// Who is attached to what, as an error of `object`'s context may say it: ids of other
  /// contexts are nobody's business (MODEL A1).
  private static func describe(_ current: Attachment, for object: DeviceObject) -> String {
    let neighbours = current.devices.map(\.name).joined(separator: ", ")
    let own = current.devices.contains { $0.owner == object.owner }
    return own
      ? "\(neighbours), which uses HWPT \(current.table.id)"
      : "\(neighbours), which another open of /dev/iommu has attached"
  }

  private func attachFirst(
    _ object: DeviceObject, slot: Slot, to table: HWPT, snoop hint: SnoopHint,
    _ state: inout State
  ) throws(IOMMUError) {
    let pasid = slot.pasid
    if let current = state.attachments[slot], current.table !== table {
      throw IOMMUError(
        .invalidArgument,
        "\(object.name) shares IOMMU group \(id) with \(Self.describe(current, for: object)); "
          + "the devices of a group are in one address space")
    }
    let devices = state.devices(of: slot.subgroup)
    // As on Linux only DMA without a PASID is kept off the reserved ranges.
    let reserves = pasid == nil
    let space = table.addressSpace
    if reserves {
      try space.reserve(reservedRanges(of: object), for: .device(object.endpointID))
    }
    var attachment = state.attachments[slot] ?? Attachment(table: table, devices: [])
    attachment.devices.append(object)
    attachment.note(hint, by: object)
    do throws(IOMMUError) {
      if state.attachments[slot] == nil { try check(table, fits: devices) }
      try attachment.checkSnooping(of: devices)
      if state.attachments[slot] == nil {
        try check(table, slot: slot, owner: object.owner, state)
        try Self.withPASID(pasid, assignedTo: devices, owner: object.owner) {
          () throws(IOMMUError) in
          attachment.ports = try Self.openPorts(of: [object], to: table, pasid: pasid)
          try Self.switchAll(
            devices, pasid: pasid, to: attachment.route, from: { _ in .blocked })
        }
      } else {
        let ports = try Self.openPorts(of: [object], to: table, pasid: pasid)
        attachment.ports.merge(ports) { $1 }
        if !ports.isEmpty {
          try FailurePoint.pass(.attachment)
          try attachment.route.set(object.endpoint, pasid: pasid)
        }
      }
    } catch {
      attachment.ports[object.device.requester]?.close()
      if reserves { space.unreserve(.device(object.endpointID)) }
      throw error
    }
    state.attachments[slot] = attachment
  }

  /// Gives devices a PASID before they are routed by it; where `body` throws, takes it back.
  private static func withPASID(
    _ pasid: PASID?, assignedTo devices: [any BindableDevice], owner: ObjectIdentifier,
    _ body: () throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    guard let pasid else { return try body() }
    var assigned = 0
    do throws(IOMMUError) {
      for device in devices {
        try device.pasids.assign(pasid, on: device.physical, owner: owner)
        assigned += 1
      }
      try body()
    } catch {
      for device in devices[..<assigned] { device.pasids.free(pasid, on: device.physical) }
      throw error
    }
  }

  /// Places for the page requests of devices that are about to be attached to a table; none
  /// where it has no fault queue.
  /// - Throws: `ENODEV` for a device whose page requests cannot reach the IOMMU. Whether they are
  ///   made and taken at all is the driver's to say.
  private static func openPorts(
    of objects: [DeviceObject], to table: HWPT, pasid: PASID?
  ) throws(IOMMUError) -> [RequesterID: PageRequestPort] {
    guard let queue = table.faultQueue else { return [:] }
    if let object = objects.first(where: { $0.device.isBehindAlias }) {
      throw IOMMUError(
        .noSuchDevice,
        "page requests of \(object.name) do not reach the IOMMU: the bridge above it sends its "
          + "DMA on as \(object.device.requester); attach it to a page table without a fault queue"
      )
    }
    return Dictionary(
      objects.map { object in
        let port = PageRequestPort(queue: queue, table: table, object: object, pasid: pasid)
        queue.open(port)
        return (object.device.requester, port)
      }
    ) { $1 }
  }

  private func replace(
    _ old: Attachment, by new: Attachment, slot: Slot, _ state: inout State
  ) throws(IOMMUError) {
    var new = new
    let (pasid, table) = (slot.pasid, new.table)
    let devices = state.devices(of: slot.subgroup)
    let moves = pasid == nil && old.table.addressSpace !== table.addressSpace
    try check(table, fits: devices)
    try new.checkSnooping(of: devices)
    if moves { try reserve(for: old.devices, in: table.addressSpace) }
    do throws(IOMMUError) {
      new.ports = try Self.openPorts(of: old.devices, to: table, pasid: pasid)
      try check(table, slot: slot, owner: old.devices.first?.owner, state)
      try Self.switchAll(devices, pasid: pasid, to: new.route, from: { _ in old.route })
    } catch {
      for port in new.ports.values { port.close() }
      if moves { unreserve(old.devices, in: table.addressSpace) }
      throw error
    }
    state.attachments[slot] = new
    // Requests that came through the old table have nothing to wait for in the new one.
    for port in old.ports.values { port.close() }
    if moves { unreserve(old.devices, in: old.table.addressSpace) }
  }

  private func check(
    _ table: HWPT, fits members: [any BindableDevice]
  ) throws(IOMMUError) {
    let devices = members.map(\.physical)
    if let misfit = devices.first(where: { $0.driver !== table.driver }) {
      throw IOMMUError(
        .invalidArgument,
        "HWPT \(table.id) was made for \(table.driver.name); \(misfit.name) is behind "
          + "\(misfit.driver.name)")
    }
  }

  /// A device that uses PASIDs goes through tables that allow it, with them and without: the
  /// hardware finds its PASID table through the entry for the device.
  ///
  /// Linux: `iommufd_hwpt_pasid_compat`.
  private func check(
    _ table: HWPT, slot: Slot, owner: ObjectIdentifier?, _ state: borrowing State
  ) throws(IOMMUError) {
    let allows = table.attributes.contains(.pasid)
    if let pasid = slot.pasid {
      guard allows else {
        for device in state.devices(of: slot.subgroup) {
          try device.pasids.checkPossible(pasid, on: device.physical)
        }
        throw IOMMUError(
          .invalidArgument,
          table.isAutomatic
            ? "the page table that an attach to IOAS \(table.space.id) makes takes no "
              + "PASID; attach PASID \(pasid.rawValue), and what the device does without one, to "
              + "tables made from the IOAS by IOMMU_HWPT_ALLOC with IOMMU_HWPT_ALLOC_PASID"
            : "HWPT \(table.id) cannot be attached to PASID \(pasid.rawValue): it was made "
              + "without IOMMU_HWPT_ALLOC_PASID")
      }
      if let main = state.attachments[Slot(subgroup: slot.subgroup, pasid: nil)],
        !main.table.attributes.contains(.pasid)
      {
        // It may be another context's, whose ids are nobody's business (MODEL A1).
        let isOwn = main.devices.contains { $0.owner == owner }
        throw IOMMUError(
          .invalidArgument,
          isOwn && main.table.isAutomatic
            ? "IOMMU group \(id) is attached to IOAS \(main.table.space.id) without a PASID, "
              + "by a page table that does not allow PASIDs beside it; attach that to a table made "
              + "from the IOAS by IOMMU_HWPT_ALLOC with IOMMU_HWPT_ALLOC_PASID first"
            : (isOwn ? "HWPT \(main.table.id)" : "the page table")
              + ", which IOMMU group \(id) uses without a PASID, was made without "
              + "IOMMU_HWPT_ALLOC_PASID, so its devices cannot use PASIDs")
      }
    } else if !allows,
      state.attachments.keys.contains(where: { $0.subgroup == slot.subgroup && $0.pasid != nil }
      )
    {
      throw IOMMUError(
        .invalidArgument,
        table.isAutomatic
          ? "IOMMU group \(id) uses PASIDs, which the page table that an attach to IOAS "
            + "\(table.space.id) makes does not allow; attach to a table made from the IOAS "
            + "by IOMMU_HWPT_ALLOC with IOMMU_HWPT_ALLOC_PASID"
          : "HWPT \(table.id) was made without IOMMU_HWPT_ALLOC_PASID; IOMMU group \(id) uses "
            + "PASIDs")
    }
  }

  private func reservedRanges(of object: DeviceObject) -> [ClosedRange<UInt64>] {
    object.device.driver.reservedRegions(for: object.device.requester).map(\.range)
  }

  private func reserve(
    for objects: [DeviceObject], in space: AddressSpace
  ) throws(IOMMUError) {
    for (index, object) in objects.enumerated() {
      do throws(IOMMUError) {
        try space.reserve(reservedRanges(of: object), for: .device(object.endpointID))
      } catch {
        unreserve(Array(objects[..<index]), in: space)
        throw error
      }
    }
  }

  private func unreserve(_ objects: [DeviceObject], in space: AddressSpace) {
    for object in objects { space.unreserve(.device(object.endpointID)) }
  }

  /// Detaches a bound device. The last one takes the group back to blocked.
  /// - Returns: The table it was on; nil where it was on none.
  func disconnect(_ object: DeviceObject, pasid: PASID?) -> HWPT? {
    state.withLock { state in
      guard let subgroup = state.subgroup(of: object.endpoint),
        case let slot = Slot(subgroup: subgroup, pasid: pasid),
        var attachment = state.attachments[slot],
        let index = attachment.devices.firstIndex(where: { $0 === object })
      else { return nil }
      attachment.devices.remove(at: index)
      attachment.note(.none, by: object)
      let port = attachment.ports.removeValue(forKey: object.device.requester)
      if attachment.devices.isEmpty {
        for device in state.devices(of: subgroup) {
          Self.restore(device, pasid: pasid, to: .blocked)
          if let pasid { device.pasids.free(pasid, on: device.physical) }
        }
        state.attachments[slot] = nil
      } else {
        // Its DMA goes where its neighbours' goes, but nobody answers for it any more.
        if port != nil { Self.restore(object.endpoint, pasid: pasid, to: attachment.route) }
        state.attachments[slot] = attachment
      }
      port?.close()
      if pasid == nil {
        attachment.table.addressSpace.unreserve(.device(object.endpointID))
      }
      return attachment.table
    }
  }

  /// The PASIDs that a bound device is attached by; nil stands for DMA without one.
  func attachedPASIDs(of object: DeviceObject) -> [PASID?] {
    state.withLock { state in
      state.attachments.filter { $0.value.devices.contains { $0 === object } }.map(\.key.pasid)
    }
  }

  /// The tables that a bound device is attached to by a PASID.
  func attachments(of object: DeviceObject) -> [(pasid: PASID, table: HWPT)] {
    state.withLock { state in
      state.attachments.compactMap { slot, attachment in
        guard let pasid = slot.pasid, attachment.devices.contains(where: { $0 === object })
        else { return nil }
        return (pasid, attachment.table)
      }
    }
  }

  /// What a bound device's DMA goes through. Nil where it is blocked.
  func table(of object: DeviceObject, pasid: PASID?) -> HWPT? {
    state.withLock { state in
      state.subgroup(of: object.endpoint)
        .flatMap { state.attachments[Slot(subgroup: $0, pasid: pasid)]?.table }
    }
  }
}
