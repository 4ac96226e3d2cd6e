// SPDX-License-Identifier: Apache-2.0
//
// The machine's /sys: laid out on a disk and read back the way that libraries read it.

import Foundation
import IOMMU
import LinuxABI
import Testing

@testable import Machine

/// A view as files under a temporary directory.
final class Tree {
  let root: String

  init(_ view: View) throws {
    root = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString).path
    let files = FileManager.default
    try files.createDirectory(atPath: root, withIntermediateDirectories: true)
    for entry in view.entries {
      let path = root + entry.path
      switch entry.kind {
      case .directory, .exclusiveDirectory:
        // One level at a time: a parent that does not come first is a failure.
        if !files.fileExists(atPath: path) {
          try files.createDirectory(
            atPath: path, withIntermediateDirectories: entry.path == "/sys")
        }
      case .file(let contents, _):
        try Data(contents).write(to: URL(fileURLWithPath: path))
      case .link(let target):
        try files.createSymbolicLink(atPath: path, withDestinationPath: target)
      case .attribute(let attribute):
        if let binary = attribute as? any BinaryAttribute {
          try Data(binary.read()).write(to: URL(fileURLWithPath: path))
          continue
        }
        let isReadable = attribute.mode & 0o444 != 0
        try Data((isReadable ? attribute.show() : "").utf8).write(
          to: URL(fileURLWithPath: path))
      }
    }
  }

  deinit { try? FileManager.default.removeItem(atPath: root) }

  func text(_ path: String) throws -> String {
    try String(contentsOfFile: root + path, encoding: .utf8)
  }

  func list(_ path: String) throws -> [String] {
    try FileManager.default.contentsOfDirectory(atPath: root + path).sorted()
  }

  /// Where a path leads when all links are followed.
  func real(_ path: String) throws -> String {
    let base = URL(fileURLWithPath: root).resolvingSymlinksInPath().path
    let resolved = URL(fileURLWithPath: root + path).resolvingSymlinksInPath().path
    try #require(FileManager.default.fileExists(atPath: resolved), "\(path) leads nowhere")
    try #require(resolved.hasPrefix(base), "\(path) leads out of the view")
    return String(resolved.dropFirst(base.count))
  }
}

private func view(of machine: MachineDescription = .standard) throws -> View {
  try Machine(machine).view
}

@Suite("Machine view") struct MachineViewTests {
  private let device = "/sys/bus/pci/devices/0000:e0:04.0"

  @Test("parents come first and every link leads somewhere") func links() throws {
    let view = try view()
    let tree = try Tree(view)
    for entry in view.entries {
      if case .link = entry.kind { _ = try tree.real(entry.path) }
    }
    #expect(Set(view.entries.map(\.path)).count == view.entries.count)
  }

  @Test(
    "a function's attributes read as Linux writes them",
    arguments: [
      ("vendor", "0x8086\n"), ("device", "0x2021\n"), ("subsystem_vendor", "0x8086\n"),
      ("subsystem_device", "0x0000\n"), ("class", "0x088000\n"), ("revision", "0x04\n"),
      ("irq", "0\n"), ("enable", "0\n"), ("numa_node", "-1\n"),
      ("driver_override", "vfio-pci\n"), ("reset_method", "flr\n"),
      ("modalias", "pci:v00008086d00002021sv00008086sd00000000bc08sc80i00\n"),
      ("max_link_speed", "16.0 GT/s PCIe\n"), ("max_link_width", "16\n"),
      ("current_link_speed", "16.0 GT/s PCIe\n"), ("current_link_width", "16\n"),
      (
        "uevent",
        """
        DRIVER=vfio-pci
        PCI_CLASS=88000
        PCI_ID=8086:2021
        PCI_SUBSYS_ID=8086:0000
        PCI_SLOT_NAME=0000:e0:04.0
        MODALIAS=pci:v00008086d00002021sv00008086sd00000000bc08sc80i00

        """
      ),
    ])
  func attribute(name: String, value: String) throws {
    #expect(try Tree(try view()).text("\(device)/\(name)") == value)
  }

  @Test("resource has thirteen lines, the BAR's first") func resource() throws {
    let lines = try Tree(try view()).text("\(device)/resource").split(separator: "\n")
    #expect(lines.count == 13)
    #expect(lines[0] == "0x00000000c0000000 0x00000000c0003fff 0x0000000000140204")
    #expect(
      Set(lines.dropFirst()) == ["0x0000000000000000 0x0000000000000000 0x0000000000000000"])
  }

  @Test("config is the function's own configuration space, and root writes what can be written")
  func config() throws {
    let machine = try Machine(.standard)
    let function = machine.functions[0]
    let entry = machine.view.entries.first { $0.path.hasSuffix("0000:e0:04.0/config") }
    guard case .attribute(let attribute)? = entry?.kind,
      let config = attribute as? any BinaryAttribute
    else {
      Issue.record("there is no config")
      return
    }
    #expect(config.mode == 0o644)
    #expect(try config.read() == function.config.contents)
    try config.write([0x06, 0x04], at: 4)
    #expect(try config.read()[4..<6] == [0x06, 0x04])
    #expect(function.isMemoryEnabled)
    try config.write([0x55, 0xAA, 0, 0], at: 0)
    #expect(try config.read()[0..<2] == [0x86, 0x80], "what cannot be written stays")
    try config.write([0], at: 4)
    #expect(!function.isMemoryEnabled)
    #expect(throws: IOMMUError.self) { try config.write([0, 0], at: 4095) }
  }

  @Test("a function leads to its driver, group, IOMMU and node") func functionLinks() throws {
    let tree = try Tree(try view())
    #expect(try tree.real(device) == "/sys/devices/pci0000:e0/0000:e0:04.0")
    #expect(try tree.real("\(device)/driver") == "/sys/bus/pci/drivers/vfio-pci")
    #expect(try tree.real("\(device)/iommu_group") == "/sys/kernel/iommu_groups/0")
    #expect(try tree.real("\(device)/iommu") == "/sys/devices/virtual/iommu/dmar0")
    #expect(try tree.real("\(device)/subsystem") == "/sys/bus/pci")
    #expect(try tree.list("\(device)/vfio-dev") == ["vfio0"])
    #expect(try tree.text("\(device)/vfio-dev/vfio0/dev") == "511:0\n")
    #expect(try tree.real("/sys/dev/char/511:0") == tree.real("\(device)/vfio-dev/vfio0"))
    #expect(try tree.real("/sys/class/vfio-dev/vfio0/device") == tree.real(device))
  }

  @Test("C2: groups list their devices and what cannot be mapped") func groups() throws {
    let tree = try Tree(try view())
    #expect(try tree.list("/sys/kernel/iommu_groups") == ["0", "1"])
    #expect(
      try tree.list("/sys/kernel/iommu_groups/1/devices") == ["0000:e1:00.0", "0000:e1:00.1"])
    #expect(
      try tree.text("/sys/kernel/iommu_groups/1/reserved_regions")
        == "0x00000000fee00000 0x00000000feefffff msi\n")
    #expect(try tree.text("/sys/class/vfio/1/uevent") == "MAJOR=510\nMINOR=1\nDEVNAME=vfio/1\n")
  }

  @Test("J1: a device below a root port stands below it, and the port is there with its driver")
  func rootPort() throws {
    let tree = try Tree(try view())
    let port = "/sys/devices/pci0000:e0/0000:e0:05.0"
    #expect(try tree.real("/sys/bus/pci/devices/0000:e0:05.0") == port)
    #expect(try tree.real("/sys/bus/pci/devices/0000:e1:00.1") == port + "/0000:e1:00.1")
    #expect(try tree.real("\(port)/driver") == "/sys/bus/pci/drivers/pcieport")
    #expect(try tree.text("\(port)/secondary_bus_number") == "225\n")
    #expect(try tree.text("\(port)/class") == "0x060400\n")
    let config = try Data(contentsOf: URL(fileURLWithPath: tree.root + port + "/config"))
    #expect(config.count == 256 && config[0x0e] == 1 && config[0x19] == 0xe1)
    #expect(try !tree.list("/sys/devices").contains("pci0000:e1"))
  }

  @Test("an IOMMU lists its devices and shows its registers") func iommu() throws {
    let tree = try Tree(try view())
    #expect(try tree.list("/sys/class/iommu/dmar0/devices").count == 3)
    let cap = try tree.text("/sys/class/iommu/dmar0/intel-iommu/cap")
    // SAGAW, bits 8 to 12: four levels; ND, bits 0 to 2: 65536 domains.
    let value = try #require(UInt64(cap.dropLast(), radix: 16))
    #expect(value >> 8 & 0x1f == 4)
    #expect(value & 7 == 6)
    #expect(
      try tree.text("/sys/class/iommu/dmar0/intel-iommu/domains_supported") == "65536\n")
  }

  @Test("VFIO's modules and miscellaneous devices are there") func modules() throws {
    let tree = try Tree(try view())
    for module in ["vfio", "vfio_pci", "vfio_iommu_type1", "iommufd"] {
      #expect(try tree.text("/sys/module/\(module)/initstate") == "live\n")
    }
    #expect(
      try tree.text("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode") == "N\n")
    #expect(try tree.text("/sys/class/misc/iommu/dev") == "10:127\n")
    #expect(try tree.real("/sys/dev/char/10:196") == "/sys/devices/virtual/misc/vfio")
  }

  @Test("C3: a device in use by the host has its driver and no node") func hostDriver() throws {
    var machine = MachineDescription.standard
    machine.devices[0].hostDriver = .ioatdma
    machine.devices[1].hostDriver = .none
    let tree = try Tree(try view(of: machine))
    #expect(try tree.real("\(device)/driver") == "/sys/bus/pci/drivers/ioatdma")
    #expect(try tree.text("\(device)/driver_override") == "(null)\n")
    #expect(!(try tree.list(device).contains("vfio-dev")))
    #expect(!(try tree.list("/sys/bus/pci/devices/0000:e1:00.0").contains("driver")))
    #expect(try tree.list("/sys/class/vfio-dev") == ["vfio0"])
    #expect(try tree.list("/sys/class/vfio") == ["1"])
  }
}
