// SPDX-License-Identifier: Apache-2.0
//
// Virtual IOMMUs on the mock driver: what they are made on, the devices in them, the guest's
// tables, invalidation by the guest's names, and the pages that a program maps.

import CLinuxABI
import Foundation
import IOMMU
import SelfTestDriver
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct VirtualIOMMUTests {
  let guest: Guest
  var door: BackDoor { guest.door }
  var device: BackDoor.Device { guest.device }
  let buffer: UInt64 = 0x8000

  init() throws { guest = try Guest() }

  @Test("L: VIOMMU_ALLOC looks at flags and type, then device, IOMMU, and table")
  func refusals() {
    func make(
      flags: UInt32 = 0, type: UInt32 = IOMMU_VIOMMU_TYPE_SELFTEST, device: UInt32? = nil,
      table: UInt32
    ) -> Int32 {
      door.makeVIOMMU(
        for: device ?? self.device.device, on: table, type: type, flags: flags
      ).result
    }
    let plain = door.makeTable(for: device.device).id
    let count = door.context.objectCount
    #expect(make(flags: 1, device: 0, table: 0) == -EOPNOTSUPP)
    #expect(make(type: IOMMU_VIOMMU_TYPE_DEFAULT, device: 0, table: 0) == -EOPNOTSUPP)
    #expect(make(device: 0, table: guest.parent) == -ENOENT)
    #expect(make(device: device.object, table: guest.parent) == -ENOENT)
    #expect(make(type: 0xdead, table: 0) == -EOPNOTSUPP)
    #expect(make(type: IOMMU_VIOMMU_TYPE_ARM_SMMUV3, table: guest.parent) == -EOPNOTSUPP)
    #expect(make(table: 0) == -ENOENT)
    #expect(make(table: door.ioas) == -ENOENT)
    #expect(make(table: guest.nest().id) == -ENOENT)
    #expect(make(table: plain) == -EINVAL)
    #expect(make(table: device.table) == -EINVAL)
    #expect(door.context.objectCount == count + 1)
    var cmd = iommu_viommu_alloc()
    cmd.size = 23
    #expect(door.caller.ioctl(door.file, IOMMU_VIOMMU_ALLOC, &cmd) == -EINVAL)
  }

  @Test("L: a virtual IOMMU keeps its table, and the guest's tables keep it")
  func life() {
    #expect(door.destroy(guest.parent) == -EBUSY)
    let nested = guest.nest()
    #expect(nested.result == 0)
    #expect(door.destroy(guest.viommu) == -EBUSY)
    #expect(door.destroy(nested.id) == 0)
    #expect(door.destroy(guest.viommu) == 0)
    #expect(door.destroy(guest.viommu) == -ENOENT)
    #expect(door.destroy(guest.parent) == 0)
  }

  @Test("B2: HWPT_ALLOC on a virtual IOMMU needs data and takes one attribute")
  func tables() {
    #expect(guest.nest(length: 0).result == -EOPNOTSUPP)
    #expect(guest.nest(flags: IOMMU_HWPT_ALLOC_NEST_PARENT).result == -EOPNOTSUPP)
    #expect(guest.nest(flags: IOMMU_HWPT_ALLOC_DIRTY_TRACKING).result == -EOPNOTSUPP)
    #expect(guest.nest(flags: 1 << 30).result == -EOPNOTSUPP)
    #expect(guest.nest(length: 3).result == -EINVAL)
    #expect(guest.nest(flags: IOMMU_HWPT_ALLOC_PASID).result == 0)
    #expect(guest.nest(on: 999).result == -EINVAL)
  }

  @Test("D1: a device enters a guest's table once the guest has a name for it")
  func attach() {
    let nested = guest.nest().id
    #expect(door.replace(device.object, with: nested).result == -ENOENT)
    let named = door.makeVDevice(device.device, in: guest.viommu, as: 0x99)
    #expect(named.result == 0)
    #expect(door.replace(device.object, with: nested) == (0, nested))
    #expect(door.destroy(nested) == -EBUSY)
    // The name may go first, as on Linux; then there is no way back in.
    #expect(door.destroy(named.id) == 0)
    #expect(door.replace(device.object, with: door.ioas).result == 0)
    #expect(door.replace(device.object, with: nested).result == -ENOENT)
  }

  @Test("L: one name for a device, one device for a name, and any 64 bits for a name")
  func names() {
    let other = door.makeDevice().device
    let viommu = guest.viommu
    #expect(door.makeVDevice(device.device, in: 0, as: 1).result == -ENOENT)
    #expect(door.makeVDevice(device.device, in: guest.parent, as: 1).result == -ENOENT)
    #expect(door.makeVDevice(0, in: viommu, as: 1).result == -ENOENT)
    #expect(door.makeVDevice(device.object, in: viommu, as: 1).result == -ENOENT)
    let first = door.makeVDevice(device.device, in: viommu, as: .max)
    #expect(first.result == 0)
    #expect(door.makeVDevice(device.device, in: viommu, as: 7).result == -EEXIST)
    #expect(door.makeVDevice(other, in: viommu, as: .max).result == -EEXIST)
    let second = door.makeVIOMMU(for: other, on: guest.parent).id
    #expect(door.makeVDevice(device.device, in: second, as: 7).result == -EEXIST)
    #expect(door.makeVDevice(other, in: second, as: .max).result == 0)
    #expect(door.destroy(viommu) == -EBUSY)
    #expect(door.destroy(first.id) == 0)
    #expect(door.makeVDevice(device.device, in: viommu, as: 0).result == 0)
  }

  @Test("L: a device that goes takes its name along, and nothing ever has that id again")
  func tombstone() {
    let named = door.makeVDevice(device.device, in: guest.viommu, as: 0x99).id
    #expect(door.destroy(device.object) == 0)
    #expect(door.destroy(named) == -ENOENT)
    #expect(door.destroy(guest.viommu) == 0, "the name keeps it no more")
    let made = (0..<8).map { _ in door.makeIOAS() }
    #expect(!made.contains(named) && made.contains(device.object))
    for id in made { #expect(door.destroy(id) == 0) }
    #expect(door.destroy(named) == -ENOENT)
    #expect(door.destroy(guest.parent) == 0 && door.destroy(door.ioas) == 0)
    #expect(door.context.objectCount == 0)
    // As on Linux, such an id is still an object where the accounting mode is chosen.
    #expect(throws: IOMMUError.self) { try door.context.setAccountsPerProcess(true) }
  }

  @Test("A1: closing the context ends everything that is alive in a virtual IOMMU")
  func close() throws {
    let nested = guest.nest().id
    _ = door.makeVDevice(device.device, in: guest.viommu, as: 0x99)
    #expect(door.replace(device.object, with: nested).result == 0)
    #expect(door.map(0x4000, 4096, at: 0x100_0000) == 0)
    for index: UInt32 in 0..<2 {
      let queue = door.makeHardwareQueue(in: guest.viommu, index, at: 0x100_0000, 4096)
      #expect(queue.result == 0)
    }
    let queue = door.makeEventQueue(in: guest.viommu)
    #expect(queue.result == 0)
    let system = door.system
    door.closeFile()
    #expect(system.contextCount == 1, "the event queue's descriptor keeps it")
    door.caller.close(queue.descriptor)
    #expect(system.contextCount == 0)
    #expect(door.driver.deviceCount == 0 && system.groups.isEmpty)
    #expect(system.memory.usedSlots == 0)
  }

  // MARK: Invalidation

  private func invalidate(
    _ entries: [UInt32], type: UInt32 = IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
    length: UInt32 = 12, count: UInt32? = nil, at address: UInt64? = nil
  ) -> (result: Int32, handled: UInt32) {
    door.poke(entries + [0], at: buffer)
    var cmd = iommu_hwpt_invalidate()
    cmd.size = 32
    cmd.hwpt_id = guest.viommu
    cmd.data_uptr = address ?? buffer
    cmd.data_type = type
    cmd.entry_len = length
    cmd.entry_num = count ?? (UInt32(entries.count) * 4 / max(length, 1))
    let result = door.caller.ioctl(door.file, IOMMU_HWPT_INVALIDATE, &cmd)
    return (result, cmd.entry_num)
  }

  private func slots() -> [Bool] {
    (0..<4 as Range<UInt32>).map { slot in
      let kept = door.checkCache(device.device, slot, is: IOMMU_TEST_DEV_CACHE_DEFAULT)
      #expect(door.checkCache(device.device, slot, is: 0) == (kept == 0 ? -EINVAL : 0))
      return kept == 0
    }
  }

  @Test("G1: a guest invalidates by its own names, entry after entry, up to the first bad one")
  func invalidation() {
    #expect(door.makeVDevice(device.device, in: guest.viommu, as: 0x99).result == 0)
    #expect(invalidate([0, 0x99, 0, .max, 0x99, 1]) == (-EOPNOTSUPP, 1))
    #expect(slots() == [false, true, true, true])
    #expect(invalidate([0, 0x99, 1, 0, 0x99, 4]) == (-EINVAL, 1))
    #expect(invalidate([0, 0x98, 2]) == (-EINVAL, 0))
    #expect(slots() == [false, false, true, true])
    #expect(invalidate([0, 0x99, 2]) == (0, 1))
    #expect(slots() == [false, false, false, true])
    #expect(invalidate([1, 0x99, 0]) == (0, 1), "all of them, whichever slot is named")
    #expect(slots() == [false, false, false, false])
  }

  @Test("G1: an invalidation in which an entry cannot be read does nothing")
  func unreadable() {
    #expect(door.makeVDevice(device.device, in: guest.viommu, as: 0x99).result == 0)
    let end = door.caller.arena.byteCount
    door.poke([0, 0x99, 0], at: end - 12)
    #expect(invalidate([], count: 2, at: end - 12) == (-EFAULT, 0))
    #expect(invalidate([0, 0x99, 0, 1], length: 16) == (-E2BIG, 0))
    #expect(invalidate([0, 0x99, 0], type: 1) == (-EINVAL, 0))
    #expect(invalidate([0, 0x99, 0], count: 1, at: 0) == (-EINVAL, 0))
    #expect(invalidate([0, 0x99, 0], length: 0, count: 1) == (-EINVAL, 0))
    #expect(invalidate([], count: 0) == (0, 0))
    #expect(slots() == [true, true, true, true])
    #expect(invalidate([0, 0x99, 0, 0], length: 16) == (0, 1))
    #expect(slots() == [false, true, true, true])
  }

  // MARK: Pages to map

  @Test("L: a virtual IOMMU with data answers it, and shares two pages with the program")
  func pages() {
    let backing = LocalMmapBacking()
    door.context.areas.keep(in: backing)
    func make(_ length: UInt32) -> (result: Int32, id: UInt32) {
      door.poke([0xbeef, 0, 0, 0, 0, 0], at: buffer)
      return door.makeVIOMMU(
        for: device.device, on: guest.parent, length: length, data: buffer)
    }
    #expect(make(7).result == -EINVAL)
    #expect(make(25).result == -EINVAL)
    #expect(
      door.makeVIOMMU(for: device.device, on: guest.parent, length: 24, data: 0).result
        == -EFAULT)
    #expect(make(8).result == 0)
    #expect(door.peek(buffer, count: 4) == [0xbeef, 0xbeef, 0, 0])
    let made = make(24)
    #expect(made.result == 0)
    let words = door.peek(buffer, count: 6)
    #expect(words[1] == 0xbeef && words[4...] == [8192, 0])
    let offset = UInt64(words[3]) << 32 | UInt64(words[2])
    func map(_ offset: UInt64, _ length: UInt64) -> Int32 {
      door.caller.mmap(door.file, MapRequest(offset: offset, length: length))
    }
    #expect(map(offset + 4096, 8192) == -ENXIO)
    #expect(map(offset + 8192, 8192) == -ENXIO)
    #expect(map(offset, 4096) == -ENXIO)
    #expect(map(offset, 16384) == -ENXIO)
    #expect(map(offset, 8192) == 0)
    let memory = backing.map(offset: offset)
    #expect(
      memory?.withUnsafeMutableBytes { $0.load(as: UInt32.self).littleEndian } == 0xbeef)
    #expect(door.destroy(made.id) == -EBUSY, "its owner stays while it is mapped")
    backing.unmap(offset: offset)
    #expect(door.destroy(made.id) == 0)
    #expect(map(offset, 8192) == -ENXIO)
    #expect(backing.map(offset: offset) == nil)
  }

  @Test("A1: a context that is closed does not wait for a program to unmap")
  func closedWhileMapped() {
    let backing = LocalMmapBacking()
    door.context.areas.keep(in: backing)
    door.poke([1, 0, 0, 0, 0, 0], at: buffer)
    #expect(
      door.makeVIOMMU(for: device.device, on: guest.parent, length: 24, data: buffer).result
        == 0)
    let words = door.peek(buffer, count: 6)
    #expect(backing.map(offset: UInt64(words[3]) << 32 | UInt64(words[2])) != nil)
    let system = door.system
    door.closeFile()
    #expect(system.contextCount == 0)
  }

  @Test("L: a virtual IOMMU takes devices and tables of the IOMMU that it is a slice of")
  func otherIOMMU() throws {
    let other = try MockDevice.make(
      [], driver: MockIOMMU(system: door.system), in: door.context,
      attachedTo: ObjectID(door.ioas)
    ).device.rawValue
    #expect(door.makeVIOMMU(for: other, on: guest.parent).result == -EINVAL)
    #expect(door.makeVDevice(other, in: guest.viommu, as: 1).result == -EINVAL)
    door.poke([1, 0], at: buffer)
    let table = door.makeTable(
      for: other, on: guest.viommu, type: IOMMU_HWPT_DATA_SELFTEST, length: 8, data: buffer)
    #expect(table.result == -EINVAL)
  }
}
