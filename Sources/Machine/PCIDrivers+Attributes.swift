// SPDX-License-Identifier: Apache-2.0
//
// The commands of /sys/bus/pci: bind, unbind, new_id and remove_id of each driver, driver_override
// and reset of each device, drivers_probe of the bus; and what of /sys comes and goes with a driver.

import IOMMU
import LinuxABI
import SystemPackage
import VFIO

/// `config`, asked of the function that is there now.
private final class ConfigurationFile: BinaryAttribute {
  let mode: UInt16 = 0o644
  private let function: @Sendable () throws(IOMMUError) -> PCIFunction

  init(_ function: @escaping @Sendable () throws(IOMMUError) -> PCIFunction) {
    self.function = function
  }

  func read() throws(IOMMUError) -> [UInt8] { try function().hostConfiguration }

  func write(_ bytes: [UInt8], at offset: Int) throws(IOMMUError) {
    try function().writeHostConfiguration(bytes, at: offset)
  }
}

extension PCIDrivers {
  /// The directories of the drivers and the bus's own commands.
  func addDrivers(to builder: inout SysfsBuilder) {
    let bus = "/sys/bus/pci"
    builder.attribute(
      "\(bus)/drivers_probe",
      CommandAttribute(store: { [self] (name, _) throws(IOMMUError) in try probe(name) }))
    builder.attribute("\(bus)/drivers_autoprobe", "1")
    builder.attribute(
      "\(bus)/rescan",
      CommandAttribute(store: { [self] (text, _) throws(IOMMUError) in
        guard try Self.flag(text, "rescans") else { return }
        try hotPlug().rescan()
      }))
    for driver in Self.drivers {
      let home = "\(bus)/drivers/\(driver.rawValue)"
      builder.directory(home, exclusive: true)
      if driver == .vfio { builder.link("\(home)/module", to: "/sys/module/vfio_pci") }
      builder.attribute(
        "\(home)/bind",
        CommandAttribute(store: { [self] (name, _) throws(IOMMUError) in
          try bind(name, to: driver)
        }))
      builder.attribute(
        "\(home)/unbind",
        CommandAttribute(store: { [self] (name, _) throws(IOMMUError) in
          try unbind(name, from: driver)
        }))
      builder.attribute(
        "\(home)/new_id",
        CommandAttribute(store: { [self] (text, _) throws(IOMMUError) in
          try add(Self.id(text), to: driver)
        }))
      builder.attribute(
        "\(home)/remove_id",
        CommandAttribute(store: { [self] (text, _) throws(IOMMUError) in
          try remove(Self.id(text), from: driver)
        }))
    }
  }

  private static func id(_ text: String) throws(IOMMUError) -> PCIDeviceID {
    guard let id = PCIDeviceID(text) else {
      throw IOMMUError(
        .invalidArgument,
        "'\(text)' is no id: expected a vendor and a device, such as '8086 0e20'")
    }
    return id
  }

  /// `driver_override` of a device.
  /// - Parameter path: The device's directory.
  func addOverride(of name: String, at path: String, to builder: inout SysfsBuilder) {
    builder.attribute(
      "\(path)/driver_override",
      CommandAttribute(
        show: { [self] () throws(IOMMUError) in try override(of: name) ?? "(null)" },
        store: { [self] (text, _) throws(IOMMUError) in
          guard text.utf8.count < 4095 else {
            throw IOMMUError(
              .invalidArgument, "no driver has a name of \(text.utf8.count) bytes")
          }
          let driver = String(text.prefix { $0 != "\n" })
          try setOverride(driver.isEmpty ? nil : driver, of: name)
        }))
  }

  /// `remove` of a device. Linux waits until nobody has it; here it is EBUSY, and
  /// `iommu ctl remove` waits.
  /// - Parameter path: The device's directory.
  func addRemove(of address: RequesterID, at path: String, to builder: inout SysfsBuilder) {
    let name = "\(address)"
    builder.attribute(
      "\(path)/remove",
      CommandAttribute(store: { [self] (text, _) throws(IOMMUError) in
        guard try Self.flag(text, "removes") else { return }
        try hotPlug().removeAtOnce(name)
      }))
  }

  /// A number; 0 asks for nothing. Linux: `kstrtoul`.
  private static func flag(_ text: String, _ verb: String) throws(IOMMUError) -> Bool {
    guard let number = VirtualFunctions.number(text) else {
      throw IOMMUError(.invalidArgument, "'\(text)' \(verb) nothing: write 1")
    }
    return number != 0
  }

  /// `reset` of a device that can be reset alone.
  /// - Parameter path: The device's directory.
  func addReset(of address: RequesterID, at path: String, to builder: inout SysfsBuilder) {
    let name = "\(address)"
    builder.attribute(
      "\(path)/reset",
      CommandAttribute(store: { [self] (text, _) throws(IOMMUError) in
        guard VirtualFunctions.number(text) == 1 else {
          throw IOMMUError(.invalidArgument, "'\(text)' resets nothing: write 1")
        }
        try reset(name)
      }))
  }

  /// `config` of a device: its registers as they are, whoever has it. Root writes them, for setpci.
  /// - Parameter path: The device's directory.
  func addConfiguration(
    of address: RequesterID, at path: String, to builder: inout SysfsBuilder
  ) {
    let name = "\(address)"
    builder.attribute(
      "\(path)/config",
      ConfigurationFile { [self] () throws(IOMMUError) in
        try state.withLock { (state) throws(IOMMUError) in
          state.devices[try Self.index(of: name, in: state)].function
        }
      })
  }

  /// Resets a device that can be reset alone, whoever uses it. Linux: `reset`, by
  /// `pci_reset_function`: what its user has set up in configuration space stays.
  /// - Throws: `ENODEV` where there is no such device; `EBUSY` where a mediating driver shares
  ///   it out, whose users Linux would reset too.
  public func reset(_ name: String) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      let device = state.devices[try Self.index(of: name, in: state)]
      if let driver = device.driver, driver.isMediating {
        throw IOMMUError(
          .resourceBusy, "\(driver.rawValue) shares \(name) out and keeps it as it is")
      }
      device.function.reset()
    }
  }

  /// What comes with a driver.
  /// - Returns: The nodes that come with it.
  static func appear(
    _ device: Device, _ offer: Offer?, in builder: inout SysfsBuilder
  ) -> [any DeviceNode] {
    var nodes: [any DeviceNode] = []
    if let node = offer?.device {
      let name = "vfio\(node.device.index)"
      let path = "\(device.path)/vfio-dev/\(name)"
      builder.node(
        path, subsystem: "/sys/class/vfio-dev", number: node.number,
        name: "vfio/devices/\(name)")
      builder.link("\(path)/device", to: device.path)
      builder.link("/sys/class/vfio-dev/\(name)", to: path)
      nodes.append(node)
    }
    if let group = offer?.group {
      let name = "\(group.group.group.id)"
      let path = "/sys/devices/virtual/vfio/\(name)"
      builder.node(
        path, subsystem: "/sys/class/vfio", number: group.number, name: "vfio/\(name)")
      builder.link("/sys/class/vfio/\(name)", to: path)
      nodes.append(group)
    }
    if let driver = device.driver {
      let home = "/sys/bus/pci/drivers/\(driver.rawValue)"
      builder.uevent(of: device.path, ["DRIVER=\(driver.rawValue)"] + device.uevent)
      builder.link("\(home)/\(device.name)", to: device.path)
      builder.link("\(device.path)/driver", to: home)
    }
    return nodes
  }

  /// What goes with a driver.
  /// - Parameter device: As it was.
  static func disappearance(of device: Device, isLastOfGroup: Bool) -> View.Change {
    var removed = ["\(device.path)/driver"]
    if let driver = device.driver {
      removed.append("/sys/bus/pci/drivers/\(driver.rawValue)/\(device.name)")
    }
    if let offered = device.offered {
      let node = VFIODeviceNode(device: offered)
      removed += [
        "/sys/class/vfio-dev/vfio\(offered.index)", link(of: node.number),
        "\(device.path)/vfio-dev", node.path,
      ]
      if isLastOfGroup {
        let group = VFIOGroupNode(group: offered.group)
        let name = "\(offered.group.group.id)"
        removed += [
          "/sys/class/vfio/\(name)", link(of: group.number),
          "/sys/devices/virtual/vfio/\(name)", group.path,
        ]
      }
    }
    var builder = SysfsBuilder()
    builder.uevent(of: device.path, device.uevent)
    return View.Change(removed: removed, added: builder.view.entries)
  }

  private static func link(of number: DeviceNumber) -> String {
    "/sys/dev/char/\(number.major):\(number.minor)"
  }
}
