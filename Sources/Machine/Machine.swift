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
  /// Every function of the machine, offered or not, in the order of the description.
  public let functions: [PCIFunction]
  /// What programs open: `/dev/iommu`, `/dev/vfio/vfio`, `/dev/vfio/devices/vfioN` and
  /// `/dev/vfio/N`.
  public var nodes: [any DeviceNode] { files.nodes }
  /// Files that each thread of a program has in /proc: `fail-nth`, with the self-test driver.
  public let threadNodes: [any ThreadNode]
  /// What programs find in /sys.
  public var view: View { files.view }
  /// Nodes and view, which change as devices and drivers come and go.
  public let files: LiveView

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
  ///   devices of one address.
  public init(
    _ description: MachineDescription, selfTestDriver: Bool = false
  ) throws(IOMMUError) {
    self.description = description
    let system = IOMMUSystem()
    var parts = Parts(description: description, system: system)
    for group in description.groups { try parts.add(group) }
    for device in description.devices { try parts.add(device) }
    self.system = system
    iommus = parts.iommus
    functions = parts.functions
    let context =
      selfTestDriver
      ? IOMMUNode(selfTestDriver: MockIOMMU(system: system)) : IOMMUNode(system: system)
    let container = VFIOContainerNode(system: system)
    threadNodes = context.failures.map { [$0] } ?? []
    let nodes: [any DeviceNode] = [context, container] + parts.deviceNodes + parts.groupNodes
    var view = MachineView(
      machine: description, functions: parts.viewFunctions, hardware: parts.hardware,
      numbers: Dictionary(
        nodes.map { ($0.path, $0.number) }, uniquingKeysWith: { first, _ in first })
    ).view()
    if selfTestDriver { view.entries += View.faultInjection }
    files = LiveView(view, nodes: nodes)
  }
}

/// A machine in the making.
private struct Parts {
  let description: MachineDescription
  let system: IOMMUSystem
  let iommus: [SoftwareIOMMU]
  var functions: [PCIFunction] = []
  var deviceNodes: [any DeviceNode] = []
  var groupNodes: [any DeviceNode] = []
  private var groups: [UInt32: (group: DeviceGroup, offered: VFIOGroup?)] = [:]
  private var buses: [RequesterID: PCIBus] = [:]
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
    let made = try system.addGroup(group.number)
    guard description.offeredGroups.contains(group) else {
      groups[group.number] = (made, nil)
      return
    }
    let offered = VFIOGroup(group: made)
    groups[group.number] = (made, offered)
    groupNodes.append(VFIOGroupNode(group: offered))
  }

  mutating func add(_ device: DeviceDescription) throws(IOMMUError) {
    guard let iommu = iommus.first(where: { $0.name == device.iommu }),
      let (group, offered) = groups[device.group]
    else {
      throw IOMMUError(
        .invalidArgument, "\(device.address) is behind '\(device.iommu)', which is not there")
    }
    guard !functions.contains(where: { $0.device.physical.requester == device.address }) else {
      throw IOMMUError(.fileExists, "the machine has \(device.address) twice")
    }
    let physical = try system.addDevice(
      name: "\(device.address)", requester: device.address, driver: iommu, group: group,
      hostDriver: device.hostDriver.claim, canSkipSnoop: device.noSnoop)
    let model = device.model.make()
    let function = PCIFunction(
      device: physical, model: model,
      upstream: SoftwareIOMMUBus(iommu: iommu, requester: device.address),
      barAddresses: model.bars.map { place($0) }, bus: bus(of: device))
    functions.append(function)
    guard device.hostDriver == .vfio, let offered else { return }
    let index = UInt32(deviceNodes.count)
    deviceNodes.append(
      VFIODeviceNode(device: VFIODevice(index: index, function: function, group: offered)))
  }

  /// The bus below a device's root port.
  private mutating func bus(of device: DeviceDescription) -> PCIBus? {
    guard let port = device.rootPort else { return nil }
    let bus = buses[port] ?? PCIBus(port: port)
    buses[port] = bus
    return bus
  }

  private mutating func place(_ bar: BAR) -> UInt64 {
    func next(_ cursor: inout UInt64) -> UInt64 {
      let address = (cursor + bar.size - 1) & ~(bar.size - 1)
      cursor = address + bar.size
      return address
    }
    return bar.is64Bit && bar.isPrefetchable ? next(&nextHighAddress) : next(&nextAddress)
  }

  var viewFunctions: [RequesterID: MachineView.Function] {
    var result: [RequesterID: MachineView.Function] = [:]
    for function in functions {
      var sizes = [UInt64](repeating: 0, count: 6)
      for bar in function.bars { sizes[bar.index] = bar.size }
      result[function.device.physical.requester] = MachineView.Function(
        configuration: function.config.contents, barSizes: sizes)
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

extension IOMMUDescription {
  fileprivate func configuration(
    reserved: [ReservedRegion]
  ) -> SoftwareIOMMU.Configuration {
    let format: SoftwareIOMMU.Configuration.Format =
      switch kind {
      case .intel: .intelSecondStage(levels: levels)
      case .amd: .amdV1
      }
    return SoftwareIOMMU.Configuration(
      format: format, addressBits: addressWidth, reservedRegions: reserved,
      pasidBits: UInt8(clamping: pasidBits), snoopControl: snoopControl,
      tracksDirty: dirtyTracking,
      maximumTablePages: Machine.maximumTablePages)
  }
}

extension DeviceDescription.Model {
  fileprivate func make() -> any PCIDeviceModel {
    switch self {
    case .copyEngine(let engine):
      CopyEngine(
        configuration: CopyEngine.Configuration(
          version: engine.version, canFill: engine.fill, localMemory: engine.localMemory))
    }
  }
}

extension DeviceDescription.HostDriver {
  /// What the driver means to isolation (MODEL C3).
  fileprivate var claim: HostDriver {
    switch self {
    case .vfio: .safe(rawValue)
    case .none: .none
    case .ioatdma: .dma(rawValue)
    }
  }
}

extension View {
  /// Linux's switches of fault injection, which programs set before they use `fail-nth`. They
  /// take what is written and do nothing: what fails is always one of our failure points.
  fileprivate static var faultInjection: [Entry] {
    let switches = [
      ("failslab", ["ignore-gfp-wait"]),
      ("fail_page_alloc", ["ignore-gfp-wait", "ignore-gfp-highmem"]),
      ("fail_usercopy", []), ("fail_iommufd", []),
    ]
    var entries = [Entry("/sys/kernel/debug", .exclusiveDirectory)]
    for (name, files) in switches {
      entries.append(Entry("/sys/kernel/debug/\(name)", .directory))
      for file in files + ["probability", "times", "verbose"] {
        entries.append(
          Entry(
            "/sys/kernel/debug/\(name)/\(file)", .file(contents: Array("0\n".utf8), mode: 0o644)
          ))
      }
    }
    return entries
  }
}
