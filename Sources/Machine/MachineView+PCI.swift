// SPDX-License-Identifier: Apache-2.0
//
// sysfs's PCI functions and their drivers: /sys/devices/pciDDDD:BB and /sys/bus/pci.
//
// What is bound to which driver, and the commands that change it: PCIDrivers+Attributes.swift. Of
// the attributes that take commands a device's own `rescan` is left out, and the BARs as files: a
// file that swallows a command, or shows registers that are none, would lie. For the same reason
// `enable` and others that Linux lets root write are read-only.

import Glibc
import IOMMU
import LinuxABI

extension MachineView {
  mutating func addBus() {
    // The host's `rescan` would look for the host's devices.
    builder.directory("/sys/bus/pci", exclusive: true)
    builder.directory("/sys/bus/pci/devices", exclusive: true)
    drivers.addDrivers(to: &builder)
    for device in machine.devices where device.hostDriver.isMediating {
      // Without commands: it is neither bound nor unbound while programs run.
      builder.directory("/sys/bus/pci/drivers/\(device.hostDriver.rawValue)", exclusive: true)
    }
    let devices = machine.devices.map { ($0.address, $0.rootPort) }
    for (address, port) in machine.bridges.map({ ($0.address, nil) }) + devices {
      let root = root(
        of: machine.topology.bridges(above: address).last?.address ?? port ?? address)
      builder.directory(root, exclusive: true)
      builder.attribute("\(root)/uevent", "")
    }
    for port in machine.rootPorts { addPort(port.address, bus: port.bus) }
  }

  /// `/sys/devices/pci0000:e0`.
  private func root(of address: RequesterID) -> String {
    "/sys/devices/pci\(padded(address.segment, 4)):\(padded(address.bus, 2))"
  }

  /// `/sys/devices/pci0000:e0/0000:e0:04.0`; below a bridge or a port, in the directory of that.
  func path(of address: RequesterID) -> String {
    let above =
      machine.topology.bridges(above: address).first?.address
      ?? machine.devices.first { $0.address == address }?.rootPort
    return (above.map { path(of: $0) } ?? root(of: address)) + "/\(address)"
  }

  mutating func addFunction(_ device: DeviceDescription) {
    guard let function = functions[device.address] else { return }
    let path = path(of: device.address)
    let config = ConfigurationSpace(bytes: function.configuration)
    builder.device(path, subsystem: "/sys/bus/pci", uevent: nil)
    builder.link("/sys/bus/pci/devices/\(device.address)", to: path)
    builder.attribute("\(path)/vendor", "0x\(padded(config.vendor, 4))")
    builder.attribute("\(path)/device", "0x\(padded(config.device, 4))")
    builder.attribute("\(path)/subsystem_vendor", "0x\(padded(config.subsystemVendor, 4))")
    builder.attribute("\(path)/subsystem_device", "0x\(padded(config.subsystemDevice, 4))")
    builder.attribute("\(path)/class", "0x\(padded(config.classCode, 6))")
    builder.attribute("\(path)/revision", "0x\(padded(config.revision, 2))")
    builder.attribute("\(path)/modalias", modalias(config))
    drivers.addConfiguration(of: device.address, at: path, to: &builder)
    addResources(path, of: device.address, function)
    addPlacement(path)
    addLink(path, config: config)
    drivers.addRemove(of: device.address, at: path, to: &builder)
    drivers.addOverride(of: "\(device.address)", at: path, to: &builder)
    builder.link("\(path)/iommu_group", to: "/sys/kernel/iommu_groups/\(device.group)")
    builder.link("\(path)/iommu", to: "/sys/devices/virtual/iommu/\(device.iommu)")
  }

  private mutating func addResources(
    _ path: String, of address: RequesterID, _ function: Function
  ) {
    let config = ConfigurationSpace(bytes: function.configuration)
    // Six base addresses, the ROM, and six of virtual functions.
    let resources =
      config.resources(sizes: function.barSizes) + [ConfigurationSpace.Resource()]
      + config.virtualResources(sizes: function.virtualBARSizes)
    let lines = resources.map { resource in
      "0x\(padded(resource.first, 16)) 0x\(padded(resource.last, 16)) "
        + "0x\(padded(resource.flags, 16))"
    }
    builder.attribute("\(path)/resource", lines.joined(separator: "\n"))
    builder.attribute("\(path)/irq", "0")
    builder.attribute("\(path)/enable", "0")
    builder.attribute("\(path)/msi_bus", "1")
    builder.attribute("\(path)/broken_parity_status", "0")
    builder.attribute("\(path)/dma_mask_bits", "32")
    builder.attribute("\(path)/consistent_dma_mask_bits", "32")
    builder.attribute("\(path)/ari_enabled", "0")
    builder.attribute("\(path)/d3cold_allowed", "1")
    builder.attribute("\(path)/power_state", "D0")
    if config.functionLevelReset {
      builder.attribute("\(path)/reset_method", "flr")
      drivers.addReset(of: address, at: path, to: &builder)
    }
  }

  /// No NUMA node, near all processors.
  private mutating func addPlacement(_ path: String) {
    let count = max(1, min(4096, Int(sysconf(Int32(_SC_NPROCESSORS_CONF)))))
    var words = Array(repeating: "ffffffff", count: count / 32)
    if count % 32 > 0 {
      words.insert(padded((UInt64(1) << UInt64(count % 32)) - 1, count < 32 ? 0 : 8), at: 0)
    }
    builder.attribute("\(path)/numa_node", "-1")
    builder.attribute("\(path)/local_cpus", words.joined(separator: ","))
    builder.attribute("\(path)/local_cpulist", count == 1 ? "0" : "0-\(count - 1)")
  }

  private mutating func addLink(_ path: String, config: ConfigurationSpace) {
    guard let link = config.link else { return }
    let speeds = ["Unknown", "2.5", "5.0", "8.0", "16.0", "32.0", "64.0"]
    func speed(_ code: Int) -> String {
      speeds.indices.contains(code) && code > 0 ? "\(speeds[code]) GT/s PCIe" : "Unknown"
    }
    builder.attribute("\(path)/max_link_speed", speed(link.speed))
    builder.attribute("\(path)/max_link_width", "\(link.width)")
    builder.attribute("\(path)/current_link_speed", speed(link.currentSpeed))
    builder.attribute("\(path)/current_link_width", "\(link.currentWidth)")
  }

  /// What a function's events say beside its driver.
  func uevent(_ device: DeviceDescription) -> [String] {
    let config = ConfigurationSpace(bytes: functions[device.address]?.configuration ?? [])
    return [
      "PCI_CLASS=\(String(config.classCode, radix: 16, uppercase: true))",
      "PCI_ID=\(upper(config.vendor)):\(upper(config.device))",
      "PCI_SUBSYS_ID=\(upper(config.subsystemVendor)):\(upper(config.subsystemDevice))",
      "PCI_SLOT_NAME=\(device.address)",
      "MODALIAS=\(modalias(config))",
    ]
  }

  func upper(_ value: UInt16) -> String { padded(value, 4, uppercase: true) }

  /// As `drivers/pci/pci-sysfs.c` writes it for module loading.
  func modalias(_ config: ConfigurationSpace) -> String {
    let code = config.classCode
    return "pci:v\(padded(config.vendor, 8, uppercase: true))"
      + "d\(padded(config.device, 8, uppercase: true))"
      + "sv\(padded(config.subsystemVendor, 8, uppercase: true))"
      + "sd\(padded(config.subsystemDevice, 8, uppercase: true))"
      + "bc\(padded(code >> 16, 2, uppercase: true))"
      + "sc\(padded(code >> 8 & 0xff, 2, uppercase: true))"
      + "i\(padded(code & 0xff, 2, uppercase: true))"
  }
}
