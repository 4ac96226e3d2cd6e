// SPDX-License-Identifier: Apache-2.0
//
// mmap of a device's file: memory BARs, which programs share with the device (MODEL C4), and
// registers, where each touch is an access of the device (J1). Facts: Linux 6.12,
// vfio_pci_core_mmap.

import CLinuxABI
import IOMMU
import Synchronization
import SystemPackage
import VFIO

extension VFIODeviceFile: DeviceMemoryFile {
  var hasMemory: Bool { function.bars.contains(where: \.isMemory) }

  func keepMemory(in backing: any DeviceMemoryBacking) {
    let isAfterMemory = hasMemory
    session.keepMemory(in: backing) { [bars = function.bars] bar in
      let isRegister = bars.first { $0.index == bar }?.isMemory == false
      return RegionWindow.offset(
        of: UInt32(truncatingIfNeeded: bar), isAfterMemory: isRegister && isAfterMemory)
    }
  }

  func memory(at offset: UInt64) -> (memory: any DeviceMemory, offset: UInt64)? {
    guard session.hasAccess, let place = RegionWindow.locate(offset), !place.isAfterMemory,
      let memory = function.memory(ofBAR: Int(place.index)), place.offset < memory.byteCount
    else { return nil }
    return (memory, place.offset)
  }

  /// Where in the file a region lies.
  func offset(of region: PCIRegion, index: UInt32) -> UInt64 {
    RegionWindow.offset(of: index, isAfterMemory: isAfterMemory(region))
  }

  /// Whether a region lies after all memory: registers of a device that has memory too.
  func isAfterMemory(_ region: PCIRegion) -> Bool {
    guard case .bar(let index) = region, let bar = function.bar(index) else { return false }
    return !bar.isMemory && hasMemory
  }

  /// Whether programs may map a region: plain memory, and registers where the carrier can.
  func isMappable(_ region: PCIRegion) -> Bool {
    guard case .bar(let index) = region, let bar = function.bar(index) else { return false }
    return bar.isMemory || mapsRegisters.load(ordering: .relaxed)
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
    // A BAR that is smaller than a page has that page to itself.
    let size = (function.size(of: region) + 4095) & ~4095
    guard offset <= size, request.length <= size - offset else {
      throw IOMMUError(
        .invalidArgument,
        "\(hex(request.length)) bytes at \(hex(offset)) pass the end of a region of "
          + "\(function.name) that has \(hex(size))")
    }
  }
}

extension VFIODeviceFile: RegisterFile {
  func offerRegisters() { mapsRegisters.store(true, ordering: .relaxed) }

  var answers: Bool { function.isDecoding }

  func mapOffset(_ offset: UInt64) -> UInt64 {
    mapsRegisters.load(ordering: .relaxed) ? told(offset) : offset
  }

  func registers(at offset: UInt64) -> RegisterPlace? {
    guard session.hasAccess, let place = RegionWindow.locate(offset), place.index < 6,
      let bar = function.bar(Int(place.index)), !bar.isMemory,
      place.isAfterMemory == hasMemory, function.answersMappings
    else { return nil }
    return RegisterPlace(bar: bar.index, offset: place.offset, barSize: bar.size)
  }

  /// Processors keep a PASID for each thread, which the kernel sets when it shares the process's
  /// memory with a device. Here it is the one that the device is attached by: of several, none is.
  func enqueue(_ command: WorkCommand, at offset: UInt64) throws(IOMMUError) -> DeferrableWrite
  {
    try session.checkAccess()
    let (region, offset) = try locate(told(offset))
    guard let portal = function.portal(in: region, at: offset) else { return .retry }
    let attached = function.device?.pasids.all ?? []
    guard let pasid = attached.first, attached.count == 1 else {
      throw IOMMUError(
        .notPermitted,
        "ENQCMD to \(function.name) needs a PASID, which is the one that the device is attached by; "
          + "it is attached by \(attached.count) (VFIO_DEVICE_ATTACH_IOMMUFD_PT)")
    }
    var command = command
    command.pasid = pasid
    return try function.submit(command, to: portal, from: session.virtualMachine)
  }
}
