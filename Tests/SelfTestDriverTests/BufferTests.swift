// SPDX-License-Identifier: Apache-2.0
//
// DMA-bufs of the back door: made, mapped, taken back (Linux 7.0: DMABUF_GET, DMABUF_REVOKE and
// IOAS_MAP_FILE of what they make).

import CLinuxABI
import Foundation
import IOMMU
import PageTables
import SelfTestDriver
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct BufferTests {
  let door: BackDoor
  let iova: UInt64 = 0x100_0000
  let page: UInt64 = 4096

  init() throws { door = try BackDoor() }

  private func makeBuffer(_ length: UInt32) -> Int32 {
    door.call(IOMMU_TEST_OP_DMABUF_GET) { $0.dmabuf_get.length = length }.result
  }

  private func revoke(_ descriptor: Int32, _ revoked: UInt32) -> Int32 {
    door.call(IOMMU_TEST_OP_DMABUF_REVOKE) {
      $0.dmabuf_revoke.dmabuf_fd = descriptor
      $0.dmabuf_revoke.revoked = revoked
    }.result
  }

  private func map(
    _ descriptor: Int32, _ start: UInt64, _ length: UInt64, at iova: UInt64? = nil,
    flags: UInt32 = 7
  ) -> Int32 {
    var cmd = iommu_ioas_map_file()
    cmd.size = 40
    cmd.flags = iova == nil ? flags & ~IOMMU_IOAS_MAP_FIXED_IOVA : flags
    cmd.ioas_id = door.ioas
    cmd.fd = descriptor
    cmd.start = start
    cmd.length = length
    cmd.iova = iova ?? 0
    return door.caller.ioctl(door.file, IOMMU_IOAS_MAP_FILE, &cmd)
  }

  private func copy(_ from: UInt64, _ length: UInt64, to iova: UInt64, in ioas: UInt32) -> Int32
  {
    var cmd = iommu_ioas_copy()
    cmd.size = 40
    cmd.flags = 7
    cmd.dst_ioas_id = ioas
    cmd.src_ioas_id = door.ioas
    cmd.length = length
    cmd.src_iova = from
    cmd.dst_iova = iova
    return door.caller.ioctl(door.file, IOMMU_IOAS_COPY, &cmd)
  }

  /// Pages that a table maps in a range.
  private func mapped(_ table: UInt32, _ iova: UInt64, _ length: UInt64) throws -> Int {
    let domain = try door.context.pagingDomain(ObjectID(table))
    return stride(from: iova, to: iova + length, by: Int(page)).filter {
      domain.translate(IOVA($0)) != nil
    }.count
  }

  @Test("L: DMABUF_GET makes buffers of 1 to 512 pages and returns their descriptor")
  func make() {
    #expect(makeBuffer(0) == -EINVAL)
    #expect(makeBuffer(512 * 4096 + 1) == -EINVAL)
    #expect(makeBuffer(.max) == -EINVAL)
    let small = makeBuffer(1)
    #expect(small > 0 && makeBuffer(512 * 4096) > small)
    #expect(map(small, 0, page) == 0)
    #expect(map(small, 0, page + 1) == -EINVAL)
  }

  @Test("L: IOAS_MAP_FILE looks at length, offset, descriptor, then the buffer's own size")
  func edges() {
    let buffer = makeBuffer(4 * 4096)
    #expect(map(buffer, 0, 0) == -EINVAL)
    #expect(map(99, 0, 0) == -EINVAL)
    #expect(map(99, .max, 2) == -EOVERFLOW)
    #expect(map(buffer, .max, 2) == -EOVERFLOW)
    #expect(map(99, 0, page) == -EBADF)
    #expect(map(buffer, 4 * page, 4 * page) == -EINVAL)
    #expect(map(buffer, 0, 4 * page + 1) == -EINVAL)
    #expect(map(buffer, 0, .max) == -EOVERFLOW)
    #expect(map(buffer, 0, 4 * page) == 0)
    #expect(map(buffer, 3 * page, page, flags: 0) == -EINVAL)
    // Another file of ours is no memory: said where it would be pinned.
    let accessor = door.makeAccessor(pins: false)
    #expect(revoke(Int32(bitPattern: accessor.descriptor), 1) == -EINVAL)
    #expect(revoke(99, 1) == -EBADF)
  }

  @Test("L: revoking empties all mappings, in tables of now and later; new ones wait")
  func revocation() throws {
    let device = door.makeDevice()
    let buffer = makeBuffer(4 * 4096)
    #expect(map(buffer, 0, 4 * page, at: iova) == 0)
    #expect(map(buffer, page, page, at: iova + 8 * page) == 0)
    let other = door.makeIOAS()
    let second = door.makeDevice(on: other)
    #expect(copy(iova + page, 2 * page, to: iova, in: other) == 0)
    #expect(try mapped(device.table, iova, 16 * page) == 5)
    #expect(try mapped(second.table, iova, 16 * page) == 2)

    #expect(revoke(buffer, 1) == 0)
    #expect(try mapped(device.table, iova, 16 * page) == 0)
    #expect(try mapped(second.table, iova, 16 * page) == 0)
    #expect(door.system.memory.usedSlots == 0)
    #expect(map(buffer, 0, page, at: iova + 32 * page) == -ENODEV)
    // The areas are there, and a new table gets none of it.
    #expect(map(buffer, 0, page, at: iova) == -ENODEV)
    #expect(door.map(page, page, at: iova) == -EEXIST)
    let third = door.makeDevice()
    #expect(try mapped(third.table, iova, 16 * page) == 0)
    #expect(copy(iova, page, to: iova + 64 * page, in: other) == 0)
    #expect(try mapped(second.table, iova + 64 * page, page) == 0)

    #expect(revoke(buffer, 0) == 0)
    #expect(try mapped(device.table, iova, 16 * page) == 0)
    #expect(map(buffer, 0, page, at: iova + 32 * page) == 0)
    #expect(try mapped(device.table, iova + 32 * page, page) == 1)
    #expect(door.unmap(iova, 4 * page) == 0)
    #expect(map(buffer, 0, 4 * page, at: iova) == 0)
    #expect(try mapped(device.table, iova, 4 * page) == 4)
    // Saying again that it is given empties what is mapped, as the kernel's test does.
    #expect(revoke(buffer, 0) == 0)
    #expect(try mapped(device.table, iova, 64 * page) == 0)
    #expect(door.unmap(0, .max) == 0)
    #expect(door.system.memory.usedSlots == 0)
  }

  @Test("L: what is mapped of a buffer outlives its descriptor, and is on nobody's account")
  func lifetime() throws {
    door.caller.right = .relinquished
    door.caller.limit.bytes = 0
    let device = door.makeDevice()
    let buffer = makeBuffer(2 * 4096)
    #expect(map(buffer, 0, 2 * page, at: iova) == 0)
    #expect(map(buffer, page, page, at: iova + 8 * page, flags: 5) == 0)
    #expect(door.caller.owner.process.pinned.byteCount == 0)
    door.caller.close(buffer)
    #expect(try mapped(device.table, iova, 2 * page) == 2)
    #expect(revoke(buffer, 1) == -EBADF)
    door.closeFile()
    #expect(door.system.memory.usedSlots == 0)
  }

  @Test("D2: accessors do not reach a buffer; it cannot change hands")
  func refused() {
    let buffer = makeBuffer(4096)
    #expect(map(buffer, 0, page, at: iova) == 0)
    let accessor = door.makeAccessor(pins: true).descriptor
    #expect(door.pin(accessor, iova, page).result == -EINVAL)
    #expect(door.access(accessor, iova, 8, buffer: page, writes: false) == -EINVAL)
    var change = iommu_ioas_change_process(size: 8, __reserved: 0)
    #expect(door.caller.ioctl(door.file, IOMMU_IOAS_CHANGE_PROCESS, &change) == -EINVAL)
  }

  @Test(
    "A4: buffers are mapped, copied, unmapped and revoked at once; in the end nothing is left")
  func concurrency() async throws {
    let context = door.context
    let spaces = [ObjectID(door.ioas), ObjectID(door.makeIOAS())]
    let tables = spaces.map { door.makeDevice(on: $0.rawValue).table }
    let buffer = try RevocableMemory(byteCount: 16 * 4096)
    await withTaskGroup(of: Void.self) { tasks in
      for worker in 0..<4 {
        tasks.addTask {
          var state = UInt64(worker) + 1
          func random(_ bound: UInt64) -> UInt64 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return (state >> 33) % bound
          }
          for _ in 0..<400 {
            let space = spaces[Int(random(2))]
            let at = 0x100_0000 + random(64) * 4096
            switch random(worker == 0 ? 5 : 4) {
            case 0, 1:
              _ = try? context.map(
                buffer, offset: random(8) * 4096, length: (random(8) + 1) * 4096, into: space,
                at: .fixed(IOVA(at)))
            case 2: _ = try? context.unmap(at...at + 8 * 4096 - 1, from: space)
            case 3:
              _ = try? context.copy(
                from: space, IOVA(at), length: 4096, into: spaces[Int(random(2))])
            default:
              buffer.revoke()
              buffer.restore()
            }
          }
        }
      }
    }
    buffer.revoke()
    for table in tables { #expect(try mapped(table, 0x100_0000, 1 << 20) == 0) }
    #expect(door.system.memory.usedSlots == 0)
    for space in spaces { try context.unmap(0...UInt64.max, from: space) }
  }
}
