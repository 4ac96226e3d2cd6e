// SPDX-License-Identifier: Apache-2.0
//
// A physical function's virtual functions, made and removed by what programs write to its
// sriov_numvfs. Each is a device of its own: a requester id, an IOMMU group, nodes and a place in
// /sys. Facts: Linux 6.12, drivers/pci/iov.c and vfio_pci_core.c.

import IOMMU
import LinuxABI
import SoftwareIOMMU
import SystemPackage
import VFIO

/// The virtual functions of one device of a machine. Thread-safe.
public final class VirtualFunctions: Sendable {
  /// What they are made from.
  struct Parent: Sendable {
    let description: DeviceDescription
    let function: PCIFunction
    let layout: SRIOVLayout
    let iommu: SoftwareIOMMU
    let system: IOMMUSystem
    let machine: MachineDescription
  }

  private struct Function: Sendable {
    let function: PCIFunction
    let physical: PhysicalDevice
  }

  private struct State: Sendable {
    var functions: [Function] = []
    /// What has to go from /sys with them.
    var places: [String] = []
  }

  private let parent: Parent
  /// Which holds this, by the file that takes the number.
  private weak let files: LiveView?
  private let drivers: PCIDrivers
  private let state = Guarded(State())
  /// They come or go at one time, so that devices and view agree. Nothing that this calls comes
  /// back here.
  private let changing = Guarded(())

  /// - Throws: What showing the attributes throws.
  init(_ parent: Parent, files: LiveView, drivers: PCIDrivers) throws(IOMMUError) {
    self.parent = parent
    self.drivers = drivers
    self.files = files
    try files.change(View.Change(added: attributes))
    drivers.setVirtualFunctions(self, of: parent.function.name)
  }

  /// How many there can be.
  public var total: Int { Int(parent.layout.total) }

  /// How many there are.
  public var count: Int { state.withLock { $0.functions.count } }

  /// Those that vfio-pci has, by number.
  public var devices: [VFIODevice] {
    state.withLock { $0.functions }.compactMap { drivers.offered($0.physical.name) }
  }

  /// Makes as many, or removes all of them.
  ///
  /// Linux: `sriov_numvfs_store`, with vfio-pci's `enable_sriov` on.
  /// - Throws: `ERANGE` for more than there can be; `ENOENT` where the physical function's driver
  ///   cannot do it; `EBUSY` where there are some and others are asked for, and where one that
  ///   has to go is in use: Linux waits for its user then.
  public func set(_ count: Int) throws(IOMMUError) {
    try changing.withLock { _ throws(IOMMUError) in
      let now = state.withLock { $0.functions.count }
      guard count <= total else {
        throw IOMMUError(
          .outOfRange,
          "\(parent.function.name) has \(total) virtual functions at most, not \(count)")
      }
      guard count != now else { return }
      guard drivers.driver(of: parent.function.name) == .vfio else {
        throw IOMMUError(
          .noSuchFileOrDirectory,
          "\(parent.function.name) is not bound to vfio-pci: its driver makes no virtual functions"
        )
      }
      guard count == 0 || now == 0 else {
        throw IOMMUError(
          .resourceBusy,
          "\(parent.function.name) has \(now) virtual functions; write 0 before another number")
      }
      try change(to: count)
    }
  }

  /// As the machine is at its start, whatever drives the physical function.
  func start(_ count: Int) throws(IOMMUError) {
    try changing.withLock { _ throws(IOMMUError) in try change(to: count) }
  }

  /// The physical function leaves vfio-pci, and its virtual ones with it: all or nothing.
  ///
  /// Linux: `vfio_pci_core_unregister_device`.
  /// - Throws: What `PCIDrivers.unbind` throws.
  func unbindPhysical() throws(IOMMUError) {
    try changing.withLock { _ throws(IOMMUError) in
      try removeAll(unbinding: parent.function.name)
    }
  }

  private func change(to count: Int) throws(IOMMUError) {
    if count == 0 { try removeAll() } else { try make(count) }
  }

  // MARK: Making

  private func make(_ count: Int) throws(IOMMUError) {
    var made: [Function] = []
    do throws(IOMMUError) {
      for number in 0..<UInt16(clamping: count) { made.append(try makeFunction(number)) }
      let new = try appear(made)
      do throws(IOMMUError) {
        try show(View.Change(added: new.added, addedNodes: new.nodes))
      } catch {
        for function in made { drivers.forget(function.physical.name) }
        throw error
      }
      state.withLock { $0 = State(functions: made, places: new.removed) }
      parent.function.setVirtualFunctions(made.map(\.function))
    } catch {
      for function in made { discard(function) }
      throw error
    }
  }

  private func makeFunction(_ number: UInt16) throws(IOMMUError) -> Function {
    let address = parent.layout.requester(of: number, under: parent.description.address)
    let group = parent.system.addGroup()
    do throws(IOMMUError) {
      let physical = try parent.system.addDevice(
        name: "\(address)", requester: address, driver: parent.iommu, group: group,
        canSkipSnoop: parent.description.noSnoop,
        kind: parent.description.kind(
          pasidBits: Int(parent.iommu.capabilities(for: address).pasidBits)))
      let function = PCIFunction(
        device: physical, model: try parent.description.model.make(at: address),
        upstream: SoftwareIOMMUBus(iommu: parent.iommu, requester: address),
        barAddresses: parent.layout.barAddresses(of: number), bus: parent.function.bus,
        isVirtual: true)
      return Function(function: function, physical: physical)
    } catch {
      try? parent.system.removeGroup(group)
      throw error
    }
  }

  // MARK: Removing

  /// - Parameter physical: The physical function, where vfio-pci gives it up in the same step.
  private func removeAll(unbinding physical: String? = nil) throws(IOMMUError) {
    let old = state.withLock { $0 }
    for function in old.functions where isTaken(function) {
      throw IOMMUError(
        .resourceBusy,
        "\(function.function.name) is in use, in IOMMU group \(function.physical.group.id); its "
          + "user has to let go of it first")
    }
    try drivers.remove(
      old.functions.map(\.physical.name), places: old.places, unbinding: physical)
    guard !old.functions.isEmpty else { return }
    parent.function.setVirtualFunctions([])
    state.withLock { $0 = State() }
    for function in old.functions { discard(function) }
  }

  /// Whether somebody owns a function's group who does not let go of it when VFIO loses the
  /// function: a container does.
  private func isTaken(_ function: Function) -> Bool {
    function.physical.group.isOwned
      && drivers.offered(function.physical.name)?.group.isInContainer != true
  }

  /// Takes a function out of the machine that nobody uses.
  private func discard(_ function: Function) {
    function.function.remove()
    parent.function.bus?.remove(function.function)
    // Nobody owns the group: its only device is unregistered, or was never seen.
    try? function.physical.remove()
    try? parent.system.removeGroup(function.physical.group)
  }

  private func show(_ change: View.Change) throws(IOMMUError) {
    guard let files else { throw IOMMUError(.noSuchDevice, "the machine is gone") }
    try files.change(change)
  }

  // MARK: /sys

  /// What a physical function has in /sys that others have not.
  private var attributes: [View.Entry] {
    let path = home
    var builder = SysfsBuilder()
    builder.attribute("\(path)/sriov_totalvfs", "\(total)")
    builder.attribute("\(path)/sriov_offset", "\(parent.layout.firstOffset)")
    builder.attribute("\(path)/sriov_stride", "\(parent.layout.stride)")
    builder.attribute("\(path)/sriov_vf_device", padded(parent.layout.deviceID, 4))
    builder.attribute("\(path)/sriov_vf_total_msix", "0")
    builder.attribute("\(path)/sriov_drivers_autoprobe", "1")
    builder.attribute(
      "\(path)/sriov_numvfs",
      CommandAttribute(
        show: { [self] () throws(IOMMUError) in "\(count)" },
        store: { [self] (text, _) throws(IOMMUError) in
          guard let count = Self.number(text), count <= UInt64(UInt16.max) else {
            throw IOMMUError(
              .invalidArgument, "'\(text)' is no number of virtual functions")
          }
          try set(Int(count))
        }))
    return builder.view.entries
  }

  /// As `kstrtou16` reads it: decimal, hexadecimal after 0x, octal after 0.
  static func number(_ text: String) -> UInt64? {
    let digits = text.hasPrefix("+") ? text.dropFirst() : text[...]
    let (body, radix): (Substring, Int) =
      digits.hasPrefix("0x") || digits.hasPrefix("0X")
      ? (digits.dropFirst(2), 16) : (digits, digits.hasPrefix("0") ? 8 : 10)
    guard let first = body.utf8.first, first != UInt8(ascii: "+"), first != UInt8(ascii: "-")
    else { return nil }
    return UInt64(body, radix: radix)
  }

  /// What comes to /sys with some functions, and what has to be removed to undo that.
  private func appear(
    _ functions: [Function]
  ) throws(IOMMUError) -> (
    added: [View.Entry], nodes: [any DeviceNode], removed: [String]
  ) {
    let machine = machine(of: functions)
    var view = MachineView(
      machine: machine, functions: [:], hardware: [:], numbers: [:], drivers: drivers)
    var nodes: [any DeviceNode] = []
    for (number, function) in functions.enumerated() {
      let path = view.path(of: machine.devices[number].address)
      view.addVirtualFunction(machine.devices[number], function.function)
      view.builder.link("\(path)/physfn", to: home)
      view.builder.link("\(home)/virtfn\(number)", to: path)
    }
    let there = Set(files?.view.entries.map(\.path) ?? [])
    let new = view.builder.view.entries.filter { !there.contains($0.path) }
    var links: [View.Entry] = []
    var places: [View.Entry] = []
    for entry in new {
      if case .link = entry.kind { links.append(entry) } else { places.append(entry) }
    }
    // vfio-pci takes them, whatever drives the physical function.
    var drives = SysfsBuilder()
    for (number, function) in functions.enumerated() {
      do throws(IOMMUError) {
        nodes += try drivers.add(
          PCIDrivers.Device(
            function.function, description: machine.devices[number], view: view,
            physicalFunction: parent.function.name),
          bind: .vfio, to: &drives)
      } catch {
        for function in functions[..<number] { drivers.forget(function.physical.name) }
        throw error
      }
    }
    return (places + links + drives.view.entries, nodes, (links + places).map(\.path))
  }

  /// The physical function's directory in /sys/devices.
  private var home: String {
    MachineView(
      machine: parent.machine, functions: [:], hardware: [:], numbers: [:], drivers: drivers
    ).path(of: parent.description.address)
  }

  /// The machine with these functions in the place of its devices.
  private func machine(of functions: [Function]) -> MachineDescription {
    var machine = parent.machine
    machine.devices = functions.map { function in
      var description = parent.description
      description.address = function.function.address
      description.group = function.physical.group.id
      description.subgroup = 0
      description.hostDriver = .vfio
      description.virtualFunctions = 0
      description.enabledFunctions = 0
      return description
    }
    return machine
  }
}
