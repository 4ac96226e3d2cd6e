// SPDX-License-Identifier: Apache-2.0
//
// What a context can bind: a device behind an IOMMU, and what it has in common with a slice of
// one.

import SystemPackage

/// A device, or a slice of one, that the IOMMU tells apart from all others (MODEL D2).
///
/// Implemented by the two kinds that the engine has, `PhysicalDevice` and `MediatedDevice`.
public protocol BindableDevice: AnyObject, Sendable {
  /// As sentences and sysfs name it: `0000:e0:04.0`, or a slice's UUID.
  var name: String { get }
  /// The device that does the DMA: itself, or the parent of a slice.
  var physical: PhysicalDevice { get }
  /// What a slice's DMA carries beside the parent's requester id; nil for a whole device.
  var defaultPASID: PASID? { get }
  /// The group lives as long as its machine.
  var group: DeviceGroup { get }
  /// What it is as far as PASIDs go (MODEL E2). Constant.
  var kind: DeviceKind { get }
  /// The PASIDs that its user has attached: all that it may use beside the default (MODEL A3).
  var pasids: VirtualPASIDs { get }
  /// Where its DMA goes while no context owns it.
  var idleContext: DMAContext { get }
}

extension BindableDevice {
  public var kind: DeviceKind { pasids.kind }

  /// What DMA carries on the bus, where its user calls it `pasid`. For device models only: the
  /// number is never told to a user (MODEL E4).
  /// - Parameter pasid: Nil for DMA without one.
  /// - Returns: Nil where the device is not attached by that PASID; for nil, nil of a whole
  ///   device and the default PASID of a slice.
  public func physicalPASID(for pasid: PASID?) -> PASID? {
    pasid.map { pasids.physical(of: $0) } ?? defaultPASID
  }
}

/// The host's driver of a device, as far as isolation cares (MODEL C3).
public enum HostDriver: Hashable, Sendable {
  case none
  /// Known not to start DMA by itself: vfio-pci, pcieport.
  case safe(String)
  /// Uses DMA: its group cannot be given away while it is bound.
  case dma(String)
}

/// A device behind an IOMMU, named by its requester id. Thread-safe.
public final class PhysicalDevice: BindableDevice {
  public let name: String
  /// What its DMA and its interrupts carry, and the IOMMU looks up: its own address, or that
  /// of a bridge above it.
  public let requester: RequesterID
  /// Its own address.
  public let address: RequesterID
  public let driver: any IOMMUDriver
  public let group: DeviceGroup
  /// Whether its DMA can carry the no-snoop attribute (PCI Express: Enable No Snoop). MODEL F1.
  public let canSkipSnoop: Bool
  public let pasids: VirtualPASIDs
  /// The physical PASIDs of its machine, this requester's among them.
  let spaces: PASIDSpaces
  let sharedRoutes = SharedRoutes()

  init(
    name: String, address: RequesterID, requester: RequesterID, driver: any IOMMUDriver,
    group: DeviceGroup, canSkipSnoop: Bool, kind: DeviceKind, spaces: PASIDSpaces
  ) {
    self.name = name
    self.address = address
    self.spaces = spaces
    pasids = VirtualPASIDs(name: name, kind: kind, spaces: spaces)
    self.requester = requester
    self.driver = driver
    self.group = group
    self.canSkipSnoop = canSkipSnoop
  }

  public var physical: PhysicalDevice { self }
  public var defaultPASID: PASID? { nil }
  public var idleContext: DMAContext { .host }

  /// What its IOMMU can do for it (MODEL B8). A bridge that puts its own requester id on what
  /// it passes on takes PASIDs away.
  public var capabilities: IOMMUCapabilities {
    var capabilities = driver.capabilities(for: requester)
    if isBehindAlias { capabilities.pasidBits = 0 }
    return capabilities
  }

  /// Whether a bridge above it puts its own requester id in the place of the device's.
  public var isBehindAlias: Bool { address != requester }

  /// Whether the IOMMU cannot tell the two apart.
  func isAlias(of other: PhysicalDevice) -> Bool {
    requester == other.requester && driver === other.driver
  }

  /// Takes the device out of its group: it was removed from the machine.
  /// - Throws: `EBUSY` while its group is owned by a context.
  public func remove() throws(IOMMUError) { try group.remove(self) }

  // MARK: The host's driver

  /// What the host has bound to it.
  public var hostDriver: HostDriver { group.hostDriver(of: self) }

  /// Binds a driver of the host.
  ///
  /// Linux: a driver's probe, with `iommu_device_use_default_domain`. MODEL C3.
  /// - Throws: `EBUSY` where it has a driver, and for one that does DMA while a context owns the
  ///   group.
  public func bindHostDriver(_ driver: HostDriver) throws(IOMMUError) {
    try group.bind(driver, to: self)
  }

  /// Takes the host's driver away. Nothing where there is none.
  public func unbindHostDriver() { group.unbindHostDriver(of: self) }
}
