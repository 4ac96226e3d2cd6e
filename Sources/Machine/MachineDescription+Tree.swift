// SPDX-License-Identifier: Apache-2.0
//
// A machine as a tree for a person: IOMMUs, the groups behind each, the devices in them.

import IOMMU
import SoftDevices

extension MachineDescription {
  /// The machine, several lines, for `iommu machine`.
  /// - Parameter colour: Whether to emphasize with terminal escapes.
  public func tree(colour: Bool) -> String {
    let style = TerminalStyle(enabled: colour)
    var printer = TreePrinter(lines: ["\(style.bold(name))"])
    for (index, iommu) in iommus.enumerated() {
      let own = groups.filter { group in self.iommu(of: group) == iommu.name }
      printer.add(
        depth: [], last: index == iommus.count - 1,
        "\(style.bold(iommu.name))  \(style.faint(iommu.summary))")
      let below = [index == iommus.count - 1]
      for (position, group) in own.enumerated() {
        let last = position == own.count - 1
        printer.add(depth: below, last: last, line(for: group, style: style))
        let members =
          bridges.filter { group.bridges.contains($0.address) }.map {
            line(for: $0, style: style)
          }
          + devices.filter { group.devices.contains($0.address) }.sorted {
            $0.address < $1.address
          }.map { line(for: $0, style: style) }
        for (place, line) in members.enumerated() {
          printer.add(depth: below + [last], last: place == members.count - 1, line)
        }
      }
      if own.isEmpty { printer.add(depth: below, last: true, style.faint("no devices")) }
    }
    printer.lines.append("reserved addresses")
    for region in reservedRegions {
      let what =
        switch region.kind {
        case .msi: "interrupts are written here"
        case .direct: "mapped for the host"
        case .reserved: "reserved"
        }
      printer.lines.append(
        "   \(hexText(region.range.lowerBound)) to \(hexText(region.range.upperBound))  "
          + style.faint(what))
    }
    return printer.lines.joined(separator: "\n") + "\n"
  }

  /// The IOMMU that a group is behind.
  func iommu(of group: GroupDescription) -> String? {
    devices.first { $0.group == group.number }?.iommu
      ?? bridges.first { $0.group == group.number }?.iommu
  }

  private func line(for group: GroupDescription, style: TerminalStyle) -> String {
    var parts = ["group \(group.number)"]
    if let path = groupPath(of: group) { parts.append(path) }
    let count = group.devices.count + group.bridges.count
    if count > 1 {
      parts.append(style.faint("\(count) devices that cannot be isolated from each other"))
    }
    return parts.joined(separator: "  ")
  }

  private func line(for device: DeviceDescription, style: TerminalStyle) -> String {
    var parts = [style.bold("\(device.address)"), device.model.summary]
    switch device.hostDriver {
    case .vfio: parts.append(devicePath(of: device) ?? "")
    case .none: parts.append(style.faint("no driver"))
    case .stub: parts.append(style.faint("pci-stub"))
    case .ioatdma: parts.append(style.faint("in use by the host: ioatdma"))
    case .mediated, .mediatedQueue:
      let slices =
        switch device.model {
        case .copyEngine(let engine): engine.slices
        case .workQueue(let queue): queue.slices
        case .nvme: 0
        }
      parts.append(
        style.faint("shared by \(device.hostDriver.rawValue): \(slices) slices"))
    }
    if device.virtualFunctions > 0 {
      parts.append(
        "\(device.enabledFunctions) of \(device.virtualFunctions) virtual functions")
    }
    if let port = device.rootPort { parts.append(style.faint("below port \(port)")) }
    switch device.pasids {
    case .delegated?: parts.append(style.faint("PASID table delegated"))
    case DeviceDescription.PASIDUse.none?: parts.append(style.faint("no PASIDs"))
    case .registered?, nil: break
    }
    if device.services.pageRequests {
      parts.append("page requests")
    } else if device.services.ats {
      parts.append("ATS")
    }
    if device.noSnoop { parts.append(style.faint("can skip snooping")) }
    let requester = requester(of: device)
    if requester != device.address { parts.append("DMA as \(requester)") }
    if device.subgroup != 0 { parts.append("sub-group \(device.subgroup)") }
    if device.acs { parts.append(style.faint("ACS")) }
    return parts.joined(separator: "  ")
  }

  private func line(for bridge: BridgeDescription, style: TerminalStyle) -> String {
    var parts = [style.bold("\(bridge.address)"), bridge.summary]
    switch bridge.hostDriver {
    case .pcieport, .stub: parts.append(style.faint(bridge.hostDriver.rawValue))
    case .none: parts.append(style.faint("no driver"))
    case .shpchp: parts.append(style.faint("in use by the host: shpchp"))
    }
    return parts.joined(separator: "  ")
  }
}

extension BridgeDescription {
  /// `PCIe port to bus e1, no ACS`.
  public var summary: String {
    let below = "to bus \(padded(bus, 2))"
    return switch kind {
    case .port: "PCIe port \(below)" + (acs ? "" : ", no ACS")
    case .pcieToPCI: "PCIe to PCI bridge \(below)"
    case .pci: "PCI bridge \(below)"
    }
  }
}

extension IOMMUDescription {
  /// `Intel second stage, 4 levels, 48-bit addresses, snoop control`.
  public var summary: String {
    var parts = [formatName, "\(levels) levels", "\(tableWidth)-bit addresses"]
    if pasidBits > 0 { parts.append("\(pasidBits)-bit PASIDs") }
    if !nesting { parts.append("no nesting") }
    if pageRequests { parts.append("page requests") }
    parts.append(snoopControl ? "snoop control" : "no snoop control")
    switch dirtyTracking {
    case .bits: break
    case .software: parts.append("dirty tracking in software")
    case .none: parts.append("no dirty tracking")
    }
    return parts.joined(separator: ", ")
  }
}

extension DeviceDescription.Model {
  /// `copy engine 3.3, fill`.
  public var summary: String {
    switch self {
    case .copyEngine(let engine):
      "copy engine \(engine.version >> 4).\(engine.version & 15)\(engine.fill ? ", fill" : "")"
        + (engine.localMemory > 0 ? ", \(sizeText(engine.localMemory)) of memory" : "")
    case .workQueue(let queue):
      "work-queue engine, \(queue.mode.rawValue) queue of \(queue.depth)"
    case .nvme(let controller):
      "NVMe controller" + controller.namespaces.map { ", " + $0.summary }.joined()
    }
  }
}

extension NVMeConfiguration.Namespace {
  /// `disk.img (1GiB, read-only)`.
  var summary: String {
    let details =
      (size.map { [sizeText($0)] } ?? []) + (blockSize == 512 ? [] : ["blocks of \(blockSize)"])
      + (isReadOnly ? ["read-only"] : []) + (isShared ? ["shared"] : [])
    return (file ?? "memory")
      + (details.isEmpty ? "" : " (\(details.joined(separator: ", ")))")
  }
}

/// Escapes for a terminal, or none.
struct TerminalStyle {
  let enabled: Bool

  func bold(_ text: String) -> String { enabled ? "\u{1B}[1m\(text)\u{1B}[0m" : text }
  func faint(_ text: String) -> String { enabled ? "\u{1B}[2m\(text)\u{1B}[0m" : text }
}

private struct TreePrinter {
  var lines: [String]

  /// - Parameter depth: For each level above, whether its branch has ended.
  mutating func add(depth: [Bool], last: Bool, _ text: String) {
    let trunk = depth.map { $0 ? "   " : "│  " }.joined()
    lines.append(trunk + (last ? "└─ " : "├─ ") + text)
  }
}
