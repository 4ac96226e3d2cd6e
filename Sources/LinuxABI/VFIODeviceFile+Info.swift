// SPDX-License-Identifier: Apache-2.0
//
// What a device says of itself: GET_INFO, GET_REGION_INFO and GET_IRQ_INFO. Facts: Linux 6.12,
// vfio_pci_core.c.

import CLinuxABI
import IOMMU
import SystemPackage
import VFIO

extension VFIODeviceFile {
  func getInfo(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let minimum = 16
    var info = try caller.load(vfio_device_info(), from: argument, size: minimum)
    try checkHead(argsz: info.argsz, atLeast: minimum)
    info.flags = VFIO_DEVICE_FLAGS_PCI
    if function.canReset { info.flags |= VFIO_DEVICE_FLAGS_RESET }
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
    info.offset = offset(of: region, index: info.index)
    info.size = function.size(of: region)
    info.flags =
      info.size == 0 ? 0 : VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE
    if info.size > 0, isMappable(region) { info.flags |= VFIO_REGION_INFO_FLAG_MMAP }
    // The whole BAR can be mapped, with the MSI-X table in it.
    if info.flags & VFIO_REGION_INFO_FLAG_MMAP != 0, let msix = function.model.msix,
      region == .bar(msix.tableBAR)
    {
      info.flags |= VFIO_REGION_INFO_FLAG_CAPS
      var chain = CapabilityChain(at: minimum)
      chain.addHeader(UInt32(VFIO_REGION_INFO_CAP_MSIX_MAPPABLE))
      // Where it has no room, it is told how much there is.
      if Int(info.argsz) < minimum + chain.bytes.count {
        info.argsz = UInt32(minimum + chain.bytes.count)
        info.cap_offset = 0
      } else {
        try caller.store(bytes: chain.bytes, to: argument &+ UInt64(minimum))
        info.cap_offset = UInt32(minimum)
      }
    }
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
}
