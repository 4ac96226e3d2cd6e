// SPDX-License-Identifier: Apache-2.0
//
// The bridges of a machine file, and the group numbers: those that the file gives, checked
// against what the buses make of them, and those that follow from the buses.

import IOMMU
import Yams

/// A device or a bridge, with its place in the file.
struct Placed<Value> {
  var value: Value
  /// The group that the file gives it; nil where it gives none.
  let group: UInt32?
  let node: Node
}

extension MachineParser {
  /// A group number, where there is one.
  func group(of fields: MachineReader.Fields) -> UInt32? {
    fields["group"].flatMap { reader.number($0, "a group number", in: 0...0xf_ffff) }
      .map { UInt32(truncatingIfNeeded: $0) }
  }

  // MARK: Bridges

  func bridges(
    _ node: Node?, iommus: [IOMMUDescription], addresses: inout [RequesterID: Int]
  ) -> [Placed<BridgeDescription>] {
    guard let node else { return [] }
    var bridges: [Placed<BridgeDescription>] = []
    for item in reader.items(of: node, what: "bridges", limit: Self.bridgeLimit) {
      guard let bridge = bridge(item, iommus: iommus),
        isNew(bridge.value.address, of: item, in: &addresses)
      else { continue }
      if let other = bridges.first(where: {
        $0.value.bus == bridge.value.bus
          && $0.value.address.segment == bridge.value.address.segment
      }) {
        reader.report(
          item.mapping?["bus"] ?? item,
          "found bus \(hexText(bridge.value.bus)) below a second bridge; \(other.value.address) "
            + "is above it")
        continue
      }
      bridges.append(bridge)
    }
    return bridges
  }

  private func bridge(
    _ node: Node, iommus: [IOMMUDescription]
  ) -> Placed<BridgeDescription>? {
    guard
      let fields = reader.fields(
        of: node, what: "a bridge",
        known: ["address", "bus", "kind", "acs", "group", "iommu", "host-driver"],
        required: ["address", "bus"])
    else { return nil }
    let kind =
      fields["kind"].map {
        reader.choice($0, "a kind of bridge", of: BridgeDescription.Kind.self)
      } ?? .port
    let driver = fields["host-driver"].flatMap {
      reader.choice($0, "what the host bound to it", of: BridgeDescription.HostDriver.self)
    }
    if let node = fields["acs"], let kind, kind != .port {
      reader.report(
        node,
        "found 'acs' for a bridge of kind \(kind.rawValue), which takes requester ids away; only "
          + "a port has it")
    }
    let acs = fields["acs"].flatMap(reader.flag) ?? (kind == .port)
    let group = group(of: fields)
    let behind = iommu(of: fields, iommus: iommus)
    guard let address = fields["address"].flatMap(requester), let kind, let behind,
      let node = fields["bus"],
      let bus = reader.number(node, "a bus number", in: 1...0xff, hexadecimal: true)
    else { return nil }
    guard bus > address.bus else {
      reader.report(
        node,
        "found bus \(hexText(bus)) below a bridge on bus \(hexText(address.bus)), expected a "
          + "higher number than that")
      return nil
    }
    return Placed(
      value: BridgeDescription(
        address: address, bus: UInt8(truncatingIfNeeded: bus), kind: kind, acs: acs,
        group: group ?? 0, iommu: behind, hostDriver: driver),
      group: group, node: fields.node)
  }

  // MARK: Groups

  /// Gives each function its group, and reports what cannot be.
  func number(
    _ bridges: inout [Placed<BridgeDescription>], _ devices: inout [Placed<DeviceDescription>]
  ) {
    let topology = MachineTopology(bridges: bridges.map(\.value))
    // Devices first: they have the low numbers where a file gives none.
    let functions =
      devices.map { (address: $0.value.address, acs: $0.value.acs, group: $0.group) }
      + bridges.map { (address: $0.value.address, acs: $0.value.acs, group: $0.group) }
    let nodes = Dictionary(
      devices.map { ($0.value.address, $0.node) } + bridges.map { ($0.value.address, $0.node) },
      uniquingKeysWith: { first, _ in first })
    let numbers = topology.numbers(functions) { address, other, reason in
      guard let node = nodes[address] else { return }
      reader.report(
        node.mapping?["group"] ?? node,
        "found \(address) in another group than \(other): \(reason); give them one number, or "
          + "leave the numbers out")
    }
    for index in devices.indices {
      devices[index].value.group = numbers[devices[index].value.address] ?? 0
    }
    for index in bridges.indices {
      bridges[index].value.group = numbers[bridges[index].value.address] ?? 0
    }
    checkPorts(devices, topology)
    checkSubgroups(devices, topology)
    checkServices(devices, topology)
    checkIOMMUs(
      devices.map { ($0.value.address, $0.value.group, $0.value.iommu, $0.node) }
        + bridges.map { ($0.value.address, $0.value.group, $0.value.iommu, $0.node) })
  }

  /// A device's port is the bridge above its bus, where the file lists either.
  private func checkPorts(
    _ devices: [Placed<DeviceDescription>], _ topology: MachineTopology
  ) {
    for device in devices {
      guard let port = device.value.rootPort else { continue }
      let above = topology.bridge(above: device.value.address)
      let listed = topology.bridges.first { $0.address == port }
      guard above?.address != listed?.address else { continue }
      let address = device.value.address
      reader.report(
        device.node.mapping?["root-port"] ?? device.node,
        "found \(port) above \(address), but "
          + (above.map { "the bridge above bus \(hexText(address.bus)) is \($0.address)" }
            ?? "\(port) is the bridge above bus \(hexText(listed?.bus ?? 0))"))
    }
  }

  private func checkSubgroups(
    _ devices: [Placed<DeviceDescription>], _ topology: MachineTopology
  ) {
    for device in devices where device.value.subgroup != 0 {
      let requester = topology.requester(of: device.value.address)
      guard requester != device.value.address else { continue }
      reader.report(
        device.node.mapping?["subgroup"] ?? device.node,
        "found sub-group \(device.value.subgroup) for a device whose DMA carries \(requester); no "
          + "IOMMU tells it from its neighbours")
    }
  }

  /// A bridge that takes requester ids away passes on no ATS, and so no page requests.
  private func checkServices(
    _ devices: [Placed<DeviceDescription>], _ topology: MachineTopology
  ) {
    for device in devices where device.value.services.ats {
      let requester = topology.requester(of: device.value.address)
      guard requester != device.value.address else { continue }
      let key = device.value.services.pageRequests ? "page-requests" : "ats"
      reader.report(
        device.node.mapping?[key] ?? device.node,
        "found \(key) of a device whose DMA carries \(requester): the bridge above it passes on "
          + "none; leave it out, or put the device below a port")
    }
  }

  private func checkIOMMUs(_ functions: [(RequesterID, UInt32, String, Node)]) {
    var homes: [UInt32: (address: RequesterID, iommu: String)] = [:]
    for (address, group, iommu, node) in functions {
      if let home = homes[group], home.iommu != iommu {
        reader.report(
          node.mapping?["group"] ?? node,
          "found group \(group) behind \(iommu), but \(home.address) of that group is behind "
            + "\(home.iommu); a group has one IOMMU")
      }
      homes[group] = homes[group] ?? (address, iommu)
    }
  }
}
