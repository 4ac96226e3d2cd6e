// SPDX-License-Identifier: Apache-2.0
//
// PASIDs of a VFIO device: each reaches the address space that its page table was made from,
// and no other.

import CLinuxABI
import Foundation
import IOMMU
import PageTables
import SoftwareIOMMU
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct VFIOPASIDTests {
  let rig: EngineRig
  /// Made for PASIDs: one from the rig's space, one from another.
  let own: UInt32
  let other: UInt32

  init() throws {
    let rig = try EngineRig(iommu: .init(pasidBits: 8))
    let device = Self.bind(rig)
    let tables = [0x10_0000, 0x20_0000].map { (address: UInt64) in
      let space = Self.makeSpace(rig)
      Self.map(rig, space, address)
      rig.caller.put(UInt32(truncatingIfNeeded: address), at: address)
      return Self.makeTable(rig, device, space, IOMMU_HWPT_ALLOC_PASID)
    }
    (own, other) = (tables[0], tables[1])
    self.rig = rig
  }

  private static func bind(_ rig: EngineRig) -> UInt32 {
    var bind = vfio_device_bind_iommufd()
    bind.argsz = 16
    bind.iommufd = rig.iommufd
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_BIND_IOMMUFD, &bind) == 0)
    return bind.out_devid
  }

  private static func makeSpace(_ rig: EngineRig) -> UInt32 {
    var cmd = iommu_ioas_alloc(size: 12, flags: 0, out_ioas_id: 0)
    #expect(rig.caller.ioctl(rig.iommuFile, IOMMU_IOAS_ALLOC, &cmd) == 0)
    return cmd.out_ioas_id
  }

  private static func makeTable(
    _ rig: EngineRig, _ device: UInt32, _ space: UInt32, _ flags: UInt32
  ) -> UInt32 {
    var cmd = iommu_hwpt_alloc()
    cmd.size = 48
    cmd.flags = flags
    cmd.dev_id = device
    cmd.pt_id = space
    #expect(rig.caller.ioctl(rig.iommuFile, IOMMU_HWPT_ALLOC, &cmd) == 0)
    return cmd.out_hwpt_id
  }

  /// 64 KiB at IOVA 0.
  private static func map(_ rig: EngineRig, _ space: UInt32, _ address: UInt64) {
    var cmd = iommu_ioas_map(
      size: 40, flags: 7, ioas_id: space, __reserved: 0, user_va: address, length: 0x1_0000,
      iova: 0)
    #expect(rig.caller.ioctl(rig.iommuFile, IOMMU_IOAS_MAP, &cmd) == 0)
  }

  private func attach(_ pasid: UInt32, _ table: UInt32, at address: UInt64? = nil) -> Int32 {
    var cmd = vfio_device_attach_iommufd_pt(
      argsz: 16, flags: VFIO_DEVICE_ATTACH_PASID, pt_id: table, pasid: pasid)
    return rig.caller.ioctl(rig.file, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &cmd)
  }

  private func detach(_ pasid: UInt32) -> Int32 {
    var cmd = vfio_device_detach_iommufd_pt(
      argsz: 12, flags: VFIO_DEVICE_DETACH_PASID, pasid: pasid)
    return rig.caller.ioctl(rig.file, VFIO_DEVICE_DETACH_IOMMUFD_PT, &cmd)
  }

  /// What DMA at IOVA 0 reads; nil where it faults.
  private func dma(_ pasid: UInt32?) -> UInt32? {
    let port = rig.iommu.port(for: rig.requester, pasid: pasid.map(PASID.init(rawValue:)))
    return try? port.load(IOVA(0))
  }

  @Test("D1: DMA with a PASID reaches the PASID's space, DMA without one the device's")
  func routing() {
    #expect(rig.attach(own) == 0)
    #expect(dma(nil) == 0x10_0000)
    #expect(dma(7) == nil, "attached to nothing yet (A3)")
    #expect(attach(7, other) == 0)
    #expect(dma(7) == 0x20_0000)
    #expect(dma(nil) == 0x10_0000)
    #expect(dma(8) == nil)
    #expect(attach(7, own) == 0, "replaced")
    #expect(dma(7) == 0x10_0000)
    #expect(rig.detach() == 0)
    #expect(dma(nil) == nil)
    #expect(dma(7) == 0x10_0000, "PASIDs stay where they are")
    #expect(detach(7) == 0)
    #expect(dma(7) == nil)
    #expect(detach(7) == 0)
  }

  @Test("D1: a table without PASIDs and a PASID past the width are EINVAL")
  func refused() {
    #expect(rig.attach(own) == 0)
    #expect(attach(256, other) == -EINVAL)
    #expect(attach(255, other) == 0)
    #expect(attach(1, 999) == -ENOENT)
    #expect(dma(1) == nil)
  }

  @Test("C4, H3: closing the device ends its PASIDs: nothing is left to reach")
  func close() {
    #expect(rig.attach(own) == 0)
    #expect(attach(7, other) == 0)
    rig.caller.close(rig.devicefd)
    #expect(dma(7) == nil)
    var cmd = iommu_destroy(size: 8, id: other)
    #expect(rig.caller.ioctl(rig.iommuFile, IOMMU_DESTROY, &cmd) == 0)
  }
}
