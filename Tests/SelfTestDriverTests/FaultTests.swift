// SPDX-License-Identifier: Apache-2.0
//
// Fault queues through their descriptor, with mock devices that ask for pages (MODEL H1, H3).

import CLinuxABI
import Foundation
import IOMMU
import SelfTestDriver
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct FaultTests {
  let door: BackDoor
  let device: BackDoor.Device
  let queue: (id: UInt32, descriptor: Int32)
  /// A fault-capable table on the address space.
  let table: UInt32
  /// Where the client reads to and writes from.
  let buffer: UInt64 = 0x8000
  private static let record = 40

  init() throws {
    door = try BackDoor()
    device = door.makeDevice(flags: MOCK_FLAGS_DEVICE_PASID)
    let made = door.makeQueue()
    #expect(made.result == 0)
    queue = (made.id, made.descriptor)
    table =
      door.makeTable(
        for: device.device, flags: IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_PASID,
        faultQueue: queue.id
      ).id
    #expect(door.replace(device.object, with: table).result == 0)
  }

  private func read(_ count: Int, at address: UInt64? = nil) -> Int {
    door.caller.read(queue.descriptor, address ?? buffer, count: count)
  }

  private func record(_ index: Int = 0) -> iommu_hwpt_pgfault {
    door.caller.get(iommu_hwpt_pgfault.self, at: buffer + UInt64(index * Self.record))
  }

  /// Writes answers: cookies with codes.
  private func answer(_ answers: [(cookie: UInt32, code: UInt32)]) -> Int {
    door.poke(answers.flatMap { [$0.cookie, $0.code] }, at: buffer)
    return door.caller.write(queue.descriptor, buffer, count: answers.count * 8)
  }

  @Test("H1: what a device asks for is in the record, and the answer reaches the device")
  func roundTrip() {
    #expect(door.caller.poll(queue.descriptor) == [.writable])
    #expect(read(Self.record) == 0)
    #expect(door.trigger(device.device, group: 9, perm: 0x13, address: 0xdead_beef_f00d) == 0)
    #expect(door.caller.poll(queue.descriptor) == [.readable, .writable])
    #expect(read(2 * Self.record) == Self.record)
    let fault = record()
    #expect(fault.flags == IOMMU_PGFAULT_FLAGS_LAST_PAGE)
    #expect(fault.dev_id == device.device)
    #expect(fault.pasid == 0 && fault.grpid == 9 && fault.perm == 0x13)
    #expect(fault.addr == 0xdead_beef_f00d)
    #expect(fault.__reserved == 0 && fault.length == 0 && fault.cookie == 1)
    #expect(door.caller.poll(queue.descriptor) == [.writable])
    #expect(answer([(fault.cookie, IOMMUFD_PAGE_RESP_SUCCESS)]) == 8)
    #expect(answer([(fault.cookie, IOMMUFD_PAGE_RESP_SUCCESS)]) == -Int(EINVAL))
    let counts = door.driver.pageRequestCounts
    #expect(counts.groups == 1 && counts.succeeded == 1 && counts.outstanding == 0)
  }

  @Test("H1: a PASID's request says so, where the PASID is attached; else it is refused")
  func pasid() {
    #expect(door.trigger(device.device, group: 1, pasid: 5) == 0)
    #expect(door.driver.pageRequestCounts.invalid == 1)
    let attached = door.call(IOMMU_TEST_OP_PASID_ATTACH, id: device.object) {
      $0.pasid_attach.pasid = 5
      $0.pasid_attach.pt_id = table
    }
    #expect(attached.result == 0)
    #expect(door.trigger(device.device, group: 2, pasid: 5) == 0)
    #expect(read(Self.record) == Self.record)
    #expect(record().flags == IOMMU_PGFAULT_FLAGS_LAST_PAGE | IOMMU_PGFAULT_FLAGS_PASID_VALID)
    #expect(record().pasid == 5 && record().grpid == 2)
    let detached = door.call(IOMMU_TEST_OP_PASID_DETACH, id: device.object) {
      $0.pasid_detach.pasid = 5
    }
    #expect(detached.result == 0)
    #expect(door.driver.pageRequestCounts.invalid == 2)
  }

  @Test("H1: a user-managed table takes the requests of all PASIDs that have none of their own")
  func pasidTable() {
    door.poke([7, 0], at: buffer)
    let parent = door.makeTable(
      for: device.device, flags: IOMMU_HWPT_ALLOC_NEST_PARENT | IOMMU_HWPT_ALLOC_PASID)
    let nested = door.makeTable(
      for: device.device, on: parent.id,
      flags: IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_PASID,
      type: IOMMU_HWPT_DATA_SELFTEST, length: 8, data: buffer, faultQueue: queue.id)
    #expect(door.replace(device.object, with: nested.id).result == 0)
    #expect(door.trigger(device.device, group: 2, pasid: 5) == 0)
    #expect(read(Self.record) == Self.record)
    #expect(record().pasid == 5 && record().grpid == 2)
    // One that is attached is on its own, queue or not.
    let attached = door.call(IOMMU_TEST_OP_PASID_ATTACH, id: device.object) {
      $0.pasid_attach.pasid = 5
      $0.pasid_attach.pt_id = parent.id
    }
    #expect(attached.result == 0)
    #expect(door.trigger(device.device, group: 3, pasid: 5) == 0)
    #expect(read(Self.record) == 0)
    #expect(door.driver.pageRequestCounts.invalid == 1)
  }

  @Test("H1: reads take whole records only, as many as fit, and EFAULT loses none")
  func reading() {
    #expect(read(Self.record - 1) == -Int(ESPIPE))
    #expect(read(7) == -Int(ESPIPE))
    #expect(read(0) == 0)
    for group in 1...3 { _ = door.trigger(device.device, group: UInt32(group)) }
    #expect(read(0) == -Int(EINVAL), "the first group does not fit")
    #expect(read(Self.record, at: 8) == -Int(EFAULT))
    #expect(door.caller.poll(queue.descriptor) == [.readable, .writable])
    #expect(read(2 * Self.record) == 2 * Self.record)
    #expect([record(0), record(1)].map(\.grpid) == [1, 2])
    #expect([record(0), record(1)].map(\.cookie) == [1, 2])
    #expect(read(2 * Self.record) == Self.record)
    #expect(record().grpid == 3)
    #expect(read(Self.record) == 0)
    // The first fits, the second meets the end of memory: the first is delivered.
    for group in 4...5 { _ = door.trigger(device.device, group: UInt32(group)) }
    let end = UInt64(door.caller.arena.byteCount)
    #expect(read(2 * Self.record, at: end - UInt64(Self.record)) == Self.record)
    #expect(read(2 * Self.record) == Self.record)
    #expect(record().grpid == 5)
  }

  @Test("H1: answers count up to the first wrong one, which fails at once where it is alone")
  func answering() {
    for group in 1...4 { _ = door.trigger(device.device, group: UInt32(group)) }
    #expect(read(4 * Self.record) == 4 * Self.record)
    #expect(door.caller.write(queue.descriptor, buffer, count: 4) == -Int(ESPIPE))
    #expect(door.caller.write(queue.descriptor, buffer, count: 0) == 0)
    #expect(answer([(1, 2)]) == -Int(EINVAL), "no such code")
    #expect(answer([(0, 0)]) == -Int(EINVAL))
    #expect(answer([(99, 0)]) == -Int(EINVAL))
    #expect(door.caller.write(queue.descriptor, 8, count: 8) == -Int(EFAULT))
    #expect(answer([(2, 0), (1, 1), (1, 1), (3, 0)]) == 16)
    #expect(door.driver.pageRequestCounts.succeeded == 1)
    #expect(door.driver.pageRequestCounts.invalid == 1)
    #expect(answer([(3, 0), (4, 7)]) == 8)
    #expect(door.driver.pageRequestCounts.outstanding == 1)
  }

  @Test("H3: replace, destroy and close answer what is left; a table keeps its queue")
  func ends() {
    _ = door.trigger(device.device, group: 1)
    #expect(read(Self.record) == Self.record)
    _ = door.trigger(device.device, group: 2)
    #expect(door.destroy(queue.id) == -EBUSY)
    #expect(door.destroy(table) == -EBUSY)
    #expect(door.replace(device.object, with: device.table).result == -ENOENT, "automatic")
    #expect(door.replace(device.object, with: door.ioas).result == 0)
    #expect(door.driver.pageRequestCounts.invalid == 2)
    #expect(door.caller.poll(queue.descriptor) == [.writable])
    #expect(answer([(1, 0)]) == -Int(EINVAL))
    #expect(door.destroy(queue.id) == -EBUSY)
    #expect(door.destroy(table) == 0)
    #expect(door.destroy(queue.id) == -EBUSY, "its descriptor is open")
    door.caller.close(queue.descriptor)
    #expect(door.destroy(queue.id) == 0)
    #expect(door.destroy(queue.id) == -ENOENT)
    #expect(door.driver.pageRequestCounts.outstanding == 0)
  }

  @Test("H3: closing the queue's descriptor answers, destroying the device answers")
  func closing() {
    _ = door.trigger(device.device, group: 1)
    door.caller.close(queue.descriptor)
    #expect(door.driver.pageRequestCounts.invalid == 1)
    #expect(door.trigger(device.device, group: 2) == 0)
    #expect(door.driver.pageRequestCounts.invalid == 2)
    let other = door.makeQueue()
    let second = door.makeTable(
      for: device.device, flags: IOMMU_HWPT_FAULT_ID_VALID, faultQueue: other.id)
    #expect(door.replace(device.object, with: second.id).result == 0)
    _ = door.trigger(device.device, group: 3)
    #expect(door.destroy(device.object) == 0)
    #expect(door.driver.pageRequestCounts.invalid == 3)
    #expect(door.trigger(device.device, group: 4) == -ENOENT)
    #expect(door.caller.poll(other.descriptor) == [.writable])
  }

  @Test("H3: the queue's descriptor keeps the context; the last of both ends it")
  func context() {
    let system = door.system
    door.closeFile()
    #expect(system.contextCount == 1)
    #expect(read(Self.record) == 0)
    door.caller.close(queue.descriptor)
    #expect(system.contextCount == 0)
    #expect(door.driver.deviceCount == 0)
  }

  @Test("H1: FAULT_QUEUE_ALLOC refuses flags and leaves nothing where it cannot answer")
  func allocation() {
    #expect(door.makeQueue(flags: 1).result == -EOPNOTSUPP)
    #expect(door.makeQueue(size: 12).result == -EINVAL)
    let objects = door.context.objectCount
    for nth in 1...20 {
      let failure = FailureCountdown(nth)
      let made = failure.run { door.makeQueue() }
      guard failure.failed != nil else {
        #expect(made.result == 0)
        break
      }
      #expect(made.result < 0)
      #expect(door.context.objectCount == objects, "failure point \(nth)")
    }
  }

  @Test(
    "H1: HWPT_ALLOC looks for the queue last; a nest parent takes none, a nested table does")
  func tables() {
    func make(_ queue: UInt32, on parent: UInt32? = nil, flags: UInt32 = 0) -> Int32 {
      door.poke([7, 0], at: buffer)
      return door.makeTable(
        for: device.device, on: parent, flags: IOMMU_HWPT_FAULT_ID_VALID | flags,
        type: parent == nil ? IOMMU_HWPT_DATA_NONE : IOMMU_HWPT_DATA_SELFTEST,
        length: parent == nil ? 0 : 8, data: buffer, faultQueue: queue
      ).result
    }
    let parent = door.makeTable(for: device.device, flags: IOMMU_HWPT_ALLOC_NEST_PARENT).id
    let objects = door.context.objectCount
    #expect(make(.max) == -ENOENT)
    #expect(make(door.ioas) == -ENOENT)
    #expect(make(.max, on: parent) == -ENOENT)
    #expect(make(.max, on: parent, flags: IOMMU_HWPT_ALLOC_DIRTY_TRACKING) == -EOPNOTSUPP)
    #expect(make(queue.id, flags: IOMMU_HWPT_ALLOC_NEST_PARENT) == -EOPNOTSUPP)
    #expect(door.context.objectCount == objects)
    #expect(make(queue.id, on: parent) == 0)
    #expect(make(queue.id) == 0)
    #expect(door.context.objectCount == objects + 2)
  }

  @Test("H1: TRIGGER_IOPF wants a mock device, and says nothing of what became of the request")
  func trigger() {
    #expect(door.trigger(door.ioas, group: 1) == -ENOENT)
    #expect(door.trigger(device.object, group: 1) == -ENOENT)
    #expect(door.replace(device.object, with: door.ioas).result == 0)
    #expect(door.trigger(device.device, group: 1) == 0)
    #expect(door.driver.pageRequestCounts.invalid == 1)
  }
}

extension BackDoor {
  func makeQueue(
    flags: UInt32 = 0, size: UInt32 = 16
  ) -> (result: Int32, id: UInt32, descriptor: Int32) {
    var cmd = iommu_fault_alloc(size: size, flags: flags, out_fault_id: 0, out_fault_fd: 0)
    let result = caller.ioctl(file, IOMMU_FAULT_QUEUE_ALLOC, &cmd)
    return (result, cmd.out_fault_id, Int32(bitPattern: cmd.out_fault_fd))
  }

  func trigger(
    _ device: UInt32, group: UInt32, pasid: UInt32 = 0, perm: UInt32 = 3,
    address: UInt64 = 0x1000
  ) -> Int32 {
    call(IOMMU_TEST_OP_TRIGGER_IOPF) {
      $0.trigger_iopf.dev_id = device
      $0.trigger_iopf.pasid = pasid
      $0.trigger_iopf.grpid = group
      $0.trigger_iopf.perm = perm
      $0.trigger_iopf.addr = address
    }.result
  }
}
