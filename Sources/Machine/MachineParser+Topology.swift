// SPDX-License-Identifier: Apache-2.0
//
// What a machine file says of buses: which devices are below which root port, and whether that can
// be so.

import IOMMU
import Yams

extension MachineParser {
  /// A device, and where the file has it.
  struct ReadDevice {
    let device: DeviceDescription
    let node: Node

    func node(of key: String) -> Node { node.mapping?[Node(key)] ?? node }
  }

  /// A port is on another bus than what is below it, the bus below it is its alone, and nothing
  /// else has its address.
  func checkPorts(of devices: [ReadDevice]) {
    var ports: [RequesterID: RequesterID] = [:]
    var buses: [UInt32: RequesterID?] = [:]
    func bus(_ address: RequesterID) -> UInt32 { address.rawValue >> 8 }
    for read in devices {
      let device = read.device
      let node = read.node(of: "root-port")
      if let port = device.rootPort {
        if port.segment != device.address.segment || port.bus >= device.address.bus {
          reader.report(
            node,
            "found \(port) above \(device.address), expected a port of the same segment and a lower "
              + "bus")
        } else if devices.contains(where: { $0.device.address == port }) {
          reader.report(
            node, "found \(port), which is a device, expected a root port of its own")
        } else if devices.contains(where: {
          $0.device.rootPort != nil && bus($0.device.address) == bus(port)
        }) {
          reader.report(
            node, "found \(port), whose bus is below another port, expected one on a root bus")
        } else if let other = ports[port], bus(other) != bus(device.address) {
          reader.report(
            node,
            "found \(port) above \(device.address) and \(other), expected one bus below each port"
          )
        }
        ports[port] = ports[port] ?? device.address
      }
      if let other = buses[bus(device.address)] {
        guard other != device.rootPort else { continue }
        reader.report(
          node,
          "found \(device.address) \(device.rootPort.map { "below \($0)" } ?? "on a root bus"), but "
            + "another device of that bus is \(other.map { "below \($0)" } ?? "not")")
      } else {
        buses[bus(device.address)] = device.rootPort
      }
    }
  }

  // MARK: Virtual functions

  func virtualFunctions(_ fields: MachineReader.Fields) -> (total: Int, enabled: Int) {
    let most = UInt64(MachineDescription.mostVirtualFunctions)
    let total = fields["virtual-functions"].flatMap {
      reader.number($0, "a number of virtual functions", in: 0...most)
    }
    let enabled = fields["enabled-functions"].flatMap {
      reader.number($0, "a number of virtual functions", in: 0...(total ?? 0))
    }
    return (Int(total ?? 0), Int(enabled ?? 0))
  }

  /// Each device's virtual functions have requester ids on its bus that no other function has, and
  /// the IOMMU tells them apart.
  func checkVirtualFunctions(
    of devices: [Placed<DeviceDescription>], below bridges: [BridgeDescription]
  ) {
    let machine = MachineDescription(
      name: "", iommus: [], bridges: bridges, devices: devices.map(\.value))
    for read in devices where read.value.virtualFunctions > 0 {
      let device = read.value
      let node = ReadDevice(device: device, node: read.node).node(of: "virtual-functions")
      if machine.firstVirtualOffset(of: device) == nil {
        reader.report(
          node,
          "found \(device.virtualFunctions) virtual functions of \(device.address), whose bus has no "
            + "room for them behind it, expected fewer, or a lower address")
      }
      let hole = machine.topology.bridges(above: device.address).first {
        $0.alias != nil || !$0.acs
      }
      if let hole {
        reader.report(
          node,
          "found virtual functions of \(device.address) below \(hole.address), expected access control "
            + "('acs: true') above them, as each is of a group of its own")
      }
    }
  }
}
