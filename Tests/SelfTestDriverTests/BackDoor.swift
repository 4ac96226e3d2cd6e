// SPDX-License-Identifier: Apache-2.0
//
// A client of the back door: the calls of the kernel's self-tests, short enough to write many.

import CLinuxABI
import IOMMU
import SelfTestDriver
import TestSupport

@testable import LinuxABI

final class BackDoor {
  let system = IOMMUSystem()
  let driver: MockIOMMU
  let caller: LocalCaller
  let file: any OpenFile
  /// The first address space.
  var ioas: UInt32 = 0

  init() throws {
    driver = MockIOMMU(system: system)
    caller = try LocalCaller()
    file = try IOMMUNode(selfTestDriver: driver).open(flags: 2, by: caller)
    ioas = makeIOAS()
  }

  private var isOpen = true

  /// The last close of the file.
  func closeFile() {
    if isOpen { file.close() }
    isOpen = false
  }

  deinit { closeFile() }

  var context: Context { (file as! any ContextFile).context }

  func makeIOAS() -> UInt32 {
    var cmd = iommu_ioas_alloc(size: 12, flags: 0, out_ioas_id: 0)
    caller.ioctl(file, IOMMU_IOAS_ALLOC, &cmd)
    return cmd.out_ioas_id
  }

  /// Puts words into the client's memory.
  func poke(_ words: [UInt32], at address: UInt64) {
    caller.arena.withUnsafeMutableBytes { bytes in
      for (index, word) in words.enumerated() {
        bytes.storeBytes(of: word, toByteOffset: Int(address) + 4 * index, as: UInt32.self)
      }
    }
  }

  func map(
    _ address: UInt64, _ length: UInt64, at iova: UInt64, in ioas: UInt32? = nil,
    flags: UInt32 = 7
  ) -> Int32 {
    var cmd = iommu_ioas_map(
      size: 40, flags: flags, ioas_id: ioas ?? self.ioas, __reserved: 0, user_va: address,
      length: length, iova: iova)
    return caller.ioctl(file, IOMMU_IOAS_MAP, &cmd)
  }

  func unmap(_ iova: UInt64, _ length: UInt64) -> Int32 {
    var cmd = iommu_ioas_unmap(size: 24, ioas_id: ioas, iova: iova, length: length)
    return caller.ioctl(file, IOMMU_IOAS_UNMAP, &cmd)
  }

  func destroy(_ id: UInt32) -> Int32 {
    var cmd = iommu_destroy(size: 8, id: id)
    return caller.ioctl(file, IOMMU_DESTROY, &cmd)
  }

  func call(
    _ op: UInt32, id: UInt32 = 0, _ fill: (inout iommu_test_cmd) -> Void = { _ in }
  ) -> (result: Int32, cmd: iommu_test_cmd) {
    var cmd = iommu_test_cmd()
    cmd.size = 72
    cmd.op = op
    cmd.id = id
    fill(&cmd)
    let result = caller.ioctl(file, IOMMU_TEST_CMD, &cmd)
    return (result, cmd)
  }

  struct Device {
    var result: Int32
    var object: UInt32
    var table: UInt32
    var device: UInt32
  }

  func makeDevice(on target: UInt32? = nil, flags: UInt32 = 0) -> Device {
    let (result, cmd) = call(IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, id: target ?? ioas) {
      $0.mock_domain_flags.dev_flags = flags
    }
    return Device(
      result: result, object: cmd.mock_domain.out_stdev_id, table: cmd.mock_domain.out_hwpt_id,
      device: cmd.mock_domain.out_idev_id)
  }

  /// HWPT_ALLOC.
  func makeTable(
    for device: UInt32, on parent: UInt32? = nil, flags: UInt32 = 0,
    type: UInt32 = IOMMU_HWPT_DATA_NONE, length: UInt32 = 0, data: UInt64 = 0,
    faultQueue: UInt32 = 0
  ) -> (result: Int32, id: UInt32) {
    var cmd = iommu_hwpt_alloc()
    cmd.size = 48
    cmd.flags = flags
    cmd.dev_id = device
    cmd.pt_id = parent ?? ioas
    cmd.data_type = type
    cmd.data_len = length
    cmd.data_uptr = data
    cmd.fault_id = faultQueue
    let result = caller.ioctl(file, IOMMU_HWPT_ALLOC, &cmd)
    return (result, cmd.out_hwpt_id)
  }

  func replace(_ object: UInt32, with table: UInt32) -> (result: Int32, table: UInt32) {
    let (result, cmd) = call(IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, id: object) {
      $0.mock_domain_replace.pt_id = table
    }
    return (result, cmd.mock_domain_replace.pt_id)
  }

  func checkMap(_ table: UInt32, _ iova: UInt64, _ length: UInt64, is address: UInt64) -> Int32
  {
    call(IOMMU_TEST_OP_MD_CHECK_MAP, id: table) {
      $0.check_map.iova = iova
      $0.check_map.length = length
      $0.check_map.uptr = address
    }.result
  }

  func checkPins(_ address: UInt64, _ length: UInt64, are count: UInt32) -> Int32 {
    call(IOMMU_TEST_OP_MD_CHECK_REFS) {
      $0.check_refs.length = length
      $0.check_refs.uptr = address
      $0.check_refs.refs = count
    }.result
  }

  func checkCache(_ device: UInt32, _ slot: UInt32, is value: UInt32) -> Int32 {
    call(IOMMU_TEST_OP_DEV_CHECK_CACHE, id: device) {
      $0.check_dev_cache.id = slot
      $0.check_dev_cache.cache = value
    }.result
  }

  func makeAccessor(
    on ioas: UInt32? = nil, pins: Bool
  ) -> (result: Int32, descriptor: UInt32) {
    let (result, cmd) = call(IOMMU_TEST_OP_CREATE_ACCESS, id: ioas ?? self.ioas) {
      $0.create_access.flags = pins ? MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES : 0
    }
    return (result, cmd.create_access.out_access_fd)
  }

  func pin(
    _ accessor: UInt32, _ iova: UInt64, _ length: UInt64, is address: UInt64 = 0,
    writes: Bool = false
  ) -> (result: Int32, id: UInt32) {
    let (result, cmd) = call(IOMMU_TEST_OP_ACCESS_PAGES, id: accessor) {
      $0.access_pages.flags = writes ? MOCK_FLAGS_ACCESS_WRITE : 0
      $0.access_pages.iova = iova
      $0.access_pages.length = length
      $0.access_pages.uptr = address
    }
    return (result, cmd.access_pages.out_access_pages_id)
  }

  func unpin(_ accessor: UInt32, _ id: UInt32) -> Int32 {
    call(IOMMU_TEST_OP_DESTROY_ACCESS_PAGES, id: accessor) {
      $0.destroy_access_pages.access_pages_id = id
    }.result
  }

  func access(
    _ accessor: UInt32, _ iova: UInt64, _ length: UInt64, buffer: UInt64, writes: Bool
  ) -> Int32 {
    call(IOMMU_TEST_OP_ACCESS_RW, id: accessor) {
      $0.access_rw.iova = iova
      $0.access_rw.length = length
      $0.access_rw.uptr = buffer
      $0.access_rw.flags = writes ? MOCK_ACCESS_RW_WRITE : 0
    }.result
  }

  func close(_ accessor: UInt32) { caller.close(Int32(bitPattern: accessor)) }
}

extension FailureSweep {
  /// Compares the engine's state, the mock driver's, and each table's size.
  convenience init(_ door: BackDoor) {
    self.init {
      var lines = door.context.snapshot
      lines.append("\(door.driver.deviceCount) mock devices")
      for id in 1...40 as ClosedRange<UInt32> {
        if let domain = try? door.context.pagingDomain(ObjectID(id)) as? MockDomain {
          lines.append("HWPT \(id): \(domain.pageCount) pages")
        }
      }
      return lines
    }
  }
}
