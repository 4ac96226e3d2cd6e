// SPDX-License-Identifier: Apache-2.0
//
// Page tables that the user owns, on the mock IOMMU: how they are made, what they keep alive,
// and invalidation in arrays.

import CLinuxABI
import Foundation
import IOMMU
import SelfTestDriver
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct NestedTableTests {
  let door: BackDoor
  let device: BackDoor.Device
  let parent: UInt32
  /// Where structures for the driver lie in the client.
  let buffer: UInt64 = 0x8000

  init() throws {
    door = try BackDoor()
    device = door.makeDevice()
    parent = door.makeTable(for: device.device, flags: IOMMU_HWPT_ALLOC_NEST_PARENT).id
  }

  private func nest(
    on table: UInt32? = nil, flags: UInt32 = 0, type: UInt32 = IOMMU_HWPT_DATA_SELFTEST,
    length: UInt32 = 8, at address: UInt64? = nil
  ) -> (result: Int32, id: UInt32) {
    door.poke([0xbad_beef, 0], at: buffer)
    return door.makeTable(
      for: device.device, on: table ?? parent, flags: flags, type: type, length: length,
      data: address ?? buffer)
  }

  @Test("B2: a nested table needs a parent that was made to be one, and keeps it")
  func parents() {
    let nested = nest()
    #expect(nested.result == 0)
    #expect(door.destroy(parent) == -EBUSY)
    #expect(nest(on: nested.id).result == -EINVAL)
    #expect(nest(on: device.table).result == -EINVAL, "made by attaching: not a nest parent")
    let plain = door.makeTable(for: device.device)
    #expect(nest(on: plain.id).result == -EINVAL)
    #expect(nest(on: device.device).result == -EINVAL)
    #expect(nest(on: 999).result == -EINVAL)
    #expect(door.destroy(nested.id) == 0)
    #expect(door.destroy(parent) == 0)
  }

  @Test("B7: a nested table takes one attribute and data of the driver's type and length")
  func data() {
    #expect(nest(type: IOMMU_HWPT_DATA_NONE).result == -EINVAL)
    #expect(nest(length: 0).result == -EINVAL)
    #expect(nest(type: IOMMU_HWPT_DATA_SELFTEST + 1).result == -EOPNOTSUPP)
    #expect(nest(length: 3).result == -EINVAL)
    #expect(nest(length: 9).result == -EINVAL)
    #expect(nest(at: 0).result == -EFAULT)
    #expect(nest(flags: IOMMU_HWPT_ALLOC_NEST_PARENT).result == -EOPNOTSUPP)
    #expect(nest(flags: IOMMU_HWPT_ALLOC_DIRTY_TRACKING).result == -EOPNOTSUPP)
    #expect(nest(flags: 1 << 30).result == -EOPNOTSUPP)
    #expect(nest(type: IOMMU_HWPT_DATA_NONE, length: 0).result == -EOPNOTSUPP)
    let before = door.context.objectCount
    #expect(nest(flags: IOMMU_HWPT_ALLOC_PASID).result == 0)
    #expect(
      nest(length: 4).result == 0, "the first Linux with nesting knew the first word only")
    #expect(door.context.objectCount == before + 2)
  }

  @Test("G1: a program built for Linux 6.12 has 6.12's answer to invalidating a parent")
  func oldHeaders() {
    #expect(nest(length: 8).result == 0)
    #expect(invalidate(parent, [0, 0]) == (-EINVAL, 0))
    #expect(nest(length: 4).result == 0)
    #expect(invalidate(parent, [0, 0]) == (-ENOENT, 0))
  }

  @Test("B7: a kernel-managed table takes data that chooses its pages")
  func kernelManaged() {
    func make(_ kind: UInt32, length: UInt32 = 8, type: UInt32 = IOMMU_HWPT_DATA_SELFTEST)
      -> Int32
    {
      door.poke([0, kind], at: buffer)
      return door.makeTable(
        for: device.device, type: type, length: length, data: buffer
      ).result
    }
    #expect(make(MOCK_IOMMUPT_DEFAULT) == 0)
    #expect(make(MOCK_IOMMUPT_HUGE) == 0)
    #expect(make(2) == -EOPNOTSUPP)
    #expect(make(0, length: 4) == 0)
    #expect(make(0, type: 1) == -EOPNOTSUPP)
  }

  @Test("D1: a device moves from its own table to a nested one and back in one step")
  func attach() {
    let nested = nest()
    #expect(door.replace(device.object, with: nested.id) == (0, nested.id))
    #expect(door.destroy(nested.id) == -EBUSY)
    // Dirty pages and mappings are asked of the parent.
    #expect(door.checkMap(nested.id, 0x100_0000, 4096, is: buffer) == -ENOENT)
    let table = door.replace(device.object, with: door.ioas)
    #expect(table.result == 0)
    #expect(door.destroy(nested.id) == 0)
  }

  private func invalidate(
    _ table: UInt32, _ entries: [UInt32], type: UInt32 = IOMMU_HWPT_INVALIDATE_DATA_SELFTEST,
    length: UInt32 = 8, count: UInt32? = nil, at address: UInt64? = nil
  ) -> (result: Int32, handled: UInt32) {
    door.poke(entries, at: buffer)
    var cmd = iommu_hwpt_invalidate()
    cmd.size = 32
    cmd.hwpt_id = table
    cmd.data_uptr = address ?? buffer
    cmd.data_type = type
    cmd.entry_len = length
    cmd.entry_num = count ?? (UInt32(entries.count) * 4 / max(length, 1))
    let result = door.caller.ioctl(door.file, IOMMU_HWPT_INVALIDATE, &cmd)
    return (result, cmd.entry_num)
  }

  private func slots(_ table: UInt32) -> [Bool] {
    (0..<4 as Range<UInt32>).map { slot in
      let kept = door.call(IOMMU_TEST_OP_MD_CHECK_IOTLB, id: table) {
        $0.check_iotlb.id = slot
        $0.check_iotlb.iotlb = 0xbad_beef
      }.result
      let gone = door.call(IOMMU_TEST_OP_MD_CHECK_IOTLB, id: table) {
        $0.check_iotlb.id = slot
        $0.check_iotlb.iotlb = 0
      }.result
      #expect((kept == 0) != (gone == 0))
      return kept == 0
    }
  }

  @Test("G1: an invalidation array is handled in order and stops at the first bad entry")
  func arrays() {
    let (first, second) = (nest().id, nest().id)
    #expect(slots(first) == [true, true, true, true])
    #expect(invalidate(first, []) == (0, 0), "checks the type alone")
    #expect(invalidate(first, [0, 1]) == (0, 1))
    #expect(slots(first) == [true, false, true, true])
    #expect(slots(second) == [true, true, true, true])
    // Slot 0 is done, the entry after it has an unknown flag, the third is not reached.
    #expect(invalidate(first, [0, 0, 2, 2, 0, 3]) == (-EOPNOTSUPP, 1))
    #expect(slots(first) == [false, false, true, true])
    #expect(invalidate(first, [0, 2, 0, 4]) == (-EINVAL, 1))
    #expect(slots(first) == [false, false, false, true])
    // Linux takes no entries longer than its own, whatever is beyond it.
    #expect(invalidate(second, [0, 3, 0, 0, 2, 0], length: 12) == (-EINVAL, 0))
    #expect(slots(second) == [true, true, true, true])
    #expect(invalidate(second, [IOMMU_TEST_INVALIDATE_FLAG_ALL, 0]) == (0, 1))
    #expect(slots(second) == [false, false, false, false])
    #expect(
      door.call(IOMMU_TEST_OP_MD_CHECK_IOTLB, id: first) { $0.check_iotlb.id = 4 }.result
        == -EINVAL)
  }

  @Test("G1: an array that cannot be read is refused, and the count says that nothing was done")
  func badArrays() {
    let table = nest().id
    #expect(invalidate(parent, [0, 0]) == (-EINVAL, 0))
    #expect(invalidate(device.device, [0, 0]) == (-EINVAL, 0))
    #expect(invalidate(999, [0, 0]) == (-ENOENT, 0))
    let wrong = IOMMU_HWPT_INVALIDATE_DATA_SELFTEST_INVALID
    #expect(invalidate(table, [0, 0], type: wrong) == (-EINVAL, 0))
    #expect(invalidate(table, [], type: wrong) == (-EINVAL, 0))
    #expect(invalidate(table, [0, 0], length: 4, count: 1) == (-EINVAL, 0))
    #expect(invalidate(table, [0, 0], length: 0, count: 1) == (-EINVAL, 0))
    #expect(invalidate(table, [0, 0], length: 4097, count: 1) == (-EINVAL, 0))
    #expect(invalidate(table, [0, 0], count: (1 << 19) + 1) == (-EINVAL, 0))
    #expect(invalidate(table, [0, 0], count: 1, at: 0) == (-EINVAL, 0))
    #expect(invalidate(table, [0, 0], count: 1, at: 1 << 40) == (-EFAULT, 0))
    #expect(slots(table) == [true, true, true, true])
  }

  @Test("A1: closing the context ends devices, nested tables and parents in the right order")
  func close() {
    let nested = nest()
    #expect(door.replace(device.object, with: nested.id).result == 0)
    let context = door.context
    door.closeFile()
    #expect(context.objectCount == 0)
    #expect(door.driver.deviceCount == 0)
  }
}
