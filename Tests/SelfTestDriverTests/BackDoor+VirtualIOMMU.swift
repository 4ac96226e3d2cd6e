// SPDX-License-Identifier: Apache-2.0
//
// The calls on virtual IOMMUs, short enough to write many.

import CLinuxABI
import IOMMU
import TestSupport

@testable import LinuxABI

extension BackDoor {
  /// VIOMMU_ALLOC.
  func makeVIOMMU(
    for device: UInt32, on table: UInt32, type: UInt32 = IOMMU_VIOMMU_TYPE_SELFTEST,
    flags: UInt32 = 0, length: UInt32 = 0, data: UInt64 = 0
  ) -> (result: Int32, id: UInt32) {
    var cmd = iommu_viommu_alloc()
    cmd.size = 40
    cmd.flags = flags
    cmd.type = type
    cmd.dev_id = device
    cmd.hwpt_id = table
    cmd.data_len = length
    cmd.data_uptr = data
    let result = caller.ioctl(file, IOMMU_VIOMMU_ALLOC, &cmd)
    return (result, cmd.out_viommu_id)
  }

  /// VDEVICE_ALLOC.
  func makeVDevice(
    _ device: UInt32, in viommu: UInt32, as name: UInt64
  ) -> (result: Int32, id: UInt32) {
    var cmd = iommu_vdevice_alloc()
    cmd.size = 24
    cmd.viommu_id = viommu
    cmd.dev_id = device
    cmd.virt_id = name
    let result = caller.ioctl(file, IOMMU_VDEVICE_ALLOC, &cmd)
    return (result, cmd.out_vdevice_id)
  }

  /// VEVENTQ_ALLOC.
  func makeEventQueue(
    in viommu: UInt32, type: UInt32 = IOMMU_VEVENTQ_TYPE_SELFTEST, depth: UInt32 = 2,
    flags: UInt32 = 0, reserved: UInt32 = 0
  ) -> (result: Int32, id: UInt32, descriptor: Int32) {
    var cmd = iommu_veventq_alloc()
    cmd.size = 32
    cmd.flags = flags
    cmd.viommu_id = viommu
    cmd.type = type
    cmd.veventq_depth = depth
    cmd.__reserved = reserved
    let result = caller.ioctl(file, IOMMU_VEVENTQ_ALLOC, &cmd)
    return (result, cmd.out_veventq_id, Int32(bitPattern: cmd.out_veventq_fd))
  }

  /// HW_QUEUE_ALLOC.
  func makeHardwareQueue(
    in viommu: UInt32, _ index: UInt32, at iova: UInt64, _ length: UInt64,
    type: UInt32 = IOMMU_HW_QUEUE_TYPE_SELFTEST, flags: UInt32 = 0
  ) -> (result: Int32, id: UInt32) {
    var cmd = iommu_hw_queue_alloc()
    cmd.size = 40
    cmd.flags = flags
    cmd.viommu_id = viommu
    cmd.type = type
    cmd.index = index
    cmd.nesting_parent_iova = iova
    cmd.length = length
    let result = caller.ioctl(file, IOMMU_HW_QUEUE_ALLOC, &cmd)
    return (result, cmd.out_hw_queue_id)
  }

  /// 32-bit words of the client's memory.
  func peek(_ address: UInt64, count: Int) -> [UInt32] {
    caller.arena.withUnsafeMutableBytes { bytes in
      (0..<count).map { bytes.load(fromByteOffset: Int(address) + 4 * $0, as: UInt32.self) }
    }
  }

  /// TRIGGER_VEVENT.
  func triggerEvent(_ device: UInt32) -> Int32 {
    call(IOMMU_TEST_OP_TRIGGER_VEVENT) { $0.trigger_vevent.dev_id = device }.result
  }
}

/// A mock device, a nest parent and a virtual IOMMU on it.
struct Guest {
  let door: BackDoor
  let device: BackDoor.Device
  let parent: UInt32
  let viommu: UInt32
  /// Where structures for the driver lie in the client.
  let buffer: UInt64 = 0x8000

  init() throws {
    door = try BackDoor()
    device = door.makeDevice()
    parent = door.makeTable(for: device.device, flags: IOMMU_HWPT_ALLOC_NEST_PARENT).id
    viommu = door.makeVIOMMU(for: device.device, on: parent).id
  }

  /// A table of the guest's.
  func nest(
    on parent: UInt32? = nil, flags: UInt32 = 0, length: UInt32 = 8
  ) -> (result: Int32, id: UInt32) {
    door.poke([0xbad_beef, 0], at: buffer)
    return door.makeTable(
      for: device.device, on: parent ?? viommu, flags: flags,
      type: length == 0 ? IOMMU_HWPT_DATA_NONE : IOMMU_HWPT_DATA_SELFTEST, length: length,
      data: buffer)
  }
}
