// SPDX-License-Identifier: Apache-2.0
//
// Accessors by the back door (MODEL D2, kind 3): reading, writing and pinning by IOVA, and
// what an unmap, a replace and a close do to pins.

import CLinuxABI
import Foundation
import IOMMU
import PageTables
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct AccessorTests {
  let door: BackDoor
  let iova: UInt64 = 0x100_0000
  let page: UInt64 = 4096
  /// Where the client keeps its copy.
  let buffer: UInt64 = 0x8_0000

  init() throws { door = try BackDoor() }

  @Test("D2: an accessor reads and writes across mappings and pages, aligned to nothing")
  func readWrite() {
    let accessor = door.makeAccessor(pins: false)
    #expect(accessor.result == 0)
    #expect(door.map(4 * page + 100, page, at: iova + 7) == 0)
    #expect(door.map(8 * page, page, at: iova + 7 + page) == 0)
    for index in 0..<UInt64(32) {
      door.caller.put(UInt8(index), at: 4 * page + 100 + page - 32 + index)
      door.caller.put(UInt8(0x80 + index), at: 8 * page + index)
    }
    let middle = iova + 7 + page - 32
    let read = door.access(accessor.descriptor, middle, 64, buffer: buffer, writes: false)
    #expect(read == 0)
    for index in 0..<UInt64(64) {
      let value = door.caller.get(UInt8.self, at: buffer + index)
      #expect(value == (index < 32 ? UInt8(index) : UInt8(0x80 + index - 32)))
      door.caller.put(UInt8(0x40 + index), at: buffer + index)
    }
    #expect(door.access(accessor.descriptor, middle, 64, buffer: buffer, writes: true) == 0)
    #expect(door.caller.get(UInt8.self, at: 4 * page + 100 + page - 1) == 0x40 + 31)
    #expect(door.caller.get(UInt8.self, at: 8 * page) == 0x40 + 32)
    #expect(door.checkPins(page, 2 * page, are: 0) == 0)
  }

  @Test("D2: an access that a mapping does not allow, or that leaves it, is refused")
  func refused() {
    let accessor = door.makeAccessor(pins: false).descriptor
    let fixed = IOMMU_IOAS_MAP_FIXED_IOVA
    #expect(door.map(page, page, at: iova, flags: fixed | IOMMU_IOAS_MAP_READABLE) == 0)
    #expect(door.map(page, page, at: 2 * iova, flags: fixed | IOMMU_IOAS_MAP_WRITEABLE) == 0)
    func access(
      _ iova: UInt64, _ length: UInt64, at address: UInt64 = 0x8_0000, writes: Bool
    ) -> Int32 {
      door.access(accessor, iova, length, buffer: address, writes: writes)
    }
    #expect(access(iova, 8, writes: true) == -EPERM)
    #expect(access(2 * iova, 8, writes: false) == -EPERM)
    #expect(access(iova - 1, 8, writes: false) == -ENOENT)
    #expect(access(iova + page - 4, 8, writes: false) == -ENOENT)
    #expect(access(iova, 0, writes: false) == -EINVAL)
    #expect(access(.max, 2, writes: false) == -EOVERFLOW)
    #expect(access(iova, 17 << 20, writes: false) == -ENOMEM)
    #expect(access(iova, 8, at: 0, writes: false) == -EFAULT)
    #expect(access(2 * iova, 8, at: 0, writes: true) == -EFAULT)
    #expect(door.access(12345, iova, 8, buffer: buffer, writes: false) == -EBADFD)
    #expect(door.pin(accessor, iova, page).result == -EOPNOTSUPP)
  }

  @Test("D2: a pin holds the client's own pages, once, beside a page table's")
  func pin() {
    #expect(door.map(page, 4 * page, at: iova) == 0)
    let accessor = door.makeAccessor(pins: true).descriptor
    let first = door.pin(accessor, iova + page, 2 * page, is: 2 * page)
    #expect(first.result == 0)
    #expect(door.checkPins(2 * page, 2 * page, are: 1) == 0)
    #expect(door.checkPins(page, page, are: 0) == 0)
    #expect(door.pin(accessor, iova + page, page, is: 5 * page).result == -EBADE)
    #expect(door.unpin(accessor, first.id) == 0)
    #expect(door.unpin(accessor, first.id) == -ENOENT)
    #expect(door.checkPins(page, 4 * page, are: 0) == 0)

    let device = door.makeDevice()
    let second = door.pin(accessor, iova, 4 * page, is: page, writes: true)
    #expect(second.result == 0)
    #expect(door.checkPins(page, 4 * page, are: 1) == 0)
    #expect(door.destroy(device.object) == 0)
    #expect(door.checkPins(page, 4 * page, are: 1) == 0)
    #expect(door.unpin(accessor, second.id) == 0)
    #expect(door.checkPins(page, 4 * page, are: 0) == 0)
  }

  @Test("A4, G2: an unmap takes back the pins that touch it, and only those")
  func unmap() {
    let accessor = door.makeAccessor(pins: true).descriptor
    #expect(door.map(page, page, at: iova) == 0)
    #expect(door.map(2 * page, page, at: iova + page) == 0)
    #expect(door.map(9 * page, page, at: 2 * iova) == 0)
    let both = door.pin(accessor, iova, 2 * page, is: page)
    let other = door.pin(accessor, 2 * iova, page)
    #expect(both.result == 0 && other.result == 0)
    #expect(door.unmap(iova, page) == 0)
    #expect(door.unpin(accessor, both.id) == -ENOENT)
    #expect(door.checkPins(page, 2 * page, are: 0) == 0)
    #expect(door.checkPins(9 * page, page, are: 1) == 0)
    #expect(door.unpin(accessor, other.id) == 0)
  }

  @Test("D2: a pin needs only the memory that it covers; what is not there is EFAULT")
  func missingMemory() {
    let end = door.caller.arena.byteCount
    #expect(door.map(end - page, 2 * page, at: iova) == 0)
    let accessor = door.makeAccessor(pins: true).descriptor
    #expect(door.pin(accessor, iova, page).result == 0)
    #expect(door.pin(accessor, iova, 2 * page).result == -EFAULT)
    #expect(door.access(accessor, iova + page, 8, buffer: buffer, writes: false) == -EFAULT)
    #expect(door.pin(accessor, iova + 2 * page, page).result == -ENOENT)
    #expect(door.pin(accessor, iova, 0).result == -EINVAL)
    #expect(door.pin(accessor, .max, 2).result == -EOVERFLOW)
  }

  @Test(
    "D2: a pin that is refused takes no number; what is misaligned is told before permission")
  func refusedPins() {
    let fixed = IOMMU_IOAS_MAP_FIXED_IOVA
    #expect(door.map(page, 2 * page, at: iova, flags: fixed | IOMMU_IOAS_MAP_READABLE) == 0)
    let accessor = door.makeAccessor(pins: true).descriptor
    #expect(door.pin(accessor, iova, page, is: 3 * page).result == -EBADE)
    #expect(door.checkPins(page, page, are: 0) == 0)
    let first = door.pin(accessor, iova, page, is: page)
    #expect(first.result == 0 && first.id == 0)
    #expect(door.pin(accessor, iova + 2048, page, writes: true).result == -EINVAL)
    #expect(door.pin(accessor, iova, page, writes: true).result == -EPERM)
  }

  @Test("D2: an accessor that pins has everything aligned to pages while it is there")
  func alignment() {
    func alignment() -> UInt64? {
      try? door.context.mappableRanges(of: ObjectID(door.ioas)).alignment
    }
    #expect(door.map(page, 100, at: iova) == 0)
    #expect(door.makeAccessor(pins: true).result == -EADDRINUSE)
    #expect(door.unmap(iova, 100) == 0)
    let accessor = door.makeAccessor(pins: true)
    #expect(accessor.result == 0 && alignment() == page)
    #expect(door.map(page, 100, at: iova) == -EINVAL)
    door.close(accessor.descriptor)
    #expect(alignment() == 1)
    #expect(door.map(page, 100, at: iova) == 0)
  }

  @Test("D2: replacing the space ends the pins in the old one and lets it go")
  func replace() {
    let accessor = door.makeAccessor(pins: true).descriptor
    #expect(door.map(page, page, at: iova) == 0)
    let pin = door.pin(accessor, iova, page)
    #expect(door.destroy(door.ioas) == -EBUSY)
    let other = door.makeIOAS()
    func replace(_ ioas: UInt32) -> Int32 {
      door.call(IOMMU_TEST_OP_ACCESS_REPLACE_IOAS, id: accessor) {
        $0.access_replace_ioas.ioas_id = ioas
      }.result
    }
    #expect(replace(99) == -ENOENT)
    #expect(door.checkPins(page, page, are: 1) == 0)
    #expect(replace(other) == 0 && replace(other) == 0)
    #expect(door.checkPins(page, page, are: 0) == 0)
    #expect(door.unpin(accessor, pin.id) == -ENOENT)
    #expect(door.destroy(door.ioas) == 0)
    #expect(door.destroy(other) == -EBUSY)
  }

  @Test("C4: an accessor keeps its context until it is closed itself; then nothing is left")
  func close() {
    let accessor = door.makeAccessor(pins: true).descriptor
    #expect(door.map(page, page, at: iova) == 0)
    #expect(door.pin(accessor, iova, page).result == 0)
    door.closeFile()
    #expect(door.system.contextCount == 1 && door.system.memory.usedSlots == 1)
    door.close(accessor)
    #expect(door.system.contextCount == 0 && door.system.memory.usedSlots == 0)
  }

  @Test("D2: an accessor that nobody refers to any more is closed")
  func lastReference() throws {
    #expect(door.map(page, page, at: iova) == 0)
    do {
      let accessor = try Accessor(context: door.context, pinsMemory: true)
      try accessor.attach(to: ObjectID(door.ioas))
      _ = try accessor.pin(IOVA(iova), length: page, for: .read)
      #expect(door.checkPins(page, page, are: 1) == 0)
    }
    #expect(door.checkPins(page, page, are: 0) == 0)
    #expect(door.context.objectCount == 1)
    door.closeFile()
    #expect(door.system.contextCount == 0)
  }

  @Test("L: a failed CREATE_ACCESS leaves nothing behind")
  func failures() {
    let before = door.context.objectCount
    #expect(door.makeAccessor(on: 99, pins: false).result == -ENOENT)
    let flags = door.call(IOMMU_TEST_OP_CREATE_ACCESS, id: door.ioas) {
      $0.create_access.flags = 2
    }
    #expect(flags.result == -EOPNOTSUPP)
    #expect(door.context.objectCount == before)
    #expect(door.destroy(door.ioas) == 0)
  }
}
