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
  /// What DMA carries on the bus, where its user calls it `pasid`; nil stands for DMA without
  /// one.
  func physicalPASID(for pasid: PASID?) -> PASID?
  /// Where its DMA goes while no context owns it.
  var idleContext: DMAContext { get }
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
  public let requester: RequesterID
  public let driver: any IOMMUDriver
  public let group: DeviceGroup
  /// Whether its DMA can carry the no-snoop attribute (PCI Express: Enable No Snoop). MODEL F1.
  public let canSkipSnoop: Bool
  /// PASIDs of its slices, and whose they are.
  private let slices = Guarded<[PASID: String]>([:])

  init(
    name: String, requester: RequesterID, driver: any IOMMUDriver, group: DeviceGroup,
    canSkipSnoop: Bool
  ) {
    self.name = name
    self.requester = requester
    self.driver = driver
    self.group = group
    self.canSkipSnoop = canSkipSnoop
  }

  public var physical: PhysicalDevice { self }
  public var defaultPASID: PASID? { nil }
  public func physicalPASID(for pasid: PASID?) -> PASID? { pasid }
  public var idleContext: DMAContext { .host }

  /// What its IOMMU can do for it (MODEL B8).
  public var capabilities: IOMMUCapabilities { driver.capabilities(for: requester) }

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

  // MARK: PASIDs of slices

  func claim(_ pasid: PASID, for name: String) throws(IOMMUError) {
    let bits = capabilities.pasidBits
    guard pasid.rawValue != 0, bits > 0, pasid.rawValue >> UInt32(bits) == 0 else {
      throw IOMMUError(
        .invalidArgument,
        "\(driver.name), the IOMMU of \(self.name), takes PASIDs of \(bits) bits from 1 up, not "
          + "\(pasid.rawValue)")
    }
    let holder = slices.withLock { slices -> String? in
      if let holder = slices[pasid] { return holder }
      slices[pasid] = name
      return nil
    }
    if let holder {
      throw IOMMUError(
        .resourceBusy, "PASID \(pasid.rawValue) of \(self.name) belongs to \(holder)")
    }
  }

  func free(_ pasid: PASID) { slices.withLock { $0[pasid] = nil } }
}
