// SPDX-License-Identifier: Apache-2.0
//
// MODEL L: the commands of /dev/iommu by their bytes: the forward-compatibility rule, the
// errnos of each command, bad pointers, and what is undone.

import CLinuxABI
import Foundation
import IOMMU
import SoftwareIOMMU
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct IOMMUFileTests {
  let system = IOMMUSystem()
  let caller: LocalCaller
  let file: any OpenFile
  let page: UInt64 = 4096

  init() throws {
    caller = try LocalCaller()
    file = try IOMMUNode(system: system).open(flags: 2, by: caller)
  }

  private func allocateIOAS() -> UInt32 {
    var cmd = iommu_ioas_alloc()
    cmd.size = 12
    #expect(caller.ioctl(file, IOMMU_IOAS_ALLOC, &cmd) == 0)
    return cmd.out_ioas_id
  }

  private func map(
    _ ioas: UInt32, va: UInt64, length: UInt64, iova: UInt64? = nil, flags: UInt32 = 6
  ) -> (result: Int32, iova: UInt64) {
    var cmd = iommu_ioas_map()
    cmd.size = 40
    cmd.flags = flags | (iova == nil ? 0 : IOMMU_IOAS_MAP_FIXED_IOVA)
    cmd.ioas_id = ioas
    cmd.user_va = va
    cmd.length = length
    cmd.iova = iova ?? 0
    let result = caller.ioctl(file, IOMMU_IOAS_MAP, &cmd)
    return (result, cmd.iova)
  }

  private func unmap(
    _ ioas: UInt32, iova: UInt64, length: UInt64
  ) -> (result: Int32, length: UInt64) {
    var cmd = iommu_ioas_unmap(size: 24, ioas_id: ioas, iova: iova, length: length)
    let result = caller.ioctl(file, IOMMU_IOAS_UNMAP, &cmd)
    return (result, cmd.length)
  }

  @Test("L: for every command: too short EINVAL, unknown tail E2BIG, zero tail as without it")
  func forwardCompatibility() throws {
    for row in Command.iommufd {
      func call(size: UInt32, tail: UInt8?) -> Int32 {
        for offset in 0..<16 { caller.put(UInt64(0), at: 0x2000 + UInt64(offset) * 8) }
        caller.put(size, at: 0x2000)
        if let tail { caller.put(tail, at: 0x2000 + UInt64(size) - 1) }
        return caller.ioctl(file, row.number, at: 0x2000)
      }
      let full = StructLayout.iommufd.first { $0.command == row.number }.map { UInt32($0.size) }
      let size = try #require(full, "\(row.name) has no layout")
      #expect(call(size: UInt32(row.minimumSize) - 1, tail: nil) == -EINVAL, "\(row.name)")
      #expect(call(size: 0, tail: nil) == -EINVAL, "\(row.name)")
      #expect(call(size: size + 1, tail: 1) == -E2BIG, "\(row.name)")
      let exact = call(size: size, tail: nil)
      #expect(call(size: size + 1, tail: 0) == exact, "\(row.name)")
      #expect(call(size: size + 9, tail: 0) == exact, "\(row.name)")
    }
  }

  @Test("L: bad pointers are EFAULT in every command, and nothing is made")
  func badPointers() {
    let before = context.objectCount
    for row in Command.iommufd {
      for address in [
        0, 0xfff, caller.arena.byteCount - 3, caller.arena.byteCount, .max, .max - 7,
      ]
        as [UInt64]
      {
        #expect(caller.ioctl(file, row.number, at: address) == -EFAULT, "\(row.name)")
      }
      // The size can be read, the structure cannot.
      let edge = caller.arena.byteCount - 4
      caller.put(UInt32(row.minimumSize), at: edge)
      #expect(caller.ioctl(file, row.number, at: edge) == -EFAULT, "\(row.name)")
    }
    #expect(context.objectCount == before)
  }

  private var context: Context { (file as! any ContextFile).context }

  @Test("L: unknown numbers are ENOTTY, inside the table and outside")
  func unknownNumbers() {
    caller.put(UInt32(64), at: 0x2000)
    for command: UInt32 in [0x3b7f, 0x3b95, 0x3bff, 0x3b00, 0x4008_3b81, 0x3ba0] {
      #expect(caller.ioctl(file, command, at: 0x2000) == -ENOTTY)
    }
    // As on Linux, the size is read first where the low byte is in the table.
    #expect(caller.ioctl(file, 0xff81, at: 0) == -EFAULT)
  }

  @Test("L: flags and reserved fields that are not known are EOPNOTSUPP")
  func unknownFlags() {
    var alloc = iommu_ioas_alloc()
    alloc.size = 12
    alloc.flags = 1
    #expect(caller.ioctl(file, IOMMU_IOAS_ALLOC, &alloc) == -EOPNOTSUPP)
    let ioas = allocateIOAS()
    #expect(map(ioas, va: page, length: page, flags: 8 | 6).result == -EOPNOTSUPP)
    #expect(map(ioas, va: page, length: page, flags: 0).result == -EINVAL)
    #expect(map(ioas, va: page, length: page, iova: .max).result == -EOVERFLOW)
    #expect(map(ioas, va: page, length: .max, iova: 0).result == -EOVERFLOW)
    #expect(map(ioas, va: page, length: 0, iova: 0).result == -EINVAL)
    #expect(map(9, va: page, length: page, iova: 0).result == -ENOENT)
  }

  @Test("B1: IOVA_RANGES tells the count where there is no room, and the ranges where there is")
  func iovaRanges() {
    let ioas = allocateIOAS()
    var cmd = iommu_ioas_iova_ranges()
    cmd.size = 32
    cmd.ioas_id = ioas
    #expect(caller.ioctl(file, IOMMU_IOAS_IOVA_RANGES, &cmd) == -EMSGSIZE)
    #expect(cmd.num_iovas == 1 && cmd.out_iova_alignment == 1)
    cmd.allowed_iovas = 0x4000
    #expect(caller.ioctl(file, IOMMU_IOAS_IOVA_RANGES, &cmd) == 0)
    let range = caller.get(iommu_iova_range.self, at: 0x4000)
    #expect(range.start == 0 && range.last == .max)
    cmd.allowed_iovas = 8
    #expect(caller.ioctl(file, IOMMU_IOAS_IOVA_RANGES, &cmd) == -EFAULT)
  }

  @Test("B1: ALLOW_IOVAS reads all ranges before it changes any")
  func allowIOVAs() {
    let ioas = allocateIOAS()
    var cmd = iommu_ioas_allow_iovas()
    cmd.size = 24
    cmd.ioas_id = ioas
    cmd.num_iovas = 2
    cmd.allowed_iovas = 0x4000
    caller.put(iommu_iova_range(start: 0x10000, last: 0x10fff), at: 0x4000)
    caller.put(iommu_iova_range(start: 0x20000, last: 0x20000), at: 0x4010)
    #expect(caller.ioctl(file, IOMMU_IOAS_ALLOW_IOVAS, &cmd) == -EINVAL)
    #expect(map(ioas, va: page, length: page).iova == page)
    caller.put(iommu_iova_range(start: 0x20000, last: 0x20fff), at: 0x4010)
    #expect(caller.ioctl(file, IOMMU_IOAS_ALLOW_IOVAS, &cmd) == 0)
    #expect(map(ioas, va: page, length: page).iova == 0x10000)
    cmd.num_iovas = .max
    #expect(caller.ioctl(file, IOMMU_IOAS_ALLOW_IOVAS, &cmd) < 0)
  }

  @Test("B1: map, copy, unmap and their outputs")
  func mapCopyUnmap() {
    let ioas = allocateIOAS()
    let other = allocateIOAS()
    #expect(map(ioas, va: page, length: 2 * page, iova: 0x10000).result == 0)
    var copy = iommu_ioas_copy()
    copy.size = 40
    copy.flags = 6
    copy.dst_ioas_id = other
    copy.src_ioas_id = ioas
    copy.src_iova = 0x11000
    copy.length = page
    #expect(caller.ioctl(file, IOMMU_IOAS_COPY, &copy) == 0)
    #expect(copy.dst_iova == page)
    copy.src_iova = 0x12000
    #expect(caller.ioctl(file, IOMMU_IOAS_COPY, &copy) == -ENOENT)
    #expect(unmap(ioas, iova: 0x10000, length: page).result == -ENOENT)
    #expect(unmap(ioas, iova: 0x10000, length: 2 * page) == (0, 2 * page))
    #expect(unmap(other, iova: 0, length: .max) == (0, page))
    #expect(unmap(other, iova: 0, length: .max) == (0, 0))
    #expect(unmap(other, iova: 1, length: .max).result == -EOVERFLOW)
    #expect(unmap(other, iova: .max - 1, length: 3).result == -EOVERFLOW)
    #expect(unmap(other, iova: 0, length: 0).result == -EINVAL)
  }

  @Test("L: files are mapped by descriptor, bad descriptors are EBADF")
  func mapFile() throws {
    let ioas = allocateIOAS()
    let fd = caller.add(try LocalMemory(byteCount: 4 * page))
    var cmd = iommu_ioas_map_file()
    cmd.size = 40
    cmd.flags = 6
    cmd.ioas_id = ioas
    cmd.fd = fd
    cmd.start = page
    cmd.length = 2 * page
    #expect(caller.ioctl(file, IOMMU_IOAS_MAP_FILE, &cmd) == 0)
    #expect(cmd.iova == page)
    cmd.fd = -1
    #expect(caller.ioctl(file, IOMMU_IOAS_MAP_FILE, &cmd) == -EBADF)
    cmd.flags = 16
    #expect(caller.ioctl(file, IOMMU_IOAS_MAP_FILE, &cmd) == -EOPNOTSUPP)
  }

  @Test("B1: ALLOW_IOVAS checks range by range: what is wrong first is what it says")
  func allowOrder() {
    func allow(_ ranges: [(UInt64, UInt64)], count: UInt32? = nil) -> Int32 {
      for (index, range) in ranges.enumerated() {
        caller.put(range.0, at: 0x8000 + UInt64(index) * 16)
        caller.put(range.1, at: 0x8008 + UInt64(index) * 16)
      }
      var cmd = iommu_ioas_allow_iovas()
      cmd.size = 24
      cmd.ioas_id = ioas
      cmd.num_iovas = count ?? UInt32(ranges.count)
      cmd.allowed_iovas = 0x8000
      return caller.ioctl(file, IOMMU_IOAS_ALLOW_IOVAS, &cmd)
    }
    let ioas = allocateIOAS()
    #expect(allow([(0x1000, 0x1fff), (0x1800, 0x2fff)], count: .max) == -EINVAL)
    #expect(allow([(0x1000, 0x1fff), (0x3000, 0x3000)], count: .max) == -EINVAL)
    #expect(allow([(0x5000, 0x5fff), (0x1000, 0x1fff), (0x3000, 0x5000)]) == -EINVAL)
    // Neighbours are one range; a range in page 0 is never used, a single page may be filled.
    #expect(allow([(0x3000, 0x3fff), (0x2000, 0x2fff), (0, 0xfff)]) == 0)
    var map = iommu_ioas_map()
    map.size = 40
    map.flags = 6
    map.ioas_id = ioas
    map.user_va = 0x2000
    map.length = 0x2000
    #expect(caller.ioctl(file, IOMMU_IOAS_MAP, &map) == 0)
    #expect(map.iova == 0x2000)
    map.length = 1
    #expect(caller.ioctl(file, IOMMU_IOAS_MAP, &map) == -ENOSPC)
    #expect(allow([]) == 0)
    #expect(caller.ioctl(file, IOMMU_IOAS_MAP, &map) == 0)
    #expect(map.iova == 0x1000)
  }

  @Test("B1: a single free byte takes a mapping of one byte")
  func lastByte() throws {
    let ioas = allocateIOAS()
    try context.allow([0x5000...0x5001], in: ObjectID(ioas))
    var map = iommu_ioas_map()
    map.size = 40
    map.flags = 6
    map.ioas_id = ioas
    map.length = 1
    for (address, iova) in [(0x2000, 0x5000), (0x2001, 0x5001)] as [(UInt64, UInt64)] {
      map.user_va = address
      let result = caller.ioctl(file, IOMMU_IOAS_MAP, &map)
      #expect(result == 0 && map.iova == iova)
    }
    #expect(caller.ioctl(file, IOMMU_IOAS_MAP, &map) == -ENOSPC)
  }

  @Test("B1: memory whose end passes the last address is EOVERFLOW, too much of it EINVAL")
  func lengths() {
    let ioas = allocateIOAS()
    var map = iommu_ioas_map()
    map.size = 40
    map.flags = 7
    map.ioas_id = ioas
    for (address, length, errno) in [
      (0, 0, EINVAL), (.max, 0, EINVAL), (.max, 1, EOVERFLOW), (.max, .max - 1, EOVERFLOW),
      (0, .max - 1, EINVAL), (1, .max - 1, EINVAL), (2, .max - 1, EOVERFLOW),
      (0, .max, EOVERFLOW), (0, .max - 4095, EINVAL), (0, .max - 4096, 0),
    ] as [(UInt64, UInt64, Int32)] {
      map.user_va = address
      map.length = length
      #expect(caller.ioctl(file, IOMMU_IOAS_MAP, &map) == -errno, "\(address) + \(length)")
    }
  }

  @Test("B6: RLIMIT_MODE is chosen before the first object, by who may")
  func rlimitMode() throws {
    var cmd = iommu_option()
    cmd.size = 24
    cmd.option_id = IOMMU_OPTION_RLIMIT_MODE
    cmd.op = UInt16(IOMMU_OPTION_OP_GET)
    cmd.val64 = 7
    #expect(caller.ioctl(file, IOMMU_OPTION, &cmd) == 0)
    #expect(cmd.val64 == 0)
    cmd.op = UInt16(IOMMU_OPTION_OP_SET)
    cmd.val64 = 2
    #expect(caller.ioctl(file, IOMMU_OPTION, &cmd) == -EINVAL)
    cmd.val64 = 1
    #expect(caller.ioctl(file, IOMMU_OPTION, &cmd) == 0)
    #expect(context.accountsPerProcess)
    let ioas = allocateIOAS()
    #expect(caller.ioctl(file, IOMMU_OPTION, &cmd) == -EBUSY)
    cmd.object_id = ioas
    #expect(caller.ioctl(file, IOMMU_OPTION, &cmd) == -EOPNOTSUPP)
    let unprivileged = try LocalCaller(maySetResourceLimits: false)
    cmd.object_id = 0
    #expect(unprivileged.ioctl(file, IOMMU_OPTION, &cmd) == -EPERM)
  }

  @Test("L: HUGE_PAGES is an option of an IOAS")
  func hugePages() {
    var cmd = iommu_option()
    cmd.size = 24
    cmd.option_id = IOMMU_OPTION_HUGE_PAGES
    cmd.op = UInt16(IOMMU_OPTION_OP_GET)
    #expect(caller.ioctl(file, IOMMU_OPTION, &cmd) == -ENOENT)
    cmd.object_id = allocateIOAS()
    #expect(caller.ioctl(file, IOMMU_OPTION, &cmd) == 0)
    #expect(cmd.val64 == 1)
    cmd.op = UInt16(IOMMU_OPTION_OP_SET)
    cmd.val64 = 2
    #expect(caller.ioctl(file, IOMMU_OPTION, &cmd) == -EINVAL)
    cmd.val64 = 0
    #expect(caller.ioctl(file, IOMMU_OPTION, &cmd) == 0)
    cmd.op = 2
    #expect(caller.ioctl(file, IOMMU_OPTION, &cmd) == -EOPNOTSUPP)
    cmd.option_id = 9
    #expect(caller.ioctl(file, IOMMU_OPTION, &cmd) == -EOPNOTSUPP)
  }

  @Test("L: VFIO_IOAS remembers the space until it is cleared or destroyed")
  func vfioIOAS() {
    var cmd = iommu_vfio_ioas()
    cmd.size = 12
    cmd.op = UInt16(IOMMU_VFIO_IOAS_GET)
    #expect(caller.ioctl(file, IOMMU_VFIO_IOAS, &cmd) == -ENODEV)
    let ioas = allocateIOAS()
    cmd.ioas_id = ioas
    cmd.op = UInt16(IOMMU_VFIO_IOAS_SET)
    #expect(caller.ioctl(file, IOMMU_VFIO_IOAS, &cmd) == 0)
    cmd.ioas_id = 0
    cmd.op = UInt16(IOMMU_VFIO_IOAS_GET)
    #expect(caller.ioctl(file, IOMMU_VFIO_IOAS, &cmd) == 0)
    #expect(cmd.ioas_id == ioas)
    var destroy = iommu_destroy(size: 8, id: ioas)
    #expect(caller.ioctl(file, IOMMU_DESTROY, &destroy) == 0)
    #expect(caller.ioctl(file, IOMMU_DESTROY, &destroy) == -ENOENT)
    #expect(caller.ioctl(file, IOMMU_VFIO_IOAS, &cmd) == -ENODEV)
  }

  @Test("L: whatever bytes a structure has, a command answers with an errno or does its job")
  func fuzz() {
    var state: UInt64 = 42
    func random() -> UInt64 {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return state >> 11 ^ state << 21
    }
    let interesting: [UInt64] = [0, 1, 2, 3, 4, 8, 0x1000, 0x2000, 0x7fff_ffff, .max, .max - 1]
    for _ in 0..<30_000 {
      let row = Command.iommufd[Int(random() % UInt64(Command.iommufd.count))]
      for offset in stride(from: UInt64(0), to: 96, by: 4) {
        let value =
          random() % 2 == 0 ? random() : interesting[Int(random() % UInt64(interesting.count))]
        caller.put(UInt32(truncatingIfNeeded: value), at: 0x2000 + offset)
      }
      // Mostly a size that gets past the first check.
      if random() % 8 != 0 {
        caller.put(UInt32(row.minimumSize + Int(random() % 3) * 8), at: 0x2000)
      }
      #expect(caller.ioctl(file, row.number, at: 0x2000) <= 0)
      if context.objectCount > 64 {
        // A fault queue lasts as long as its descriptor.
        caller.closeAll()
        for id in 1...80 { try? context.destroy(ObjectID(UInt32(id))) }
      }
    }
    let context = self.context
    caller.closeAll()
    file.close()
    #expect(context.objectCount == 0)
    #expect(system.memory.usedSlots == 0)
    #expect(system.contextCount == 0)
  }
}
