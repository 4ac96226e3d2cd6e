// SPDX-License-Identifier: Apache-2.0
//
// The host's PCI drivers and what is bound to which, while programs run: bind, unbind, overrides,
// dynamic ids. MODEL C3. Facts: Linux 6.12, drivers/base/{bus,dd,driver}.c and
// drivers/pci/pci-driver.c. Losing a driver: PCIDrivers+Removal.swift; who writes the same in
// /sys: PCIDrivers+Attributes.swift.

import IOMMU
import LinuxABI
import SystemPackage
import VFIO

/// The PCI drivers of a machine's host. Thread-safe.
///
/// A driver takes a device by itself (`bind`) or where it is looked for (`probe`). vfio-pci takes
/// what is told to use it, by `override` or by its ids: binding offers the device to programs, so
/// that `/dev/vfio/devices/vfioN` comes, and `/dev/vfio/GROUP` with the group's first one.
public final class PCIDrivers: Sendable {
  /// A driver. Its name is that of its directory in /sys.
  public typealias Driver = DeviceDescription.HostDriver

  /// A function on the bus.
  struct Device: Sendable {
    let function: PCIFunction
    let physical: PhysicalDevice
    /// In /sys/devices.
    let path: String
    /// Whose table has its id.
    let native: Driver?
    /// What `uevent` says beside the driver.
    let uevent: [String]
    /// Of a virtual function, the name of the physical one.
    var physicalFunction: String?
    var driver: Driver?
    /// As written: no driver may have that name.
    var override: String?
    /// What programs open, while vfio-pci has it.
    var offered: VFIODevice?

    var name: String { physical.name }
  }

  struct State: Sendable {
    /// In the order in which they came.
    var devices: [Device] = []
    var ids: [Driver: [PCIDeviceID]] = [:]
    /// What offers a group's devices, made with the first one and gone with the last; and how
    /// many it offers.
    var groups: [UInt32: (group: VFIOGroup, offered: Int)] = [:]
    /// Takes devices out, and puts them back.
    var hotPlug = WeakHotPlug(plug: nil)
    /// By the physical function's name.
    var virtualFunctions: [String: WeakVirtualFunctions] = [:]
  }

  struct WeakHotPlug: Sendable {
    weak let plug: HotPlug?
  }

  struct WeakVirtualFunctions: Sendable {
    weak let functions: VirtualFunctions?
  }

  /// Held while a driver is bound or unbound and the view follows: one at a time.
  let state = RankedMutex(.hostDrivers, State())
  /// The N of each `/dev/vfio/devices/vfioN`.
  let indices = DeviceIndices()
  /// The view has this object's attributes.
  weak let files: LiveView?

  /// Every driver that the host has loaded.
  ///
  /// A mediating driver is not among them: it has its device from the machine's start to its end,
  /// as slices of the device would otherwise be left without one.
  public static let drivers: [Driver] = Driver.allCases.filter {
    $0 != .none && !$0.isMediating
  }

  init(files: LiveView) { self.files = files }

  // MARK: The bus

  /// A function comes, with a driver or none.
  /// - Parameters:
  ///   - builder: Gets what /sys has of it beside what `MachineView.addFunction` adds, which is
  ///     in it or in the view.
  ///   - driver: Bound without asking whether it matches.
  /// - Returns: The nodes that come with it.
  /// - Throws: `EBUSY` for a driver that cannot be bound; then the function has not come.
  func add(
    _ device: Device, bind driver: Driver? = nil, to builder: inout SysfsBuilder
  ) throws(IOMMUError) -> [any DeviceNode] {
    try state.withLock { (state) throws(IOMMUError) in
      state.devices.append(device)
      let index = state.devices.count - 1
      guard let driver else {
        builder.uevent(of: device.path, device.uevent)
        return []
      }
      do throws(IOMMUError) {
        let offer = try take(driver, index, in: &state)
        return Self.appear(state.devices[index], offer, in: &builder)
      } catch {
        state.devices.removeLast()
        throw error
      }
    }
  }

  /// Says who makes the virtual functions of a device.
  func setVirtualFunctions(_ functions: VirtualFunctions, of name: String) {
    state.withLock { state in
      state.virtualFunctions[name] = WeakVirtualFunctions(functions: functions)
    }
  }

  /// Says who takes devices out.
  func setHotPlug(_ plug: HotPlug) {
    state.withLock { $0.hotPlug = WeakHotPlug(plug: plug) }
  }

  func hotPlug() throws(IOMMUError) -> HotPlug {
    guard let plug = state.withLock({ $0.hotPlug.plug }) else {
      throw IOMMUError(.noSuchDevice, "the machine is gone")
    }
    return plug
  }

  /// What programs can open of a device; nil where vfio-pci does not have it.
  func offered(_ name: String) -> VFIODevice? {
    state.withLock { state in state.devices.first { $0.name == name }?.offered }
  }

  /// The driver that has a device; nil where none has or there is no such device.
  public func driver(of name: String) -> Driver? {
    state.withLock { state in state.devices.first { $0.name == name }?.driver }
  }

  // MARK: Commands

  /// Binds a driver that matches. Linux: `bind` of a driver.
  /// - Throws: `ENODEV` where there is no such device or the driver does not match it; `EBUSY`
  ///   where it has a driver, or this one does DMA and a program owns the device's group.
  public func bind(_ name: String, to driver: Driver) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      let index = try Self.index(of: name, in: state)
      guard Self.matches(driver, state.devices[index], state) else {
        throw IOMMUError(
          .noSuchDevice,
          "\(driver.rawValue) does not take \(name): "
            + (state.devices[index].override.map { "its driver_override is '\($0)'" }
              ?? "write '\(driver.rawValue)' to driver_override of the device first, or its vendor "
              + "and device id to new_id of the driver"))
      }
      try attach(driver, index, in: &state)
    }
  }

  /// Looks for a driver for a device that has none. Linux: `drivers_probe` of the bus.
  /// - Throws: `ENODEV` where there is no such device; `EINVAL` where a driver matches, but cannot
  ///   be bound.
  public func probe(_ name: String) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      let index = try Self.index(of: name, in: state)
      do throws(IOMMUError) {
        try probe(index, in: &state)
      } catch {
        throw IOMMUError(.invalidArgument, error.reason)
      }
    }
  }

  /// Names the one driver that may have a device; nil lets all. Linux: `driver_override`.
  /// - Throws: `ENODEV` where there is no such device.
  public func setOverride(_ driver: String?, of name: String) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      state.devices[try Self.index(of: name, in: state)].override = driver
    }
  }

  /// What `setOverride` said last.
  public func override(of name: String) throws(IOMMUError) -> String? {
    try state.withLock { (state) throws(IOMMUError) in
      state.devices[try Self.index(of: name, in: state)].override
    }
  }

  /// A driver takes devices with an id from here on, those without a driver at once. Linux:
  /// `new_id` of a driver.
  /// - Throws: `EEXIST` where it does already.
  public func add(_ id: PCIDeviceID, to driver: Driver) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      let isKnown =
        !id.hasDatum && state.devices.contains { $0.native == driver && id.matches($0.id) }
      guard !isKnown, !(state.ids[driver] ?? []).contains(id) else {
        throw IOMMUError(.fileExists, "\(driver.rawValue) takes devices \(id) already")
      }
      state.ids[driver, default: []].append(id)
      for index in state.devices.indices
      where state.devices[index].driver == nil
        && Self.matches(driver, state.devices[index], state)
      {
        // As a driver's registration: who cannot be bound stays as it is.
        try? attach(driver, index, in: &state)
      }
    }
  }

  /// A driver takes no more devices for an id; those that it has stay. Linux: `remove_id`.
  /// - Throws: `ENODEV` where the id was not added.
  public func remove(_ id: PCIDeviceID, from driver: Driver) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      guard let index = state.ids[driver]?.firstIndex(where: { id.matches($0) }) else {
        throw IOMMUError(.noSuchDevice, "\(driver.rawValue) was not given devices \(id)")
      }
      state.ids[driver]?.remove(at: index)
    }
  }

  // MARK: Under the lock

  static func index(of name: String, in state: State) throws(IOMMUError) -> Int {
    guard let index = state.devices.firstIndex(where: { $0.name == name }) else {
      throw IOMMUError(
        .noSuchDevice, "there is no PCI device '\(name)'; the name is like 0000:e0:04.0")
    }
    return index
  }

  private static func matches(_ driver: Driver, _ device: Device, _ state: State) -> Bool {
    if let override = device.override { return override == driver.rawValue }
    return device.native == driver
      || (state.ids[driver] ?? []).contains { $0.matches(device.id) }
  }

  private func probe(_ index: Int, in state: inout State) throws(IOMMUError) {
    guard state.devices[index].driver == nil else { return }
    for driver in Self.drivers where Self.matches(driver, state.devices[index], state) {
      return try attach(driver, index, in: &state)
    }
  }

  private func attach(
    _ driver: Driver, _ index: Int, in state: inout State
  ) throws(IOMMUError) {
    let offer = try take(driver, index, in: &state)
    do throws(IOMMUError) {
      var builder = SysfsBuilder()
      let nodes = Self.appear(state.devices[index], offer, in: &builder)
      try files?.change(View.Change(added: builder.view.entries, addedNodes: nodes))
    } catch {
      giveUp(index, &state)
      throw error
    }
  }

  /// Binds a driver. Nothing is to be seen of it yet.
  private func take(
    _ driver: Driver, _ index: Int, in state: inout State
  ) throws(IOMMUError) -> Offer? {
    let device = state.devices[index]
    if let other = device.driver {
      throw IOMMUError(
        .resourceBusy, "\(device.name) is bound to \(other.rawValue); unbind it first")
    }
    try device.physical.bindHostDriver(driver.claim)
    state.devices[index].driver = driver
    guard driver == .vfio else { return nil }
    let id = device.physical.group.id
    var (group, count) = state.groups[id] ?? (VFIOGroup(group: device.physical.group), 0)
    count += 1
    state.groups[id] = (group, count)
    let physical = state.devices.first { $0.name == device.physicalFunction }?.offered
    let offered = VFIODevice(
      index: indices.take(), function: device.function, group: group,
      physicalFunction: physical)
    state.devices[index].offered = offered
    return Offer(
      device: VFIODeviceNode(device: offered),
      group: count == 1 ? VFIOGroupNode(group: group) : nil)
  }

  /// The nodes of a device that is offered.
  struct Offer {
    let device: VFIODeviceNode
    /// Where it is the first one of its group.
    let group: VFIOGroupNode?
  }
}

extension PCIDrivers.Device {
  var id: PCIDeviceID {
    let config = ConfigurationSpace(bytes: function.config.contents)
    return PCIDeviceID(
      vendor: UInt32(config.vendor), device: UInt32(config.device),
      subsystemVendor: UInt32(config.subsystemVendor),
      subsystemDevice: UInt32(config.subsystemDevice), classCode: config.classCode)
  }
}

extension PCIDrivers.Device {
  /// A function as a machine has it, bound to nothing; offered ones have an override, as those who
  /// bind devices to vfio-pci leave it.
  /// - Throws: `EINVAL` for a function that no IOMMU routes: no driver of the host binds it.
  init(
    _ function: PCIFunction, description: DeviceDescription, view: MachineView,
    physicalFunction: String? = nil
  ) throws(IOMMUError) {
    guard let physical = function.device?.physical else {
      throw IOMMUError(.invalidArgument, "\(function.name) is behind no IOMMU")
    }
    self.init(
      function: function, physical: physical,
      path: view.path(of: description.address), native: description.model.driver,
      uevent: view.uevent(description), physicalFunction: physicalFunction,
      override: description.hostDriver == .vfio ? description.hostDriver.rawValue : nil)
  }
}

extension DeviceDescription.Model {
  /// The host's driver that knows it by its id.
  fileprivate var driver: DeviceDescription.HostDriver? {
    if case .copyEngine = self { .ioatdma } else { nil }
  }
}
