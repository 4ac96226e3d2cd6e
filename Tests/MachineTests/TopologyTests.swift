// SPDX-License-Identifier: Apache-2.0
//
// MODEL C2, C3, D3: what bridges and functions of one device make of a machine's groups, and
// what of it a program finds in /sys.

import IOMMU
import LinuxABI
import SoftwareIOMMU
import SystemPackage
import Testing
import VFIO

@testable import Machine

/// A machine with these lines as its bridges and devices.
private func machine(bridges: [String] = [], devices: [String]) throws -> MachineDescription {
  try MachineDescription(
    file: "m.yaml",
    bytes: Array(
      (["iommus: [{name: dmar0, kind: intel, pasid-bits: 8}]", "bridges:"]
        + (bridges.isEmpty ? ["  []"] : bridges.map { "  - {\($0)}" })
        + ["devices:"] + devices.map { "  - {model: copy-engine, \($0)}" } + [""])
        .joined(separator: "\n").utf8))
}

private func problems(
  bridges: [String] = [], devices: [String]
) -> [MachineFileError.Problem] {
  do {
    _ = try machine(bridges: bridges, devices: devices)
    return []
  } catch {
    return (error as? MachineFileError)?.problems ?? []
  }
}

@Suite("Topology") struct TopologyTests {
  // MARK: Groups that follow from the buses

  @Test("C2: functions of one device share a group, unless each has access control")
  func functions() throws {
    let described = try machine(devices: [
      "address: e0:04.0", "address: e0:05.0", "address: e0:05.1",
      "address: e0:06.0, acs: true", "address: e0:06.1, acs: true",
      "address: e0:07.0, acs: true", "address: e0:07.1", "address: e0:07.2",
    ])
    #expect(described.devices.map(\.group) == [0, 1, 1, 2, 3, 4, 5, 5])
  }

  @Test(
    "C2: below a port is apart with access control, and one group with the port without",
    arguments: [true, false])
  func port(acs: Bool) throws {
    let described = try machine(
      bridges: ["address: 00:1c.0, bus: 0xe1, acs: \(acs)"],
      devices: ["address: e1:00.0", "address: e1:01.0"])
    let numbers = described.devices.map(\.group) + described.bridges.map(\.group)
    #expect(Set(numbers).count == (acs ? 3 : 1))
    #expect(
      described.devices.map { described.requester(of: $0) } == described.devices.map(\.address))
  }

  @Test("C2: a port with access control below one without is no wall")
  func nestedPorts() throws {
    let described = try machine(
      bridges: ["address: 00:1c.0, bus: 1, acs: false", "address: 01:00.0, bus: 2"],
      devices: ["address: 02:00.0", "address: 02:01.0"])
    #expect(Set(described.devices.map(\.group) + described.bridges.map(\.group)).count == 1)
  }

  @Test(
    "D2: behind a bridge that takes requester ids away, DMA carries the bridge's",
    arguments: [("pcie-to-pci", "0000:02:00.0"), ("pci", "0000:01:00.0")])
  func alias(kind: String, alias: String) throws {
    let described = try machine(
      bridges: ["address: 00:1c.0, bus: 1", "address: 01:00.0, bus: 2, kind: \(kind)"],
      devices: ["address: 02:03.0", "address: 02:04.0", "address: 01:08.0"])
    let requesters = described.devices.map { "\(described.requester(of: $0))" }
    #expect(requesters == [alias, alias, "0000:01:08.0"])
    #expect(described.devices.map(\.group) == [0, 0, 1])
    #expect(described.bridges.map(\.group) == [2, 0])
    #expect(described.bridges.map(\.hostDriver) == [.pcieport, .none])
  }

  @Test("numbers that a file gives stay, the others are the lowest that are free")
  func numbers() throws {
    let described = try machine(
      bridges: ["address: 00:1c.0, bus: 1, group: 1"],
      devices: ["address: 01:00.0, group: 0", "address: 02:00.0", "address: 02:01.0, group: 9"])
    #expect(described.devices.map(\.group) == [0, 2, 9])
    // One number for more than what is tied is the file's to say.
    let plain = try machine(devices: [
      "address: 02:00.0, group: 3", "address: 03:00.0, group: 3",
    ])
    #expect(plain.devices.map(\.group) == [3, 3])
  }

  @Test("a machine with bridges survives its own file, and is drawn")
  func roundTrip() throws {
    let described = try machine(
      bridges: [
        "address: 00:1c.0, bus: 1, acs: false, host-driver: pci-stub",
        "address: 01:00.0, bus: 2, kind: pci, host-driver: shpchp",
      ],
      devices: ["address: 02:03.0, host-driver: pci-stub", "address: e0:04.0, subgroup: 3"])
    #expect(
      try MachineDescription(file: "again", bytes: Array(described.yaml.utf8)) == described)
    let tree = described.tree(colour: false)
    for words in [
      "PCIe port to bus 01, no ACS  pci-stub",
      "PCI bridge to bus 02  in use by the host: shpchp",
      "DMA as 0000:01:00.0", "sub-group 3", "3 devices that cannot be isolated",
    ] {
      #expect(tree.contains(words), "\(tree)")
    }
    #expect(described.json.contains("\"requester\": \"0000:01:00.0\""))
    #expect(described.dot.contains("\"0000:02:03.0\" -> \"0000:01:00.0\""))
  }

  // MARK: Files that are wrong

  @Test("numbers that the buses contradict are refused, with the reason")
  func conflicts() throws {
    func check(_ found: [MachineFileError.Problem], _ words: String...) {
      #expect(found.count == 1, "\(found)")
      for word in words { #expect(found.first?.message.contains(word) == true, "\(found)") }
    }
    check(
      problems(devices: ["address: e0:05.0, group: 0", "address: e0:05.1, group: 1"]),
      "0000:e0:05.1", "0000:e0:05.0", "access control", "acs: true")
    check(
      problems(
        bridges: ["address: 00:1c.0, bus: 1, acs: false, group: 7"],
        devices: ["address: 01:00.0, group: 8"]),
      "0000:00:1c.0", "no access control")
    check(
      problems(
        bridges: ["address: 00:1c.0, bus: 1, kind: pcie-to-pci"],
        devices: ["address: 01:03.0, group: 0", "address: 01:04.0, group: 1"]),
      "0000:01:04.0", "carries 0000:01:00.0")
    check(
      problems(
        bridges: ["address: 00:1c.0, bus: 1, kind: pci"],
        devices: ["address: 01:03.0, subgroup: 1"]),
      "sub-group 1", "0000:00:1c.0")
  }

  @Test("bridges that cannot be are refused")
  func badBridges() {
    let device = ["address: e0:04.0"]
    for (bridges, words) in [
      (["address: 01:00.0, bus: 1"], "higher number"),
      (["address: 00:01.0, bus: 1", "address: 00:02.0, bus: 1"], "below a second bridge"),
      (["address: e0:04.0, bus: 0xe1"], "again"),
      (["address: 00:01.0, bus: 1, kind: pci, acs: true"], "only a port"),
      (["address: 00:01.0, bus: 1, kind: pcie"], "a kind of bridge"),
      (["address: 00:01.0"], "without 'bus'"),
      (["address: 00:01.0, bus: 256"], "a bus number"),
      (["address: 00:01.0, bus: 1, host-driver: ioatdma"], "pcieport, pci-stub"),
    ] {
      let found = problems(bridges: bridges, devices: device)
      #expect(found.count == 1 && found[0].message.contains(words), "\(bridges): \(found)")
    }
  }

  @Test("a port that a device names is the bridge above its bus")
  func namedPort() throws {
    let device = ["address: e1:00.0, root-port: e0:01.0"]
    for (bridge, words) in [
      ("address: e0:01.0, bus: 0xe2", "is the bridge above bus 0xe2"),
      ("address: e0:02.0, bus: 0xe1", "is 0000:e0:02.0"),
    ] {
      let found = problems(bridges: [bridge], devices: device)
      #expect(found.count == 1 && found[0].message.contains(words), "\(found)")
    }
    let described = try machine(
      bridges: ["address: e0:01.0, bus: 0xe1, acs: false"], devices: device)
    #expect(
      described.rootPorts.isEmpty && described.devices[0].group == described.bridges[0].group)
  }

  // MARK: The machine that comes of it

  @Test(
    "C3: a bridge's driver is in the way if it does DMA, and only then",
    arguments: BridgeDescription.HostDriver.allCases)
  func bridgeDrivers(driver: BridgeDescription.HostDriver) throws {
    let made = try Machine(
      machine(
        bridges: ["address: 00:1c.0, bus: 1, acs: false, host-driver: \(driver.rawValue)"],
        devices: ["address: 01:00.0"]))
    let context = Context(system: made.system)
    let device = try #require(made.functions[0].device)
    #expect(device.group.devices.count == 2)
    do {
      let binding = try context.register(device)
      #expect(driver != .shpchp)
      #expect(binding.group.devices.map(\.name).contains("0000:00:1c.0"))
    } catch {
      #expect(driver == .shpchp && error.errno == .notPermitted)
      #expect(error.reason.contains("0000:00:1c.0") && error.reason.contains("shpchp"))
    }
  }

  @Test("D2, D3: two functions of one requester id go through one entry, and take turns")
  func sharedEntry() throws {
    let made = try Machine(
      machine(
        bridges: ["address: 00:1c.0, bus: 1, kind: pcie-to-pci"],
        devices: ["address: 01:03.0", "address: 01:04.0"]))
    let devices = made.functions.compactMap(\.device)
    #expect(Set(devices.map(\.physical.requester)).count == 1)
    #expect(devices.allSatisfy { $0.physical.capabilities.pasidBits == 0 })
    let context = Context(system: made.system)
    let binding = try context.register(devices[0])
    let space = try context.makeAddressSpace()
    let memory = try LocalMemory(byteCount: 4096)
    let address = try space.map(memory)
    try binding.group.attach(to: space)
    // Neither is bound to more than the other: both reach the space.
    let port = made.iommus[0].port(for: devices[1].physical.requester)
    try port.store(UInt32(7), at: address)
    #expect(memory[0] == 7)
    binding.group.detach()
    #expect(throws: DMAFault.self) { try port.store(UInt32(8), at: address) }
    // A fault says whose DMA the IOMMU took it for: it cannot know better.
    #expect(made.iommus[0].faults[devices[0].physical.requester].count == 1)
  }

  @Test("J1: /sys shows a bridge above its devices, and in its group")
  func view() throws {
    let view = try Machine(
      machine(
        bridges: ["address: 00:1c.0, bus: 1", "address: 01:00.0, bus: 2, kind: pcie-to-pci"],
        devices: ["address: 02:03.0"])
    ).view
    func entry(_ path: String) -> View.Kind? { view.entries.first { $0.path == path }?.kind }
    let path = "/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0/0000:02:03.0"
    #expect(entry(path) != nil)
    #expect(entry("/sys/kernel/iommu_groups/0/devices/0000:01:00.0") != nil)
    #expect(entry("/sys/kernel/iommu_groups/0/devices/0000:02:03.0") != nil)
    #expect(entry("/sys/bus/pci/drivers/pcieport/0000:00:1c.0") != nil)
    guard
      case .file(let bytes, _)? = entry("/sys/devices/pci0000:00/0000:00:1c.0/config")
    else {
      Issue.record("no configuration space")
      return
    }
    // Primary, secondary and subordinate bus; a bridge; a root port.
    #expect(Array(bytes[0x18...0x1a]) == [0, 1, 2])
    #expect(Array(bytes[0x0a...0x0b]) == [4, 6] && bytes[0x42] >> 4 == 4)
  }
}
