// SPDX-License-Identifier: Apache-2.0
//
// What a bound device can do, before it is attached (MODEL B8).

import PageTables
import SystemPackage

/// What the DMA of a device can be, as far as its IOMMU says.
public struct DMAAbilities: Hashable, Sendable {
  /// Sizes of leaves, as bits: bit 12 is 4 KiB.
  public var pageSizes: PageSizes
  /// Width of its addresses, in bits.
  public var addressBits: Int
  /// What a space with the device may map, both ends inclusive, in bytes; lowest first.
  public var mappableRanges: [ClosedRange<UInt64>]
  public var capabilities: IOMMUCapabilities
  /// The tables of users that its IOMMU walks, by number; PASID tables only where the device can
  /// have one.
  public var userTables: [UserTable.Support]
}

extension Context {
  /// What a bound device and its IOMMU can do.
  ///
  /// The proposal's DEVICE_GET_INFO. MODEL B8.
  /// - Throws: `ENOENT`; what making a page table throws.
  public func dmaAbilities(of device: ObjectID) throws(IOMMUError) -> DMAAbilities {
    let object = try self.device(device)
    let physical = object.device
    // A table says it best, and an empty one costs little.
    let geometry = try physical.driver.makePagingDomain(
      for: physical.requester, attributes: []
    ).geometry
    let reserved = physical.driver.reservedRegions(for: physical.requester).map(\.range)
      .sorted { $0.lowerBound < $1.lowerBound }
    var ranges: [ClosedRange<UInt64>] = []
    var next: UInt64? = geometry.aperture.lowerBound
    for range in reserved where range.overlaps(geometry.aperture) {
      guard let first = next else { break }
      if range.lowerBound > first { ranges.append(first...range.lowerBound - 1) }
      next =
        range.upperBound >= geometry.aperture.upperBound
        ? nil : max(first, range.upperBound + 1)
    }
    if let next { ranges.append(next...geometry.aperture.upperBound) }
    return DMAAbilities(
      pageSizes: geometry.pageSizes,
      addressBits: 64 - geometry.aperture.upperBound.leadingZeroBitCount,
      mappableRanges: ranges, capabilities: object.userCapabilities,
      userTables: physical.driver.userTables(for: physical.requester)
        .filter { !($0.format.isPASIDTable && object.endpoint.kind.isMediated) }
        .sorted { $0.format.rawValue < $1.format.rawValue })
  }

  /// What a bound device's IOMMU is and can do. Linux: `IOMMU_GET_HW_INFO`. MODEL B8.
  /// - Throws: `ENOENT`.
  public func hardwareInformation(
    of device: ObjectID
  ) throws(IOMMUError) -> (information: HardwareInformation, capabilities: IOMMUCapabilities) {
    let object = try self.device(device)
    let device = object.device
    return (
      device.driver.hardwareInformation(for: device.requester), object.userCapabilities
    )
  }
}

extension DeviceObject {
  /// What the user may have of what the IOMMU can do.
  fileprivate var userCapabilities: IOMMUCapabilities {
    var capabilities = device.capabilities
    if !endpoint.kind.hasVirtualPASIDs { capabilities.pasidBits = 0 }
    return capabilities
  }
}
