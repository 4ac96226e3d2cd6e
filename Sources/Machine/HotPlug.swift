// SPDX-License-Identifier: Apache-2.0
//
// Devices that leave a running machine and come back: the user is asked to let go, and once it has
// the device is gone from /sys, /dev and its group. Facts: Linux 6.12, `vfio_unregister_group_dev`,
// `pci_stop_and_remove_bus_device`.

import Glibc
import IOMMU
import LinuxABI
import SoftwareIOMMU
import SystemPackage
import VFIO

/// The devices of a machine, there or not. Thread-safe.
public final class HotPlug: Sendable {
  /// What a device is made from.
  struct Slot: Sendable {
    let description: DeviceDescription
    let iommu: SoftwareIOMMU
    let requester: RequesterID
    let kind: DeviceKind
    let upstream: SoftwareIOMMUBus
    let barAddresses: [UInt64]
    let bus: PCIBus?

    var name: String { "\(description.address)" }
  }

  /// A device, for a person.
  public struct Status: Hashable, Sendable {
    public let name: String
    public let group: UInt32
    /// Whether it is in the machine.
    public let isThere: Bool
    /// As in /sys; nil for none.
    public let driver: String?
    /// Whether a program has it.
    public let isInUse: Bool
    /// False after `fault DEVICE link-down`, and where it was torn out.
    public let hasLink: Bool
  }

  private struct State: Sendable {
    /// What is in the machine, by name.
    var functions: [String: PCIFunction] = [:]
    /// What is on its way out, or in.
    var busy: Set<String> = []
  }

  private let slots: [Slot]
  private let machine: MachineDescription
  private let system: IOMMUSystem
  private let drivers: PCIDrivers
  /// The view has our commands.
  private weak let files: LiveView?
  private let state: Guarded<State>
  /// One change of devices and view at a time. Nothing that this calls comes back here.
  private let changing = Guarded(())

  init(
    _ machine: MachineDescription, slots: [Slot], functions: [PCIFunction], system: IOMMUSystem,
    drivers: PCIDrivers, files: LiveView
  ) {
    self.machine = machine
    self.slots = slots
    self.system = system
    self.drivers = drivers
    self.files = files
    state = Guarded(
      State(
        functions: Dictionary(
          functions.map { ($0.name, $0) }, uniquingKeysWith: { first, _ in first })))
  }

  // MARK: What there is

  /// All devices of the machine's file, in its order.
  public var devices: [Status] {
    let functions = state.withLock { $0.functions }
    return slots.map { slot in
      Status(
        name: slot.name, group: slot.description.group,
        isThere: functions[slot.name] != nil,
        driver: drivers.driver(of: slot.name)?.rawValue,
        isInUse: drivers.offered(slot.name).map { !$0.isReleased } ?? false,
        hasLink: functions[slot.name].map { !$0.isDead } ?? false)
    }
  }

  /// Those that are there, in the order of the machine's file.
  var functions: [PCIFunction] {
    let functions = state.withLock { $0.functions }
    return slots.compactMap { functions[$0.name] }
  }

  /// A device that is in the machine.
  /// - Throws: `ENODEV`, with the names of those that are.
  public func function(named name: String) throws(IOMMUError) -> PCIFunction {
    guard let function = state.withLock({ $0.functions[name] }) else {
      throw IOMMUError(
        .noSuchDevice,
        slots.contains { $0.name == name }
          ? "\(name) was removed" : "the machine has no device '\(name)'; \(known)")
    }
    return function
  }

  private var known: String {
    "it has " + slots.map(\.name).joined(separator: ", ")
  }

  private func slot(_ name: String) throws(IOMMUError) -> Slot {
    let bridges = machine.bridges.map(\.address) + machine.rootPorts.map(\.address)
    guard !bridges.contains(where: { "\($0)" == name }) else {
      throw IOMMUError(
        .operationNotSupported,
        "\(name) is a bridge, and stays while the machine runs; take the devices below it, one by one"
      )
    }
    guard let slot = slots.first(where: { $0.name == name }) else {
      throw IOMMUError(.noSuchDevice, "the machine has no device '\(name)'; \(known)")
    }
    return slot
  }

  // MARK: Leaving

  /// Seconds between two requests to a user.
  static let requestInterval = 10

  /// Takes a device out of the machine, as soon as nobody has it any more.
  ///
  /// Nobody opens it from now on, and its user is asked to let go by the request interrupt, again
  /// every 10 seconds. It waits for as long as that takes.
  /// - Parameters:
  ///   - surprise: Whether it is torn out: registers read as all ones from now on, mappings fault,
  ///     DMA has ended, and commands are ENODEV.
  ///   - isWanted: Asked while it waits: where it says no, the device stays, unless it was torn out.
  ///   - tell: Is told what it waits for, in a sentence each.
  /// - Throws: `ENODEV` where it is not there; `EOPNOTSUPP` for what cannot go; `EBUSY` where it is
  ///   on its way already; `ECANCELED` where it was not wanted any more.
  public func remove(
    _ name: String, surprise: Bool = false, isWanted: () -> Bool = { true },
    tell: (String) -> Void = { _ in }
  ) throws(IOMMUError) {
    try remove(name, surprise: surprise, waits: true, isWanted: isWanted, tell: tell)
  }

  private func remove(
    _ name: String, surprise: Bool, waits: Bool, isWanted: () -> Bool, tell: (String) -> Void
  ) throws(IOMMUError) {
    let slot = try slot(name)
    let function = try self.function(named: name)
    try checkRemovable(slot)
    try enter(name)
    defer { leave(name) }
    let offered = drivers.offered(name)
    offered?.beginLeaving()
    if surprise {
      system.events.append(.injectedFault(device: name, what: "torn out"))
      function.loseLink()
    }
    var asked = 0
    var waited = 0
    while true {
      let isFree = isFree(slot, function, offered)
      // Who gave up before it was free does not get it removed after that.
      if isFree, isWanted() { break }
      if !isFree, waited % (Self.requestInterval * 50) == 0 {
        offered?.requestRelease()
        asked += 1
        tell(waiting(for: name, offered, asked: asked))
      }
      guard waits, isWanted() else {
        if !surprise { offered?.comeBack() }
        throw IOMMUError(
          .canceled,
          surprise
            ? "\(name) was torn out, and its user still has it"
            : "\(name) stays: its user did not let go of it")
      }
      usleep(20_000)
      waited += 1
    }
    do throws(IOMMUError) {
      try changing.withLock { (_) throws(IOMMUError) in try takeOut(slot, function) }
    } catch {
      offered?.comeBack()
      throw error
    }
  }

  /// As `remove`, at once or not at all: what `remove` in /sys does. Its user is asked to let go.
  /// - Throws: `EBUSY` while a program has it, beside.
  public func removeAtOnce(_ name: String) throws(IOMMUError) {
    do throws(IOMMUError) {
      try remove(
        name, surprise: false, waits: false, isWanted: { true }, tell: { _ in })
    } catch  where error.errno == .canceled {
      throw IOMMUError(
        .resourceBusy,
        "\(name) is in use; its user has been asked to let go of it. `iommu ctl remove \(name)` "
          + "waits for that")
    }
  }

  private func checkRemovable(_ slot: Slot) throws(IOMMUError) {
    let driver = slot.description.hostDriver
    guard !driver.isMediating else {
      throw IOMMUError(
        .operationNotSupported,
        "\(driver.rawValue) shares \(slot.name) out, and keeps it while the machine runs")
    }
    guard slot.description.virtualFunctions == 0 else {
      throw IOMMUError(
        .operationNotSupported,
        "\(slot.name) can have virtual functions, and stays while the machine runs")
    }
  }

  private func enter(_ name: String) throws(IOMMUError) {
    // Who gave up a moment ago may not have been noticed yet.
    for _ in 0..<25 {
      if state.withLock({ $0.busy.insert(name).inserted }) { return }
      usleep(20_000)
    }
    throw IOMMUError(.resourceBusy, "\(name) is on its way already")
  }

  private func leave(_ name: String) { state.withLock { _ = $0.busy.remove(name) } }

  /// Whether nobody has the device, nor its group in a way that it could not leave.
  private func isFree(_ slot: Slot, _ function: PCIFunction, _ offered: VFIODevice?) -> Bool {
    guard offered?.isReleased ?? true, let group = function.device?.group else {
      return offered == nil
    }
    guard group.isOwned else { return true }
    // A container lets go of a group with the group's last device.
    return offered?.group.isInContainer == true
      && group.devices.filter { drivers.offered($0.name) != nil }.count == 1
  }

  private func waiting(for name: String, _ offered: VFIODevice?, asked: Int) -> String {
    offered?.isReleased == false
      ? "\(name) is in use; its user was asked to let go of it (\(asked))"
      : "\(name) waits: a program has its IOMMU group, by a device beside it"
  }

  private func takeOut(_ slot: Slot, _ function: PCIFunction) throws(IOMMUError) {
    guard let physical = function.device?.physical else { return }
    let isLast = physical.group.devices.count == 1
    let places = view(of: slot)
    try drivers.remove(
      [slot.name],
      places: places.links + (isLast ? [places.group] : []) + [places.home])
    state.withLock { _ = $0.functions.removeValue(forKey: slot.name) }
    function.remove()
    slot.bus?.remove(function)
    try physical.remove()
    if isLast { try system.removeGroup(physical.group) }
  }

  // MARK: Coming

  /// Puts a device back, as the machine's file has it: it is a new one.
  /// - Throws: `ENODEV` where the file has none; `EEXIST` where it is there; `EBUSY` where it is on
  ///   its way, or its driver cannot have it because a program owns its group.
  public func add(_ name: String) throws(IOMMUError) {
    let slot = try slot(name)
    guard state.withLock({ $0.functions[name] == nil }) else {
      throw IOMMUError(.fileExists, "\(name) is there already")
    }
    try enter(name)
    defer { leave(name) }
    try changing.withLock { (_) throws(IOMMUError) in try putIn(slot) }
  }

  /// Puts back all that are gone. Linux: `/sys/bus/pci/rescan`.
  /// - Throws: What `add` throws; those before it have come.
  public func rescan() throws(IOMMUError) {
    for device in devices where !device.isThere { try add(device.name) }
  }

  private func putIn(_ slot: Slot) throws(IOMMUError) {
    let device = slot.description
    let group: DeviceGroup
    if let there = system.groups.first(where: { $0.id == device.group }) {
      group = there
    } else {
      group = try system.addGroup(device.group)
    }
    var physical: PhysicalDevice?
    var function: PCIFunction?
    do throws(IOMMUError) {
      let endpoint = try system.addDevice(
        name: slot.name, address: device.address, requester: slot.requester,
        driver: slot.iommu, group: group, subgroup: device.subgroup,
        canSkipSnoop: device.noSnoop, kind: slot.kind)
      physical = endpoint
      let made = PCIFunction(
        device: endpoint, model: try device.model.make(at: device.address),
        upstream: slot.upstream,
        barAddresses: slot.barAddresses, bus: slot.bus,
        services: device.services.capabilities(of: endpoint))
      function = made
      try show(slot, made)
      state.withLock { $0.functions[slot.name] = made }
    } catch {
      function?.remove()
      if let function { slot.bus?.remove(function) }
      try? physical?.remove()
      if group.devices.isEmpty { try? system.removeGroup(group) }
      throw error
    }
  }

  // MARK: /sys

  private func show(_ slot: Slot, _ function: PCIFunction) throws(IOMMUError) {
    guard let files else { throw IOMMUError(.noSuchDevice, "the machine is gone") }
    var view = emptyView(slot)
    view.addVirtualFunction(slot.description, function)
    let there = Set(files.view.entries.map(\.path))
    var places: [View.Entry] = []
    var links: [View.Entry] = []
    for entry in view.builder.view.entries where !there.contains(entry.path) {
      if case .link = entry.kind { links.append(entry) } else { places.append(entry) }
    }
    var drives = SysfsBuilder()
    let driver = slot.description.hostDriver
    let nodes = try drivers.add(
      PCIDrivers.Device(function, description: slot.description, view: view),
      bind: driver == .none ? nil : driver, to: &drives)
    do throws(IOMMUError) {
      try files.change(
        View.Change(added: places + links + drives.view.entries, addedNodes: nodes))
    } catch {
      drivers.forget(slot.name)
      throw error
    }
  }

  /// A view of the machine in which the device is the only one.
  private func emptyView(_ slot: Slot) -> MachineView {
    var machine = machine
    machine.devices = [slot.description]
    return MachineView(
      machine: machine, functions: [:], hardware: [:], numbers: [:], drivers: drivers)
  }

  /// What a device has in /sys.
  private func view(of slot: Slot) -> (links: [String], group: String, home: String) {
    let group = "/sys/kernel/iommu_groups/\(slot.description.group)"
    return (
      [
        "/sys/bus/pci/devices/\(slot.name)",
        "/sys/devices/virtual/iommu/\(slot.description.iommu)/devices/\(slot.name)",
        "\(group)/devices/\(slot.name)",
      ], group, emptyView(slot).path(of: slot.description.address)
    )
  }
}
