// SPDX-License-Identifier: Apache-2.0
//
// The proposal's calls on /dev/ioasid and on a device (MODEL K1): what they do, and what they
// refuse.

import CLinuxABI
import Foundation
import IOMMU
import PageTables
import SoftwareIOMMU
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct IOASIDTests {
  let rig: IOASIDRig

  init() throws { rig = try IOASIDRig(EngineRig(iommu: .init(pasidBits: 8))) }

  // MARK: The ways that work

  @Test("K1: bind with a cookie, allocate, attach, map, unmap, detach, free")
  func life() throws {
    #expect(rig.bind() == 0)
    let ioasid = rig.alloc()
    #expect(ioasid > 0)
    rig.caller.put(UInt32(0x1234), at: 0x8000)
    #expect(rig.map(ioasid, 0x5000, to: 0x8000) == 0)
    #expect(rig.word(0x5000) == nil, "A3: bound, and reaches nothing")
    #expect(rig.attach(ioasid) == 0 && rig.word(0x5000) == 0x1234)
    #expect(rig.free(ioasid) == -EBUSY)
    let busy = #expect(throws: IOMMUError.self) {
      try rig.file.ioctl(IOASID_FREE, argument: UInt64(ioasid), by: rig.caller)
    }
    #expect(
      busy?.reason.hasPrefix("ioasid \(ioasid) is in use by device ") == true,
      "\(busy?.reason ?? "")")
    #expect(rig.unmapped(ioasid, 0x5000) == (0, 0x1000))
    #expect(rig.word(0x5000) == nil)
    #expect(rig.unmapped(ioasid, 0x5000) == (0, 0), "nothing there is no error")
    #expect(rig.detach(ioasid) == 0 && rig.free(ioasid) == 0)
    #expect(rig.free(ioasid) == -ENOENT)
  }

  @Test("K1: an attach by virtual PASID is beside the one without")
  func pasids() {
    #expect(rig.bind() == 0)
    let spaces = [rig.alloc(), rig.alloc()]
    for (index, ioasid) in spaces.enumerated() {
      rig.caller.put(UInt32(index + 1), at: 0x8000 + UInt64(index) * 0x1000)
      #expect(rig.map(ioasid, 0, to: 0x8000 + UInt64(index) * 0x1000) == 0)
    }
    #expect(rig.attach(spaces[0]) == 0 && rig.attach(spaces[1], pasid: 7) == 0)
    #expect(rig.word(0) == 1 && rig.word(0, pasid: 7) == 2)
    #expect(rig.detach(spaces[0], pasid: 7) == -EINVAL, "it is attached to another")
    #expect(rig.detach(spaces[1], pasid: 7) == 0)
    #expect(rig.word(0) == 1 && rig.word(0, pasid: 7) == nil)
    #expect(rig.attach(spaces[1], pasid: 256) == -EINVAL, "wider than the IOMMU takes")
  }

  @Test("B5: with a parent, vaddr is an address of the parent's, and its changes carry through")
  func nesting() {
    #expect(rig.bind() == 0)
    let parent = rig.alloc()
    let child = rig.alloc(IOASID_ALLOC_PARENT, parent: parent)
    rig.caller.put(UInt32(0xABCD), at: 0x9000)
    #expect(rig.map(parent, 0x10_0000, to: 0x8000, length: 0x4000) == 0)
    #expect(rig.attach(child) == 0)
    #expect(rig.map(child, 0x7000, to: 0x10_1000) == 0)
    #expect(rig.word(0x7000) == 0xABCD)
    #expect(rig.free(parent) == -EBUSY)
    #expect(rig.unmapped(parent, 0x10_0000, length: 0x4000) == (0, 0x4000))
    #expect(rig.word(0x7000) == nil)
    #expect(rig.map(parent, 0x10_0000, to: 0x8000, length: 0x4000) == 0)
    #expect(rig.word(0x7000) == 0xABCD)
    #expect(rig.unmapped(child, 0x7000) == (0, 0x1000) && rig.word(0x7000) == nil)
  }

  @Test(
    "B8: DEVICE_GET_INFO knows the device by its cookie, and its chain starts with IOVA ranges")
  func information() {
    #expect(rig.bind() == 0)
    var info = ioasid_device_info(
      argsz: 32, flags: 0, cookie: IOASIDRig.cookie, iova_pgsizes: 0, addr_width: 0,
      cap_offset: 99)
    #expect(rig.caller.ioctl(rig.file, IOASID_DEVICE_GET_INFO, &info) == 0)
    #expect(info.flags == 15 && info.addr_width == 48 && info.iova_pgsizes == 0x4020_1000)
    #expect(info.cap_offset == 0 && info.argsz == 32 + (16 + 2 * 16) + 16 + (16 + 16) + 16)
    let at: UInt64 = 0x2_0000
    info = ioasid_device_info(
      argsz: info.argsz, flags: 0, cookie: IOASIDRig.cookie, iova_pgsizes: 0, addr_width: 0,
      cap_offset: 0)
    rig.caller.put(info, at: at)
    #expect(rig.caller.ioctl(rig.file, IOASID_DEVICE_GET_INFO, at: at) == 0)
    #expect(rig.caller.get(ioasid_device_info.self, at: at).cap_offset == 32)
    let ranges = rig.caller.get(ioasid_device_info_cap_iova_range.self, at: at + 32)
    #expect(ranges.header.id == 1 && ranges.nr_iovas == 2 && ranges.header.next == 80)
    let words = (0..<4).map { rig.caller.get(UInt64.self, at: at + 48 + UInt64($0) * 8) }
    #expect(words == [0, 0xFEDF_FFFF, 0xFEF0_0000, 0xFFFF_FFFF_FFFF])
    let nesting = rig.caller.get(ioasid_device_info_cap_nesting.self, at: at + 80)
    #expect(nesting.header.id == 3 && nesting.header.next == 96 && nesting.kinds == 3)
    let tables = rig.caller.get(ioasid_device_info_cap_user_table.self, at: at + 96)
    #expect(tables.header.id == 4 && tables.header.next == 128 && tables.nr_formats == 1)
    let format = rig.caller.get(ioasid_user_table_format.self, at: at + 112)
    #expect(format.type == IOASID_TYPE_INTEL_FIRST_STAGE && format.addr_widths == 1 << 48)
    let pasids = rig.caller.get(ioasid_device_info_cap_pasid.self, at: at + 128)
    #expect(pasids.header.id == 2 && pasids.header.next == 0 && pasids.pasid_bits == 8)
    info.cookie = 5
    #expect(rig.caller.ioctl(rig.file, IOASID_DEVICE_GET_INFO, &info) == -ENOENT)
    info.argsz = 31
    #expect(rig.caller.ioctl(rig.file, IOASID_DEVICE_GET_INFO, &info) == -EINVAL)
  }

  @Test("B8: CHECK_EXTENSION answers 1 for what there is and 0 for all else")
  func extensions() {
    let answers = (0...9).map { rig.caller.ioctl(rig.file, IOASID_CHECK_EXTENSION, at: $0) }
    #expect(answers == [0, 1, 1, 0, 1, 1, 1, 0, 0, 0])
    #expect(rig.caller.ioctl(rig.file, IOASID_CHECK_EXTENSION, at: 1 << 32 | 1) == 0)
  }

  @Test("A2: the ioasids of /dev/iommu's own face are the same objects")
  func sameObjects() {
    #expect(rig.bind(to: rig.engine.iommufd) == 0)
    var cmd = iommu_ioas_alloc(size: 12, flags: 0, out_ioas_id: 0)
    #expect(rig.caller.ioctl(rig.engine.iommuFile, IOMMU_IOAS_ALLOC, &cmd) == 0)
    #expect(rig.attach(Int32(cmd.out_ioas_id), fd: rig.engine.iommufd) == 0)
    #expect(rig.engine.detach() == 0)
  }

  // MARK: What is refused

  @Test("A2: attach needs the context that the device is bound to, and a bind before")
  func bothDescriptors() throws {
    let ioasid = rig.alloc()
    #expect(rig.attach(ioasid) == -EINVAL, "C4: before the bind")
    #expect(rig.bind(to: 77) == -EBADF && rig.bind(to: rig.engine.devicefd) == -EBADFD)
    #expect(rig.bind() == 0)
    #expect(rig.bind() == -EINVAL, "bound already")
    let other = try IOASIDNode(system: rig.engine.system).open(flags: 2, by: rig.caller)
    let otherfd = rig.caller.add(other)
    var cmd = IOASIDRig.allocation()
    #expect(
      rig.caller.ioctl(other, IOASID_ALLOC, &cmd) == ioasid, "A1: ids are the context's own")
    #expect(rig.attach(ioasid, fd: otherfd) == -EINVAL)
    #expect(rig.attach(99) == -ENOENT)
    #expect(rig.attach(ioasid) == 0)
  }

  @Test("B7: a space that insists on snooping, or on a width, refuses what does not fit")
  func attributes() throws {
    let rig = try IOASIDRig(EngineRig(iommu: .init(levels: 3, snoopControl: false)))
    #expect(rig.bind() == 0)
    #expect(rig.alloc(width: 11) == -EINVAL && rig.alloc(width: 65) == -EINVAL)
    #expect(rig.attach(rig.alloc(width: 48)) == -EINVAL, "39 bits are all that there are")
    let ioasid = rig.alloc(IOASID_ALLOC_ENFORCE_SNOOP, width: 32)
    #expect(rig.attach(ioasid) == 0, "a device that never skips snooping need not be forced")
    #expect(rig.map(ioasid, 1 << 32, to: 0x8000) == -EINVAL, "past 32 bits")
    #expect(rig.map(ioasid, 0xFFFF_F000, to: 0x8000) == 0)
  }

  @Test("B1: a map never replaces another, and an unmap never splits one")
  func wholeMappings() {
    let ioasid = rig.alloc()
    #expect(rig.map(ioasid, 0x4000, to: 0x8000, length: 0x3000) == 0)
    #expect(rig.map(ioasid, 0x5000, to: 0x8000) == -EEXIST)
    #expect(rig.unmap(ioasid, 0x5000) == -EINVAL)
    #expect(rig.unmap(ioasid, 0x3000, length: 0x2000) == -EINVAL)
    #expect(rig.unmap(ioasid, 0x6000, length: 0x2000) == -EINVAL)
    #expect(rig.unmap(ioasid, 0x4000, length: 0) == -EINVAL)
    #expect(rig.unmap(ioasid, .max, length: 2) == -EOVERFLOW)
    #expect(rig.unmapped(ioasid, 0x1000, length: 0x10000) == (0, 0x3000), "nothing had changed")
  }

  @Test("K1: bad arguments of each call")
  func badArguments() {
    let ioasid = rig.alloc()
    #expect(
      rig.alloc(16) == -EINVAL && rig.alloc(type: 0) == -EINVAL && rig.alloc(type: 2) == -EINVAL
    )
    #expect(rig.alloc(reserved: 1) == -EINVAL && rig.alloc(table: 1) == -EINVAL)
    #expect(rig.alloc(parent: ioasid) == -EINVAL, "a parent without its flag")
    #expect(rig.alloc(IOASID_ALLOC_PARENT, parent: 99) == -ENOENT)
    for flag in [IOASID_ALLOC_USER_PAGE_TABLE, IOASID_ALLOC_USER_PASID_TABLE] {
      #expect(rig.alloc(flag) == -EINVAL)
    }
    #expect(rig.map(ioasid, 0, to: 0x8000, flags: 0) == -EINVAL)
    #expect(rig.map(ioasid, 0, to: 0x8000, flags: 5) == -EINVAL)
    #expect(rig.map(99, 0, to: 0x8000) == -ENOENT)
    #expect(rig.unmap(99, 0) == -ENOENT)
    #expect(
      rig.caller.ioctl(rig.file, IOASID_FREE, at: 1 << 32 | UInt64(ioasid)) == -ENOENT)
    #expect(rig.caller.ioctl(rig.file, 0x3b6f, at: 0) == -ENOTTY)
    #expect(rig.caller.ioctl(rig.file, IOASID_ALLOC, at: 1 << 60) == -EFAULT)
    var cmd = ioasid_alloc()
    cmd.argsz = 31
    #expect(rig.caller.ioctl(rig.file, IOASID_ALLOC, &cmd) == -EINVAL)
  }

  @Test("G1: only caches of a user's tables are invalidated by call")
  func invalidation() {
    let ioasid = rig.alloc()
    #expect(rig.invalidate(ioasid, 0, 1) == -EINVAL && rig.invalidate(ioasid, 4, 1) == -EINVAL)
    #expect(rig.invalidate(ioasid, 1, 0) == -EINVAL && rig.invalidate(ioasid, 1, 8) == -EINVAL)
    #expect(rig.invalidate(99, 1, 1) == -ENOENT)
    #expect(rig.invalidate(ioasid, 1, 1) == -EINVAL)
  }
}
