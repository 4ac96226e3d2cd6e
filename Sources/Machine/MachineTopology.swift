// SPDX-License-Identifier: Apache-2.0
//
// What the bridges of a machine mean to isolation: whose requester id a device's DMA carries,
// and which functions are of one group whether a file says so or not. Facts: Linux 6.12,
// `pci_device_group` in drivers/iommu/iommu.c and `pci_for_each_dma_alias`.

import IOMMU

/// The buses of a machine.
struct MachineTopology {
  let bridges: [BridgeDescription]

  /// The bridge above a function; nil on a root bus.
  func bridge(above address: RequesterID) -> BridgeDescription? {
    bridges.first { $0.bus == address.bus && $0.address.segment == address.segment }
  }

  /// All bridges above a function, the nearest first.
  func bridges(above address: RequesterID) -> [BridgeDescription] {
    var result: [BridgeDescription] = []
    var place = address
    // Bus numbers fall on the way up.
    while let next = bridge(above: place), next.address.bus < place.bus {
      result.append(next)
      place = next.address
    }
    return result
  }

  /// What a function's DMA carries where the IOMMU sees it: the alias of the uppermost bridge
  /// that puts its own there.
  func requester(of address: RequesterID) -> RequesterID {
    bridges(above: address).compactMap(\.alias).last ?? address
  }

  /// Two functions that cannot be isolated from each other, and why.
  struct Tie {
    let first: RequesterID
    let second: RequesterID
    let reason: String
  }

  /// - Parameter functions: Devices and bridges; each with whether it has access control.
  func ties(_ functions: [(address: RequesterID, acs: Bool)]) -> [Tie] {
    var ties: [Tie] = []
    var open: [UInt32: RequesterID] = [:]
    for (address, acs) in functions {
      if let tie = tieAbove(address) { ties.append(tie) }
      guard !acs else { continue }
      let slot = address.rawValue >> 3
      if let first = open[slot] {
        ties.append(
          Tie(
            first: first, second: address,
            reason: "both are functions of one device that says nothing of access control "
              + "('acs: true')"))
      } else {
        open[slot] = address
      }
    }
    return ties
  }

  private func tieAbove(_ address: RequesterID) -> Tie? {
    let above = bridges(above: address)
    guard let bridge = above.first else { return nil }
    let reason: String
    if let alias = bridge.alias {
      reason = "the DMA of both carries \(alias) where the IOMMU sees it"
    } else if let hole = above.first(where: { $0.alias != nil || !$0.acs }) {
      reason =
        hole.alias != nil
        ? "both are below \(hole.address), which takes requester ids away"
        : "both are below \(hole.address), which has no access control"
    } else {
      return nil
    }
    return Tie(first: bridge.address, second: address, reason: reason)
  }

  /// Group numbers for functions of which some have one: those that are tied share theirs, the
  /// others get the lowest that are free, in order.
  /// - Parameter conflict: Called for a function whose number is not that of one that it is tied
  ///   to, with that one and the reason.
  func numbers(
    _ functions: [(address: RequesterID, acs: Bool, group: UInt32?)],
    conflict: (_ address: RequesterID, _ other: RequesterID, _ reason: String) -> Void
  ) -> [RequesterID: UInt32] {
    var parents: [RequesterID: RequesterID] = [:]
    func root(_ address: RequesterID) -> RequesterID {
      var address = address
      while let parent = parents[address] { address = parent }
      return address
    }
    let ties = ties(functions.map { ($0.address, $0.acs) })
    for tie in ties {
      let (first, second) = (root(tie.first), root(tie.second))
      if first != second { parents[second] = first }
    }
    var given: [RequesterID: (number: UInt32, by: RequesterID)] = [:]
    for function in functions {
      guard let number = function.group else { continue }
      let root = root(function.address)
      guard let earlier = given[root] else {
        given[root] = (number, function.address)
        continue
      }
      if earlier.number != number {
        let tie = ties.first { [$0.first, $0.second].contains(function.address) }
        conflict(function.address, earlier.by, tie?.reason ?? "they are of one group")
      }
    }
    var taken = Set(given.values.map(\.number))
    var result: [RequesterID: UInt32] = [:]
    for function in functions {
      let root = root(function.address)
      if given[root] == nil {
        let free = (0...UInt32.max).first { !taken.contains($0) } ?? 0
        given[root] = (free, function.address)
        taken.insert(free)
      }
      result[function.address] = given[root]?.number
    }
    return result
  }
}

extension MachineDescription {
  var topology: MachineTopology { MachineTopology(bridges: bridges) }

  /// What a device's DMA carries where the IOMMU sees it: its own address, or that of a bridge
  /// above it.
  public func requester(of device: DeviceDescription) -> RequesterID {
    topology.requester(of: device.address)
  }
}
