// SPDX-License-Identifier: Apache-2.0
//
// A slice of an AMD IOMMU for a guest. Linux makes one for whatever type is asked for, as it has
// no number of its own for them (amd_iommufd_get_viommu_size), and takes no invalidations for it:
// a guest's commands reach it from Swift, by `AMDCommandBuffer`.

import HardwareTables
import IOMMU
import PageTables

/// A guest's AMD IOMMU. Thread-safe.
public final class AMDVirtualIOMMU: NamingVirtualIOMMU {
  let parent: AMDv1Domain
  let iommu: AMDCapabilities
  /// By the guest's DeviceIDs.
  let devices = GuestDevices()
  let service: QueueService

  init(on parent: AMDv1Domain, iommu: AMDCapabilities, service: QueueService) {
    self.parent = parent
    self.iommu = iommu
    self.service = service
  }

  public func makeNestedDomain(
    attributes: PagingAttributes, data: UserData
  ) throws(IOMMUError) -> any NestedDomain {
    try AMDNestedDomain(data, on: parent, iommu: iommu)
  }

  public func destroy() { service.stop() }
}
