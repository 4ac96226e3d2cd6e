// SPDX-License-Identifier: Apache-2.0
//
// Ports and bridges of a machine as data: what is above a bus that is not a root bus.

import IOMMU

/// A PCI Express port or a PCI bridge, and the bus below it.
public struct BridgeDescription: Hashable, Sendable {
  public var address: RequesterID
  /// Number of the bus below, in the bridge's segment; higher than that of its own bus.
  public var bus: UInt8
  public var kind: Kind
  /// Whether it keeps those below from reaching each other, and their requester ids from being
  /// forged (PCI Express: Access Control Services). Ports only.
  public var acs: Bool
  /// Number of its group.
  public var group: UInt32
  /// Name of the IOMMU above it.
  public var iommu: String
  /// What the host has bound to it.
  public var hostDriver: HostDriver

  public enum Kind: String, CaseIterable, Hashable, Sendable {
    /// A PCI Express port: requester ids pass through it.
    case port
    /// From PCI Express to conventional PCI: what comes from below carries device 0,
    /// function 0 of the bus below.
    case pcieToPCI = "pcie-to-pci"
    /// From conventional PCI to conventional PCI: what comes from below carries the bridge's
    /// own address.
    case pci
  }

  /// A bridge's driver. It does not come between its group and a user unless it does DMA.
  public enum HostDriver: String, CaseIterable, Hashable, Sendable {
    /// A port's own, which does no DMA.
    case pcieport
    /// Keeps other drivers away, and does nothing.
    case stub = "pci-stub"
    case none
    /// A hot-plug controller's, which Linux does not know to be free of DMA: the group cannot
    /// be taken.
    case shpchp
  }

  public init(
    address: RequesterID, bus: UInt8, kind: Kind = .port, acs: Bool = true, group: UInt32,
    iommu: String, hostDriver: HostDriver? = nil
  ) {
    self.address = address
    self.bus = bus
    self.kind = kind
    self.acs = acs
    self.group = group
    self.iommu = iommu
    self.hostDriver = hostDriver ?? Self.usualDriver(of: kind)
  }

  static func usualDriver(of kind: Kind) -> HostDriver { kind == .port ? .pcieport : .none }

  /// What the IOMMU sees of all that is below; nil where it sees each for itself.
  public var alias: RequesterID? {
    switch kind {
    case .port: nil
    case .pcieToPCI:
      RequesterID(segment: address.segment, bus: bus, device: 0, function: 0)
    case .pci: address
    }
  }
}
