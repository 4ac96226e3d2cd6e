// SPDX-License-Identifier: Apache-2.0
//
// Root ports in /sys: what is above devices that are not on a root bus. Their configuration space
// is made here, as nobody accesses it otherwise.

import IOMMU

extension MachineView {
  /// A root port with the host's pcieport driver, as programs that walk the tree find it.
  mutating func addPort(_ port: RequesterID, bus: UInt8) {
    let path = path(of: port)
    let config = Self.configuration(of: port, below: bus)
    builder.directory("/sys/bus/pci/drivers/pcieport", exclusive: true)
    builder.device(
      path, subsystem: "/sys/bus/pci",
      uevent: [
        "DRIVER=pcieport", "PCI_CLASS=60400", "PCI_ID=8086:2030", "PCI_SUBSYS_ID=0000:0000",
        "PCI_SLOT_NAME=\(port)",
        "MODALIAS=pci:v00008086d00002030sv00000000sd00000000bc06sc04i00",
      ])
    builder.link("/sys/bus/pci/devices/\(port)", to: path)
    builder.link("\(path)/driver", to: "/sys/bus/pci/drivers/pcieport")
    builder.link("/sys/bus/pci/drivers/pcieport/\(port)", to: path)
    for (name, value) in [
      ("vendor", "0x8086"), ("device", "0x2030"), ("subsystem_vendor", "0x0000"),
      ("subsystem_device", "0x0000"), ("class", "0x060400"), ("revision", "0x04"),
      ("modalias", "pci:v00008086d00002030sv00000000sd00000000bc06sc04i00"), ("irq", "0"),
      ("secondary_bus_number", "\(bus)"), ("subordinate_bus_number", "\(bus)"),
    ] { builder.attribute("\(path)/\(name)", value) }
    // Six base addresses, the ROM and four windows: 17 lines with those of virtual functions.
    let empty = Array(repeating: "0x0000000000000000", count: 3).joined(separator: " ")
    builder.attribute(
      "\(path)/resource", Array(repeating: empty, count: 17).joined(separator: "\n"))
    builder.bytes("\(path)/config", config)
  }

  /// A type 1 header and the PCI Express capability of a root port.
  private static func configuration(of port: RequesterID, below bus: UInt8) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 256)
    func put(_ values: [UInt8], at offset: Int) {
      bytes.replaceSubrange(offset..<offset + values.count, with: values)
    }
    put([0x86, 0x80, 0x30, 0x20], at: 0x00)
    // Memory and bus mastering on; a list of capabilities.
    put([0x06, 0x00, 0x10, 0x00], at: 0x04)
    put([0x04, 0x00, 0x04, 0x06], at: 0x08)
    put([0x01], at: 0x0e)
    put([port.bus, bus, bus], at: 0x18)
    put([0x90], at: 0x34)
    // Version 2, root port; link of 16 GT/s and 16 lanes, trained.
    put([0x10, 0x00, 0x42, 0x00], at: 0x90)
    put([0x04, 0x01], at: 0x9c)
    put([0x04, 0x11], at: 0xa2)
    return bytes
  }
}
