// SPDX-License-Identifier: Apache-2.0
//
// MODEL B6 through the calls: whose limit holds, who is exempt, and what change of process does.

import CLinuxABI
import Foundation
import IOMMU
import PageTables
import SelfTestDriver
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct AccountingCallTests {
  let door: BackDoor
  let iova: UInt64 = 0x100_0000
  let page: UInt64 = 4096

  init() throws {
    door = try BackDoor()
    door.caller.right = .relinquished
  }

  private var user: UInt64 { door.caller.owner.user.byteCount }
  private var locked: UInt64 { door.caller.owner.process.locked.byteCount }
  private var pinned: UInt64 { door.caller.owner.process.pinned.byteCount }

  private func mapFile(
    _ descriptor: Int32, _ length: UInt64, at iova: UInt64, by caller: LocalCaller? = nil
  ) -> Int32 {
    var cmd = iommu_ioas_map_file()
    cmd.size = 40
    cmd.flags = 7
    cmd.ioas_id = door.ioas
    cmd.fd = descriptor
    cmd.length = length
    cmd.iova = iova
    return (caller ?? door.caller).ioctl(door.file, IOMMU_IOAS_MAP_FILE, &cmd)
  }

  private func changeProcess(by caller: LocalCaller, reserved: UInt32 = 0) -> Int32 {
    var cmd = iommu_ioas_change_process(size: 8, __reserved: reserved)
    return caller.ioctl(door.file, IOMMU_IOAS_CHANGE_PROCESS, &cmd)
  }

  @Test("B6: IOAS_MAP with a table charges the user; past RLIMIT_MEMLOCK it is ENOMEM")
  func limit() {
    door.caller.limit.bytes = 4 * page
    #expect(door.map(page, 16 * page, at: iova) == 0)
    #expect(user == 0)
    #expect(door.makeDevice().result == -ENOMEM)
    #expect(door.unmap(iova, 16 * page) == 0)
    let device = door.makeDevice()
    #expect(device.result == 0)
    #expect(door.map(page + 100, 5 * page, at: iova + 100) == -EINVAL)
    #expect(door.map(page + 2048, 4 * page, at: iova) == -ENOMEM)
    #expect(door.map(page + 2048, 3 * page, at: iova) == 0)
    #expect(user == 4 * page && pinned == 4 * page && locked == 0)
    #expect(door.map(page, page, at: iova + 64 * page) == -ENOMEM)
    #expect(door.checkPins(page, 4 * page, are: 1) == 0)
    #expect(door.unmap(0, .max) == 0)
    #expect(user == 0 && pinned == 0)
  }

  @Test("B6: an accessor charges what it pins, and nothing where a table has it pinned already")
  func accessor() {
    door.caller.limit.bytes = 3 * page
    #expect(door.map(page, 16 * page, at: iova) == 0)
    let accessor = door.makeAccessor(pins: true).descriptor
    let pin = door.pin(accessor, iova + page, 2 * page)
    #expect(pin.result == 0 && user == 2 * page)
    #expect(door.pin(accessor, iova + 4 * page, 2 * page).result == -ENOMEM)
    #expect(door.pin(accessor, iova + 2 * page, 2 * page).result == 0)
    #expect(user == 3 * page)
    #expect(door.access(accessor, iova + 8 * page, 64, buffer: page, writes: true) == 0)
    door.caller.limit.bytes = 16 * page
    #expect(door.makeDevice().result == 0)
    #expect(user == 16 * page)
    #expect(door.checkPins(page, 16 * page, are: 1) == 0)
    #expect(door.unpin(accessor, pin.id) == 0)
    #expect(user == 16 * page)
  }

  @Test("B6: CAP_IPC_LOCK exempts; on the self-test node so does having no privileges at all")
  func exempt() {
    door.caller.limit.bytes = 0
    #expect(door.makeDevice().result == 0)
    #expect(door.map(page, page, at: iova) == -ENOMEM)
    for right in [LockingRight.unlimited, .limited] {
      door.caller.right = right
      #expect(door.map(page, page, at: iova) == 0)
      #expect(user == 0 && pinned == page)
      #expect(door.unmap(iova, page) == 0)
    }
  }

  @Test("B6: on the plain node a caller without the capability has its limit")
  func plainNode() throws {
    let file = try IOMMUNode(system: door.system).open(flags: 2, by: door.caller)
    defer { file.close() }
    var alloc = iommu_ioas_alloc(size: 12, flags: 0, out_ioas_id: 0)
    #expect(door.caller.ioctl(file, IOMMU_IOAS_ALLOC, &alloc) == 0)
    let context = try #require(file as? any ContextFile).context
    let accessor = try Accessor(context: context, pinsMemory: true)
    defer { accessor.close() }
    try accessor.attach(to: ObjectID(alloc.out_ioas_id))
    door.caller.limit.bytes = 0
    for (right, errno) in [
      (LockingRight.unlimited, 0), (.limited, ENOMEM), (.relinquished, ENOMEM),
    ] {
      door.caller.right = right
      var map = iommu_ioas_map(
        size: 40, flags: 7, ioas_id: alloc.out_ioas_id, __reserved: 0, user_va: page,
        length: page, iova: iova)
      #expect(door.caller.ioctl(file, IOMMU_IOAS_MAP, &map) == 0)
      do {
        _ = try accessor.pin(IOVA(iova), length: page, for: .read)
        #expect(errno == 0)
      } catch {
        #expect(error.errno.rawValue == errno)
      }
      try context.unmap(0...UInt64.max, from: ObjectID(alloc.out_ioas_id))
    }
  }

  @Test("B6: RLIMIT_MODE 1 counts by process: processes of one user have a limit each")
  func byProcess() throws {
    #expect(door.destroy(door.ioas) == 0)
    var option = iommu_option()
    option.size = 24
    option.option_id = IOMMU_OPTION_RLIMIT_MODE
    option.op = UInt16(IOMMU_OPTION_OP_SET)
    option.val64 = 1
    #expect(door.caller.ioctl(door.file, IOMMU_OPTION, &option) == 0)
    door.ioas = door.makeIOAS()
    #expect(door.makeDevice().result == 0)
    door.caller.limit.bytes = 2 * page
    let other = try LocalCaller(user: door.caller.owner.user, arena: door.caller.arena)
    other.right = .relinquished
    other.limit.bytes = 3 * page
    #expect(door.map(page, 2 * page, at: iova) == 0)
    #expect(door.map(page, page, at: iova + 16 * page) == -ENOMEM)
    var map = iommu_ioas_map(
      size: 40, flags: 7, ioas_id: door.ioas, __reserved: 0, user_va: page, length: 3 * page,
      iova: iova + 16 * page)
    #expect(other.ioctl(door.file, IOMMU_IOAS_MAP, &map) == 0)
    #expect(user == 0 && locked == 2 * page && pinned == 2 * page)
    #expect(other.owner.process.locked.byteCount == 3 * page)
    // The compatibility calls count the same way.
    var choose = iommu_vfio_ioas(
      size: 12, ioas_id: door.ioas, op: UInt16(IOMMU_VFIO_IOAS_SET), __reserved: 0)
    #expect(door.caller.ioctl(door.file, IOMMU_VFIO_IOAS, &choose) == 0)
    var dma = vfio_iommu_type1_dma_map(
      argsz: 32, flags: 3, vaddr: page, iova: iova + 32 * page, size: page)
    #expect(door.caller.ioctl(door.file, VFIO_IOMMU_MAP_DMA, &dma) == -ENOMEM)
  }

  @Test(
    "B6: CHANGE_PROCESS refuses what is no file, and moves files; the limit is the new one's")
  func change() throws {
    let file = try LocalMemory(byteCount: 8 * page)
    let descriptor = door.caller.add(file)
    let child = try LocalCaller(arena: door.caller.arena)
    child.right = .relinquished
    #expect(changeProcess(by: child, reserved: 1) == -EOPNOTSUPP)
    #expect(changeProcess(by: child) == 0)
    #expect(door.makeDevice().result == 0)
    #expect(door.map(page, page, at: iova) == 0)
    #expect(changeProcess(by: child) == -EINVAL)
    #expect(door.unmap(iova, page) == 0)
    #expect(mapFile(descriptor, 4 * page, at: iova) == 0)
    #expect(mapFile(descriptor, 2 * page, at: iova + 16 * page) == 0)
    #expect(user == 6 * page)
    #expect(changeProcess(by: door.caller) == 0)
    child.limit.bytes = 5 * page
    #expect(changeProcess(by: child) == -ENOMEM)
    #expect(user == 6 * page && child.owner.process.pinned.byteCount == 0)
    // Having the capability makes no difference: what is counted stays counted.
    child.right = .unlimited
    #expect(changeProcess(by: child) == -ENOMEM)
    child.limit.bytes = 6 * page
    #expect(changeProcess(by: child) == 0)
    #expect(user == 0 && pinned == 0)
    #expect(child.owner.user.byteCount == 6 * page)
    #expect(door.unmap(iova, 4 * page) == 0)
    #expect(child.owner.user.byteCount == 2 * page)
    door.closeFile()
    #expect(child.owner.user.byteCount == 0 && child.owner.process.pinned.byteCount == 0)
  }

  @Test(
    "B6: a small SET_TEMP_MEMORY_LIMIT pins in steps; checks, sums and tables stay the same")
  func memoryLimit() throws {
    func set(_ limit: UInt32) -> Int32 {
      door.call(IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT) { $0.memory_limit.limit = limit }.result
    }
    #expect(set(11) == -EINVAL)
    #expect(set(16) == 0)
    let device = door.makeDevice()
    #expect(door.map(page, 15 * page, at: iova) == 0)
    #expect(door.system.memory.usedSlots == 8)
    #expect(door.checkMap(device.table, iova, 15 * page, is: page) == 0)
    #expect(door.checkPins(page, 15 * page, are: 1) == 0)
    #expect(user == 15 * page)
    door.caller.limit.bytes = 16 * page
    #expect(door.map(page, 2 * page, at: iova + 32 * page) == -ENOMEM)
    // Memory that ends in the middle: the steps before are let go.
    let end = door.caller.arena.byteCount
    #expect(door.map(end - 3 * page, 5 * page, at: iova + 32 * page) == -EFAULT)
    #expect(door.unmap(iova, 15 * page) == 0)
    #expect(door.system.memory.usedSlots == 0 && user == 0)
    #expect(set(65_536) == 0)
    #expect(door.map(page, 15 * page, at: iova) == 0)
    #expect(door.system.memory.usedSlots == 1)
  }
}
