// SPDX-License-Identifier: Apache-2.0
//
// The printed machine.

import Foundation
import IOMMU
import Machine
import Testing

@Suite("Machine printing") struct MachinePrintingTests {
  @Test("the tree shows IOMMUs, groups, devices and nodes") func tree() {
    let expected = """
      default
      └─ dmar0  Intel second stage, 4 levels, 48-bit addresses, snoop control
         ├─ group 0  /dev/vfio/0
         │  └─ 0000:e0:04.0  copy engine 3.3, fill  /dev/vfio/devices/vfio0
         └─ group 1  /dev/vfio/1  2 devices that cannot be isolated from each other
            ├─ 0000:e1:00.0  copy engine 3.3, fill  /dev/vfio/devices/vfio1  below port 0000:e0:05.0
            └─ 0000:e1:00.1  copy engine 3.3, fill  /dev/vfio/devices/vfio2  below port 0000:e0:05.0
      reserved addresses
         0xfee00000 to 0xfeefffff  interrupts are written here

      """
    #expect(MachineDescription.standard.tree(colour: false) == expected)
  }

  @Test("colour adds escapes and takes nothing away") func colour() {
    let plain = MachineDescription.standard.tree(colour: false)
    let coloured = MachineDescription.standard.tree(colour: true)
    #expect(coloured.contains("\u{1B}[1m"))
    #expect(coloured.replacing(/\u{1B}\[[0-9]m/, with: "") == plain)
    #expect(!plain.contains("\u{1B}"))
  }

  @Test("JSON is JSON, whatever the names are") func json() throws {
    var machine = MachineDescription.standard
    machine.name = "a \"name\"\n\u{1}\u{2028} \\ ü"
    let object = try JSONSerialization.jsonObject(with: Data(machine.json.utf8))
    let fields = try #require(object as? [String: Any])
    #expect(fields["name"] as? String == machine.name)
    let devices = try #require(fields["devices"] as? [[String: Any]])
    #expect(
      devices.map { $0["node"] as? String } == [
        "/dev/vfio/devices/vfio0", "/dev/vfio/devices/vfio1", "/dev/vfio/devices/vfio2",
      ])
    let reserved = try #require(fields["reserved"] as? [[String: String]])
    #expect(reserved == [["first": "0xfee00000", "last": "0xfeefffff", "kind": "msi"]])
  }

  @Test("the graph has a node for each device and an edge to its IOMMU") func dot() {
    let dot = MachineDescription.standard.dot
    for device in MachineDescription.standard.devices {
      #expect(dot.contains("\"\(device.address)\" -> \"dmar0\";"))
    }
    #expect(dot.hasPrefix("digraph machine {") && dot.hasSuffix("}\n"))
  }

  @Test("a device in use by the host has no node") func notOffered() {
    var machine = MachineDescription.standard
    machine.devices[0].hostDriver = .ioatdma
    let tree = machine.tree(colour: false)
    #expect(tree.contains("0000:e0:04.0  copy engine 3.3, fill  in use by the host: ioatdma"))
    #expect(!tree.contains("/dev/vfio/0"))
  }
}
