// SPDX-License-Identifier: Apache-2.0
//
// Hardware queues on the mock driver: their numbers, their memory, and what waits for them.

import CLinuxABI
import Foundation
import IOMMU
import SelfTestDriver
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct HardwareQueueTests {
  let guest: Guest
  var door: BackDoor { guest.door }
  let iova: UInt64 = 0x100_0000
  let page: UInt64 = 4096

  init() throws { guest = try Guest() }

  private func make(
    _ index: UInt32, at iova: UInt64, _ length: UInt64,
    type: UInt32 = IOMMU_HW_QUEUE_TYPE_SELFTEST
  ) -> (result: Int32, id: UInt32) {
    door.makeHardwareQueue(in: guest.viommu, index, at: iova, length, type: type)
  }

  @Test(
    "L: HW_QUEUE_ALLOC looks at flags and type, then length, virtual IOMMU, kind, and memory")
  func refusals() {
    let count = door.context.objectCount
    #expect(
      door.makeHardwareQueue(in: 0, 0, at: iova, 0, flags: 1).result == -EOPNOTSUPP)
    #expect(make(0, at: iova, 0, type: IOMMU_HW_QUEUE_TYPE_DEFAULT).result == -EOPNOTSUPP)
    #expect(door.makeHardwareQueue(in: 0, 0, at: .max, 0).result == -EINVAL)
    #expect(door.makeHardwareQueue(in: 0, 0, at: .max, page).result == -EOVERFLOW)
    #expect(door.makeHardwareQueue(in: 0, 0, at: iova, page).result == -ENOENT)
    #expect(door.makeHardwareQueue(in: guest.parent, 0, at: iova, page).result == -ENOENT)
    #expect(make(9, at: iova, page, type: 1).result == -EOPNOTSUPP)
    #expect(make(9, at: iova, page).result == -ENOENT, "the memory comes before the number")
    #expect(make(0, at: 0x10, .max - 0x10).result == -ERANGE)
    #expect(make(0, at: 0, 1 << 41).result == -ENOMEM)
    #expect(door.map(0x4000, page, at: iova) == 0)
    #expect(make(2, at: iova, page).result == -EINVAL)
    #expect(make(1, at: iova, page).result == -EIO, "the one below comes first")
    #expect(make(0, at: iova, page + 1).result == -ENOENT)
    #expect(door.context.objectCount == count)
    #expect(door.unmap(iova, page) == 0, "what failed holds nothing")
  }

  @Test("L: a queue's number is its own, and the queue below one stays")
  func numbers() {
    #expect(door.map(0x4000, page, at: iova) == 0)
    let first = make(0, at: iova, page)
    #expect(first.result == 0)
    #expect(make(0, at: iova, page).result == -EEXIST)
    let second = make(1, at: iova + page / 2, page / 2)
    #expect(second.result == 0)
    #expect(door.destroy(first.id) == -EBUSY)
    #expect(door.destroy(guest.viommu) == -EBUSY)
    #expect(door.destroy(second.id) == 0)
    #expect(door.destroy(first.id) == 0)
    #expect(door.destroy(guest.viommu) == 0)
  }

  @Test("B1: an unmap of a queue's memory is refused until the queue is gone")
  func unmap() {
    #expect(door.map(0x4000, page, at: iova) == 0)
    #expect(door.map(0x8000, 2 * page, at: iova + page) == 0)
    #expect(door.map(0xc000, page, at: iova + 3 * page) == 0)
    #expect(door.checkPins(0x8000, 2 * page, are: 1) == 0)
    // The queue lies in the second page; pages around it are held, and with them the area.
    let queue = make(0, at: iova + 2 * page + 8, 16)
    #expect(queue.result == 0)
    #expect(door.unmap(iova + page, 2 * page) == -EBUSY)
    #expect(door.unmap(iova + page, page) == -EBUSY, "before it would be split")
    #expect(door.unmap(iova, page) == 0)
    #expect(door.unmap(0, .max) == -EBUSY)
    #expect(door.unmap(iova + 3 * page, page) == 0)
    #expect(door.destroy(queue.id) == 0)
    #expect(door.unmap(iova + page, 2 * page) == 0)
    #expect(door.checkPins(0x8000, 2 * page, are: 0) == 0)
  }

  @Test("B1: two queues in one page each hold it")
  func shared() {
    #expect(door.map(0x4000, page, at: iova) == 0)
    let queues = [make(0, at: iova, 8), make(1, at: iova + 8, 8)]
    #expect(queues.allSatisfy { $0.result == 0 })
    #expect(door.destroy(queues[1].id) == 0)
    #expect(door.unmap(iova, page) == -EBUSY)
    #expect(door.destroy(queues[0].id) == 0)
    #expect(door.unmap(iova, page) == 0)
  }

  @Test("D2: accessors' pins give way to an unmap where a queue does not")
  func accessors() {
    #expect(door.map(0x4000, page, at: iova) == 0)
    #expect(door.map(0x8000, page, at: iova + page) == 0)
    let accessor = door.makeAccessor(pins: true).descriptor
    #expect(door.pin(accessor, iova, page).result == 0)
    #expect(door.pin(accessor, iova + page, page).result == 0)
    let queue = make(0, at: iova, page)
    #expect(door.unmap(iova + page, page) == 0)
    #expect(door.unmap(iova, page) == -EBUSY)
    #expect(door.destroy(queue.id) == 0)
    #expect(door.unmap(iova, page) == 0)
    door.close(accessor)
  }

  @Test("L: a queue's memory is readable, aligned to pages, and in one piece")
  func memory() {
    // Readable is 4, writable is 2; fixed is 1.
    #expect(door.map(0x4000, page, at: iova, flags: 3) == 0)
    #expect(make(0, at: iova, page).result == -EPERM)
    #expect(door.map(0x8000, page, at: iova + page) == 0)
    #expect(door.map(0x6000, page, at: iova + 2 * page) == 0)
    #expect(make(0, at: iova + page, 2 * page).result == -EFAULT)
    #expect(door.map(0xa000, page / 2, at: iova + 4 * page) == 0)
    #expect(make(0, at: iova + page, page).result == -EADDRINUSE, "half a page is mapped")
    #expect(door.unmap(iova + 4 * page, page / 2) == 0)
    let queue = make(0, at: iova + page, page)
    #expect(queue.result == 0)
    #expect(door.map(0xa000, page / 2, at: iova + 4 * page) == -EINVAL, "pages from now on")
    #expect(door.destroy(queue.id) == 0)
    #expect(door.map(0xa000, page / 2, at: iova + 4 * page) == 0)
  }

  @Test(
    "B4: a slot that holds a queue neither goes nor moves; the VM's end leaves it to the queue")
  func slots() throws {
    let memory = try LocalMemory(byteCount: 8 * page)
    let machine = VirtualMachine(name: "VM 1")
    let other = try door.context.allocateIOAS()
    func set(_ at: UInt64, _ count: UInt64) -> Int32 {
      do throws(IOMMUError) {
        try machine.setMemorySlot(
          MemorySlot(number: 0, guestAddress: at, byteCount: count * page, userAddress: 0),
          of: memory)
        return 0
      } catch {
        return -error.errno.rawValue
      }
    }
    // The other one is asked first, and has to take back what it did.
    try door.context.follow(machine, in: other)
    try door.context.follow(machine, in: ObjectID(door.ioas))
    #expect(set(iova, 4) == 0)
    let queue = make(0, at: iova + page, page)
    #expect(queue.result == 0)
    let before = door.context.snapshot
    #expect(set(0, 0) == -EBUSY)
    #expect(set(iova + 64 * page, 4) == -EBUSY)
    #expect(set(iova + page, 4) == -EBUSY)
    #expect(throws: IOMMUError.self) {
      try door.context.stopFollowing(in: ObjectID(door.ioas))
    }
    #expect(door.context.snapshot == before)
    machine.close()
    #expect(door.unmap(iova, 4 * page) == -EBUSY)
    #expect(door.destroy(queue.id) == 0)
    #expect(door.unmap(iova, 4 * page) == 0)
  }

  @Test("L: as on Linux a queue takes a second id, which nobody can destroy")
  func ids() {
    #expect(door.map(0x4000, page, at: iova) == 0)
    let queue = make(0, at: iova, page).id
    #expect(door.destroy(queue + 1) == -EBUSY)
    #expect(door.makeIOAS() == queue + 2)
    #expect(door.destroy(queue) == 0)
    #expect(door.destroy(queue + 1) == -ENOENT)
  }
}
