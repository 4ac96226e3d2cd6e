// SPDX-License-Identifier: Apache-2.0
//
// Ports and bridges in /sys: what who walks from a device up to its root bus, or looks into an
// IOMMU group, finds there.

import IOMMU

extension MachineView {
  mutating func addBridge(_ bridge: BridgeDescription) {
    let path = path(of: bridge.address)
    let bytes = configuration(of: bridge)
    let config = ConfigurationSpace(bytes: bytes)
    let alias = modalias(config)
    let driver = bridge.hostDriver == .none ? nil : bridge.hostDriver.rawValue
    builder.device(
      path, subsystem: "/sys/bus/pci",
      uevent: (driver.map { ["DRIVER=\($0)"] } ?? []) + [
        "PCI_CLASS=\(String(config.classCode, radix: 16, uppercase: true))",
        "PCI_ID=\(upper(config.vendor)):\(upper(config.device))",
        "PCI_SUBSYS_ID=0000:0000",
        "PCI_SLOT_NAME=\(bridge.address)",
        "MODALIAS=\(alias)",
      ])
    builder.link("/sys/bus/pci/devices/\(bridge.address)", to: path)
    let attributes = [
      ("vendor", "0x\(padded(config.vendor, 4))"), ("device", "0x\(padded(config.device, 4))"),
      ("class", "0x\(padded(config.classCode, 6))"), ("revision", "0x00"),
      ("subsystem_vendor", "0x0000"), ("subsystem_device", "0x0000"), ("modalias", alias),
      ("secondary_bus_number", "\(bridge.bus)"),
      ("subordinate_bus_number", "\(lastBus(below: bridge))"),
    ]
    for (name, value) in attributes { builder.attribute("\(path)/\(name)", value) }
    builder.bytes("\(path)/config", bytes)
    builder.link("\(path)/iommu_group", to: "/sys/kernel/iommu_groups/\(bridge.group)")
    builder.link("\(path)/iommu", to: "/sys/devices/virtual/iommu/\(bridge.iommu)")
    guard let driver else { return }
    let home = "/sys/bus/pci/drivers/\(driver)"
    builder.directory(home, exclusive: true)
    builder.link("\(path)/driver", to: home)
    builder.link("\(home)/\(bridge.address)", to: path)
  }

  private func lastBus(below bridge: BridgeDescription) -> UInt8 {
    machine.bridges.filter { other in
      machine.topology.bridges(above: other.address).contains { $0.address == bridge.address }
    }.map(\.bus).max() ?? bridge.bus
  }

  /// A header of type 1 (PCI-to-PCI Bridge Architecture, 3.2), and for a port the capability
  /// that says what it is (PCI Express Base, 7.5.3).
  private func configuration(of bridge: BridgeDescription) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 256)
    func put(_ value: UInt16, at offset: Int) {
      bytes[offset] = UInt8(truncatingIfNeeded: value)
      bytes[offset + 1] = UInt8(truncatingIfNeeded: value >> 8)
    }
    let identity: (vendor: UInt16, device: UInt16) =
      switch bridge.kind {
      case .port: (0x8086, 0x2030)
      case .pcieToPCI: (0x10b5, 0x8111)
      case .pci: (0x8086, 0x244e)
      }
    put(identity.vendor, at: 0x00)
    put(identity.device, at: 0x02)
    // Memory and bus mastering are on.
    put(0x0006, at: 0x04)
    put(0x0604, at: 0x0a)
    bytes[0x0e] = 1
    bytes[0x18] = bridge.address.bus
    bytes[0x19] = bridge.bus
    bytes[0x1a] = lastBus(below: bridge)
    guard bridge.kind != .pci else { return bytes }
    // Capabilities list; PCI Express version 2: root port, or a bridge to PCI.
    put(0x0010, at: 0x06)
    bytes[0x34] = 0x40
    bytes[0x40] = 0x10
    let isRoot = machine.topology.bridge(above: bridge.address) == nil
    let type: UInt16 = bridge.kind == .pcieToPCI ? 7 : isRoot ? 4 : 6
    put(2 | type << 4, at: 0x42)
    return bytes
  }
}

extension MachineDescription {
  /// Devices and bridges behind an IOMMU.
  func addresses(behind iommu: IOMMUDescription) -> [RequesterID] {
    bridges.filter { $0.iommu == iommu.name }.map(\.address)
      + devices.filter { $0.iommu == iommu.name }.map(\.address)
  }
}
