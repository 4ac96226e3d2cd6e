// SPDX-License-Identifier: Apache-2.0
//
// A machine as the file that would make it: for `iommu machine --yaml`, from which a user
// starts. Written by hand so that numbers keep their notation and the comments teach.

import IOMMU
import SoftDevices

extension MachineDescription {
  /// A machine file that reads back as this machine.
  public var yaml: String {
    var lines = [
      "# A machine for `iommu run --machine FILE -- PROGRAM`.",
      "name: \(quoted(name))",
      "",
      "# What devices' addresses are translated by. kind: intel, amd, smmuv3 or riscv. stage: first",
      "# or second, of the tables that map calls fill (left out, as Linux chooses: second of intel",
      "# and amd). 3, 4 or 5 levels are 39, 48 or 57 bits; amd has 6, 64 bits, too; smmuv3 has no",
      "# levels, and 32, 36, 40, 42, 44 or 48 bits. nesting: whether users' own tables go on top.",
      "iommus:",
    ]
    lines += iommus.flatMap(Self.lines)
    lines += [
      "",
      "# Ports and bridges, each with the bus below it. kind: port, pcie-to-pci or pci (the latter",
      "# put a requester id of their own on what passes). host-driver: pcieport, pci-stub, none, or",
      "# shpchp (in use by the host: its group cannot be taken).",
      bridges.isEmpty ? "bridges: []" : "bridges:",
    ]
    lines += bridges.flatMap(Self.lines)
    lines += [
      "",
      "# Devices with one group number cannot be isolated from each other: functions of one device",
      "# without acs, what is below a port without acs or a bridge. With another subgroup a device",
      "# may be in another address space. host-driver: vfio-pci (offered to programs), none,",
      "# pci-stub, ioatdma (in use by the host: its group cannot be taken), ioat-mdev or wq-mdev (as",
      "# ioatdma, and programs make slices of it: /sys/class/mdev_bus).",
      "# Devices with one root-port are on the bus below it, and a hot reset resets them together.",
      devices.isEmpty ? "devices: []" : "devices:",
    ]
    lines += devices.flatMap(Self.lines)
    lines += [
      "",
      "# Addresses that nothing can be mapped at, first and last inclusive; beside the window",
      "# 0xfee00000 to 0xfeefffff, where interrupts go. kind: reserved, or direct (the host's own).",
      reserved.isEmpty ? "reserved: []" : "reserved:",
    ]
    for region in reserved {
      lines += [
        "  - first: \(hexText(region.range.lowerBound))",
        "    last: \(hexText(region.range.upperBound))",
        "    kind: \(region.kind.rawValue)",
      ]
    }
    lines += [
      "",
      "# Whether /dev/kvm makes VMs for DMA, which run no guest; otherwise it is the host's.",
      "virtual-machines: \(virtualMachines)",
    ]
    return lines.joined(separator: "\n") + "\n"
  }

  private static func lines(_ iommu: IOMMUDescription) -> [String] {
    [
      "  - name: \(iommu.name)",
      "    kind: \(iommu.kind.rawValue)",
      "    stage: \(iommu.stage.rawValue)",
    ]
      + (iommu.kind == .smmuV3 ? [] : ["    levels: \(iommu.levels)"])
      + [
        "    address-width: \(iommu.addressWidth)",
        "    pasid-bits: \(iommu.pasidBits)",
        "    nesting: \(iommu.nesting)",
        "    page-requests: \(iommu.pageRequests)",
        "    snoop-control: \(iommu.snoopControl)",
        "    dirty-tracking: \(iommu.dirtyTracking.word)",
      ]
  }

  private static func lines(_ bridge: BridgeDescription) -> [String] {
    [
      "  - address: \(bridge.address)",
      "    bus: \(hexText(bridge.bus))",
      "    kind: \(bridge.kind.rawValue)",
      "    group: \(bridge.group)",
      "    iommu: \(bridge.iommu)",
      "    host-driver: \(bridge.hostDriver.rawValue)",
    ] + (bridge.kind == .port ? ["    acs: \(bridge.acs)"] : [])
  }

  private static func lines(_ device: DeviceDescription) -> [String] {
    var lines = [
      "  - model: \(device.model.name)",
      "    address: \(device.address)",
      "    group: \(device.group)",
      "    subgroup: \(device.subgroup)",
      "    acs: \(device.acs)",
      "    iommu: \(device.iommu)",
      "    host-driver: \(device.hostDriver.rawValue)",
      "    no-snoop: \(device.noSnoop)",
    ]
    let services = device.services
    if services.ats { lines.append("    ats: true") }
    if services.pageRequests { lines.append("    page-requests: true") }
    if services.pagesPerGroup > 1 {
      lines.append("    pages-per-group: \(services.pagesPerGroup)")
    }
    if let pasids = device.pasids { lines.append("    pasids: \(pasids.rawValue)") }
    if let port = device.rootPort { lines.append("    root-port: \(port)") }
    if device.virtualFunctions > 0 {
      lines += [
        "    virtual-functions: \(device.virtualFunctions)",
        "    enabled-functions: \(device.enabledFunctions)",
      ]
    }
    switch device.model {
    case .copyEngine(let engine):
      lines += ["    version: \(hexText(engine.version))", "    fill: \(engine.fill)"]
      if engine.localMemory > 0 {
        lines.append("    local-memory: \(sizeText(engine.localMemory))")
      }
      if device.hostDriver == .mediated { lines.append("    slices: \(engine.slices)") }
    case .workQueue(let queue):
      lines += ["    mode: \(queue.mode.rawValue)", "    depth: \(queue.depth)"]
      if device.hostDriver == .mediatedQueue { lines.append("    slices: \(queue.slices)") }
    case .nvme(let controller): lines += Self.lines(controller)
    }
    return lines
  }

  private static func lines(_ controller: NVMeConfiguration) -> [String] {
    var lines = [
      "    serial: \(quoted(controller.serial))",
      "    model-name: \(quoted(controller.modelName))",
      "    queues: \(controller.queues)",
      "    queue-entries: \(controller.queueEntries)",
      "    mdts: \(controller.transferLimit)",
      "    vendor-id: \(hexText(controller.vendor))",
      "    device-id: \(hexText(controller.device))",
      controller.namespaces.isEmpty ? "    namespaces: []" : "    namespaces:",
    ]
    for namespace in controller.namespaces {
      var keys: [String] = []
      if let file = namespace.file { keys.append("file: \(quoted(file))") }
      if let size = namespace.size { keys.append("size: \(sizeText(size))") }
      keys += ["block-size: \(namespace.blockSize)", "read-only: \(namespace.isReadOnly)"]
      if namespace.isShared { keys.append("shared: true") }
      lines += zip(["- "] + Array(repeating: "  ", count: keys.count), keys).map {
        "      \($0)\($1)"
      }
    }
    return lines
  }
}

/// A double-quoted string, as YAML and JSON both read it.
func quoted(_ text: String) -> String {
  var result = "\""
  for scalar in text.unicodeScalars {
    switch scalar {
    case "\"": result += "\\\""
    case "\\": result += "\\\\"
    case "\n": result += "\\n"
    case "\t": result += "\\t"
    case _
    where scalar.value < 0x20 || (0x7f...0xa0).contains(scalar.value)
      || scalar.value == 0x2028 || scalar.value == 0x2029:
      let digits = String(scalar.value, radix: 16)
      result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
    default: result.unicodeScalars.append(scalar)
    }
  }
  return result + "\""
}
