// SPDX-License-Identifier: Apache-2.0
//
// A fault as the hardware of each architecture records it, and as a guest is told of it.

import HardwareTables
import IOMMU
import PageTables

extension DMAFault {
  /// The request that was ended. The StreamID of an SMMUv3 and the `device_id` of a RISC-V IOMMU
  /// are the requester ID.
  public var request: DeviceRequest {
    DeviceRequest(
      source: requester.rawValue, pasid: pasid?.rawValue, address: iova.rawValue,
      access: Access(access), kind: kind)
  }

  /// What the IOMMU's hardware records of it; nil where it records nothing: see `cause`, and
  /// streams that an SMMUv3 blocks.
  ///
  /// The DomainID of AMD's entries is 0: the software IOMMU numbers no domains.
  public func event(of configuration: SoftwareIOMMU.Configuration) -> HardwareEvent? {
    cause.flatMap {
      HardwareEvent(
        $0, of: request, by: configuration.architecture,
        isScalable: configuration.isScalable)
    }
  }

  /// What a guest with a virtual SMMUv3 is told: an event of 32 bytes
  /// (`IOMMU_VEVENTQ_TYPE_ARM_SMMUV3`), with the stream as the guest calls it.
  /// - Returns: Nil for what is not the guest's to know: what its host's tables did not allow,
  ///   and what there is no event of.
  public func virtualSMMUEvent(stream: UInt32) -> [UInt8]? {
    cause.flatMap { SMMUEvent($0, of: request) }?.record(virtualStream: stream)
  }
}
