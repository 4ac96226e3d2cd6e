// SPDX-License-Identifier: Apache-2.0
//
// Moving a group between page tables: one device asks, all of the group go (MODEL C2, D3).

import SystemPackage

extension DeviceGroup {
  /// What a device's attachment replaced: the table, nil for blocked, and how many devices'
  /// uses move with it.
  struct Replaced {
    let table: HWPT?
    let devices: Int
  }

  /// Attaches a bound device, or moves the group from its table to another.
  /// - Returns: Nil where the device was on that table already.
  func connect(
    _ object: DeviceObject, to table: HWPT
  ) throws(IOMMUError) -> Replaced? {
    try state.withLock { (state) throws(IOMMUError) in
      if state.attachedDevices.contains(where: { $0 === object }), let old = state.attached {
        if old === table { return nil }
        try replace(old, by: table, &state)
        return Replaced(table: old, devices: state.attachedDevices.count)
      }
      try attachFirst(object, to: table, &state)
      return Replaced(table: nil, devices: 1)
    }
  }

  private func attachFirst(
    _ object: DeviceObject, to table: HWPT, _ state: inout State
  ) throws(IOMMUError) {
    if let current = state.attached, current !== table {
      let neighbours = state.attachedDevices.map(\.device.name).joined(separator: ", ")
      throw IOMMUError(
        .invalidArgument,
        "\(object.device.name) shares IOMMU group \(id) with \(neighbours), which uses HWPT "
          + "\(current.id); the devices of a group are in one address space")
    }
    let space = table.addressSpace
    try space.reserve(reservedRanges(of: object.device), for: .device(object.device.requester))
    if state.attached == nil {
      do throws(IOMMUError) {
        try check(table, fits: state.devices)
        try Self.switchAll(state.devices, to: .paging(table.domain), from: .blocked)
      } catch {
        space.unreserve(.device(object.device.requester))
        throw error
      }
      state.attached = table
    }
    state.attachedDevices.append(object)
  }

  private func replace(
    _ old: HWPT, by table: HWPT, _ state: inout State
  ) throws(IOMMUError) {
    let moves = old.addressSpace !== table.addressSpace
    try check(table, fits: state.devices)
    if moves { try reserve(for: state.attachedDevices, in: table.addressSpace) }
    do throws(IOMMUError) {
      try Self.switchAll(
        state.devices, to: .paging(table.domain), from: .paging(old.domain))
    } catch {
      if moves { unreserve(state.attachedDevices, in: table.addressSpace) }
      throw error
    }
    if moves { unreserve(state.attachedDevices, in: old.addressSpace) }
    state.attached = table
  }

  private func check(_ table: HWPT, fits devices: [PhysicalDevice]) throws(IOMMUError) {
    if let misfit = devices.first(where: { $0.driver !== table.driver }) {
      throw IOMMUError(
        .invalidArgument,
        "HWPT \(table.id) was made for \(table.driver.name); \(misfit.name) is behind "
          + "\(misfit.driver.name)")
    }
    if table.domain.geometry.enforcesSnoop,
      let misfit = devices.first(where: { !$0.capabilities.snoopControl })
    {
      throw IOMMUError(
        .invalidArgument,
        "HWPT \(table.id) enforces snooping, to which \(misfit.name) cannot be forced")
    }
  }

  private func reservedRanges(of device: PhysicalDevice) -> [ClosedRange<UInt64>] {
    device.driver.reservedRegions(for: device.requester).map(\.range)
  }

  private func reserve(
    for objects: [DeviceObject], in space: AddressSpace
  ) throws(IOMMUError) {
    for (index, object) in objects.enumerated() {
      do throws(IOMMUError) {
        try space.reserve(
          reservedRanges(of: object.device), for: .device(object.device.requester))
      } catch {
        unreserve(Array(objects[..<index]), in: space)
        throw error
      }
    }
  }

  private func unreserve(_ objects: [DeviceObject], in space: AddressSpace) {
    for object in objects { space.unreserve(.device(object.device.requester)) }
  }

  /// Detaches a bound device. The last one takes the group back to blocked.
  /// - Returns: The table it was on; nil where it was on none.
  func disconnect(_ object: DeviceObject) -> HWPT? {
    state.withLock { state in
      guard let index = state.attachedDevices.firstIndex(where: { $0 === object }),
        let table = state.attached
      else { return nil }
      state.attachedDevices.remove(at: index)
      if state.attachedDevices.isEmpty {
        for device in state.devices { Self.restore(device, to: .blocked) }
        state.attached = nil
      }
      table.addressSpace.unreserve(.device(object.device.requester))
      return table
    }
  }
}
