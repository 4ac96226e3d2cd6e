// SPDX-License-Identifier: Apache-2.0
//
// A slice of a RISC-V IOMMU for a guest. Linux has none: it is reached from Swift, and so are its
// commands, by `RISCVCommandQueue`.

import HardwareTables
import IOMMU
import PageTables

/// A guest's RISC-V IOMMU. Thread-safe.
public final class RISCVVirtualIOMMU: NamingVirtualIOMMU {
  /// The type for `Context.allocateVirtualIOMMU`. Of this library's own: no ioctl takes it.
  public static let type: UInt32 = UserData.ownTypes.lowerBound

  let parent: RISCVSecondStageDomain
  let iommu: RISCVCapabilities
  /// By the guest's `device_id`.
  let devices = GuestDevices()
  let service: QueueService

  init(
    on parent: RISCVSecondStageDomain, iommu: RISCVCapabilities, service: QueueService
  ) {
    self.parent = parent
    self.iommu = iommu
    self.service = service
  }

  public func makeNestedDomain(
    attributes: PagingAttributes, data: UserData
  ) throws(IOMMUError) -> any NestedDomain {
    try RISCVNestedDomain(data, on: parent, iommu: iommu)
  }

  public func destroy() { service.stop() }
}
