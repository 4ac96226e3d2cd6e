// SPDX-License-Identifier: Apache-2.0
//
// GET_PCI_HOT_RESET_INFO and PCI_HOT_RESET by their bytes. Facts: Linux 6.12, vfio_pci_core.c.

import CLinuxABI
import IOMMU
import SystemPackage
import VFIO

extension VFIODeviceFile {
  private static var resetHeader: Int { 12 }

  func getHotResetInfo(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let minimum = Self.resetHeader
    var header = try caller.load(vfio_pci_hot_reset_info(), from: argument, size: minimum)
    try checkHead(argsz: header.argsz, atLeast: minimum)
    let neighbours = try session.resetNeighbours()
    header.flags = 0
    header.count = UInt32(neighbours.count)
    let room = (Int(header.argsz) - minimum) / MemoryLayout<vfio_pci_dependent_device>.size
    guard neighbours.count <= room else {
      try caller.store(header, to: argument, size: minimum)
      throw IOMMUError(
        .noSpace,
        "\(neighbours.count) functions would be reset, and argsz has room for \(room)")
    }
    for (index, neighbour) in neighbours.enumerated() {
      let place = argument &+ UInt64(minimum + index * 8)
      try caller.store(dependent(neighbour), to: place)
    }
    if isBoundByNode {
      header.flags = VFIO_PCI_HOT_RESET_FLAG_DEV_ID
      if !neighbours.contains(where: { $0.holding == .foreign }) {
        header.flags |= VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED
      }
    }
    try caller.store(header, to: argument, size: minimum)
  }

  private func dependent(_ neighbour: ResetNeighbour) -> vfio_pci_dependent_device {
    var entry = vfio_pci_dependent_device()
    entry.segment = neighbour.address.segment
    entry.bus = neighbour.address.bus
    entry.devfn = neighbour.address.device << 3 | neighbour.address.function
    guard isBoundByNode else {
      entry.group_id = neighbour.group
      return entry
    }
    entry.devid =
      switch neighbour.holding {
      case .bound(let id): id.rawValue
      case .owned: 0
      case .foreign: .max
      }
    return entry
  }

  /// With descriptors of groups where a group gave the device, without any where its node did.
  func hotReset(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let minimum = Self.resetHeader
    let header = try caller.load(vfio_pci_hot_reset(), from: argument, size: minimum)
    try checkHead(argsz: header.argsz, atLeast: minimum, flags: header.flags)
    guard (header.count == 0) == isBoundByNode else {
      throw IOMMUError(
        .invalidArgument,
        isBoundByNode
          ? "a device that is open by its own node is reset without group fds"
          : "a device that is open through its group is reset with the fds of all groups it hits"
      )
    }
    try session.resettableBus()
    guard header.count > 0 else {
      try session.hotReset(by: .context)
      return
    }
    let most = try session.resetNeighbours().count
    guard header.count <= most else {
      throw IOMMUError(
        .invalidArgument,
        "\(header.count) descriptors are too many: \(most) functions would be reset")
    }
    var groups: [VFIOGroup] = []
    let descriptors = try (0..<UInt64(header.count)).map { (index) throws(IOMMUError) in
      try caller.load(Int32.self, from: argument &+ UInt64(minimum) &+ index * 4, zero: 0)
    }
    for descriptor in descriptors {
      guard let file = try caller.openFile(descriptor: descriptor) as? VFIOGroupFile else {
        throw IOMMUError(.invalidArgument, "descriptor \(descriptor) is not an open group")
      }
      groups.append(file.group)
    }
    try session.hotReset(by: .groups(groups))
  }
}
