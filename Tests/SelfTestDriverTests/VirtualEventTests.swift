// SPDX-License-Identifier: Apache-2.0
//
// Event queues of virtual IOMMUs on the mock driver: what is read of them, what is lost and how
// that is seen, and how long they live.

import CLinuxABI
import Foundation
import IOMMU
import SelfTestDriver
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct VirtualEventTests {
  let guest: Guest
  let nested: UInt32
  var door: BackDoor { guest.door }
  let buffer: UInt64 = 0x9000

  init() throws {
    guest = try Guest()
    nested = guest.nest().id
    let named = guest.door.makeVDevice(guest.device.device, in: guest.viommu, as: 0x99)
    #expect(named.result == 0)
    #expect(guest.door.replace(guest.device.object, with: nested).result == 0)
  }

  private func trigger(_ times: Int = 1) {
    for _ in 0..<times { #expect(door.triggerEvent(guest.device.device) == 0) }
  }

  /// One read: flags, sequence and, but for lost events, the name of the device.
  private func read(_ descriptor: Int32, count: Int = 512) -> [UInt32] {
    let result = door.caller.read(descriptor, buffer, count: count)
    #expect(result >= 0 && result % 4 == 0)
    return door.peek(buffer, count: max(0, result) / 4)
  }

  @Test("L: VEVENTQ_ALLOC looks at flags and type, then depth, virtual IOMMU, and its queues")
  func refusals() {
    let viommu = guest.viommu
    let count = door.context.objectCount
    #expect(door.makeEventQueue(in: viommu, depth: 0, flags: 1).result == -EOPNOTSUPP)
    #expect(door.makeEventQueue(in: viommu, depth: 0, reserved: 1).result == -EOPNOTSUPP)
    let typeless = door.makeEventQueue(in: viommu, type: IOMMU_VEVENTQ_TYPE_DEFAULT, depth: 0)
    #expect(typeless.result == -EOPNOTSUPP)
    #expect(door.makeEventQueue(in: 0, depth: 0).result == -EINVAL)
    #expect(door.makeEventQueue(in: viommu, depth: .max).result == -EINVAL)
    #expect(door.makeEventQueue(in: 0).result == -ENOENT)
    #expect(door.makeEventQueue(in: guest.parent).result == -ENOENT)
    #expect(door.context.objectCount == count)
    let queue = door.makeEventQueue(in: viommu)
    #expect(queue.result == 0)
    #expect(door.makeEventQueue(in: viommu).result == -EEXIST)
    #expect(door.makeEventQueue(in: viommu, type: 1).result == 0, "whatever the driver reports")
    #expect(door.context.objectCount == count + 2)
  }

  @Test("H2: events are read in order, whole, as many as fit, under the guest's name")
  func order() {
    let queue = door.makeEventQueue(in: guest.viommu, depth: 8).descriptor
    #expect(door.caller.poll(queue) == [])
    #expect(read(queue).isEmpty)
    trigger(4)
    #expect(door.caller.poll(queue) == .readable)
    for count in [0, 7, 8, 11] {
      #expect(door.caller.read(queue, buffer, count: count) == -Int(EINVAL), "no room for one")
    }
    #expect(read(queue, count: 23) == [0, 0, 0x99], "no count is ragged")
    #expect(read(queue, count: 24) == [0, 1, 0x99, 0, 2, 0x99])
    #expect(door.caller.poll(queue) == .readable)
    #expect(read(queue) == [0, 3, 0x99])
    #expect(door.caller.poll(queue) == [])
    #expect(door.caller.write(queue, buffer, count: 12) == -Int(EINVAL))
  }

  @Test("H2: a full queue ends with a header that numbers the last event that was lost")
  func overflow() {
    let queue = door.makeEventQueue(in: guest.viommu, depth: 2).descriptor
    trigger(5)
    #expect(read(queue, count: 24) == [0, 0, 0x99, 0, 1, 0x99])
    #expect(door.caller.poll(queue) == .readable)
    #expect(door.caller.read(queue, buffer, count: 7) == -Int(EINVAL))
    #expect(door.caller.poll(queue) == .readable)
    #expect(read(queue, count: 8) == [1, 4])
    #expect(door.caller.poll(queue) == [])
    trigger()
    #expect(read(queue) == [0, 5, 0x99])
  }

  @Test("H2: where an event follows lost ones, the gap in the numbers tells of them")
  func gap() {
    let queue = door.makeEventQueue(in: guest.viommu, depth: 2).descriptor
    trigger(4)
    #expect(read(queue, count: 12) == [0, 0, 0x99])
    trigger()
    #expect(read(queue) == [0, 1, 0x99, 0, 4, 0x99])
    #expect(door.caller.poll(queue) == [])
  }

  @Test("H2: what cannot be copied out stays whole, lost events too")
  func fault() {
    let queue = door.makeEventQueue(in: guest.viommu, depth: 2).descriptor
    trigger(3)
    let end = door.caller.arena.byteCount
    #expect(door.caller.read(queue, end - 4, count: 64) == -Int(EFAULT))
    #expect(door.caller.poll(queue) == .readable)
    #expect(door.caller.read(queue, end - 8, count: 64) == -Int(EFAULT))
    #expect(door.caller.read(queue, end - 16, count: 64) == 12)
    trigger()
    #expect(read(queue) == [0, 1, 0x99, 0, 3, 0x99])
    trigger(3)
    #expect(read(queue, count: 24).count == 6)
    #expect(door.caller.read(queue, end - 4, count: 64) == -Int(EFAULT))
    #expect(read(queue) == [1, 6])
  }

  @Test("H2: without a queue, a nested table or a name that is not 0 there is no event")
  func nowhere() {
    let device = guest.device
    #expect(door.triggerEvent(device.device) == -EOPNOTSUPP)
    #expect(door.triggerEvent(device.object) == -ENOENT)
    _ = door.makeEventQueue(in: guest.viommu, type: 1)
    #expect(door.triggerEvent(device.device) == -EOPNOTSUPP)
    _ = door.makeEventQueue(in: guest.viommu)
    trigger()
    #expect(door.replace(device.object, with: door.ioas).result == 0)
    #expect(door.triggerEvent(device.device) == -ENOENT)
    let other = door.makeDevice()
    #expect(door.makeVDevice(other.device, in: guest.viommu, as: 0).result == 0)
    #expect(door.replace(other.object, with: nested).result == 0)
    #expect(door.triggerEvent(other.device) == -ENOENT)
  }

  @Test("H2: a device keeps the name that it came in with, though the guest changes it")
  func renamed() throws {
    let queue = door.makeEventQueue(in: guest.viommu, depth: 8).descriptor
    let second = guest.nest().id
    let device = guest.device
    // The set-up's names are the last objects but these.
    let named = try #require((1..<second).last { door.destroy($0) == 0 })
    #expect(door.makeVDevice(device.device, in: guest.viommu, as: 0x88).id == named)
    trigger()
    #expect(door.replace(device.object, with: second).result == 0)
    trigger()
    #expect(door.replace(device.object, with: door.ioas).result == 0)
    #expect(door.replace(device.object, with: nested).result == 0)
    trigger()
    #expect(read(queue) == [0, 0, 0x99, 0, 1, 0x99, 0, 2, 0x88])
  }

  @Test("H2: a queue stays while it is open, and its virtual IOMMU while there is a queue")
  func life() {
    let queue = door.makeEventQueue(in: guest.viommu)
    trigger(3)
    #expect(door.destroy(queue.id) == -EBUSY)
    door.caller.close(queue.descriptor)
    #expect(door.triggerEvent(guest.device.device) == 0, "it is there until it is destroyed")
    #expect(door.replace(guest.device.object, with: door.ioas).result == 0)
    #expect(door.destroy(nested) == 0)
    #expect(door.destroy(guest.viommu) == -EBUSY)
    #expect(door.destroy(queue.id) == 0)
    let again = door.makeEventQueue(in: guest.viommu)
    #expect(again.result == 0, "the type is free again")
  }

  @Test("A1: a queue that is open outlives the context's last other descriptor")
  func close() {
    let queue = door.makeEventQueue(in: guest.viommu).descriptor
    trigger(3)
    let system = door.system
    door.closeFile()
    #expect(system.contextCount == 1)
    #expect(read(queue) == [0, 0, 0x99, 0, 1, 0x99, 1, 2])
    door.caller.close(queue)
    #expect(system.contextCount == 0 && door.driver.deviceCount == 0)
  }

  @Test("A4: events from two threads, read by two: each once, in order for each reader")
  func concurrency() async throws {
    let queue = try #require(
      try door.caller.openFile(
        descriptor: door.makeEventQueue(in: guest.viommu, depth: 64).descriptor)
        as? any EventFile)
    let requester = try door.context.physicalDevice(ObjectID(guest.device.device)).requester
    let driver = door.driver
    let rounds = 2000
    let seen = await withTaskGroup(of: [UInt32].self) { tasks in
      for _ in 0..<2 {
        tasks.addTask {
          for _ in 0..<rounds { try? driver.reportEvent(of: requester) }
          return []
        }
        tasks.addTask {
          var numbers: [UInt32] = []
          while numbers.last ?? 0 < UInt32(rounds), numbers.count < rounds * 2 {
            guard let bytes = try? queue.read(count: 30), !bytes.isEmpty else { break }
            numbers += stride(from: 0, to: bytes.count, by: 12).compactMap { start in
              guard bytes.count >= start + 12 else { return nil }
              return UInt32(bytes[start + 4]) | UInt32(bytes[start + 5]) << 8
            }
          }
          #expect(numbers == numbers.sorted())
          return numbers
        }
      }
      return await tasks.reduce(into: []) { $0 += $1 }
    }
    #expect(Set(seen).count == seen.count, "an event was read twice")
  }
}
