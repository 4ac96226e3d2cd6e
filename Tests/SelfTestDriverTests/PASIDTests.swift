// SPDX-License-Identifier: Apache-2.0
//
// Attaching mock devices by PASID: which tables allow it, the rules between DMA with and
// without a PASID, and going back where the driver refuses.

import CLinuxABI
import Foundation
import IOMMU
import SelfTestDriver
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct PASIDTests {
  let door: BackDoor
  let device: BackDoor.Device
  /// Two tables for PASIDs, and one that is not.
  let tables: [UInt32]
  let plain: UInt32

  init() throws {
    door = try BackDoor()
    device = door.makeDevice(flags: MOCK_FLAGS_DEVICE_PASID)
    let (door, device) = (door, device)
    tables = (0..<2).map { _ in
      door.makeTable(for: device.device, flags: IOMMU_HWPT_ALLOC_PASID).id
    }
    plain = door.makeTable(for: device.device).id
    #expect(door.replace(device.object, with: tables[0]).result == 0)
  }

  private func attach(_ pasid: UInt32, _ table: UInt32, _ object: UInt32? = nil) -> Int32 {
    let (result, cmd) = door.call(IOMMU_TEST_OP_PASID_ATTACH, id: object ?? device.object) {
      $0.pasid_attach.pasid = pasid
      $0.pasid_attach.pt_id = table
    }
    if result == 0 { #expect(cmd.pasid_attach.pt_id == table) }
    return result
  }

  private func replace(_ pasid: UInt32, _ table: UInt32) -> Int32 {
    door.call(IOMMU_TEST_OP_PASID_REPLACE, id: device.object) {
      $0.pasid_replace.pasid = pasid
      $0.pasid_replace.pt_id = table
    }.result
  }

  private func detach(_ pasid: UInt32) -> Int32 {
    door.call(IOMMU_TEST_OP_PASID_DETACH, id: device.object) { $0.pasid_detach.pasid = pasid }
      .result
  }

  private func check(_ pasid: UInt32, is table: UInt32) -> Int32 {
    door.call(IOMMU_TEST_OP_PASID_CHECK_HWPT, id: device.object) {
      $0.pasid_check.pasid = pasid
      $0.pasid_check.hwpt_id = table
    }.result
  }

  @Test("D1: a PASID has a table of its own, is replaced in one step, and detaches to nothing")
  func life() {
    #expect(check(100, is: 0) == 0)
    #expect(check(100, is: tables[1]) == -EINVAL)
    #expect(replace(100, tables[1]) == -EINVAL, "nothing is there to be replaced")
    #expect(attach(100, tables[1]) == 0)
    #expect(check(100, is: tables[1]) == 0)
    #expect(check(100, is: 0) == -EINVAL)
    #expect(check(101, is: 0) == 0)
    #expect(attach(100, tables[1]) == -EBUSY)
    #expect(attach(100, tables[0]) == -EBUSY)
    #expect(replace(100, tables[0]) == 0)
    #expect(replace(100, tables[0]) == 0, "the table that it has already")
    #expect(check(100, is: tables[0]) == 0)
    #expect(door.destroy(tables[1]) == 0, "nobody uses it any more")
    #expect(detach(100) == 0)
    #expect(check(100, is: 0) == 0)
    #expect(detach(100) == 0, "once more does nothing")
  }

  @Test("D1: only tables made for PASIDs take them, and an automatic table never is")
  func compatibility() {
    #expect(attach(100, plain) == -EINVAL)
    #expect(attach(100, door.ioas) == -EINVAL)
    #expect(attach(100, 999) == -ENOENT)
    #expect(attach(100, device.device) == -EINVAL)
    let count = door.context.objectCount
    #expect(attach(100, door.ioas) == -EINVAL)
    #expect(door.context.objectCount == count, "the table made for it is gone again")
    #expect(attach(100, tables[0]) == 0)
    #expect(replace(100, plain) == -EINVAL)
    #expect(check(100, is: tables[0]) == 0)
  }

  @Test("D1: what a device uses without a PASID allows PASIDs as long as it uses any")
  func ridTable() {
    #expect(door.replace(device.object, with: plain).result == 0)
    #expect(attach(100, tables[0]) == -EINVAL, "the RID's table does not allow it")
    #expect(door.replace(device.object, with: tables[0]).result == 0)
    #expect(attach(100, tables[1]) == 0)
    #expect(door.replace(device.object, with: plain).result == -EINVAL)
    #expect(check(0, is: tables[0]) == 0)
    #expect(detach(100) == 0)
    #expect(door.replace(device.object, with: plain).result == 0)
  }

  @Test("D1: a PASID past the device's width, or on a device without, is refused")
  func width() {
    #expect(attach(1 << 20, tables[0]) == -EINVAL)
    #expect(attach((1 << 20) - 1, tables[0]) == 0)
    let other = door.makeDevice(on: tables[0])
    #expect(attach(5, tables[0], other.object) == -EINVAL)
    #expect(attach(5, tables[0], device.device) == -ENOENT, "not a mock device")
  }

  @Test("D1: where the driver refuses a table the PASID keeps the one it has")
  func refused() {
    let pasid = IOMMU_TEST_PASID_RESERVED
    #expect(attach(pasid, tables[0]) == 0)
    #expect(replace(pasid, tables[1]) == -ENOMEM)
    #expect(check(pasid, is: tables[0]) == 0)
    #expect(door.destroy(tables[1]) == 0, "the failed call left no use of it")
    #expect(detach(pasid) == 0)
    #expect(check(pasid, is: 0) == 0)
  }

  @Test("C4, D1: destroying the device detaches its PASIDs")
  func unbind() {
    for pasid: UInt32 in 1...8 { #expect(attach(pasid, tables[1]) == 0) }
    #expect(door.destroy(tables[1]) == -EBUSY)
    #expect(door.destroy(device.object) == 0)
    #expect(door.destroy(tables[1]) == 0)
    #expect(door.destroy(tables[0]) == 0)
  }
}
