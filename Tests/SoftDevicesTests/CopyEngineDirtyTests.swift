// SPDX-License-Identifier: Apache-2.0
//
// Dirty pages (MODEL I1) of a copy engine, through /dev/iommu only: what a virtual machine's
// migration does.

import CLinuxABI
import IOMMU
import SoftDevices
import TestSupport
import Testing

@Suite(.timeLimit(.minutes(10))) struct CopyEngineDirtyTests {
  let bench: EngineBench
  let table: UInt32
  let bitmap: UInt64 = 0x4000
  private var rig: EngineRig { bench.rig }

  init() throws {
    bench = try EngineBench()
    var alloc = iommu_hwpt_alloc()
    alloc.size = 48
    alloc.flags = IOMMU_HWPT_ALLOC_DIRTY_TRACKING
    alloc.dev_id = bench.rig.deviceID
    alloc.pt_id = bench.rig.ioas
    #expect(bench.rig.caller.ioctl(bench.rig.iommuFile, IOMMU_HWPT_ALLOC, &alloc) == 0)
    table = alloc.out_hwpt_id
    #expect(bench.rig.attach(table) == 0, "in place of the automatic one")
  }

  private func track(_ enabled: Bool) -> Int32 {
    var cmd = iommu_hwpt_set_dirty_tracking(
      size: 16, flags: enabled ? 1 : 0, hwpt_id: table, __reserved: 0)
    return rig.caller.ioctl(rig.iommuFile, IOMMU_HWPT_SET_DIRTY_TRACKING, &cmd)
  }

  /// The numbers of the bits that are set.
  private func read(
    _ iova: UInt64 = 0x10000, length: UInt64 = 0xFF0000, pageSize: UInt64 = 4096,
    flags: UInt32 = 0
  ) -> (result: Int32, bits: [UInt64]) {
    for offset in stride(from: UInt64(0), to: 0x2000, by: 8) {
      rig.caller.put(UInt64(0), at: bitmap + offset)
    }
    var cmd = iommu_hwpt_get_dirty_bitmap(
      size: 48, hwpt_id: table, flags: flags, __reserved: 0, iova: iova, length: length,
      page_size: pageSize, data: bitmap)
    let result = rig.caller.ioctl(rig.iommuFile, IOMMU_HWPT_GET_DIRTY_BITMAP, &cmd)
    let bits = (0..<UInt64(0x10000)).filter {
      rig.caller.get(UInt8.self, at: bitmap + $0 / 8) >> UInt8($0 % 8) & 1 == 1
    }
    return (result, bits)
  }

  private func copy(to destination: UInt64, size: UInt32) {
    bench.descriptor(size: size, destination: destination)
    rig.start(bench.ring, count: 1)
    #expect(rig.wait() == bench.ring | 1)
  }

  @Test("B8: GET_HW_INFO says that the IOMMU tracks dirty pages, in capabilities and registers")
  func capability() {
    var info = iommu_hw_info()
    info.size = UInt32(MemoryLayout<iommu_hw_info>.size)
    info.dev_id = rig.deviceID
    info.data_len = 24
    info.data_uptr = 0x6000
    #expect(rig.caller.ioctl(rig.iommuFile, IOMMU_GET_HW_INFO, &info) == 0)
    #expect(info.out_capabilities & UInt64(IOMMU_HW_CAP_DIRTY_TRACKING) != 0)
    let extended = rig.caller.get(UInt64.self, at: 0x6010)
    #expect(extended >> 45 & 1 == 1, "SSADS")
    #expect(
      extended >> 43 & 1 == 1 && extended >> 48 & 1 == 1, "without which Linux ignores it")
  }

  @Test("I1: the pages that a copy wrote are in the bitmap once, and at any page size")
  func copies() {
    #expect(track(true) == 0)
    #expect(read() == (0, []))
    // Up to 0x1fffff leaves are of 4 KiB.
    copy(to: 0x1_3000, size: 0x2800)
    let noClear = IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR
    #expect(read(flags: noClear) == (0, [3, 4, 5]))
    #expect(read(flags: noClear) == (0, [3, 4, 5]), "nothing was cleared")
    #expect(read(pageSize: 8192, flags: noClear) == (0, [1, 2]))
    #expect(read(pageSize: 65536) == (0, [0]))
    #expect(read() == (0, []))
    copy(to: 0x1_3000, size: 16)
    #expect(read(0x1_0000, length: 0x8000, pageSize: 1024) == (0, [12, 13, 14, 15]))
    #expect(read() == (0, []))
  }

  @Test("I1: a large leaf makes all of its pages dirty; the bitmap is cut to the range")
  func largeLeaf() {
    #expect(track(true) == 0)
    // 0x400000 to 0x5fffff is one leaf of 2 MiB.
    copy(to: 0x48_0000, size: 64)
    let all = read(0x40_0000, length: 0x40_0000, flags: IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR)
    #expect(all.bits == Array(0..<512))
    #expect(read(0x5F_F000, length: 0x2000).bits == [0], "a part of it, and of the next")
    #expect(read(0x40_0000, length: 0x20_0000).bits.isEmpty, "was cleared as a whole")
    copy(to: 0x48_0000, size: 64)
    #expect(read(0x40_0000, length: 0x80_0000, pageSize: 0x40_0000).bits == [0])
  }

  @Test("I1: ranges, tables and flags that Linux refuses are refused alike")
  func refused() {
    #expect(read() == (0, []), "tracking is off")
    #expect(track(true) == 0)
    #expect(read(length: 0).result == -22)
    #expect(read(0x10001).result == -22)
    #expect(read(0x10000, length: 0x800, pageSize: 0x800).result == -22, "half a page")
    #expect(read(pageSize: 0).result == -22)
    #expect(read(0x11000, length: 0x1000, pageSize: 0x2000).result == -22)
    #expect(read(0xFFFF_FFFF_FFFF_F000, length: 0x2000).result == -75)
    #expect(read(flags: 2).result == -95)
    let untracked = rig.attach(rig.ioas)
    #expect(untracked == 0)
    #expect(track(false) == 0)
  }
}
