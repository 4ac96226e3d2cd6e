// SPDX-License-Identifier: Apache-2.0
//
// The operations of the back door that make mock devices and look into what the engine did
// with their page tables and with the pins of memory.

import CLinuxABI
import IOMMU
import PageTables
import SelfTestDriver
import SystemPackage

extension SelfTest {
  private static let hostPage: UInt64 = 4096

  /// ADD_RESERVED: a range of an address space that nothing may be mapped in.
  func addReserved(_ cmd: iommu_test_cmd) throws(IOMMUError) {
    let (start, length) = (cmd.add_reserved.start, cmd.add_reserved.length)
    guard length > 0 else { throw IOMMUError(.invalidArgument, "a reserved range of no bytes") }
    let (last, overflow) = start.addingReportingOverflow(length - 1)
    guard !overflow else {
      throw IOMMUError(
        .overflow,
        "\(hex(start)) + \(hex(length)) bytes passes the last address")
    }
    try context.reserve(start...last, in: ObjectID(cmd.id))
  }

  /// MOCK_DOMAIN, MOCK_DOMAIN_FLAGS: a device, bound and attached.
  func makeDevice(_ cmd: inout iommu_test_cmd) throws(IOMMUError) {
    let flags = cmd.op == IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS ? cmd.mock_domain_flags.dev_flags : 0
    let made = try MockDevice.make(
      MockIOMMU.DeviceFlags(rawValue: flags), driver: driver, in: context,
      attachedTo: ObjectID(cmd.id))
    cmd.mock_domain.out_stdev_id = made.object.rawValue
    cmd.mock_domain.out_hwpt_id = made.table.rawValue
    cmd.mock_domain.out_idev_id = made.device.rawValue
    try call.respond(with: cmd) { () throws(IOMMUError) in try context.destroy(made.object) }
  }

  /// MOCK_DOMAIN_REPLACE.
  func replaceTable(_ cmd: inout iommu_test_cmd) throws(IOMMUError) {
    let table = try mockDevice(cmd.id).replace(with: ObjectID(cmd.mock_domain_replace.pt_id))
    cmd.mock_domain_replace.pt_id = table.rawValue
    try call.respond(with: cmd)
  }

  /// MD_CHECK_MAP: every page of a table must hold the memory that the caller has at an
  /// address.
  func checkMap(_ cmd: iommu_test_cmd) throws(IOMMUError) {
    let (iova, length) = (cmd.check_map.iova, cmd.check_map.length)
    let address = cmd.check_map.uptr
    let step = MockDomain.pageSize
    guard (iova | length | address) % step == 0,
      !address.addingReportingOverflow(length).overflow,
      !iova.addingReportingOverflow(length).overflow
    else {
      throw IOMMUError(
        .invalidArgument,
        "iova \(hex(iova)), length \(hex(length)) and uptr "
          + "\(hex(address)) must be whole mock pages")
    }
    guard let domain = try context.pagingDomain(ObjectID(cmd.id)) as? MockDomain else {
      throw IOMMUError(.invalidArgument, "HWPT \(cmd.id) is not the mock IOMMU's")
    }
    try forEachIdentity(at: address, length: length, step: step) {
      (offset, expected) throws(IOMMUError) in
      let found = domain.translate(IOVA(iova + offset)).flatMap { memory.identity(of: $0) }
      guard found == expected else {
        throw IOMMUError(
          .invalidArgument,
          "HWPT \(cmd.id) has \(found.map { "\($0)" } ?? "nothing") at IOVA "
            + "\(hex(iova + offset)), where \(hex(address + offset)), "
            + "\(expected), should be")
      }
    }
  }

  /// DIRTY: pages that a bitmap names are written to, as far as the table is concerned.
  func makeDirty(_ cmd: inout iommu_test_cmd) throws(IOMMUError) {
    let (iova, length, size) = (cmd.dirty.iova, cmd.dirty.length, cmd.dirty.page_size)
    guard size > 0, length > 0, iova % size == 0, length % size == 0, cmd.dirty.uptr != 0 else {
      throw IOMMUError(
        .invalidArgument, "the range and page_size \(hex(size)) do not fit each other")
    }
    let count = length / size
    guard count <= 16 << 23 else {
      throw IOMMUError(.overflow, "\(count) pages are more than a call may mark")
    }
    guard let domain = try context.pagingDomain(ObjectID(cmd.id)) as? MockDomain else {
      throw IOMMUError(.invalidArgument, "HWPT \(cmd.id) is not the mock IOMMU's")
    }
    guard domain.isTracking else { throw MockDomain.notTracking }
    let bits = try caller.bytes(at: cmd.dirty.uptr, count: Int((count + 7) / 8))
    var marked: UInt64 = 0
    for index in 0..<count where bits[Int(index / 8)] >> UInt8(index % 8) & 1 != 0 {
      // Past the last address the range goes on at 0, as in the kernel.
      if try domain.markDirty(IOVA(iova &+ index * size)) { marked += 1 }
    }
    cmd.dirty.out_nr_dirty = marked
    try call.respond(with: cmd)
  }

  /// MD_CHECK_REFS: how often each page is pinned.
  func checkPins(_ cmd: iommu_test_cmd) throws(IOMMUError) {
    let (address, length) = (cmd.check_refs.uptr, cmd.check_refs.length)
    guard (address | length) % Self.hostPage == 0,
      !address.addingReportingOverflow(length).overflow
    else {
      throw IOMMUError(
        .invalidArgument,
        "uptr \(hex(address)) and length \(hex(length)) must be whole pages")
    }
    let expected = Int(cmd.check_refs.refs)
    try forEachIdentity(at: address, length: length, step: Self.hostPage) {
      (offset, identity) throws(IOMMUError) in
      let count = memory.pinCount(of: identity)
      guard count == expected else {
        throw IOMMUError(
          .ioError,
          "the page at \(hex(address + offset)) is pinned \(count) times, not \(expected)"
        )
      }
    }
  }

  /// Calls `body` for every `step` bytes of the caller's memory with what is there. A
  /// multiple of `step` is where all of it starts.
  func forEachIdentity(
    at address: UInt64, length: UInt64, step: UInt64,
    _ body: (_ offset: UInt64, MemoryIdentity) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    guard length > 0 else { return }
    let first = address & ~(Self.hostPage - 1)
    let (padded, overflow) = (address - first + length).addingReportingOverflow(
      Self.hostPage - 1)
    guard !overflow else { throw IOMMUError(.badAddress, "no memory is that long") }
    // Looking is pinning that does not reach physical space: it counts nowhere.
    // Where memory ends early, as on Linux, what comes before is looked at first.
    var runs: [PinnedRun] = []
    var missing: IOMMUError?
    do throws(IOMMUError) {
      try caller.memory().pin(
        address: first, length: padded & ~(Self.hostPage - 1), writable: false
      ) { (run) throws(IOMMUError) in runs.append(run) }
    } catch {
      missing = error
    }
    var run = runs.startIndex
    var runStart = first
    var offset: UInt64 = 0
    while offset < length {
      let here = address + offset
      while run < runs.endIndex, here - runStart >= runs[run].length {
        runStart += runs[run].length
        run += 1
      }
      guard run < runs.endIndex else {
        throw missing ?? IOMMUError(.badAddress, "nothing is at \(hex(here))")
      }
      var identity = runs[run].identity
      identity.offset &+= here - runStart
      try body(offset, identity)
      offset += step
    }
  }
}
