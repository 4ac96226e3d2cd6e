// SPDX-License-Identifier: Apache-2.0
//
// Every path of every command and back-door operation, failed at each of its failure points
// (Linux: iommufd_fail_nth): same objects, same maps, same pins as before the failed call.

import CLinuxABI
import IOMMU
import PageTables
import SelfTestDriver
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct FailureTests {
  let door: BackDoor
  let sweep: FailureSweep
  let page: UInt64 = 4096
  let iova: UInt64 = 0x100_0000
  /// More than a table page of the mock IOMMU.
  let length: UInt64 = 40 * 4096

  init() throws {
    door = try BackDoor()
    sweep = FailureSweep(door)
  }

  private func ioctl<T>(_ command: UInt32, _ cmd: T) -> Int32 {
    var cmd = cmd
    return door.caller.ioctl(door.file, command, &cmd)
  }

  private func hwpt(_ device: UInt32, flags: UInt32 = 0) -> (result: Int32, table: UInt32) {
    var alloc = iommu_hwpt_alloc()
    alloc.size = 48
    alloc.flags = flags
    alloc.dev_id = device
    alloc.pt_id = door.ioas
    let result = door.caller.ioctl(door.file, IOMMU_HWPT_ALLOC, &alloc)
    return (result, alloc.out_hwpt_id)
  }

  @Test("fail-nth: an open that fails leaves no context")
  func opening() throws {
    let node = IOMMUNode(selfTestDriver: door.driver)
    var opened: (any OpenFile)?
    sweep("open") {
      opened = try? node.open(flags: 2, by: door.caller)
      return opened == nil ? -12 : 0
    } undo: {
      opened?.close()
    }
    #expect(sweep.failed == [.context])
  }

  @Test("fail-nth: IOAS_ALLOC, ALLOW_IOVAS, IOVA_RANGES, VFIO_IOAS and options")
  func spaces() {
    var made: UInt32 = 0
    sweep("IOAS_ALLOC") {
      var cmd = iommu_ioas_alloc(size: 12, flags: 0, out_ioas_id: 0)
      let result = door.caller.ioctl(door.file, IOMMU_IOAS_ALLOC, &cmd)
      made = cmd.out_ioas_id
      return result
    } undo: {
      #expect(door.destroy(made) == 0)
    }
    let ranges: UInt64 = 0x8000
    door.caller.put(iommu_iova_range(start: 0x1000, last: 0xffff), at: ranges)
    door.caller.put(iommu_iova_range(start: 0x10_0000, last: 0x1f_ffff), at: ranges + 16)
    sweep("IOAS_ALLOW_IOVAS") {
      ioctl(
        IOMMU_IOAS_ALLOW_IOVAS,
        iommu_ioas_allow_iovas(
          size: 24, ioas_id: door.ioas, num_iovas: 2, __reserved: 0, allowed_iovas: ranges))
    } undo: {
      let none = iommu_ioas_allow_iovas(
        size: 24, ioas_id: door.ioas, num_iovas: 0, __reserved: 0, allowed_iovas: 0)
      #expect(ioctl(IOMMU_IOAS_ALLOW_IOVAS, none) == 0)
    }
    sweep("IOAS_IOVA_RANGES") {
      ioctl(
        IOMMU_IOAS_IOVA_RANGES,
        iommu_ioas_iova_ranges(
          size: 32, ioas_id: door.ioas, num_iovas: 4, __reserved: 0, allowed_iovas: ranges,
          out_iova_alignment: 0))
    }
    func vfioIOAS(_ op: UInt32) -> Int32 {
      ioctl(
        IOMMU_VFIO_IOAS,
        iommu_vfio_ioas(size: 12, ioas_id: door.ioas, op: UInt16(op), __reserved: 0))
    }
    sweep("VFIO_IOAS set") {
      vfioIOAS(IOMMU_VFIO_IOAS_SET)
    } undo: {
      #expect(vfioIOAS(IOMMU_VFIO_IOAS_CLEAR) == 0)
    }
    func option(_ op: UInt32, _ id: UInt32, object: UInt32, _ value: UInt64) -> Int32 {
      ioctl(
        IOMMU_OPTION,
        iommu_option(
          size: 24, option_id: id, op: UInt16(op), __reserved: 0, object_id: object,
          val64: value))
    }
    // The option is set before the value is copied out: so it is on Linux.
    sweep("OPTION huge pages", kept: [.copyOut]) {
      option(IOMMU_OPTION_OP_SET, IOMMU_OPTION_HUGE_PAGES, object: door.ioas, 0)
    } undo: {
      #expect(option(IOMMU_OPTION_OP_SET, IOMMU_OPTION_HUGE_PAGES, object: door.ioas, 1) == 0)
    }
    #expect(door.destroy(door.ioas) == 0)
    sweep("OPTION accounting", kept: [.copyOut]) {
      option(IOMMU_OPTION_OP_SET, IOMMU_OPTION_RLIMIT_MODE, object: 0, 1)
    } undo: {
      #expect(option(IOMMU_OPTION_OP_SET, IOMMU_OPTION_RLIMIT_MODE, object: 0, 0) == 0)
    }
    #expect(sweep.failed == [.object, .copyIn, .copyOut])
  }

  @Test(
    "fail-nth: IOAS_MAP, MAP_FILE, COPY and UNMAP with no table, one and two", arguments: 0...2)
  func maps(tables: Int) throws {
    for _ in 0..<tables { #expect(door.makeDevice().result == 0) }
    #expect(door.map(page, page, at: iova + 0x100_0000) == 0)
    sweep("IOAS_MAP") {
      door.map(page, length, at: iova)
    } undo: {
      #expect(door.unmap(iova, length) == 0)
    }
    var found: UInt64 = 0
    sweep("IOAS_MAP anywhere") {
      var cmd = iommu_ioas_map(
        size: 40, flags: 6, ioas_id: door.ioas, __reserved: 0, user_va: page, length: length,
        iova: 0)
      let result = door.caller.ioctl(door.file, IOMMU_IOAS_MAP, &cmd)
      found = cmd.iova
      return result
    } undo: {
      #expect(door.unmap(found, length) == 0)
    }
    let descriptor = door.caller.add(try LocalMemory(byteCount: 64 * page))
    sweep("IOAS_MAP_FILE") {
      var cmd = iommu_ioas_map_file()
      cmd.size = 40
      cmd.flags = 7
      cmd.ioas_id = door.ioas
      cmd.fd = descriptor
      cmd.start = page
      cmd.length = length
      cmd.iova = iova
      return ioctl(IOMMU_IOAS_MAP_FILE, cmd)
    } undo: {
      #expect(door.unmap(iova, length) == 0)
    }
    // Three areas on the source side: the first pieces are in when the last one fails.
    let source = door.makeIOAS()
    for index in 0..<3 as Range<UInt64> {
      let start = index * 36 * page
      #expect(door.map(page + start, 36 * page, at: iova + start, in: source) == 0)
    }
    sweep("IOAS_COPY") {
      ioctl(
        IOMMU_IOAS_COPY,
        iommu_ioas_copy(
          size: 40, flags: 7, dst_ioas_id: door.ioas, src_ioas_id: source,
          length: 3 * 36 * page, dst_iova: iova, src_iova: iova))
    } undo: {
      #expect(door.unmap(iova, 3 * 36 * page) == 0)
    }
    #expect(door.map(page, length, at: iova) == 0)
    // What was unmapped stays so where its length cannot be told: so it is on Linux.
    sweep("IOAS_UNMAP", kept: [.copyOut]) {
      door.unmap(iova, length)
    } undo: {
      #expect(door.map(page, length, at: iova) == 0)
    }
    var expected: Set<FailurePoint> = [.copyIn, .copyOut, .area, .scratch]
    if tables > 0 { expected.formUnion([.pin, .segment, .account, .tableMemory]) }
    #expect(sweep.failed == expected)
  }

  @Test("fail-nth: memory in pieces is unpinned piece by piece")
  func pieces() {
    #expect(door.makeDevice().result == 0)
    #expect(door.makeDevice(flags: 1).result == 0)
    let memory = PiecewiseMemory(pieces: 5)
    let context = door.context
    let ioas = ObjectID(door.ioas)
    sweep("map of pieces") {
      do throws(IOMMUError) {
        try context.map(
          memory, start: 0, length: 5 * page, into: ioas, at: .fixed(IOVA(iova)))
        return 0
      } catch {
        return -error.errno.rawValue
      }
    } undo: {
      #expect(door.unmap(iova, 5 * page) == 0)
    }
    #expect(sweep.failed == [.area, .pin, .segment, .tableMemory])
  }

  @Test("fail-nth: mock devices are made whole or not at all, over mappings too")
  func devices() {
    #expect(door.map(page, length, at: iova) == 0)
    #expect(door.map(page, page, at: iova + 2 * length) == 0)
    var made = BackDoor.Device(result: 0, object: 0, table: 0, device: 0)
    func make() -> Int32 {
      made = door.makeDevice()
      return made.result
    }
    sweep("MOCK_DOMAIN, a new table", make) { #expect(door.destroy(made.object) == 0) }
    let first = door.makeDevice()
    sweep("MOCK_DOMAIN, the table that is there", make) {
      #expect(door.destroy(made.object) == 0)
    }
    let other = door.makeIOAS()
    #expect(door.map(page, 2 * length, at: iova, in: other) == 0)
    // The device has moved where its new table cannot be told: so it is on Linux.
    sweep("MOCK_DOMAIN_REPLACE by an IOAS", kept: [.copyOut]) {
      door.replace(first.object, with: other).result
    } undo: {
      #expect(door.replace(first.object, with: door.ioas).result == 0)
    }
    #expect(door.destroy(first.object) == 0)
    let device = door.makeDevice(on: other)
    for flags in [0, IOMMU_HWPT_ALLOC_DIRTY_TRACKING, IOMMU_HWPT_ALLOC_NEST_PARENT] {
      var table: UInt32 = 0
      sweep("HWPT_ALLOC with flags \(flags)") {
        let (result, id) = hwpt(device.device, flags: flags)
        table = id
        return result
      } undo: {
        #expect(door.destroy(table) == 0)
      }
    }
    let table = hwpt(device.device).table
    sweep("MOCK_DOMAIN_REPLACE by an HWPT", kept: [.copyOut]) {
      door.replace(device.object, with: table).result
    } undo: {
      #expect(door.replace(device.object, with: other).result == 0)
    }
    sweep("MOCK_DOMAIN on an HWPT") {
      made = door.makeDevice(on: table)
      return made.result
    } undo: {
      #expect(door.destroy(made.object) == 0)
    }
    #expect(
      sweep.failed == [
        .copyIn, .copyOut, .object, .driverObject, .reservation, .attachment, .pin, .segment,
        .account,
        .tableMemory,
      ])
  }

  @Test("fail-nth: GET_HW_INFO, dirty tracking and the checks change nothing when they fail")
  func looking() {
    let device = door.makeDevice()
    let table = hwpt(device.device, flags: IOMMU_HWPT_ALLOC_DIRTY_TRACKING).table
    #expect(door.map(page, 4 * page, at: iova) == 0)
    sweep("GET_HW_INFO") {
      var info = iommu_hw_info()
      info.size = 40
      info.dev_id = device.device
      info.data_len = 64
      info.data_uptr = 0x8000
      return ioctl(IOMMU_GET_HW_INFO, info)
    }
    sweep("HWPT_SET_DIRTY_TRACKING") {
      ioctl(
        IOMMU_HWPT_SET_DIRTY_TRACKING,
        iommu_hwpt_set_dirty_tracking(size: 16, flags: 1, hwpt_id: table, __reserved: 0))
    }
    door.caller.put(UInt16(0x55), at: 0x9000)
    sweep("DIRTY") {
      door.call(IOMMU_TEST_OP_DIRTY, id: table) {
        $0.dirty.iova = iova
        $0.dirty.length = 4 * page
        $0.dirty.page_size = 2048
        $0.dirty.uptr = 0x9000
      }.result
    }
    door.caller.put(UInt16(0), at: 0xa000)
    sweep("HWPT_GET_DIRTY_BITMAP") {
      ioctl(
        IOMMU_HWPT_GET_DIRTY_BITMAP,
        iommu_hwpt_get_dirty_bitmap(
          size: 48, hwpt_id: table, flags: 0, __reserved: 0, iova: iova, length: 4 * page,
          page_size: 2048, data: 0xa000))
    }
    #expect(
      door.caller.get(UInt16.self, at: 0xa000) == 0x55, "no failed read has lost a dirty page")
    sweep("MD_CHECK_MAP") { door.checkMap(device.table, iova, 4 * page, is: page) }
    sweep("MD_CHECK_REFS") { door.checkPins(page, page, are: 1) }
    sweep("DESTROY of nothing but the copy-in") {
      door.destroy(99) == -14 ? -14 : 0
    }
    #expect(sweep.failed == [.copyIn, .copyOut, .scratch])
  }

  @Test("fail-nth: accessors are made, moved, pin, read and write, or leave no trace")
  func accessors() {
    #expect(door.map(page, length, at: iova) == 0)
    #expect(door.map(8 * page, page, at: iova + length) == 0)
    let other = door.makeIOAS()
    for pins in [false, true] {
      var descriptor: UInt32 = 0
      sweep("CREATE_ACCESS") {
        let (result, made) = door.makeAccessor(pins: pins)
        descriptor = made
        return result
      } undo: {
        door.close(descriptor)
      }
    }
    let accessor = door.makeAccessor(pins: true).descriptor
    sweep("ACCESS_REPLACE_IOAS") {
      door.call(IOMMU_TEST_OP_ACCESS_REPLACE_IOAS, id: accessor) {
        $0.access_replace_ioas.ioas_id = other
      }.result
    } undo: {
      let back = door.call(IOMMU_TEST_OP_ACCESS_REPLACE_IOAS, id: accessor) {
        $0.access_replace_ioas.ioas_id = door.ioas
      }
      #expect(back.result == 0)
    }
    for withTable in [false, true] {
      if withTable { #expect(door.makeDevice().result == 0) }
      var id: UInt32 = 0
      sweep("ACCESS_PAGES over two areas") {
        let (result, pin) = door.pin(accessor, iova, length + page, writes: true)
        id = pin
        return result
      } undo: {
        #expect(door.unpin(accessor, id) == 0)
      }
      for writes in [false, true] {
        sweep("ACCESS_RW") {
          door.access(accessor, iova + length - 100, 200, buffer: 0xc_0000, writes: writes)
        }
      }
    }
    sweep("ADD_RESERVED") {
      door.call(IOMMU_TEST_OP_ADD_RESERVED, id: other) {
        $0.add_reserved.start = page
        $0.add_reserved.length = page
      }.result
    } undo: {
      // Nothing takes it back but the end of the space.
      #expect(door.destroy(other) == 0 && door.makeIOAS() == other)
    }
    #expect(
      sweep.failed == [
        .copyIn, .copyOut, .object, .descriptor, .pin, .segment, .account, .accessorPin,
        .scratch,
        .reservation,
      ])
  }

  @Test("fail-nth: MAP_DMA and UNMAP_DMA, which cuts mappings, leave them whole when they fail")
  func type1() {
    #expect(
      ioctl(
        IOMMU_VFIO_IOAS,
        iommu_vfio_ioas(
          size: 12, ioas_id: door.ioas, op: UInt16(IOMMU_VFIO_IOAS_SET), __reserved: 0)) == 0)
    let caller = door.caller
    #expect(caller.ioctl(door.file, VFIO_SET_IOMMU, at: UInt64(VFIO_TYPE1_IOMMU)) == 0)
    #expect(door.makeDevice().result == 0)
    #expect(door.makeDevice(flags: 1).result == 0)
    func unmap(_ iova: UInt64, _ size: UInt64) -> Int32 {
      var cmd = vfio_iommu_type1_dma_unmap()
      cmd.argsz = 24
      cmd.iova = iova
      cmd.size = size
      return ioctl(VFIO_IOMMU_UNMAP_DMA, cmd)
    }
    func map() -> Int32 {
      ioctl(
        VFIO_IOMMU_MAP_DMA,
        vfio_iommu_type1_dma_map(argsz: 32, flags: 3, vaddr: page, iova: iova, size: length))
    }
    sweep("MAP_DMA", map) { #expect(unmap(iova, length) == 0) }
    #expect(map() == 0)
    sweep("UNMAP_DMA out of the middle", kept: [.copyOut]) {
      unmap(iova + 8 * page, 16 * page)
    } undo: {
      #expect(unmap(iova, length) == 0)
      #expect(map() == 0)
    }
    #expect(
      sweep.failed == [.copyIn, .copyOut, .area, .pin, .segment, .account, .tableMemory])
  }
}

/// Memory that is pinned in several runs, as a process's often is.
private final class PiecewiseMemory: MemorySource {
  private let memories: [LocalMemory]
  private let page: UInt64 = 4096

  init(pieces: Int) {
    memories = (0..<pieces).compactMap { _ in try? LocalMemory(byteCount: 4096) }
  }

  func pin(
    address: UInt64, length: UInt64, writable: Bool,
    place: (consuming PinnedRun) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    for index in Int(address / page)..<Int((address + length) / page) {
      try memories[index].pin(address: 0, length: page, writable: writable, place: place)
    }
  }
}
