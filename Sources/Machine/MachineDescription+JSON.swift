// SPDX-License-Identifier: Apache-2.0
//
// A machine for other programs: JSON for scripts, DOT for pictures.

import IOMMU

extension MachineDescription {
  /// The machine as one JSON object. Addresses are strings in hexadecimal, as JSON's numbers
  /// do not hold 64 bits.
  public var json: String {
    let machine = JSON.object([
      ("name", .string(name)),
      ("iommus", .array(iommus.map(\.json))),
      ("groups", .array(groups.map(json))),
      ("bridges", .array(bridges.map(\.json))),
      ("devices", .array(devices.map(json))),
      ("reserved", .array(reservedRegions.map(json))),
      ("virtual-machines", .boolean(virtualMachines)),
    ])
    return machine.text(indent: 0) + "\n"
  }

  private func json(_ group: GroupDescription) -> JSON {
    .object([
      ("number", .number(Int(group.number))),
      ("node", groupPath(of: group).map(JSON.string) ?? .null),
      ("devices", .array(group.devices.map { .string("\($0)") })),
      ("bridges", .array(group.bridges.map { .string("\($0)") })),
    ])
  }

  private func json(_ device: DeviceDescription) -> JSON {
    var fields: [(String, JSON)] = [
      ("address", .string("\(device.address)")),
      ("model", .string(device.model.name)),
      ("requester", .string("\(requester(of: device))")),
      ("group", .number(Int(device.group))),
      ("subgroup", .number(device.subgroup)),
      ("acs", .boolean(device.acs)),
      ("iommu", .string(device.iommu)),
      ("host-driver", .string(device.hostDriver.rawValue)),
      ("no-snoop", .boolean(device.noSnoop)),
      ("ats", .boolean(device.services.ats)),
      ("page-requests", .boolean(device.services.pageRequests)),
      (
        "pasid-kind",
        .number(
          Int(device.kind(pasidBits: iommu(named: device.iommu)?.pasidBits ?? 0).rawValue)
        )
      ),
      ("root-port", device.rootPort.map { JSON.string("\($0)") } ?? .null),
      ("virtual-functions", .number(device.virtualFunctions)),
      ("enabled-functions", .number(device.enabledFunctions)),
      ("node", devicePath(of: device).map(JSON.string) ?? .null),
    ]
    switch device.model {
    case .copyEngine(let engine):
      fields += [
        ("version", .string(hexText(engine.version))), ("fill", .boolean(engine.fill)),
        ("local-memory", .number(Int(clamping: engine.localMemory))),
      ]
      if device.hostDriver == .mediated { fields.append(("slices", .number(engine.slices))) }
    case .workQueue(let queue):
      fields += [("mode", .string(queue.mode.rawValue)), ("depth", .number(queue.depth))]
      if device.hostDriver == .mediatedQueue {
        fields.append(("slices", .number(queue.slices)))
      }
    case .nvme(let controller):
      fields += [
        ("serial", .string(controller.serial)), ("model-name", .string(controller.modelName)),
        ("queues", .number(controller.queues)),
        ("queue-entries", .number(controller.queueEntries)),
        ("mdts", .number(Int(controller.transferLimit))),
        (
          "namespaces",
          .array(
            controller.namespaces.map { namespace in
              .object([
                ("file", namespace.file.map(JSON.string) ?? .null),
                ("size", namespace.size.map { .number(Int(clamping: $0)) } ?? .null),
                ("block-size", .number(namespace.blockSize)),
                ("read-only", .boolean(namespace.isReadOnly)),
                ("shared", .boolean(namespace.isShared)),
              ])
            })
        ),
      ]
    }
    return .object(fields)
  }

  private func json(_ region: ReservedRegion) -> JSON {
    .object([
      ("first", .string(hexText(region.range.lowerBound))),
      ("last", .string(hexText(region.range.upperBound))),
      ("kind", .string(region.kind.rawValue)),
    ])
  }

  /// The machine as a graph, for `dot -Tsvg`.
  public var dot: String {
    var lines = [
      "digraph machine {",
      "  rankdir=LR; compound=true; fontname=\"sans-serif\"; label=\(quoted(name));",
      "  node [shape=box, style=rounded, fontname=\"sans-serif\"];",
      "  memory [label=\"memory\", shape=cylinder];",
    ]
    for iommu in iommus {
      lines.append(
        "  \(quoted(iommu.name)) [label=\(quoted("\(iommu.name)\n\(iommu.summary)")), "
          + "shape=component];")
      lines.append("  \(quoted(iommu.name)) -> memory;")
    }
    for group in groups {
      lines.append("  subgraph cluster_\(group.number) {")
      lines.append("    label=\"group \(group.number)\"; style=dashed;")
      for bridge in bridges where bridge.group == group.number {
        let label = "\(bridge.address)\n\(bridge.summary)\n\(bridge.hostDriver.rawValue)"
        lines.append("    \(quoted("\(bridge.address)")) [label=\(quoted(label))];")
      }
      for device in devices where device.group == group.number {
        let label =
          "\(device.address)\n\(device.model.summary)\n"
          + (devicePath(of: device) ?? device.hostDriver.rawValue)
        lines.append("    \(quoted("\(device.address)")) [label=\(quoted(label))];")
      }
      lines.append("  }")
    }
    for (address, iommu) in bridges.map({ ($0.address, $0.iommu) })
      + devices.map({ ($0.address, $0.iommu) })
    {
      let above = topology.bridge(above: address).map { "\($0.address)" } ?? iommu
      lines.append("  \(quoted("\(address)")) -> \(quoted(above));")
    }
    return (lines + ["}"]).joined(separator: "\n") + "\n"
  }
}

extension BridgeDescription {
  fileprivate var json: JSON {
    .object([
      ("address", .string("\(address)")),
      ("bus", .string(hexText(bus))),
      ("kind", .string(kind.rawValue)),
      ("acs", .boolean(acs)),
      ("group", .number(Int(group))),
      ("iommu", .string(iommu)),
      ("host-driver", .string(hostDriver.rawValue)),
    ])
  }
}

extension IOMMUDescription {
  fileprivate var json: JSON {
    .object([
      ("name", .string(name)),
      ("kind", .string(kind.rawValue)),
      ("stage", .string(stage.rawValue)),
      ("levels", .number(levels)),
      ("address-width", .number(addressWidth)),
      ("pasid-bits", .number(pasidBits)),
      ("nesting", .boolean(nesting)),
      ("page-requests", .boolean(pageRequests)),
      ("snoop-control", .boolean(snoopControl)),
      (
        "dirty-tracking",
        dirtyTracking == .software ? .string("software") : .boolean(dirtyTracking == .bits)
      ),
    ])
  }
}

/// Just enough JSON to write, with keys in the order given: no Foundation, as its loading
/// alone would take longer than a whole start.
public enum JSON: Sendable {
  case null
  case boolean(Bool)
  case number(Int)
  case string(String)
  case array([JSON])
  case object([(String, JSON)])

  /// The value, several lines where it is a container.
  /// - Parameter indent: Columns by which further lines are moved.
  public func text(indent: Int) -> String {
    let inner = String(repeating: " ", count: indent + 2)
    let outer = String(repeating: " ", count: indent)
    switch self {
    case .null: return "null"
    case .boolean(let value): return value ? "true" : "false"
    case .number(let value): return String(value)
    case .string(let value): return quoted(value)
    case .array(let values):
      if values.isEmpty { return "[]" }
      let lines = values.map { inner + $0.text(indent: indent + 2) }
      return "[\n" + lines.joined(separator: ",\n") + "\n\(outer)]"
    case .object(let fields):
      if fields.isEmpty { return "{}" }
      let lines = fields.map { "\(inner)\(quoted($0.0)): \($0.1.text(indent: indent + 2))" }
      return "{\n" + lines.joined(separator: ",\n") + "\n\(outer)}"
    }
  }
}
