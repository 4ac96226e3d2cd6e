// SPDX-License-Identifier: Apache-2.0
//
// The machine file's schema: from YAML nodes to a consistent description, or to all the
// problems that it has.

import IOMMU
import Yams

extension MachineDescription {
  /// Reads a machine file.
  /// - Parameter path: `-` is standard input.
  /// - Throws: `MachineFileError` with every problem found.
  public init(path: String) throws(MachineFileError) {
    self = try MachineParser(text: MachineText(path: path)).machine()
  }

  /// Reads a machine from the bytes of a file.
  /// - Parameter file: What messages call it.
  /// - Throws: `MachineFileError` with every problem found.
  public init(file: String, bytes: [UInt8]) throws(MachineFileError) {
    self = try MachineParser(text: MachineText(file: file, bytes: bytes)).machine()
  }
}

/// One reading of one file.
struct MachineParser {
  let reader: MachineReader

  /// More of anything is a mistake, and would only slow every start.
  static let iommuLimit = 16
  static let bridgeLimit = 64
  static let deviceLimit = 256
  static let reservedLimit = 64

  init(text: MachineText) { reader = MachineReader(text: text) }

  func machine() throws(MachineFileError) -> MachineDescription {
    let root = try reader.root()
    guard
      let fields = reader.fields(
        of: root, what: "a machine",
        known: ["name", "iommus", "bridges", "devices", "reserved", "virtual-machines"],
        required: ["iommus", "devices"])
    else {
      try reader.finish()
      return .standard
    }
    let iommus = iommus(fields["iommus"])
    var addresses: [RequesterID: Int] = [:]
    var bridges = bridges(fields["bridges"], iommus: iommus, addresses: &addresses)
    var devices = devices(fields["devices"], iommus: iommus, addresses: &addresses)
    number(&bridges, &devices)
    checkVirtualFunctions(of: devices, below: bridges.map(\.value))
    let machine = MachineDescription(
      name: fields["name"].flatMap(title) ?? "machine",
      iommus: iommus, bridges: bridges.map(\.value), devices: devices.map(\.value),
      reserved: reserved(fields["reserved"]),
      virtualMachines: fields["virtual-machines"].flatMap(reader.flag) ?? false)
    try reader.finish()
    return machine
  }

  private func title(_ node: Node) -> String? {
    guard let name = reader.word(node, expected: "a name") else { return nil }
    if name.isEmpty || name.count > 100 || name.contains(where: \.isNewline) {
      reader.report(
        node, "found a name of \(name.count) characters, expected one line of 1 to 100")
    }
    return name
  }

  // MARK: Devices

  private func devices(
    _ node: Node?, iommus: [IOMMUDescription], addresses: inout [RequesterID: Int]
  ) -> [Placed<DeviceDescription>] {
    guard let node else { return [] }
    var devices: [Placed<DeviceDescription>] = []
    for item in reader.items(of: node, what: "devices", limit: Self.deviceLimit) {
      guard let device = device(item, iommus: iommus),
        isNew(device.value.address, of: item, in: &addresses)
      else { continue }
      devices.append(device)
    }
    checkPorts(of: devices.map { ReadDevice(device: $0.value, node: $0.node) })
    return devices
  }

  /// Whether no device or bridge before had the address.
  func isNew(
    _ address: RequesterID, of item: Node, in addresses: inout [RequesterID: Int]
  ) -> Bool {
    let node = item.mapping?["address"] ?? item
    if let line = addresses[address] {
      reader.report(
        node, "found \(address) again, expected each address once (first on line \(line))")
      return false
    }
    addresses[address] = node.mark?.line ?? 0
    return true
  }

  private func device(
    _ node: Node, iommus: [IOMMUDescription]
  ) -> Placed<DeviceDescription>? {
    let common =
      [
        "model", "address", "group", "subgroup", "acs", "iommu", "host-driver", "no-snoop",
        "root-port", "virtual-functions", "enabled-functions", "pasids",
      ] + Self.serviceKeys
    let models = [
      "copy-engine": ["version", "fill", "local-memory", "slices"],
      "work-queue": ["mode", "depth", "slices"],
      "nvme": Self.nvmeKeys,
    ]
    let model = node.mapping?["model"]?.scalar?.string
    let parameters =
      model.flatMap { models[$0] } ?? models.values.flatMap { $0 }.sorted()
    guard
      let fields = reader.fields(
        of: node, what: "a device", known: common + parameters,
        required: ["model", "address"])
    else { return nil }
    let behind = iommu(of: fields, iommus: iommus)
    let driver =
      fields["host-driver"].map {
        reader.choice(
          $0, "what the host bound to it", of: DeviceDescription.HostDriver.self)
      } ?? .vfio
    let parts: DeviceDescription.Model =
      switch model {
      case "work-queue": .workQueue(workQueue(fields, driver: driver))
      case "nvme": .nvme(nvme(fields))
      default: .copyEngine(copyEngine(fields, driver: driver))
      }
    if let driver { checkDriver(fields, driver, drives: parts) }
    let group = group(of: fields)
    let subgroup = fields["subgroup"].flatMap {
      reader.number($0, "a sub-group number", in: 0...0xff)
    }
    let acs = fields["acs"].flatMap(reader.flag) ?? false
    let address = fields["address"].flatMap(requester)
    let port = fields["root-port"].flatMap(requester)
    let virtual = virtualFunctions(fields)
    if case .nvme = parts, virtual.total > 0, let node = fields["virtual-functions"] {
      reader.report(
        node,
        "found virtual functions of an NVMe controller, expected none: it has its namespaces "
          + "to itself")
    }
    guard let node = fields["model"], knownModel(node, of: Array(models.keys)),
      let address, let behind, let driver
    else { return nil }
    let unit = iommus.first { $0.name == behind }
    let pasids = self.pasids(fields, parts, behind: unit)
    let services = self.services(fields, driver: driver, behind: unit)
    return Placed(
      value: DeviceDescription(
        model: parts, address: address, group: group ?? 0,
        subgroup: Int(subgroup ?? 0), acs: acs, iommu: behind, hostDriver: driver,
        noSnoop: fields["no-snoop"].flatMap(reader.flag) ?? false, rootPort: port,
        virtualFunctions: virtual.total, enabledFunctions: virtual.enabled, pasids: pasids,
        services: services),
      group: group, node: fields.node)
  }

  private func knownModel(_ node: Node, of models: [String]) -> Bool {
    let expected = "a device model: \(models.sorted().joined(separator: ", "))"
    guard let word = reader.word(node, expected: expected) else { return false }
    if models.contains(word) { return true }
    reader.report(node, reader.unknown(word, expected: expected, of: models))
    return false
  }

  /// The IOMMU that a device names, or the only one there is.
  func iommu(
    of fields: MachineReader.Fields, iommus: [IOMMUDescription]
  ) -> String? {
    let faulty = reader.faultyIOMMUs
    let names = iommus.map(\.name) + faulty.subtracting([""]).sorted()
    guard let node = fields["iommu"] else {
      if names.count > 1 {
        reader.report(
          fields.node,
          "found a device without 'iommu', expected one of \(names.joined(separator: ", "))")
      }
      return iommus.first?.name
    }
    let expected = "the name of an IOMMU: \(names.joined(separator: ", "))"
    guard let word = reader.word(node, expected: expected) else { return nil }
    if names.contains(word) { return word }
    // Where the IOMMUs themselves are wrong, their errors say it all.
    if !iommus.isEmpty, !faulty.contains("") {
      reader.report(node, reader.unknown(word, expected: expected, of: names))
    }
    return nil
  }

  func requester(_ node: Node) -> RequesterID? {
    let expected = "a PCI address like 0000:e0:04.0 (segment:bus:device.function, hexadecimal)"
    guard let word = reader.word(node, expected: expected) else { return nil }
    if let address = RequesterID(word) { return address }
    let parts = word.split(separator: ":", omittingEmptySubsequences: false)
    if let slot = parts.last?.split(separator: "."), slot.count == 2, parts.count > 1,
      let device = Int(slot[0], radix: 16), let function = Int(slot[1], radix: 16),
      device > 31 || function > 7
    {
      reader.report(
        node,
        "found '\(word)', expected a device number up to 1f and a function up to 7: \(expected)"
      )
    } else {
      reader.report(node, "found \(reader.describe(node)), expected \(expected)")
    }
    return nil
  }

  private func copyEngine(
    _ fields: MachineReader.Fields, driver: DeviceDescription.HostDriver?
  ) -> CopyEngineDescription {
    var engine = CopyEngineDescription()
    if let node = fields["version"],
      let version = reader.number(node, "a version", in: 0x32...0x34, hexadecimal: true)
    {
      engine.version = UInt8(truncatingIfNeeded: version)
    }
    if let node = fields["fill"], let fill = reader.flag(node) { engine.fill = fill }
    if let node = fields["local-memory"] {
      let size = reader.size(node, "a size", in: 4096...1 << 30)
      if let size, size.nonzeroBitCount != 1 {
        reader.report(
          node, "found \(sizeText(size)), expected a power of two, as a BAR's size is")
      }
      engine.localMemory = size ?? 0
    }
    if let node = fields["slices"],
      let slices = reader.number(node, "a number of slices", in: 1...64)
    {
      engine.slices = Int(slices)
      checkShared(node, driver, by: .mediated)
    }
    return engine
  }

  // MARK: Reserved ranges

  private enum ReservedKind: String, CaseIterable {
    case reserved, direct
  }

  private func reserved(_ node: Node?) -> [ReservedRegion] {
    guard let node else { return [] }
    return reader.items(of: node, what: "reserved ranges", limit: Self.reservedLimit).compactMap
    {
      item in
      let any: ClosedRange<UInt64> = 0...UInt64.max
      guard
        let fields = reader.fields(
          of: item, what: "a reserved range", known: ["first", "last", "kind"],
          required: ["first", "last"]),
        let start = fields["first"],
        let first = reader.number(start, "an address", in: any, hexadecimal: true),
        let end = fields["last"],
        let last = reader.number(end, "an address", in: any, hexadecimal: true)
      else { return nil }
      let kind = fields["kind"].map {
        reader.choice($0, "a kind of range", of: ReservedKind.self)
      }
      guard first <= last else {
        reader.report(
          end, "found \(hexText(last)), expected an address of at least \(hexText(first))")
        return nil
      }
      return ReservedRegion(
        first...last, kind: (kind ?? .reserved) == .direct ? .direct : .reserved)
    }
  }
}
