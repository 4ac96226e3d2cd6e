// SPDX-License-Identifier: Apache-2.0
//
// Page tables with a fault queue and devices whose IOMMU makes no page requests (MODEL H1, B7).

import CLinuxABI
import Foundation
import IOMMU
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct VFIOFaultTests {
  let rig: EngineRig

  init() throws { rig = try EngineRig() }

  private func attach(_ target: UInt32) -> Int32 {
    var cmd = vfio_device_attach_iommufd_pt()
    cmd.argsz = 12
    cmd.pt_id = target
    return rig.caller.ioctl(rig.file, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &cmd)
  }

  @Test("H1: a table with a fault queue can be made for the device, but not attached: ENODEV")
  func incapable() throws {
    var bind = vfio_device_bind_iommufd()
    bind.argsz = 16
    bind.iommufd = rig.iommufd
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_BIND_IOMMUFD, &bind) == 0)
    var space = iommu_ioas_alloc(size: 12, flags: 0, out_ioas_id: 0)
    #expect(rig.caller.ioctl(rig.iommuFile, IOMMU_IOAS_ALLOC, &space) == 0)
    var queue = iommu_fault_alloc(size: 16, flags: 0, out_fault_id: 0, out_fault_fd: 0)
    #expect(rig.caller.ioctl(rig.iommuFile, IOMMU_FAULT_QUEUE_ALLOC, &queue) == 0)
    var table = iommu_hwpt_alloc()
    table.size = 48
    table.flags = IOMMU_HWPT_FAULT_ID_VALID
    table.dev_id = bind.out_devid
    table.pt_id = space.out_ioas_id
    table.fault_id = queue.out_fault_id
    #expect(rig.caller.ioctl(rig.iommuFile, IOMMU_HWPT_ALLOC, &table) == 0)

    #expect(attach(table.out_hwpt_id) == -ENODEV)
    #expect(attach(space.out_ioas_id) == 0)
    let context = try #require(rig.iommuFile as? any ContextFile).context
    let attached = try context.attachedHWPT(of: ObjectID(bind.out_devid))
    #expect(attach(table.out_hwpt_id) == -ENODEV)
    #expect(try context.attachedHWPT(of: ObjectID(bind.out_devid)) == attached)
  }
}
