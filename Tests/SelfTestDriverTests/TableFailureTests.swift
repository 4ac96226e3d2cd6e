// SPDX-License-Identifier: Apache-2.0
//
// User-managed page tables and attachments by PASID, failed at each failure point: what was
// there before the failed call is there after it.

import CLinuxABI
import IOMMU
import SelfTestDriver
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct TableFailureTests {
  let door: BackDoor
  let sweep: FailureSweep
  let device: BackDoor.Device
  let buffer: UInt64 = 0x8000

  init() throws {
    door = try BackDoor()
    sweep = FailureSweep(door)
    device = door.makeDevice(flags: MOCK_FLAGS_DEVICE_PASID)
    #expect(door.map(0x1000, 40 * 4096, at: 0x100_0000) == 0)
  }

  @Test("fail-nth: a nested table is made, used and invalidated, or its parent is untouched")
  func nested() {
    let parent = door.makeTable(
      for: device.device, flags: IOMMU_HWPT_ALLOC_NEST_PARENT
    ).id
    door.poke([0xbad_beef, 0], at: buffer)
    func nest() -> (result: Int32, id: UInt32) {
      door.makeTable(
        for: device.device, on: parent, type: IOMMU_HWPT_DATA_SELFTEST, length: 8, data: buffer)
    }
    var made: UInt32 = 0
    sweep("HWPT_ALLOC nested") {
      let (result, id) = nest()
      made = id
      return result
    } undo: {
      #expect(door.destroy(made) == 0)
    }
    sweep("HWPT_ALLOC with data of the driver's") {
      let (result, id) = door.makeTable(
        for: device.device, type: IOMMU_HWPT_DATA_SELFTEST, length: 8, data: buffer)
      made = id
      return result
    } undo: {
      #expect(door.destroy(made) == 0)
    }
    let table = nest().id
    sweep("MOCK_DOMAIN_REPLACE by a nested table", kept: [.copyOut]) {
      door.replace(device.object, with: table).result
    } undo: {
      #expect(door.replace(device.object, with: door.ioas).result == 0)
    }
    // Invalidating again does no harm: what was handled before the failure stays handled.
    door.poke([0, 1, 0, 2], at: buffer)
    sweep("HWPT_INVALIDATE") {
      var cmd = iommu_hwpt_invalidate()
      cmd.size = 32
      cmd.hwpt_id = table
      cmd.data_uptr = buffer
      cmd.data_type = IOMMU_HWPT_INVALIDATE_DATA_SELFTEST
      cmd.entry_len = 8
      cmd.entry_num = 2
      return door.caller.ioctl(door.file, IOMMU_HWPT_INVALIDATE, &cmd)
    }
    #expect(sweep.failed.isSuperset(of: [.driverObject, .object, .attachment, .scratch]))
  }

  @Test("fail-nth: a device is attached and moved by PASID in one step or not at all")
  func pasids() {
    let tables = (0..<3).map { _ in
      door.makeTable(for: device.device, flags: IOMMU_HWPT_ALLOC_PASID).id
    }
    #expect(door.replace(device.object, with: tables[0]).result == 0)
    func attach(_ table: UInt32) -> Int32 {
      door.call(IOMMU_TEST_OP_PASID_ATTACH, id: device.object) {
        $0.pasid_attach.pasid = 100
        $0.pasid_attach.pt_id = table
      }.result
    }
    func replace(_ table: UInt32) -> Int32 {
      door.call(IOMMU_TEST_OP_PASID_REPLACE, id: device.object) {
        $0.pasid_replace.pasid = 100
        $0.pasid_replace.pt_id = table
      }.result
    }
    sweep("PASID_ATTACH") {
      attach(tables[1])
    } undo: {
      let detached = door.call(IOMMU_TEST_OP_PASID_DETACH, id: device.object) {
        $0.pasid_detach.pasid = 100
      }
      #expect(detached.result == 0)
    }
    #expect(attach(tables[1]) == 0)
    sweep("PASID_REPLACE", kept: [.copyOut]) {
      replace(tables[2])
    } undo: {
      #expect(replace(tables[1]) == 0)
    }
    sweep("PASID_CHECK_HWPT") {
      door.call(IOMMU_TEST_OP_PASID_CHECK_HWPT, id: device.object) {
        $0.pasid_check.pasid = 100
        $0.pasid_check.hwpt_id = tables[1]
      }.result
    }
    #expect(sweep.failed == [.copyIn, .copyOut, .attachment])
  }

  @Test("fail-nth: fault queues, their tables and reads of them fail whole; no request is lost")
  func faultQueues() {
    var made: (result: Int32, id: UInt32, descriptor: Int32) = (0, 0, 0)
    sweep("FAULT_QUEUE_ALLOC") {
      made = door.makeQueue()
      return made.result
    } undo: {
      door.caller.close(made.descriptor)
      #expect(door.destroy(made.id) == 0)
    }
    let queue = door.makeQueue()
    var table: UInt32 = 0
    sweep("HWPT_ALLOC with a fault queue") {
      let (result, id) = door.makeTable(
        for: device.device, flags: IOMMU_HWPT_FAULT_ID_VALID, faultQueue: queue.id)
      table = id
      return result
    } undo: {
      #expect(door.destroy(table) == 0)
    }
    table =
      door.makeTable(
        for: device.device, flags: IOMMU_HWPT_FAULT_ID_VALID, faultQueue: queue.id
      ).id
    sweep("MOCK_DOMAIN_REPLACE by a table with a fault queue", kept: [.copyOut]) {
      door.replace(device.object, with: table).result
    } undo: {
      #expect(door.replace(device.object, with: door.ioas).result == 0)
    }
    #expect(door.replace(device.object, with: table).result == 0)
    let before = door.driver.pageRequestCounts.groups
    sweep("TRIGGER_IOPF") {
      door.trigger(device.device, group: 1)
    } undo: {
      #expect(door.caller.read(queue.descriptor, buffer, count: 40) == 40)
      let cookie = door.caller.get(iommu_hwpt_pgfault.self, at: buffer).cookie
      door.poke([cookie, IOMMUFD_PAGE_RESP_SUCCESS], at: buffer)
      #expect(door.caller.write(queue.descriptor, buffer, count: 8) == 8)
    }
    #expect(
      door.driver.pageRequestCounts.groups == before + 1,
      "a call that failed asked for nothing")
    #expect(door.driver.pageRequestCounts.outstanding == 0)
    #expect(sweep.failed.isSuperset(of: [.copyIn, .copyOut, .object, .descriptor]))
  }
}
