// SPDX-License-Identifier: Apache-2.0
//
// mmap of a device's file: the memory BARs, which programs share with the device (MODEL C4).
// Facts: Linux 6.12, vfio_pci_core_mmap.

import CLinuxABI
import IOMMU
import SystemPackage
import VFIO

extension VFIODeviceFile: DeviceMemoryFile {
  var hasMemory: Bool { function.bars.contains(where: \.isMemory) }

  func keepMemory(in backing: any DeviceMemoryBacking) {
    session.keepMemory(in: backing) { RegionWindow.offset(of: UInt32(truncatingIfNeeded: $0)) }
  }

  func memory(at offset: UInt64) -> (memory: any DeviceMemory, offset: UInt64)? {
    guard session.hasAccess, let place = RegionWindow.locate(offset),
      let memory = function.memory(ofBAR: Int(place.index)), place.offset < memory.byteCount
    else { return nil }
    return (memory, place.offset)
  }

  /// Whether programs may map a region: plain memory only, no registers.
  func isMappable(_ region: PCIRegion) -> Bool {
    guard case .bar(let index) = region else { return false }
    return function.bar(index)?.isMemory ?? false
  }

  /// Whether decoding is on does not matter here: a touch faults while it is off.
  func checkMap(_ request: MapRequest) throws(IOMMUError) {
    try session.checkAccess()
    let (region, offset) = try locate(request.offset)
    guard request.isShared else {
      throw IOMMUError(
        .invalidArgument, "regions of \(function.name) are mapped MAP_SHARED only")
    }
    guard isMappable(region) else {
      throw IOMMUError(
        .invalidArgument,
        "this region of \(function.name) cannot be mapped, as GET_REGION_INFO says; use pread "
          + "and pwrite")
    }
    let size = function.size(of: region)
    guard offset <= size, request.length <= size - offset else {
      throw IOMMUError(
        .invalidArgument,
        "\(hex(request.length)) bytes at \(hex(offset)) pass the end of a region of "
          + "\(function.name) that has \(hex(size))")
    }
  }
}
