// SPDX-License-Identifier: Apache-2.0
//
// VFIO's type1 commands on /dev/iommu (MODEL J1), with tables of the mock IOMMU behind them.

import CLinuxABI
import Foundation
import IOMMU
import SelfTestDriver
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct CompatibilityTests {
  let door: BackDoor
  let iova: UInt64 = 0x100_0000
  let page: UInt64 = 4096

  init() throws { door = try BackDoor() }

  private func choose() {
    var cmd = iommu_vfio_ioas(
      size: 12, ioas_id: door.ioas, op: UInt16(IOMMU_VFIO_IOAS_SET), __reserved: 0)
    #expect(door.caller.ioctl(door.file, IOMMU_VFIO_IOAS, &cmd) == 0)
  }

  private func value(_ command: UInt32, _ argument: UInt32) -> Int32 {
    door.caller.ioctl(door.file, command, at: UInt64(argument))
  }

  private func map(
    _ address: UInt64, _ size: UInt64, at iova: UInt64, flags: UInt32 = 3, argsz: UInt32 = 32
  ) -> Int32 {
    var cmd = vfio_iommu_type1_dma_map(
      argsz: argsz, flags: flags, vaddr: address, iova: iova, size: size)
    return door.caller.ioctl(door.file, VFIO_IOMMU_MAP_DMA, &cmd)
  }

  private func unmap(
    _ iova: UInt64, _ size: UInt64, flags: UInt32 = 0, argsz: UInt32 = 24
  ) -> (result: Int32, size: UInt64) {
    var cmd = vfio_iommu_type1_dma_unmap()
    cmd.argsz = argsz
    cmd.flags = flags
    cmd.iova = iova
    cmd.size = size
    let result = door.caller.ioctl(door.file, VFIO_IOMMU_UNMAP_DMA, &cmd)
    return (result, cmd.size)
  }

  @Test("J1: without a chosen address space the commands are ENODEV, after their own checks")
  func notChosen() {
    #expect(value(VFIO_GET_API_VERSION, 0) == 0)
    #expect(value(VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) == 1)
    #expect(value(VFIO_CHECK_EXTENSION, VFIO_UNMAP_ALL) == 1)
    #expect(value(VFIO_CHECK_EXTENSION, VFIO_UPDATE_VADDR) == 0)
    #expect(value(VFIO_CHECK_EXTENSION, VFIO_DMA_CC_IOMMU) == -ENODEV)
    #expect(value(VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU) == -ENODEV)
    #expect(value(VFIO_SET_IOMMU, 2) == -EINVAL)
    #expect(map(page, page, at: iova) == -ENODEV)
    #expect(map(page, page, at: iova, argsz: 31) == -EINVAL)
    #expect(map(page, page, at: iova, flags: 4) == -EINVAL)
    #expect(unmap(iova, page).result == -ENODEV)
    #expect(unmap(iova, page, argsz: 23).result == -EINVAL)
    #expect(unmap(iova, page, flags: 1).result == -EINVAL)
    for command in [VFIO_IOMMU_GET_INFO, VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA] {
      #expect(door.caller.ioctl(door.file, command, at: 8) == -EFAULT)
    }
    #expect(value(VFIO_IOMMU_DIRTY_PAGES, 0) == -ENOTTY)
  }

  @Test("J1: type1v2 unmaps whole mappings only, says how much, and takes nothing for success")
  func version2() {
    choose()
    let device = door.makeDevice()
    #expect(value(VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0)
    #expect(map(page, 4 * page, at: iova) == 0)
    #expect(door.checkMap(device.table, iova, 4 * page, is: page) == 0)
    #expect(map(page, page, at: iova) == -EEXIST)
    #expect(unmap(iova, 2 * page) == (-ENOENT, 0))
    #expect(unmap(iova + 8 * page, page) == (0, 0))
    #expect(unmap(iova, 0, flags: VFIO_DMA_UNMAP_FLAG_ALL).result == -EINVAL)
    #expect(unmap(.max, 2).result == -EOVERFLOW)
    #expect(unmap(iova, 0).result == -EINVAL)
    #expect(unmap(0, 0, flags: VFIO_DMA_UNMAP_FLAG_ALL) == (0, 4 * page))
    #expect(door.checkPins(page, 4 * page, are: 0) == 0)
  }

  @Test("J1: type1 cuts mappings where an unmap asks for it; the rest stays mapped and pinned")
  func version1() {
    choose()
    let device = door.makeDevice()
    #expect(value(VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU) == 0)
    #expect(map(page, 8 * page, at: iova) == 0)
    #expect(unmap(iova + 2 * page, 3 * page) == (0, 3 * page))
    #expect(door.checkMap(device.table, iova, 2 * page, is: page) == 0)
    #expect(door.checkMap(device.table, iova + 5 * page, 3 * page, is: 6 * page) == 0)
    #expect(door.checkMap(device.table, iova + 2 * page, 2048, is: 3 * page) == -EINVAL)
    #expect(door.checkPins(page, 8 * page, are: 1) == 0)
    #expect(unmap(iova + page + 2048, page).result == -EINVAL)
    // A second table mirrors the pieces and goes again.
    let other = door.makeIOAS()
    #expect(door.replace(device.object, with: other).result == 0)
    let second = door.makeDevice()
    #expect(door.checkMap(second.table, iova + 5 * page, 3 * page, is: 6 * page) == 0)
    #expect(unmap(iova, 2 * page) == (0, 2 * page))
    #expect(unmap(iova + 5 * page, 3 * page) == (0, 3 * page))
    #expect(door.checkPins(page, 8 * page, are: 0) == 0)
    #expect(door.system.memory.usedSlots == 0)
  }

  @Test("J1: type1 does not cut what an accessor has pinned")
  func pinned() {
    choose()
    #expect(value(VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU) == 0)
    #expect(map(page, 8 * page, at: iova) == 0)
    let accessor = door.makeAccessor(pins: true).descriptor
    let pin = door.pin(accessor, iova + 6 * page, page)
    #expect(pin.result == 0)
    #expect(unmap(iova, page).result == -EINVAL)
    #expect(door.unpin(accessor, pin.id) == 0)
    #expect(unmap(iova, page) == (0, page))
  }

  @Test("J1: an unmap that fails says how far it went; its cuts come before its own checks")
  func failedUnmaps() {
    choose()
    #expect(unmap(.max, 2) == (-EOVERFLOW, 0))
    #expect(unmap(iova, 0) == (-EINVAL, 0))
    // What is not written back: the errors of arguments, and of cuts.
    #expect(unmap(iova, 1, flags: VFIO_DMA_UNMAP_FLAG_ALL) == (-EINVAL, 1))
    #expect(value(VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU) == 0)
    #expect(map(page, 8 * page, at: iova) == 0)
    #expect(unmap(iova + page + 2048, page) == (-EINVAL, page))
    // One byte is not cut off the start: the area stays whole and would be split.
    #expect(unmap(iova + 1, 7 * page - 1) == (-ENOENT, 0))
    #expect(door.unmap(iova, 7 * page) == 0)
    #expect(map(page, 7 * page, at: iova) == 0)
    #expect(unmap(iova + 3 * page, 0) == (-EINVAL, 0))
    #expect(door.unmap(iova, 3 * page) == 0)
    #expect(door.unmap(iova + 3 * page, 4 * page) == 0)
  }

  @Test("J1: an unmap over several mappings stops at one that it would split, and says so")
  func partial() {
    choose()
    #expect(map(page, 2 * page, at: iova) == 0)
    #expect(map(page, 4 * page, at: iova + 4 * page) == 0)
    #expect(unmap(iova, 6 * page) == (-ENOENT, 2 * page))
    #expect(unmap(iova, 16 * page) == (0, 4 * page))
    #expect(unmap(0, 0, flags: VFIO_DMA_UNMAP_FLAG_ALL) == (0, 0))
  }

  @Test("J1: CHECK_EXTENSION answers every number: 0 for what is unknown or was given up")
  func extensions() {
    choose()
    let device = door.makeDevice()
    #expect(value(VFIO_CHECK_EXTENSION, VFIO_DMA_CC_IOMMU) == 0)
    #expect(door.destroy(device.object) == 0)
    #expect(value(VFIO_CHECK_EXTENSION, VFIO_DMA_CC_IOMMU) == 1)
    for number in 0...64 as ClosedRange<UInt32>
    where ![VFIO_TYPE1_IOMMU, VFIO_TYPE1v2_IOMMU, VFIO_UNMAP_ALL, VFIO_DMA_CC_IOMMU].contains(
      number)
    {
      #expect(value(VFIO_CHECK_EXTENSION, number) == 0, "extension \(number)")
    }
    #expect(door.caller.ioctl(door.file, VFIO_CHECK_EXTENSION, at: 1 << 32 | 1) == 0)
    #expect(door.caller.ioctl(door.file, VFIO_SET_IOMMU, at: 1 << 32 | 1) == -EINVAL)
    for number in 0...16 as ClosedRange<UInt32> where number != 1 && number != 3 {
      #expect(value(VFIO_SET_IOMMU, number) == -EINVAL, "type \(number)")
    }
  }

  @Test(
    "J1: MAP_DMA: fixed address, unaligned to a page EINVAL, no access allowed is a mapping")
  func mapEdges() {
    choose()
    #expect(map(page, 0, at: iova) == -EINVAL)
    #expect(map(.max - 4095, 2 * page, at: iova) == -EOVERFLOW)
    #expect(map(page, page, at: .max - 100) == -EOVERFLOW)
    #expect(map(page, page, at: iova, flags: 0) == 0)
    let device = door.makeDevice()
    #expect(door.checkMap(device.table, iova, page, is: page) == 0)
    #expect(map(page, 1024, at: iova + 8 * page) == -EINVAL)
    #expect(map(page + 1024, 2048, at: iova + 8 * page) == -EINVAL)
    #expect(map(page, page, at: iova + 8 * page + 1024) == -EINVAL)
    #expect(map(page, page, at: 0) == -EINVAL)
    #expect(map(door.caller.arena.byteCount, page, at: iova + 8 * page) == -EFAULT)
    #expect(unmap(iova, page) == (0, page))
    // One more byte of argsz changes nothing.
    #expect(map(page, page, at: iova, argsz: 33) == 0)
    #expect(unmap(iova, page, argsz: 25) == (0, page))
  }

  @Test("J1: large pages that are in use cannot be turned off: type1 comes too late")
  func tooLate() {
    choose()
    _ = door.makeDevice()
    #expect(map(page, page, at: iova) == 0)
    #expect(value(VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU) == -EINVAL)
  }

  @Test("J1: a map that allows nothing is taken, and an overflowing unmap writes a size of 0")
  func edges() {
    choose()
    _ = door.makeDevice()
    #expect(map(page, page, at: iova, flags: 0) == 0)
    #expect(map(page, page, at: iova, flags: 0) == -EEXIST)
    let overflowing = unmap(iova, .max)
    #expect(overflowing.result == -EOVERFLOW && overflowing.size == 0)
    let empty = unmap(iova + page, 0)
    #expect(empty.result == -EINVAL)
  }

  @Test("J1: GET_INFO fills what fits of capabilities that it does not announce, as Linux does")
  func partialInfo() {
    choose()
    _ = door.makeDevice()
    let address: UInt64 = 0x4000
    func capabilities(argsz: UInt32) -> (first: vfio_info_cap_header, id: UInt16, range: UInt64)
    {
      for offset in 0..<UInt64(128) { door.caller.put(UInt8(0), at: address + offset) }
      door.caller.put(argsz, at: address)
      #expect(door.caller.ioctl(door.file, VFIO_IOMMU_GET_INFO, at: address) == 0)
      #expect(door.caller.get(vfio_iommu_type1_info.self, at: address).cap_offset == 0)
      return (
        door.caller.get(vfio_info_cap_header.self, at: address + 24),
        door.caller.get(UInt16.self, at: address + 40),
        door.caller.get(UInt64.self, at: address + 56)
      )
    }
    #expect(capabilities(argsz: 35).first.id == 0)
    let one = capabilities(argsz: 39)
    #expect(one.first.id == 3 && one.first.next == 0)
    let two = capabilities(argsz: 71)
    #expect(two.first.id == 3 && two.first.next == 40)
    #expect(two.id == 0 && two.range == 0)
    let reserved = door.call(IOMMU_TEST_OP_ADD_RESERVED, id: door.ioas) {
      $0.add_reserved.start = iova + page
      $0.add_reserved.length = page
    }
    #expect(reserved.result == 0)
    // Two ranges now, of which one fits.
    let some = capabilities(argsz: 72)
    #expect(some.id == 0 && some.range == iova)
  }

  @Test("J1: GET_INFO writes no further than argsz, says what room it needs, then fills it")
  func info() {
    choose()
    _ = door.makeDevice()
    let address: UInt64 = 0x4000
    for argsz in 0...96 as ClosedRange<UInt32> {
      for offset in 0..<UInt64(128) { door.caller.put(UInt8(0xaa), at: address + offset) }
      door.caller.put(argsz, at: address)
      let result = door.caller.ioctl(door.file, VFIO_IOMMU_GET_INFO, at: address)
      #expect(result == (argsz < 16 ? -EINVAL : 0), "argsz \(argsz)")
      for offset in UInt64(max(argsz, 4))..<128 {
        #expect(door.caller.get(UInt8.self, at: address + offset) == 0xaa)
      }
      guard argsz >= 24 else { continue }
      let info = door.caller.get(vfio_iommu_type1_info.self, at: address)
      #expect(info.argsz == 72)
      #expect(info.flags == VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS)
      #expect(info.iova_pgsizes == 4096)
      #expect(info.cap_offset == (argsz >= 72 ? 24 : 0))
      // Each part is there as far as there is room for it.
      let first = door.caller.get(vfio_info_cap_header.self, at: address + 24)
      if argsz >= 36 {
        #expect(first.id == UInt16(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL))
        #expect(first.next == (argsz >= 40 ? 40 : 0))
        #expect(door.caller.get(UInt32.self, at: address + 32) == .max)
      }
      guard argsz >= 72 else { continue }
      let next = door.caller.get(vfio_info_cap_header.self, at: address + 24).next
      let ranges = door.caller.get(
        vfio_iommu_type1_info_cap_iova_range.self, at: address + UInt64(next))
      #expect(ranges.nr_iovas == 1)
      let range = door.caller.get(vfio_iova_range.self, at: address + UInt64(next) + 16)
      #expect(MockDomain.aperture == range.start...range.end)
    }
  }

  @Test("trace: a call is told as far as its structure goes, no further")
  func trace() throws {
    let file = try #require(door.file as? any DescribesCalls)
    door.caller.put(UInt32(24), at: 0x2000)
    for offset in 4..<UInt64(64) { door.caller.put(UInt8(1), at: 0x2000 + offset) }
    let words = file.describe(IOMMU_HWPT_ALLOC, argument: 0x2000, by: door.caller)
    #expect(words.name == "IOMMU_HWPT_ALLOC")
    #expect(words.fields.map(\.name) == ["flags", "dev_id", "pt_id", "out_hwpt_id"])
    let set = file.describe(VFIO_SET_IOMMU, argument: 3, by: door.caller)
    #expect(set.name == "VFIO_SET_IOMMU" && set.fields.map(\.value) == ["0x3"])
  }
}
