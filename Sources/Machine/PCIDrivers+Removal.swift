// SPDX-License-Identifier: Apache-2.0
//
// Devices that lose their driver, and functions that leave the bus: not while a program uses them.
// Facts: Linux 6.12, drivers/vfio/{vfio_main,group}.c, `vfio_pci_core_unregister_device`.

import IOMMU
import LinuxABI
import VFIO

extension PCIDrivers {
  /// Takes a device from its driver. Linux: `unbind` of a driver.
  ///
  /// vfio-pci takes the virtual functions along that it made of a device.
  /// - Throws: `ENODEV` where the driver does not have it. `EBUSY` while a program has it open by
  ///   vfio-pci, or uses a virtual function that has to go; Linux would wait for the program
  ///   instead.
  public func unbind(_ name: String, from driver: Driver) throws(IOMMUError) {
    let functions = try state.withLock { (state) throws(IOMMUError) in
      _ = try Self.checkBound(name, to: driver, in: state)
      return driver == .vfio ? state.virtualFunctions[name]?.functions : nil
    }
    if let functions { return try functions.unbindPhysical() }
    try state.withLock { (state) throws(IOMMUError) in
      try release(try Self.checkBound(name, to: driver, in: state), in: &state)
    }
  }

  /// - Returns: The index of a device that the driver has.
  static func checkBound(
    _ name: String, to driver: Driver, in state: State
  ) throws(IOMMUError) -> Int {
    let index = try index(of: name, in: state)
    guard drivers.contains(driver) else {
      throw IOMMUError(
        .operationNotSupported, "\(driver.rawValue) keeps its device while the machine runs")
    }
    guard state.devices[index].driver == driver else {
      throw IOMMUError(
        .noSuchDevice,
        "\(name) is not bound to \(driver.rawValue), but "
          + (state.devices[index].driver.map { "to \($0.rawValue)" } ?? "to no driver"))
    }
    return index
  }

  /// Functions go, all or none: they lose their drivers first.
  /// - Parameters:
  ///   - places: What has to go from /sys beside.
  ///   - physical: A device that vfio-pci gives up in the same step; it stays.
  /// - Throws: `EBUSY` where a program is bound to one, or has the physical one open; `ENODEV`
  ///   where one is not there, or not bound to vfio-pci.
  func remove(
    _ names: [String], places: [String], unbinding physical: String? = nil
  ) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      var removed: [String] = []
      var added: [View.Entry] = []
      var gone: [VFIODevice] = []
      var retired: VFIODevice?
      do throws(IOMMUError) {
        if let physical {
          let device = state.devices[try Self.checkBound(physical, to: .vfio, in: state)]
          try device.offered?.retire()
          retired = device.offered
          let isLast = state.groups[device.physical.group.id]?.offered == 1
          let change = Self.disappearance(of: device, isLastOfGroup: isLast)
          removed += change.removed
          added += change.added
        }
        for name in names {
          let device = state.devices[try Self.index(of: name, in: state)]
          if let offered = device.offered {
            try offered.unregister()
            gone.append(offered)
          }
          let isLast = state.groups[device.physical.group.id]?.offered == 1
          removed += Self.disappearance(of: device, isLastOfGroup: isLast).removed
        }
        try files?.change(View.Change(removed: removed + places, added: added))
      } catch {
        for device in gone { device.register() }
        retired?.comeBack()
        throw error
      }
      for name in names { forget(name, in: &state) }
      if let physical { giveUp(try Self.index(of: physical, in: state), &state) }
    }
  }

  /// Undoes `add`, of which nothing has been seen.
  func forget(_ name: String) {
    state.withLock { state in forget(name, in: &state) }
  }

  private func forget(_ name: String, in state: inout State) {
    guard let index = state.devices.firstIndex(where: { $0.name == name }) else { return }
    giveUp(index, &state)
    state.devices.remove(at: index)
  }

  // MARK: Under the lock

  func release(_ index: Int, in state: inout State) throws(IOMMUError) {
    let device = state.devices[index]
    try device.offered?.retire()
    let isLast = state.groups[device.physical.group.id]?.offered == 1
    do throws(IOMMUError) {
      try files?.change(Self.disappearance(of: device, isLastOfGroup: isLast))
    } catch {
      device.offered?.comeBack()
      throw error
    }
    giveUp(index, &state)
  }

  /// Undoes `take`.
  func giveUp(_ index: Int, _ state: inout State) {
    let device = state.devices[index]
    if let offered = device.offered {
      indices.free(offered.index)
      let id = device.physical.group.id
      state.groups[id]?.offered -= 1
      if state.groups[id]?.offered == 0 {
        state.groups[id] = nil
        offered.group.retire()
      }
    }
    state.devices[index].driver = nil
    state.devices[index].offered = nil
    device.physical.unbindHostDriver()
  }
}
