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
  let rig: EngineRig
  let file: any OpenFile
  let fd: Int32
  static let cookie: UInt64 = 0xC00C1E

  init() throws {
    rig = try EngineRig(iommu: .init(pasidBits: 8))
    file = try IOASIDNode(system: rig.system).open(flags: 2, by: rig.caller)
    fd = rig.caller.add(file)
  }

  // MARK: Calls

  private func bind(cookie: UInt64 = cookie, to fd: Int32? = nil) -> Int32 {
    var cmd = vfio_device_bind_iommu_fd(
      argsz: 24, flags: 0, iommu_fd: fd ?? self.fd, reserved: 0, cookie: cookie)
    return rig.caller.ioctl(rig.file, VFIO_DEVICE_BIND_IOMMU_FD, &cmd)
  }

  private func change(
    _ command: UInt32, _ ioasid: Int32, pasid: UInt32? = nil, fd: Int32? = nil
  ) -> Int32 {
    var cmd = vfio_device_attach_ioasid(
      argsz: 20, flags: pasid == nil ? 0 : VFIO_DEVICE_IOASID_VPASID, iommu_fd: fd ?? self.fd,
      ioasid: UInt32(bitPattern: ioasid), vpasid: pasid ?? 0)
    return rig.caller.ioctl(rig.file, command, &cmd)
  }

  private func attach(_ ioasid: Int32, pasid: UInt32? = nil, fd: Int32? = nil) -> Int32 {
    change(VFIO_DEVICE_ATTACH_IOASID, ioasid, pasid: pasid, fd: fd)
  }

  private func detach(_ ioasid: Int32, pasid: UInt32? = nil) -> Int32 {
    change(VFIO_DEVICE_DETACH_IOASID, ioasid, pasid: pasid)
  }

  private func alloc(
    _ flags: UInt32 = 0, type: UInt32 = 1, width: UInt32 = 0, parent: Int32 = 0,
    reserved: UInt32 = 0, table: UInt64 = 0
  ) -> Int32 {
    var cmd = ioasid_alloc(
      argsz: 32, flags: flags, type: type, addr_width: width,
      parent: UInt32(bitPattern: parent), reserved: reserved, table: table)
    return rig.caller.ioctl(file, IOASID_ALLOC, &cmd)
  }

  private func map(
    _ ioasid: Int32, _ iova: UInt64, to address: UInt64, length: UInt64 = 0x1000,
    flags: UInt32 = 3
  ) -> Int32 {
    var cmd = ioasid_dma_map()
    cmd.argsz = 48
    cmd.ioasid = UInt32(bitPattern: ioasid)
    cmd.map = vfio_iommu_type1_dma_map(
      argsz: 32, flags: flags, vaddr: address, iova: iova, size: length)
    return rig.caller.ioctl(file, IOASID_MAP_DMA, &cmd)
  }

  private func unmap(
    _ ioasid: Int32, _ iova: UInt64, length: UInt64 = 0x1000
  ) -> (result: Int32, size: UInt64) {
    var cmd = ioasid_dma_unmap()
    cmd.argsz = 40
    cmd.unmap_argsz = 24
    cmd.ioasid = UInt32(bitPattern: ioasid)
    cmd.iova = iova
    cmd.size = length
    let result = rig.caller.ioctl(file, IOASID_UNMAP_DMA, &cmd)
    return (result, cmd.size)
  }

  private func free(_ ioasid: Int32) -> Int32 {
    rig.caller.ioctl(file, IOASID_FREE, at: UInt64(UInt32(bitPattern: ioasid)))
  }

  /// What a word of DMA at an IOVA reads; nil where it faults.
  private func word(_ iova: UInt64, pasid: UInt32? = nil) -> UInt32? {
    let port = rig.iommu.port(
      for: rig.requester, pasid: pasid.map { PASID(rawValue: $0) })
    var value: UInt32 = 0
    do {
      try withUnsafeMutableBytes(of: &value) { try port.read(IOVA(iova), into: $0) }
      return value
    } catch {
      return nil
    }
  }

  // MARK: The ways that work

  @Test("K1: bind with a cookie, allocate, attach, map, unmap, detach, free")
  func life() throws {
    #expect(bind() == 0)
    let ioasid = alloc()
    #expect(ioasid > 0)
    rig.caller.put(UInt32(0x1234), at: 0x8000)
    #expect(map(ioasid, 0x5000, to: 0x8000) == 0)
    #expect(word(0x5000) == nil, "A3: bound, and reaches nothing")
    #expect(attach(ioasid) == 0 && word(0x5000) == 0x1234)
    #expect(free(ioasid) == -EBUSY)
    let busy = #expect(throws: IOMMUError.self) {
      try file.ioctl(IOASID_FREE, argument: UInt64(ioasid), by: rig.caller)
    }
    #expect(
      busy?.reason.hasPrefix("ioasid \(ioasid) is in use by device ") == true,
      "\(busy?.reason ?? "")")
    #expect(unmap(ioasid, 0x5000) == (0, 0x1000))
    #expect(word(0x5000) == nil)
    #expect(unmap(ioasid, 0x5000) == (0, 0), "nothing there is no error")
    #expect(detach(ioasid) == 0 && free(ioasid) == 0)
    #expect(free(ioasid) == -ENOENT)
  }

  @Test("K1: an attach by virtual PASID is beside the one without")
  func pasids() {
    #expect(bind() == 0)
    let spaces = [alloc(), alloc()]
    for (index, ioasid) in spaces.enumerated() {
      rig.caller.put(UInt32(index + 1), at: 0x8000 + UInt64(index) * 0x1000)
      #expect(map(ioasid, 0, to: 0x8000 + UInt64(index) * 0x1000) == 0)
    }
    #expect(attach(spaces[0]) == 0 && attach(spaces[1], pasid: 7) == 0)
    #expect(word(0) == 1 && word(0, pasid: 7) == 2)
    #expect(detach(spaces[0], pasid: 7) == -EINVAL, "it is attached to another")
    #expect(detach(spaces[1], pasid: 7) == 0)
    #expect(word(0) == 1 && word(0, pasid: 7) == nil)
    #expect(attach(spaces[1], pasid: 256) == -EINVAL, "wider than the IOMMU takes")
  }

  @Test("B5: with a parent, vaddr is an address of the parent's, and its changes carry through")
  func nesting() {
    #expect(bind() == 0)
    let parent = alloc()
    let child = alloc(IOASID_ALLOC_PARENT, parent: parent)
    rig.caller.put(UInt32(0xABCD), at: 0x9000)
    #expect(map(parent, 0x10_0000, to: 0x8000, length: 0x4000) == 0)
    #expect(attach(child) == 0)
    #expect(map(child, 0x7000, to: 0x10_1000) == 0)
    #expect(word(0x7000) == 0xABCD)
    #expect(free(parent) == -EBUSY)
    #expect(unmap(parent, 0x10_0000, length: 0x4000) == (0, 0x4000))
    #expect(word(0x7000) == nil)
    #expect(map(parent, 0x10_0000, to: 0x8000, length: 0x4000) == 0)
    #expect(word(0x7000) == 0xABCD)
    #expect(unmap(child, 0x7000) == (0, 0x1000) && word(0x7000) == nil)
  }

  @Test(
    "B8: DEVICE_GET_INFO knows the device by its cookie, and its chain starts with IOVA ranges")
  func information() {
    #expect(bind() == 0)
    var info = ioasid_device_info(
      argsz: 32, flags: 0, cookie: Self.cookie, iova_pgsizes: 0, addr_width: 0, cap_offset: 99)
    #expect(rig.caller.ioctl(file, IOASID_DEVICE_GET_INFO, &info) == 0)
    #expect(info.flags == 15 && info.addr_width == 48 && info.iova_pgsizes == 0x4020_1000)
    #expect(info.cap_offset == 0 && info.argsz == 32 + (16 + 2 * 16) + 16 + (16 + 16) + 16)
    let at: UInt64 = 0x2_0000
    info = ioasid_device_info(
      argsz: info.argsz, flags: 0, cookie: Self.cookie, iova_pgsizes: 0, addr_width: 0,
      cap_offset: 0)
    rig.caller.put(info, at: at)
    #expect(rig.caller.ioctl(file, IOASID_DEVICE_GET_INFO, at: at) == 0)
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
    #expect(rig.caller.ioctl(file, IOASID_DEVICE_GET_INFO, &info) == -ENOENT)
    info.argsz = 31
    #expect(rig.caller.ioctl(file, IOASID_DEVICE_GET_INFO, &info) == -EINVAL)
  }

  @Test("B8: CHECK_EXTENSION answers 1 for what there is and 0 for all else")
  func extensions() {
    let answers = (0...9).map { rig.caller.ioctl(file, IOASID_CHECK_EXTENSION, at: $0) }
    #expect(answers == [0, 1, 1, 0, 1, 1, 1, 0, 0, 0])
    #expect(rig.caller.ioctl(file, IOASID_CHECK_EXTENSION, at: 1 << 32 | 1) == 0)
  }

  @Test("A2: the ioasids of /dev/iommu's own face are the same objects")
  func sameObjects() {
    #expect(bind(to: rig.iommufd) == 0)
    var cmd = iommu_ioas_alloc(size: 12, flags: 0, out_ioas_id: 0)
    #expect(rig.caller.ioctl(rig.iommuFile, IOMMU_IOAS_ALLOC, &cmd) == 0)
    #expect(attach(Int32(cmd.out_ioas_id), fd: rig.iommufd) == 0)
    #expect(rig.detach() == 0)
  }

  // MARK: What is refused

  @Test("A2: attach needs the context that the device is bound to, and a bind before")
  func bothDescriptors() throws {
    let ioasid = alloc()
    #expect(attach(ioasid) == -EINVAL, "C4: before the bind")
    #expect(bind(to: 77) == -EBADF && bind(to: rig.devicefd) == -EBADFD)
    #expect(bind() == 0)
    #expect(bind() == -EINVAL, "bound already")
    let other = try IOASIDNode(system: rig.system).open(flags: 2, by: rig.caller)
    let otherfd = rig.caller.add(other)
    var cmd = ioasid_alloc(
      argsz: 32, flags: 0, type: 1, addr_width: 0, parent: 0, reserved: 0, table: 0)
    #expect(
      rig.caller.ioctl(other, IOASID_ALLOC, &cmd) == ioasid, "A1: ids are the context's own")
    #expect(attach(ioasid, fd: otherfd) == -EINVAL)
    #expect(attach(99) == -ENOENT)
    #expect(attach(ioasid) == 0)
  }

  @Test("B7: a space that insists on snooping, or on a width, refuses what does not fit")
  func attributes() throws {
    let rig = try EngineRig(
      iommu: .init(levels: 3, snoopControl: false))
    let file = try IOASIDNode(system: rig.system).open(flags: 2, by: rig.caller)
    let fd = rig.caller.add(file)
    func alloc(_ flags: UInt32, _ width: UInt32) -> Int32 {
      var cmd = ioasid_alloc(
        argsz: 32, flags: flags, type: 1, addr_width: width, parent: 0, reserved: 0, table: 0)
      return rig.caller.ioctl(file, IOASID_ALLOC, &cmd)
    }
    func attach(_ ioasid: Int32) -> Int32 {
      var cmd = vfio_device_attach_ioasid(
        argsz: 20, flags: 0, iommu_fd: fd, ioasid: UInt32(ioasid), vpasid: 0)
      return rig.caller.ioctl(rig.file, VFIO_DEVICE_ATTACH_IOASID, &cmd)
    }
    var bind = vfio_device_bind_iommu_fd(
      argsz: 24, flags: 0, iommu_fd: fd, reserved: 0, cookie: 1)
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_BIND_IOMMU_FD, &bind) == 0)
    #expect(alloc(0, 11) == -EINVAL && alloc(0, 65) == -EINVAL)
    #expect(attach(alloc(0, 48)) == -EINVAL, "39 bits are all that there are")
    let ioasid = alloc(IOASID_ALLOC_ENFORCE_SNOOP, 32)
    #expect(attach(ioasid) == 0, "a device that never skips snooping need not be forced")
    var map = ioasid_dma_map()
    map.argsz = 48
    map.ioasid = UInt32(ioasid)
    map.map = vfio_iommu_type1_dma_map(
      argsz: 32, flags: 3, vaddr: 0x8000, iova: 1 << 32, size: 0x1000)
    #expect(rig.caller.ioctl(file, IOASID_MAP_DMA, &map) == -EINVAL, "past 32 bits")
    map.map.iova = 0xFFFF_F000
    #expect(rig.caller.ioctl(file, IOASID_MAP_DMA, &map) == 0)
  }

  @Test("B1: a map never replaces another, and an unmap never splits one")
  func wholeMappings() {
    let ioasid = alloc()
    #expect(map(ioasid, 0x4000, to: 0x8000, length: 0x3000) == 0)
    #expect(map(ioasid, 0x5000, to: 0x8000) == -EEXIST)
    #expect(unmap(ioasid, 0x5000).result == -EINVAL)
    #expect(unmap(ioasid, 0x3000, length: 0x2000).result == -EINVAL)
    #expect(unmap(ioasid, 0x6000, length: 0x2000).result == -EINVAL)
    #expect(unmap(ioasid, 0x4000, length: 0).result == -EINVAL)
    #expect(unmap(ioasid, .max, length: 2).result == -EOVERFLOW)
    #expect(unmap(ioasid, 0x1000, length: 0x10000) == (0, 0x3000), "nothing had changed")
  }

  @Test("K1: bad arguments of each call")
  func badArguments() {
    let ioasid = alloc()
    #expect(alloc(16) == -EINVAL && alloc(type: 0) == -EINVAL && alloc(type: 2) == -EINVAL)
    #expect(alloc(reserved: 1) == -EINVAL && alloc(table: 1) == -EINVAL)
    #expect(alloc(parent: ioasid) == -EINVAL, "a parent without its flag")
    #expect(alloc(IOASID_ALLOC_PARENT, parent: 99) == -ENOENT)
    for flag in [IOASID_ALLOC_USER_PAGE_TABLE, IOASID_ALLOC_USER_PASID_TABLE] {
      #expect(alloc(flag) == -EINVAL)
    }
    #expect(map(ioasid, 0, to: 0x8000, flags: 0) == -EINVAL)
    #expect(map(ioasid, 0, to: 0x8000, flags: 5) == -EINVAL)
    #expect(map(99, 0, to: 0x8000) == -ENOENT)
    #expect(unmap(99, 0).result == -ENOENT)
    #expect(
      rig.caller.ioctl(file, IOASID_FREE, at: 1 << 32 | UInt64(ioasid)) == -ENOENT)
    #expect(rig.caller.ioctl(file, 0x3b6f, at: 0) == -ENOTTY)
    #expect(rig.caller.ioctl(file, IOASID_ALLOC, at: 1 << 60) == -EFAULT)
    var cmd = ioasid_alloc()
    cmd.argsz = 31
    #expect(rig.caller.ioctl(file, IOASID_ALLOC, &cmd) == -EINVAL)
  }

  @Test("G1: only caches of a user's tables are invalidated by call")
  func invalidation() {
    let ioasid = alloc()
    func invalidate(_ granularity: UInt32, _ caches: UInt32, _ ioasid: Int32) -> Int32 {
      var cmd = ioasid_invalidate_cache()
      cmd.argsz = 48
      cmd.ioasid = UInt32(ioasid)
      cmd.granularity = granularity
      cmd.caches = caches
      return rig.caller.ioctl(file, IOASID_INVALIDATE_CACHE, &cmd)
    }
    #expect(invalidate(0, 1, ioasid) == -EINVAL && invalidate(4, 1, ioasid) == -EINVAL)
    #expect(invalidate(1, 0, ioasid) == -EINVAL && invalidate(1, 8, ioasid) == -EINVAL)
    #expect(invalidate(1, 1, 99) == -ENOENT)
    #expect(invalidate(1, 1, ioasid) == -EINVAL)
  }
}
