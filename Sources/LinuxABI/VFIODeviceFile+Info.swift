// SPDX-License-Identifier: Apache-2.0
//
// What a device says of itself: GET_INFO, GET_REGION_INFO, GET_IRQ_INFO and features. Facts: Linux 6.12, vfio_pci_core.c.

import CLinuxABI
import IOMMU
import SystemPackage
import VFIO

extension VFIODeviceFile {
  func getInfo(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let minimum = 16
    var info = try caller.load(vfio_device_info(), from: argument, size: minimum)
    try checkHead(argsz: info.argsz, atLeast: minimum)
    info.flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET
    info.num_regions = VFIO_PCI_NUM_REGIONS
    info.num_irqs = VFIO_PCI_NUM_IRQS
    let room = min(MemoryLayout<vfio_device_info>.size, Int(info.argsz))
    if let pasids = pasidCapability {
      // Where it has no room, it is told how much there is.
      info.flags |= VFIO_DEVICE_FLAGS_CAPS
      let size = MemoryLayout<vfio_device_info>.size
      let whole = size + MemoryLayout<vfio_device_info_cap_pasid>.size
      if Int(info.argsz) < whole {
        info.argsz = UInt32(whole)
      } else {
        try caller.store(pasids, to: argument &+ UInt64(size))
        info.cap_offset = UInt32(size)
      }
    }
    // As much as the caller has room for.
    try caller.store(info, to: argument, size: room)
  }

  /// What the user may do with PASIDs (MODEL E3). The proposal's capability, at a number of ours.
  private var pasidCapability: vfio_device_info_cap_pasid? {
    let device: (any BindableDevice)? = function.device
    guard let device, device.kind.hasVirtualPASIDs else { return nil }
    var capability = vfio_device_info_cap_pasid()
    capability.header.id = UInt16(VFIO_DEVICE_INFO_CAP_PASID)
    capability.header.version = 1
    capability.flags = device.kind.flags.rawValue
    capability.pasid_bits = UInt32(device.physical.capabilities.pasidBits)
    return capability
  }

  func getRegionInfo(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let minimum = MemoryLayout<vfio_region_info>.size
    var info = try caller.load(vfio_region_info(), from: argument, size: minimum)
    try checkHead(argsz: info.argsz, atLeast: minimum)
    guard let region = PCIRegion(index: info.index), region != .vga else {
      throw IOMMUError(.invalidArgument, "\(function.name) has no region \(info.index)")
    }
    info.offset = RegionWindow.offset(of: info.index)
    info.size = function.size(of: region)
    info.flags =
      info.size == 0 ? 0 : VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE
    if isMappable(region) { info.flags |= VFIO_REGION_INFO_FLAG_MMAP }
    try caller.store(info, to: argument)
  }

  func getInterruptInfo(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let minimum = MemoryLayout<vfio_irq_info>.size
    var info = try caller.load(vfio_irq_info(), from: argument, size: minimum)
    try checkHead(argsz: info.argsz, atLeast: minimum)
    guard let index = InterruptVectors.Index(rawValue: info.index) else {
      throw IOMMUError(
        .invalidArgument, "\(function.name) has no interrupt index \(info.index)")
    }
    info.count = UInt32(function.interrupts.count(of: index))
    info.flags = VFIO_IRQ_INFO_EVENTFD
    switch index {
    case .line: info.flags |= VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED
    // Vectors can be added while others are in use, as with Linux's dynamic MSI-X on x86.
    case .msix: break
    case .msi, .error, .request: info.flags |= VFIO_IRQ_INFO_NORESIZE
    }
    try caller.store(info, to: argument)
  }

  // MARK: Features

  /// VF tokens are the only feature; the checks before that are Linux's.
  func feature(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let minimum = 8
    let header = try caller.load(vfio_device_feature(), from: argument, size: minimum)
    try checkHead(argsz: header.argsz, atLeast: minimum)
    let get = VFIO_DEVICE_FEATURE_GET
    let set = VFIO_DEVICE_FEATURE_SET
    let probe = VFIO_DEVICE_FEATURE_PROBE
    guard header.flags & ~(VFIO_DEVICE_FEATURE_MASK | get | set | probe) == 0 else {
      throw IOMMUError(
        .invalidArgument, "feature flags \(hex(header.flags)) have unknown bits")
    }
    guard header.flags & probe != 0 || header.flags & (get | set) != get | set else {
      throw IOMMUError(.invalidArgument, "a feature is read or set, not both at once")
    }
    guard header.flags & VFIO_DEVICE_FEATURE_MASK == VFIO_DEVICE_FEATURE_PCI_VF_TOKEN,
      session.device.hasToken
    else {
      throw IOMMUError(
        .inappropriateIOCTLForDevice,
        "\(function.name) has no feature \(header.flags & VFIO_DEVICE_FEATURE_MASK)")
    }
    guard header.flags & get == 0 else {
      throw IOMMUError(.invalidArgument, "a VF token is set, and never read")
    }
    if header.flags & probe != 0 { return }
    guard header.flags & set != 0 else {
      throw IOMMUError(.invalidArgument, "what to do with the feature is missing: set it")
    }
    guard Int(header.argsz) >= minimum + 16 else {
      throw IOMMUError(
        .invalidArgument, "argsz is \(header.argsz); a VF token needs \(minimum + 16) bytes")
    }
    session.device.setToken(
      VFToken(bytes: try caller.bytes(at: argument &+ UInt64(minimum), count: 16)))
  }
}
