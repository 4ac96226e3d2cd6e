// SPDX-License-Identifier: Apache-2.0
//
// A machine made from its description: IOMMUs, groups, devices and device models; the nodes
// that programs open, and the /sys that goes with them.

import IOMMU
import LinuxABI
import SelfTestDriver
import SoftDevices
import SoftwareIOMMU
import VFIO

/// A running machine. Thread-safe.
public final class Machine: Sendable {
  public let description: MachineDescription
  /// What contexts bind devices of.
  public let system: IOMMUSystem
  /// In the order of the description.
  public let iommus: [SoftwareIOMMU]
  /// Every function of the machine that is there, offered or not, in the order of the description.
  public var functions: [PCIFunction] { hotPlug.functions }
  /// What programs open: `/dev/iommu`, `/dev/vfio/vfio`, `/dev/vfio/devices/vfioN` and
  /// `/dev/vfio/N`.
  public var nodes: [any DeviceNode] { files.nodes }
  /// Files that each thread of a program has in /proc: `fail-nth`, with the self-test driver.
  public let threadNodes: [any ThreadNode]
  /// What programs find in /sys.
  public var view: View { files.view }
  /// Nodes and view, which change as devices and drivers come and go.
  public let files: LiveView
  /// What of the host is bound to the functions.
  public let drivers: PCIDrivers
  /// Of each device that can have some, in the order of the description.
  public let virtualFunctions: [VirtualFunctions]
  /// Takes devices out while programs run, and puts them back.
  public let hotPlug: HotPlug
  /// Slices of the devices that a mediating driver shares out.
  public let mediated: MediatedDevices

  /// Most pages of 4 KiB that one page table may have: 1 GiB, which maps 512 GiB in the
  /// smallest pages. A map beyond it is `ENOMEM`: what a program maps costs it nothing, but
  /// the tables are the machine's memory.
  public static let maximumTablePages = 262_144

  /// Makes a machine.
  /// - Parameters:
  ///   - description: As it comes from the parser; an inconsistent one is refused.
  ///   - selfTestDriver: Whether `/dev/iommu` has the back door that the kernel's own
  ///     self-tests drive.
  /// - Throws: `EINVAL` for a device behind an IOMMU that is not there; `EEXIST` for two
  ///   devices of one address; for the file of an NVMe namespace `EBUSY` where another run has
  ///   it, and what opening it fails with.
  public init(
    _ description: MachineDescription, selfTestDriver: Bool = false
  ) throws(IOMMUError) {
    self.description = description
    let system = IOMMUSystem()
    var parts = Parts(description: description, system: system)
    for group in description.groups { try parts.add(group) }
    for bridge in description.bridges { try parts.add(bridge) }
    for device in description.devices { try parts.add(device) }
    self.system = system
    iommus = parts.iommus
    let context =
      selfTestDriver
      ? IOMMUNode(selfTestDriver: MockIOMMU(system: system)) : IOMMUNode(system: system)
    let container = VFIOContainerNode(system: system)
    threadNodes = context.failures.map { [$0] } ?? []
    files = LiveView()
    drivers = PCIDrivers(files: files)
    var nodes: [any DeviceNode] =
      [context, IOASIDNode(system: system), container]
      + (description.virtualMachines ? [VirtualMachineNode()] : [])
    var view = MachineView(
      machine: description, functions: parts.viewFunctions, hardware: parts.hardware,
      numbers: Dictionary(
        nodes.map { ($0.path, $0.number) }, uniquingKeysWith: { first, _ in first }),
      drivers: drivers)
    view.addMachine()
    for (device, function) in zip(description.devices, parts.functions) {
      nodes += try drivers.add(
        PCIDrivers.Device(function, description: device, view: view),
        bind: device.hostDriver == .none ? nil : device.hostDriver, to: &view.builder)
    }
    var entries = view.builder.view.entries
    if selfTestDriver { entries += View.faultInjection }
    try files.change(View.Change(added: entries, addedNodes: nodes))
    virtualFunctions = try parts.parents.map { [files, drivers] (parent) throws(IOMMUError) in
      let functions = try VirtualFunctions(parent, files: files, drivers: drivers)
      try functions.start(parent.description.enabledFunctions)
      return functions
    }
    hotPlug = HotPlug(
      description, slots: parts.slots, functions: parts.functions, system: system,
      drivers: drivers,
      files: files)
    drivers.setHotPlug(hotPlug)
    let bus = MediatedBus(indices: drivers.indices)
    for (device, driver) in parts.shared { try bus.register(device, driver: driver) }
    mediated = try MediatedDevices(
      bus: bus, files: files,
      places: Dictionary(
        description.devices.map { ($0.address, view.path(of: $0.address)) },
        uniquingKeysWith: { first, _ in first }))
  }
}

/// A machine in the making.
private struct Parts {
  let description: MachineDescription
  let system: IOMMUSystem
  let iommus: [SoftwareIOMMU]
  var functions: [PCIFunction] = []
  private var groups: [UInt32: DeviceGroup] = [:]
  /// Devices that are shared out, each with who does it.
  var shared: [(device: PhysicalDevice, driver: any MediatingDriver)] = []
  /// Devices that can have virtual functions.
  var parents: [VirtualFunctions.Parent] = []
  /// What each device is made from.
  var slots: [HotPlug.Slot] = []
  private var buses: [RequesterID: PCIBus] = [:]
  /// One way up for each requester id: those that share one take turns.
  private var upstreams: [RequesterID: SoftwareIOMMUBus] = [:]
  /// Where the next base address register goes: below the interrupt window.
  private var nextAddress: UInt64 = 0xC000_0000
  /// Where the next one goes that is wide and prefetchable: above all memory below 4 GiB.
  private var nextHighAddress: UInt64 = 0x40_0000_0000

  init(description: MachineDescription, system: IOMMUSystem) {
    self.description = description
    self.system = system
    iommus = description.iommus.map { iommu in
      SoftwareIOMMU(
        name: iommu.name,
        configuration: iommu.configuration(reserved: description.reserved),
        memory: system.memory, events: system.events)
    }
  }

  mutating func add(_ group: GroupDescription) throws(IOMMUError) {
    groups[group.number] = try system.addGroup(group.number)
  }

  private func place(
    of address: RequesterID, iommu: String, group: UInt32
  ) throws(IOMMUError) -> (iommu: SoftwareIOMMU, group: DeviceGroup) {
    guard let unit = iommus.first(where: { $0.name == iommu }), let group = groups[group]
    else {
      throw IOMMUError(
        .invalidArgument, "\(address) is behind '\(iommu)', which is not there")
    }
    let known = groups.values.flatMap { $0.devices.map(\.physical.address) }
    guard !known.contains(address) else {
      throw IOMMUError(.fileExists, "the machine has \(address) twice")
    }
    return (unit, group)
  }

  /// A bridge is in its group like any device, with a driver that may be in the way.
  mutating func add(_ bridge: BridgeDescription) throws(IOMMUError) {
    let (iommu, group) = try place(
      of: bridge.address, iommu: bridge.iommu, group: bridge.group)
    _ = try system.addDevice(
      name: "\(bridge.address)", address: bridge.address,
      requester: description.topology.requester(of: bridge.address), driver: iommu,
      group: group, hostDriver: bridge.hostDriver.claim)
  }

  mutating func add(_ device: DeviceDescription) throws(IOMMUError) {
    let (iommu, group) = try place(
      of: device.address, iommu: device.iommu, group: device.group)
    let requester = description.requester(of: device)
    let kind = device.kind(
      // Behind a bridge that speaks for it there are no PASIDs.
      pasidBits: requester == device.address
        ? description.iommu(named: device.iommu)?.pasidBits ?? 0 : 0)
    let physical = try system.addDevice(
      name: "\(device.address)", address: device.address, requester: requester, driver: iommu,
      group: group, subgroup: device.subgroup, canSkipSnoop: device.noSnoop,
      kind: kind)
    // Behind a bridge that speaks for it a device has no translations of its own.
    if requester == device.address {
      iommu.setFeatures(device.services.features, of: requester)
    }
    let model = try device.model.make(at: device.address)
    let upstream =
      upstreams[requester] ?? SoftwareIOMMUBus(iommu: iommu, requester: requester)
    upstreams[requester] = upstream
    let function = PCIFunction(
      device: physical, model: model, upstream: upstream,
      barAddresses: model.bars.map { place($0) }, bus: bus(of: device),
      sriov: sriov(of: device, model), services: device.services.capabilities(of: physical))
    functions.append(function)
    slots.append(
      HotPlug.Slot(
        description: device, iommu: iommu, requester: requester, kind: physical.kind,
        upstream: upstream, barAddresses: function.barAddresses, bus: function.bus))
    if device.hostDriver == .mediated, case .copyEngine(let engine) = device.model {
      shared.append(
        (
          physical,
          MediatedCopyEngine(
            parent: physical, iommu: iommu, system: system, configuration: engine.configuration,
            capacity: engine.slices)
        ))
    }
    if device.hostDriver == .mediatedQueue, case .workQueue(let queue) = device.model {
      shared.append(
        (
          physical,
          MediatedWorkQueue(
            parent: physical, iommu: iommu, system: system, depth: queue.depth,
            capacity: queue.slices)
        ))
    }
    if let layout = function.sriov {
      parents.append(
        VirtualFunctions.Parent(
          description: device, function: function, layout: layout, iommu: iommu, system: system,
          machine: description))
    }
  }

  /// What a device says of its virtual functions: they are as it is, at addresses of their own.
  private mutating func sriov(
    of device: DeviceDescription, _ model: any PCIDeviceModel
  ) -> SRIOVLayout? {
    guard let offset = description.firstVirtualOffset(of: device) else { return nil }
    let count = UInt64(device.virtualFunctions)
    return SRIOVLayout(
      total: UInt16(clamping: count), firstOffset: offset, deviceID: model.identity.device,
      bars: model.bars, barAddresses: model.bars.map { place($0, count: count) })
  }

  /// The bus below the port or bridge above a device.
  private mutating func bus(of device: DeviceDescription) -> PCIBus? {
    let bridge = description.topology.bridge(above: device.address)
    guard let port = device.rootPort ?? bridge?.address else { return nil }
    let bus = buses[port] ?? PCIBus(port: port)
    buses[port] = bus
    return bus
  }

  private mutating func place(_ bar: BAR, count: UInt64 = 1) -> UInt64 {
    func next(_ cursor: inout UInt64) -> UInt64 {
      let address = (cursor + bar.size - 1) & ~(bar.size - 1)
      cursor = address + bar.size * count
      return address
    }
    return bar.is64Bit && bar.isPrefetchable ? next(&nextHighAddress) : next(&nextAddress)
  }

  var viewFunctions: [RequesterID: MachineView.Function] {
    var result: [RequesterID: MachineView.Function] = [:]
    for function in functions {
      guard let device = function.device else { continue }
      result[device.physical.address] = MachineView.Function(function)
    }
    return result
  }

  var hardware: [String: HardwareInformation] {
    Dictionary(
      uniqueKeysWithValues: iommus.map {
        ($0.name, $0.hardwareInformation(for: RequesterID(rawValue: 0)))
      })
  }
}

extension DeviceDescription.Model {
  /// - Parameter address: Tells NVMe controllers of one subsystem apart.
  /// - Throws: Where a namespace's file cannot be had.
  func make(at address: RequesterID) throws(IOMMUError) -> any PCIDeviceModel {
    switch self {
    case .copyEngine(let engine): return CopyEngine(configuration: engine.configuration)
    case .workQueue(let queue):
      return WorkQueueEngine(
        configuration: WorkQueueEngine.Configuration(
          isShared: queue.mode == .shared, depth: queue.depth))
    case .nvme(var controller):
      // 0xFFF0 and up name no controller.
      controller.controllerID = UInt16(
        truncatingIfNeeded: min(address.rawValue & 0xFFFF, 0xFFEF))
      return try NVMeController(controller)
    }
  }
}

extension CopyEngineDescription {
  fileprivate var configuration: CopyEngine.Configuration {
    CopyEngine.Configuration(version: version, canFill: fill, localMemory: localMemory)
  }
}

extension DeviceDescription.HostDriver {
  /// What the driver means to isolation (MODEL C3).
  var claim: HostDriver {
    switch self {
    case .vfio, .stub: .safe(rawValue)
    case .none: .none
    case .ioatdma, .mediated, .mediatedQueue: .dma(rawValue)
    }
  }
}

extension BridgeDescription.HostDriver {
  /// What the driver means to isolation: those with `driver_managed_dma` do none.
  fileprivate var claim: HostDriver {
    switch self {
    case .pcieport, .stub: .safe(rawValue)
    case .none: .none
    case .shpchp: .dma(rawValue)
    }
  }
}

extension View {
  /// Linux's switches of fault injection, which programs set before they use `fail-nth`. They
  /// keep what is written and do nothing: what fails is always one of our failure points.
  fileprivate static var faultInjection: [Entry] {
    let switches = [
      ("failslab", ["ignore-gfp-wait"]),
      ("fail_page_alloc", ["ignore-gfp-wait", "ignore-gfp-highmem"]),
      ("fail_usercopy", []), ("fail_iommufd", []),
    ]
    var entries = [Entry("/sys/kernel/debug", .exclusiveDirectory)]
    for (name, files) in switches {
      entries.append(Entry("/sys/kernel/debug/\(name)", .directory))
      for file in files {
        entries.append(
          Entry("/sys/kernel/debug/\(name)/\(file)", .attribute(SettingAttribute.flag())))
      }
      for file in ["probability", "times", "verbose"] {
        entries.append(
          Entry("/sys/kernel/debug/\(name)/\(file)", .attribute(SettingAttribute.number())))
      }
    }
    return entries
  }
}
