// SPDX-License-Identifier: Apache-2.0
//
// The machine's part of /sys, as Linux 6.12 shows such a machine with its devices bound to
// vfio-pci: what libraries look for to find devices, their groups and their nodes.

import IOMMU
import LinuxABI

/// Makes the view of one machine.
struct MachineView {
  /// What sysfs needs to know of a function beside its description.
  struct Function {
    /// 256 or 4096 bytes.
    var configuration: [UInt8]
    /// In bytes, by base address register; 0 where there is none.
    var barSizes: [UInt64]
    /// The same of the virtual functions that it can have, all together.
    var virtualBARSizes: [UInt64]
    /// What a virtual function's own configuration space is; nil where it is `configuration`.
    var hardware: [UInt8]?
  }

  let machine: MachineDescription
  var functions: [RequesterID: Function]
  /// GET_HW_INFO's data, by IOMMU name.
  let hardware: [String: HardwareInformation]
  /// Of the device nodes, by path.
  let numbers: [String: DeviceNumber]
  /// Whose commands /sys has, and which binds what it shows as bound.
  let drivers: PCIDrivers
  var builder = SysfsBuilder()

  init(
    machine: MachineDescription, functions: [RequesterID: Function],
    hardware: [String: HardwareInformation], numbers: [String: DeviceNumber],
    drivers: PCIDrivers
  ) {
    self.machine = machine
    self.functions = functions
    self.hardware = hardware
    self.numbers = numbers
    self.drivers = drivers
  }

  /// Adds all that does not hang on drivers.
  mutating func addMachine() {
    addBus()
    for bridge in machine.bridges { addBridge(bridge) }
    for device in machine.devices { addFunction(device) }
    addIOMMUs()
    addGroups()
    addClasses()
    addMiscellaneous("iommu", node: "iommu")
    addMiscellaneous("ioasid", node: "ioasid")
    addMiscellaneous("vfio", node: "vfio/vfio")
    addModules()
  }

  // MARK: IOMMUs and groups

  private mutating func addIOMMUs() {
    builder.directory("/sys/class/iommu", exclusive: true)
    builder.directory("/sys/devices/virtual/iommu", exclusive: true)
    for iommu in machine.iommus {
      let path = "/sys/devices/virtual/iommu/\(iommu.name)"
      builder.device(path, subsystem: "/sys/class/iommu", uevent: [])
      builder.link("/sys/class/iommu/\(iommu.name)", to: path)
      builder.directory("\(path)/devices")
      for address in machine.addresses(behind: iommu) {
        builder.link("\(path)/devices/\(address)", to: self.path(of: address))
      }
      addRegisters(path, iommu)
    }
  }

  /// The registers that Linux shows of an IOMMU, from what GET_HW_INFO says.
  private mutating func addRegisters(_ path: String, _ iommu: IOMMUDescription) {
    let data = hardware[iommu.name]?.data ?? []
    func register(at offset: Int) -> UInt64 {
      guard data.count >= offset + 8 else { return 0 }
      return (0..<8).reduce(0) { $0 | UInt64(data[offset + $1]) << UInt64(8 * $1) }
    }
    switch iommu.kind {
    case .intel:
      // struct iommu_hw_info_vtd: flags, reserved, cap_reg, ecap_reg.
      let number = machine.iommus.firstIndex(of: iommu) ?? 0
      let domains = UInt64(1) << (4 + 2 * (register(at: 8) & 7))
      builder.attribute("\(path)/intel-iommu/cap", String(register(at: 8), radix: 16))
      builder.attribute("\(path)/intel-iommu/ecap", String(register(at: 16), radix: 16))
      builder.attribute("\(path)/intel-iommu/version", "1:0")
      builder.attribute(
        "\(path)/intel-iommu/address", String(0xfed9_0000 + 0x1000 * number, radix: 16))
      builder.attribute("\(path)/intel-iommu/domains_supported", String(domains))
      builder.attribute("\(path)/intel-iommu/domains_used", "1")
    case .amd:
      // struct iommu_hw_info_amd: efr, efr2. The capability's header (48882, 3.2.1): bit 24,
      // IotlbSup, is whether devices may keep translations.
      builder.attribute(
        "\(path)/amd-iommu/cap", iommu.pageRequests ? "190b640f" : "180b640f")
      builder.attribute(
        "\(path)/amd-iommu/features",
        "\(String(register(at: 0), radix: 16)):\(String(register(at: 8), radix: 16))")
    // Linux's drivers of these have no attributes.
    case .smmuV3, .riscv: break
    }
  }

  private mutating func addGroups() {
    builder.directory("/sys/kernel/iommu_groups", exclusive: true)
    for group in machine.groups { addGroup(group) }
  }

  mutating func addGroup(_ group: GroupDescription) {
    let regions = machine.reservedRegions.map { region in
      "0x\(padded(region.range.lowerBound, 16)) 0x\(padded(region.range.upperBound, 16)) "
        + region.kind.rawValue
    }
    let path = "/sys/kernel/iommu_groups/\(group.number)"
    builder.directory("\(path)/devices")
    for address in group.bridges + group.devices {
      builder.link("\(path)/devices/\(address)", to: self.path(of: address))
    }
    builder.attribute("\(path)/reserved_regions", regions.joined(separator: "\n"))
    builder.attribute("\(path)/type", "DMA")
  }

  // MARK: Nodes

  /// Where vfio-pci's devices and groups come.
  private mutating func addClasses() {
    builder.directory("/sys/class/vfio-dev", exclusive: true)
    builder.directory("/sys/class/vfio", exclusive: true)
    builder.directory("/sys/devices/virtual/vfio", exclusive: true)
  }

  private mutating func addMiscellaneous(_ name: String, node: String) {
    guard let number = numbers["/dev/\(node)"] else { return }
    let path = "/sys/devices/virtual/misc/\(name)"
    builder.node(path, subsystem: "/sys/class/misc", number: number, name: node)
    builder.link("/sys/class/misc/\(name)", to: path)
  }

  // MARK: Modules

  /// The modules whose directories programs take as "VFIO is there".
  private mutating func addModules() {
    let modules: [(name: String, parameters: [(String, String)])] = [
      ("iommufd", []),
      ("vfio", [("enable_unsafe_noiommu_mode", "N")]),
      (
        "vfio_iommu_type1",
        [
          ("allow_unsafe_interrupts", "N"), ("disable_hugepages", "N"),
          ("dma_entry_limit", "65535"),
        ]
      ),
      (
        "vfio_pci",
        [
          ("disable_idle_d3", "N"), ("disable_vga", "N"), ("enable_sriov", "Y"),
          ("nointxmask", "N"),
        ]
      ),
      ("vfio_pci_core", []),
    ]
    for module in modules {
      let path = "/sys/module/\(module.name)"
      builder.directory(path, exclusive: true)
      builder.attribute("\(path)/initstate", "live")
      builder.attribute("\(path)/refcnt", "0")
      for (name, value) in module.parameters {
        builder.attribute("\(path)/parameters/\(name)", value)
      }
    }
    builder.link(
      "/sys/module/vfio_pci/drivers/pci:vfio-pci", to: "/sys/bus/pci/drivers/vfio-pci")
  }
}
