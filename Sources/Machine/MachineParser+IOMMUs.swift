// SPDX-License-Identifier: Apache-2.0
//
// The machine file's IOMMUs: whose they are, and what they can do.

import Yams

extension MachineParser {
  func iommus(_ node: Node?) -> [IOMMUDescription] {
    guard let node else { return [] }
    let items = reader.items(of: node, what: "IOMMUs", limit: Self.iommuLimit)
    if items.isEmpty, node.sequence != nil, reader.problems.isEmpty {
      reader.report(node, "found an empty list, expected at least one IOMMU")
    }
    var lines: [String: Int] = [:]
    return items.compactMap { item in
      guard let iommu = iommu(item) else { return nil }
      if let line = lines[iommu.name] {
        reader.report(
          item,
          "found a second IOMMU named '\(iommu.name)', expected unique names (line \(line))")
        return nil
      }
      lines[iommu.name] = item.mark?.line ?? 0
      return iommu
    }
  }

  private func iommu(_ node: Node) -> IOMMUDescription? {
    guard
      let fields = reader.fields(
        of: node, what: "an IOMMU",
        known: [
          "name", "kind", "stage", "levels", "address-width", "pasid-bits", "nesting",
          "page-requests", "snoop-control", "dirty-tracking",
        ],
        required: ["name", "kind"])
    else {
      reader.faultyIOMMUs.insert("")
      return nil
    }
    let name = fields["name"].flatMap(fileName)
    guard let name,
      let kind = fields["kind"].flatMap({
        reader.choice($0, "a kind of IOMMU", of: IOMMUDescription.Kind.self)
      })
    else {
      reader.faultyIOMMUs.insert(name ?? "")
      return nil
    }
    let stage =
      fields["stage"].flatMap {
        reader.choice($0, "a stage of translation", of: IOMMUDescription.Stage.self)
      } ?? kind.stage
    let size = tableSize(
      kind, stage, levels: fields["levels"], width: fields["address-width"])
    let pasidBits = fields["pasid-bits"].flatMap {
      reader.number($0, "a width in bits", in: 0...20)
    }
    return IOMMUDescription(
      name: name, kind: kind, stage: stage, levels: size.levels, addressWidth: size.width,
      pasidBits: Int(pasidBits ?? 0),
      nesting: fields["nesting"].flatMap(reader.flag) ?? true,
      pageRequests: fields["page-requests"].flatMap(reader.flag) ?? false,
      snoopControl: fields["snoop-control"].flatMap(reader.flag) ?? true,
      dirtyTracking: fields["dirty-tracking"].flatMap(dirtyTracking) ?? .bits)
  }

  private func dirtyTracking(_ node: Node) -> IOMMUDescription.DirtyTracking? {
    switch node.scalar.map({ ($0.style == .plain, $0.string) }) {
    case (_, "software")?: return .software
    case (true, "true")?: return .bits
    case (true, "false")?: return IOMMUDescription.DirtyTracking.none
    default:
      reader.report(
        node, "found \(reader.describe(node)), expected true, false or software")
      return nil
    }
  }

  /// Levels and width belong together; either may be left out.
  private func tableSize(
    _ kind: IOMMUDescription.Kind, _ stage: IOMMUDescription.Stage, levels: Node?, width: Node?
  ) -> (levels: Int, width: Int) {
    let chosen = levels.flatMap { self.levels($0, kind, stage) }
    guard let width else { return chosen ?? (4, 48) }
    let widths = kind.widths(stage)
    guard let bits = reader.number(width, "an address width in bits", in: 0...64) else {
      return (4, 48)
    }
    guard widths.contains(Int(bits)) else {
      let list = widths.map(String.init).joined(separator: ", ")
      reader.report(
        width,
        "found \(bits), expected an address width" + remark(kind, stage) + " of \(list) bits")
      return (4, 48)
    }
    let fitting = IOMMUDescription.levels(for: Int(bits))
    if let chosen, chosen.levels != fitting {
      reader.report(
        width,
        "found \(bits) bits beside \(chosen.levels) levels, expected \(chosen.width) bits, "
          + "or \(fitting) levels")
    }
    return (fitting, Int(bits))
  }

  /// What is said of levels, with the width that they have.
  private func levels(
    _ node: Node, _ kind: IOMMUDescription.Kind, _ stage: IOMMUDescription.Stage
  ) -> (levels: Int, width: Int)? {
    let sizes = kind.sizes(stage)
    guard let first = sizes.first, let last = sizes.last else {
      reader.report(
        node,
        "found levels of an \(kind.rawValue), expected 'address-width' alone: its tables have "
          + "the levels that their width needs")
      return nil
    }
    let levels = reader.number(
      node, "a number of levels" + remark(kind, stage),
      in: UInt64(first.levels)...UInt64(last.levels))
    return sizes.first { Optional(UInt64($0.levels)) == levels }
  }

  /// Where a stage has fewer sizes than what the kind has otherwise.
  private func remark(
    _ kind: IOMMUDescription.Kind, _ stage: IOMMUDescription.Stage
  ) -> String {
    kind.sizes(stage).count < kind.sizes(kind.stage).count ? " of the first stage" : ""
  }

  /// A name that can be a file's in `/sys/class/iommu`.
  private func fileName(_ node: Node) -> String? {
    let expected = "a name of letters, digits, '-', '_' or '.', like dmar0"
    guard let name = reader.word(node, expected: expected) else { return nil }
    let allowed = name.utf8.allSatisfy { byte in
      switch byte {
      case 0x30...0x39, 0x41...0x5a, 0x61...0x7a, 0x2d, 0x5f, 0x2e: true
      default: false
      }
    }
    guard allowed, !name.isEmpty, name.utf8.count <= 32, name.first != "." else {
      reader.report(node, "found \(reader.describe(node)), expected \(expected)")
      return nil
    }
    return name
  }
}
