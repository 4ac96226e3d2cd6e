// SPDX-License-Identifier: Apache-2.0
//
// The back door's mock devices: how they come and go, and what is seen in their tables.

import CLinuxABI
import Foundation
import IOMMU
import SelfTestDriver
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct MockDeviceTests {
  let door: BackDoor
  let iova: UInt64 = 0x100_0000
  let page: UInt64 = 4096

  init() throws { door = try BackDoor() }

  @Test("L: without a self-test driver there is no back door")
  func noDriver() throws {
    let file = try IOMMUNode(system: door.system).open(flags: 2, by: door.caller)
    var cmd = iommu_test_cmd()
    cmd.size = 72
    cmd.op = IOMMU_TEST_OP_MOCK_DOMAIN
    #expect(door.caller.ioctl(file, IOMMU_TEST_CMD, &cmd) == -ENOTTY)
  }

  @Test("L: an operation that is not there is EOPNOTSUPP, a short structure EINVAL")
  func badCalls() {
    #expect(door.call(99).result == -EOPNOTSUPP)
    #expect(door.call(IOMMU_TEST_OP_ADD_RESERVED) { $0.size = 67 }.result == -EINVAL)
    func limit(_ bytes: UInt32) -> Int32 {
      door.call(IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT) { $0.memory_limit.limit = bytes }.result
    }
    #expect(limit(11) == -EINVAL)
    #expect(limit(12) == 0)
  }

  @Test("B6: the accounting mode needs privileges, except of a self-test")
  func privileges() throws {
    let nobody = try LocalCaller(maySetResourceLimits: false)
    func setMode(_ node: IOMMUNode) throws -> Int32 {
      let file = try node.open(flags: 2, by: nobody)
      defer { file.close() }
      var cmd = iommu_option()
      cmd.size = 24
      cmd.option_id = IOMMU_OPTION_RLIMIT_MODE
      cmd.op = UInt16(IOMMU_OPTION_OP_SET)
      cmd.val64 = 1
      return nobody.ioctl(file, IOMMU_OPTION, &cmd)
    }
    #expect(try setMode(IOMMUNode(system: door.system)) == -EPERM)
    #expect(try setMode(IOMMUNode(selfTestDriver: door.driver)) == 0)
  }

  @Test("C1, D1: a mock device is bound and attached, keeps its objects busy, and goes whole")
  func life() {
    let device = door.makeDevice()
    #expect(device.result == 0)
    #expect(door.driver.deviceCount == 1 && door.system.groups.count == 1)
    for id in [door.ioas, device.table, device.device] {
      #expect(door.destroy(id) == -EBUSY, "object \(id)")
    }
    #expect(door.destroy(device.object) == 0)
    for id in [device.object, device.table, device.device] {
      #expect(door.destroy(id) == -ENOENT, "object \(id)")
    }
    #expect(door.driver.deviceCount == 0 && door.system.groups.isEmpty)
    #expect(door.destroy(door.ioas) == 0)
    #expect(door.context.objectCount == 0)
  }

  @Test("G1: a new mock device's cache is full; only a bound device has one, of four slots")
  func cache() {
    let device = door.makeDevice()
    for slot: UInt32 in 0..<4 {
      #expect(door.checkCache(device.device, slot, is: IOMMU_TEST_DEV_CACHE_DEFAULT) == 0)
    }
    #expect(door.checkCache(device.device, 0, is: 0) == -EINVAL)
    #expect(door.checkCache(device.device, 4, is: IOMMU_TEST_DEV_CACHE_DEFAULT) == -EINVAL)
    #expect(door.checkCache(device.object, 0, is: IOMMU_TEST_DEV_CACHE_DEFAULT) == -ENOENT)
  }

  @Test("L: a mock device's ids are given in Linux's order, and all given back if it fails")
  func orderOfIDs() {
    let first = door.makeDevice()
    let next = door.ioas + 1
    #expect((first.object, first.device, first.table) == (next, next + 1, next + 2))
    // While a device is being made its own id names nothing, the one of its device a device.
    #expect(door.makeDevice(on: next + 3).result == -ENOENT)
    #expect(door.makeDevice(on: next + 4).result == -EINVAL)
    #expect(door.makeIOAS() == next + 3)
  }

  @Test("A1: closing the context takes its mock devices with it")
  func close() {
    _ = door.makeDevice()
    _ = door.makeDevice()
    #expect(door.map(page, page, at: iova) == 0)
    door.closeFile()
    #expect(door.driver.deviceCount == 0 && door.system.groups.isEmpty)
    #expect(door.system.contextCount == 0)
    #expect(door.system.memory.usedSlots == 0)
  }

  @Test("L: what cannot be attached leaves no device behind")
  func failures() {
    #expect(door.makeDevice(on: 99).result == -ENOENT)
    #expect(door.makeDevice(flags: 0x100).result == -EINVAL)
    #expect(door.map(page, page, at: 0) == 0)  // below the aperture
    #expect(door.makeDevice().result == -EADDRINUSE)
    #expect(door.unmap(0, page) == 0)
    #expect(door.map(page, 1000, at: iova) == 0)  // not a whole mock page
    #expect(door.makeDevice().result == -EADDRINUSE)
    #expect(door.driver.deviceCount == 0 && door.system.groups.isEmpty)
    #expect(door.context.objectCount == 1)
    #expect(door.unmap(iova, 1000) == 0)
    #expect(door.makeDevice(on: door.makeDevice().device).result == -EINVAL)
    #expect(door.driver.deviceCount == 1)
  }

  @Test("B1: a table holds the mapped memory, half page by half page")
  func checkMap() {
    let first = door.makeDevice()
    #expect(door.map(page + 2048, 3 * 2048, at: iova) == 0)
    let second = door.makeDevice(on: first.table)
    #expect(second.result == 0 && second.table == first.table)
    #expect(door.checkMap(first.table, iova, 3 * 2048, is: page + 2048) == 0)
    #expect(door.checkMap(first.table, iova + 2048, 2048, is: 2 * page) == 0)
    #expect(door.checkMap(first.table, iova, 2048, is: page) == -EINVAL)
    #expect(door.checkMap(first.table, iova, 4 * 2048, is: page + 2048) == -EINVAL)
    #expect(door.checkMap(first.table, iova + 1, 2048, is: page) == -EINVAL)
    #expect(door.checkMap(first.table, iova, 2048, is: 1 << 40) == -EFAULT)
    #expect(door.checkMap(door.ioas, iova, 2048, is: page + 2048) == -ENOENT)
  }

  @Test("B6: memory is pinned once, however many tables use it, and not once nobody does")
  func pins() throws {
    #expect(door.map(page, 4 * page, at: iova) == 0)
    #expect(door.checkPins(page, 4 * page, are: 0) == 0)
    let first = door.makeDevice()
    #expect(door.checkPins(page, 4 * page, are: 1) == 0)
    var alloc = iommu_hwpt_alloc()
    alloc.size = 48
    alloc.dev_id = first.device
    alloc.pt_id = door.ioas
    #expect(door.caller.ioctl(door.file, IOMMU_HWPT_ALLOC, &alloc) == 0)
    #expect(door.checkPins(page, 4 * page, are: 1) == 0)
    #expect(door.checkPins(page, 5 * page, are: 1) == -EIO)
    #expect(door.checkPins(page + 1, page, are: 1) == -EINVAL)
    #expect(door.unmap(iova, 4 * page) == 0)
    #expect(door.checkPins(page, 4 * page, are: 0) == 0)
    let domain = try #require(
      door.context.pagingDomain(ObjectID(alloc.out_hwpt_id)) as? MockDomain)
    #expect(domain.pageCount == 0)
  }

  @Test("D1: replacing moves the device; a table that attaching made goes with its last device")
  func replace() {
    let device = door.makeDevice()
    let other = door.makeIOAS()
    let (result, table) = door.replace(device.object, with: other)
    #expect(result == 0 && table != 0)
    #expect(door.destroy(other) == -EBUSY)
    #expect(door.replace(device.object, with: other) == (0, table))
    #expect(door.replace(device.object, with: 99).result == -ENOENT)
    #expect(door.replace(device.device, with: other).result == -ENOENT)
    #expect(door.replace(device.object, with: door.ioas).result == 0)
    #expect(door.destroy(other) == 0)
  }

  @Test("B7: a table that tracks dirty pages is refused to a device that cannot")
  func dirty() {
    let able = door.makeDevice()
    let unable = door.makeDevice(flags: MOCK_FLAGS_DEVICE_NO_DIRTY)
    var alloc = iommu_hwpt_alloc()
    alloc.size = 48
    alloc.pt_id = door.ioas
    alloc.flags = IOMMU_HWPT_ALLOC_DIRTY_TRACKING
    alloc.dev_id = unable.device
    #expect(door.caller.ioctl(door.file, IOMMU_HWPT_ALLOC, &alloc) == -EOPNOTSUPP)
    alloc.dev_id = able.device
    #expect(door.caller.ioctl(door.file, IOMMU_HWPT_ALLOC, &alloc) == 0)
    #expect(door.replace(unable.object, with: alloc.out_hwpt_id).result == -EINVAL)
    #expect(door.replace(able.object, with: alloc.out_hwpt_id) == (0, alloc.out_hwpt_id))
  }

  @Test("B8: the mock IOMMU says what it is, and the PASIDs of a device that has them")
  func hardware() {
    let device = door.makeDevice(flags: MOCK_FLAGS_DEVICE_PASID)
    var info = iommu_hw_info()
    info.size = 40
    info.dev_id = device.device
    info.data_len = 8
    info.data_uptr = 0x5000
    #expect(door.caller.ioctl(door.file, IOMMU_GET_HW_INFO, &info) == 0)
    #expect(info.out_data_type == IOMMU_HW_INFO_TYPE_SELFTEST && info.data_len == 8)
    #expect(info.out_max_pasid_log2 == MOCK_PASID_WIDTH)
    #expect(info.out_capabilities & UInt64(IOMMU_HW_CAP_DIRTY_TRACKING) != 0)
    let data = door.caller.get(iommu_test_hw_info.self, at: 0x5000)
    #expect(data.flags == 0)
    #expect(data.test_reg == IOMMU_HW_INFO_SELFTEST_REGVAL)
  }
}
