// SPDX-License-Identifier: Apache-2.0
//
// A slice of a device with isolation that the IOMMU enforces: its DMA carries the parent's
// requester id and PASIDs of its own (MODEL C1, D2 kind 2; E2 kinds 3, 6 and 8).

import SystemPackage

/// A slice of a physical device, told apart by its default PASID. Thread-safe.
///
/// It is in a group of its own: binding it blocks its PASID and nothing else, so neither the
/// parent nor another slice sees a change. `IOMMUSystem.addMediatedDevice` makes it,
/// `removeMediatedDevice` takes it away.
public final class MediatedDevice: BindableDevice {
  public let name: String
  public let parent: PhysicalDevice
  public let group: DeviceGroup
  public let pasids: VirtualPASIDs
  private let ownPASID: PASID

  init(
    name: String, parent: PhysicalDevice, defaultPASID: PASID, kind: DeviceKind,
    group: DeviceGroup
  ) {
    pasids = VirtualPASIDs(name: name, kind: kind, spaces: parent.spaces)
    self.name = name
    self.parent = parent
    self.group = group
    ownPASID = defaultPASID
  }

  public var physical: PhysicalDevice { parent }
  public var defaultPASID: PASID? { ownPASID }
  /// Nobody but a context's user gives a slice memory to reach.
  public var idleContext: DMAContext { .blocked }
}
