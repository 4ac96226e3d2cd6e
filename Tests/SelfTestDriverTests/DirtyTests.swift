// SPDX-License-Identifier: Apache-2.0
//
// Dirty pages (MODEL I1) with the mock IOMMU, whose back door writes as a device would.

import CLinuxABI
import Foundation
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct DirtyTests {
  let door: BackDoor
  let iova: UInt64 = 0x100_0000
  let half: UInt64 = 2048
  let bitmap: UInt64 = 0x8_0000
  /// A table that tracks dirty pages, with 16 half pages mapped.
  let table: UInt32

  init() throws {
    door = try BackDoor()
    let device = door.makeDevice()
    var alloc = iommu_hwpt_alloc()
    alloc.size = 48
    alloc.flags = IOMMU_HWPT_ALLOC_DIRTY_TRACKING
    alloc.dev_id = device.device
    alloc.pt_id = door.ioas
    #expect(door.caller.ioctl(door.file, IOMMU_HWPT_ALLOC, &alloc) == 0)
    table = alloc.out_hwpt_id
    #expect(door.map(0x4000, 16 * half, at: iova) == 0)
  }

  private func track(_ table: UInt32, flags: UInt32 = 1) -> Int32 {
    var cmd = iommu_hwpt_set_dirty_tracking(
      size: 16, flags: flags, hwpt_id: table, __reserved: 0)
    return door.caller.ioctl(door.file, IOMMU_HWPT_SET_DIRTY_TRACKING, &cmd)
  }

  private func write(_ bits: UInt16) -> Int32 {
    door.caller.put(bits, at: 0x9_0000)
    return door.call(IOMMU_TEST_OP_DIRTY, id: table) {
      $0.dirty.iova = iova
      $0.dirty.length = 16 * half
      $0.dirty.page_size = half
      $0.dirty.uptr = 0x9_0000
    }.result
  }

  private func read(
    _ iova: UInt64? = nil, length: UInt64? = nil, pageSize: UInt64? = nil, flags: UInt32 = 0,
    data: UInt64? = nil, table: UInt32? = nil
  ) -> (result: Int32, bits: UInt16) {
    door.caller.put(UInt16(0), at: bitmap)
    var cmd = iommu_hwpt_get_dirty_bitmap(
      size: 48, hwpt_id: table ?? self.table, flags: flags, __reserved: 0,
      iova: iova ?? self.iova, length: length ?? 16 * half, page_size: pageSize ?? half,
      data: data ?? bitmap)
    let result = door.caller.ioctl(door.file, IOMMU_HWPT_GET_DIRTY_BITMAP, &cmd)
    return (result, door.caller.get(UInt16.self, at: bitmap))
  }

  @Test("I1: a device's writes cannot be feigned while nothing is tracked, mapped or not")
  func notTracking() {
    #expect(door.unmap(iova, 16 * half) == 0)
    #expect(write(1) == -EINVAL)
    #expect(track(table) == 0)
    #expect(write(1) == 0)
  }

  @Test("I1: what was written is read once, or as often as it is read without clearing")
  func readAndClear() {
    #expect(read() == (0, 0), "tracking is off: Linux reports nothing")
    #expect(write(1) == -EINVAL)
    #expect(track(table) == 0)
    #expect(read() == (0, 0))
    #expect(write(0b1000_0000_0110_0001) == 0)
    let noClear = IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR
    #expect(read(flags: noClear) == (0, 0b1000_0000_0110_0001))
    #expect(read() == (0, 0b1000_0000_0110_0001))
    #expect(read() == (0, 0))
  }

  @Test("I1: a part of the range clears that part; larger pages are dirty if any of theirs is")
  func partsAndSizes() {
    #expect(track(table) == 0)
    #expect(write(0b1000_0000_0110_0001) == 0)
    #expect(read(iova + 4 * half, length: 4 * half) == (0, 0b0110))
    #expect(read(pageSize: 2 * half) == (0, 0b1000_0001))
    #expect(read() == (0, 0))
  }

  @Test("I1: turning tracking on again forgets what was dirty")
  func restart() {
    #expect(track(table) == 0)
    #expect(write(0xffff) == 0)
    #expect(track(table, flags: 0) == 0)
    #expect(track(table) == 0)
    #expect(read() == (0, 0))
  }

  @Test("I1: a bitmap that cannot be written loses no dirty page")
  func badBitmap() {
    #expect(track(table) == 0)
    #expect(write(0x10) == 0)
    #expect(read(data: 8).result == -EFAULT)
    #expect(read() == (0, 0x10))
  }

  @Test("I1: ranges and tables that cannot be asked")
  func refused() {
    #expect(track(table) == 0)
    #expect(track(table, flags: 2) == -EOPNOTSUPP)
    #expect(track(99) == -ENOENT && track(door.ioas) == -ENOENT)
    let plain = door.makeDevice().table
    #expect(track(plain) == -EOPNOTSUPP)
    #expect(read(table: plain).result == -EOPNOTSUPP)
    #expect(read(table: 99).result == -ENOENT)
    #expect(read(flags: 2).result == -EOPNOTSUPP)
    #expect(read(length: 0).result == -EINVAL)
    #expect(read(pageSize: 0).result == -EINVAL)
    #expect(read(iova + 1).result == -EINVAL)
    #expect(read(length: 15 * half, pageSize: 2 * half).result == -EINVAL)
    #expect(read(.max - 1, length: 16).result == -EOVERFLOW)
    #expect(read(0, length: .max).result == -EINVAL)
    // As on Linux the walk ends quietly where nothing is mapped.
    #expect(write(0x8000) == 0)
    #expect(read(iova - 16 * half, length: 32 * half) == (0, 0))
    #expect(read(iova, length: 32 * half) == (0, 0x8000))
  }
}
