// SPDX-License-Identifier: Apache-2.0
//
// The operations of the back door on accessors: what a software device does with memory that
// it reaches without an IOMMU (MODEL D2). An accessor is a file; its pins have ids of their own.

import CLinuxABI
import IOMMU
import PageTables
import SystemPackage

/// The descriptor that CREATE_ACCESS returns. Closing it ends the accessor.
final class AccessorFile: OpenFile {
  let name = "iommufd_test_staccess"
  let number = DeviceNumber(major: 0, minor: 0)
  let accessor: Accessor

  init(_ accessor: Accessor) { self.accessor = accessor }

  func close() { accessor.close() }
}

extension SelfTest {
  /// The kernel's limit on what one call may pin or copy, in bytes.
  private static let limit: UInt64 = 16 << 20
  private static let hostPage: UInt64 = 4096

  private func accessor(_ descriptor: UInt32) throws(IOMMUError) -> Accessor {
    let number = Int32(truncatingIfNeeded: descriptor)
    var file: (any OpenFile)?
    do throws(IOMMUError) {
      file = try caller.openFile(descriptor: number)
    } catch  where error.errno == .badFileDescriptor {
      file = nil
    }
    guard let file = file as? AccessorFile else {
      throw IOMMUError(.badDescriptorState, "descriptor \(number) is no accessor")
    }
    return file.accessor
  }

  private func checkLength(_ length: UInt64) throws(IOMMUError) {
    guard length <= Self.limit else {
      throw IOMMUError(
        .noMemory, "\(hex(length)) bytes are more than a call may access")
    }
  }

  /// CREATE_ACCESS: an accessor on an address space.
  func makeAccessor(_ cmd: inout iommu_test_cmd) throws(IOMMUError) {
    let flags = cmd.create_access.flags
    try requireOnly(MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES, in: flags)
    let accessor = try Accessor(
      context: context, pinsMemory: flags & MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES != 0)
    do throws(IOMMUError) {
      try accessor.attach(to: ObjectID(cmd.id))
      let descriptor = try caller.install(AccessorFile(accessor), closeOnExec: true)
      cmd.create_access.out_access_fd = UInt32(bitPattern: descriptor)
      try call.respond(with: cmd)
    } catch {
      // Closing twice is harmless: the descriptor, where there was one, goes as well.
      accessor.close()
      throw error
    }
  }

  /// ACCESS_REPLACE_IOAS.
  func replaceSpace(_ cmd: iommu_test_cmd) throws(IOMMUError) {
    try accessor(cmd.id).attach(to: ObjectID(cmd.access_replace_ioas.ioas_id))
  }

  /// ACCESS_PAGES: pins, and compares with the caller's memory where `uptr` is not zero.
  func pinPages(_ cmd: inout iommu_test_cmd) throws(IOMMUError) {
    let (iova, length) = (cmd.access_pages.iova, cmd.access_pages.length)
    try checkLength(length)
    try requireOnly(MOCK_FLAGS_ACCESS_WRITE, in: cmd.access_pages.flags)
    let accessor = try accessor(cmd.id)
    guard accessor.pinsMemory else {
      throw IOMMUError(.operationNotSupported, "the accessor was not made for pinning")
    }
    let writes = cmd.access_pages.flags & MOCK_FLAGS_ACCESS_WRITE != 0
    let pin = try accessor.pin(IOVA(iova), length: length, for: writes ? .write : .read)
    if cmd.access_pages.uptr != 0 {
      do throws(IOMMUError) {
        try check(pin, against: cmd.access_pages.uptr &- (iova & (Self.hostPage - 1)))
      } catch {
        accessor.takeBack(pin)
        throw error
      }
    }
    do throws(IOMMUError) {
      cmd.access_pages.out_access_pages_id = pin.id
      try call.respond(with: cmd)
    } catch {
      try? accessor.unpin(pin.id)
      throw error
    }
  }

  private func check(_ pin: Accessor.Pin, against address: UInt64) throws(IOMMUError) {
    var start: UInt64 = 0
    for run in pin.runs {
      guard !address.addingReportingOverflow(start + run.length).overflow else {
        throw IOMMUError(.badAddress, "uptr \(hex(address)) passes the last address")
      }
      try forEachIdentity(at: address + start, length: run.length, step: Self.hostPage) {
        (offset, expected) throws(IOMMUError) in
        let found = memory.identity(of: PhysicalAddress(run.address.rawValue + offset))
        guard found == expected else {
          throw IOMMUError(
            Errno(rawValue: 52),  // EBADE
            "another page than the one at \(hex(address + start + offset)) was pinned")
        }
      }
      start += run.length
    }
  }

  /// DESTROY_ACCESS_PAGES.
  func unpinPages(_ cmd: iommu_test_cmd) throws(IOMMUError) {
    try accessor(cmd.id).unpin(cmd.destroy_access_pages.access_pages_id)
  }

  /// ACCESS_RW: copies between the caller's memory and the address space.
  func readWrite(_ cmd: iommu_test_cmd) throws(IOMMUError) {
    let (iova, length) = (cmd.access_rw.iova, cmd.access_rw.length)
    try checkLength(length)
    // The slow path is the kernel's own; here there is one path only.
    try requireOnly(MOCK_ACCESS_RW_WRITE | MOCK_ACCESS_RW_SLOW_PATH, in: cmd.access_rw.flags)
    let accessor = try accessor(cmd.id)
    if cmd.access_rw.flags & MOCK_ACCESS_RW_WRITE != 0 {
      let bytes = try caller.bytes(at: cmd.access_rw.uptr, count: Int(length))
      try accessor.write(bytes, to: IOVA(iova))
    } else {
      try caller.store(
        bytes: accessor.read(IOVA(iova), count: Int(length)), to: cmd.access_rw.uptr)
    }
  }
}
