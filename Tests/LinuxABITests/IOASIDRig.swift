// SPDX-License-Identifier: Apache-2.0
//
// A program that drives one device through /dev/ioasid, call by call.

import CLinuxABI
import IOMMU
import PageTables
import SoftwareIOMMU
import TestSupport
import Testing

@testable import LinuxABI

final class IOASIDRig {
  let engine: EngineRig
  let file: any OpenFile
  let fd: Int32
  static let cookie: UInt64 = 0xC00C1E

  init(_ engine: EngineRig) throws {
    self.engine = engine
    file = try IOASIDNode(system: engine.system).open(flags: 2, by: engine.caller)
    fd = engine.caller.add(file)
  }

  /// A bound device behind an IOMMU that notes what it is asked.
  static func notingTables() throws -> (rig: IOASIDRig, iommu: UserTableIOMMU) {
    var made: UserTableIOMMU?
    let engine = try EngineRig(iommu: .init(pasidBits: 8)) {
      let driver = UserTableIOMMU(
        $0,
        formats: [
          UserTable.Support(.intelFirstStage, widths: [48]),
          UserTable.Support(.amdGuestCR3, widths: [9, 18]),
        ])
      made = driver
      return driver
    }
    let rig = try IOASIDRig(engine)
    #expect(rig.bind() == 0)
    return (rig, try #require(made))
  }

  var caller: LocalCaller { engine.caller }

  /// The sentence of a call that fails; nil where it does not.
  func reason(_ command: UInt32, _ cmd: some Any) -> String? {
    caller.put(cmd, at: 0x2800)
    do {
      _ = try file.ioctl(command, argument: 0x2800, by: caller)
      return nil
    } catch {
      return error.reason
    }
  }

  func bind(cookie: UInt64 = cookie, to fd: Int32? = nil) -> Int32 {
    var cmd = vfio_device_bind_iommu_fd(
      argsz: 24, flags: 0, iommu_fd: fd ?? self.fd, reserved: 0, cookie: cookie)
    return caller.ioctl(engine.file, VFIO_DEVICE_BIND_IOMMU_FD, &cmd)
  }

  private func change(
    _ command: UInt32, _ ioasid: Int32, _ pasid: UInt32?, fd: Int32? = nil
  ) -> Int32 {
    var cmd = vfio_device_attach_ioasid(
      argsz: 20, flags: pasid == nil ? 0 : VFIO_DEVICE_IOASID_VPASID, iommu_fd: fd ?? self.fd,
      ioasid: UInt32(bitPattern: ioasid), vpasid: pasid ?? 0)
    return caller.ioctl(engine.file, command, &cmd)
  }

  func attach(_ ioasid: Int32, pasid: UInt32? = nil, fd: Int32? = nil) -> Int32 {
    change(VFIO_DEVICE_ATTACH_IOASID, ioasid, pasid, fd: fd)
  }

  func detach(_ ioasid: Int32, pasid: UInt32? = nil) -> Int32 {
    change(VFIO_DEVICE_DETACH_IOASID, ioasid, pasid)
  }

  static func allocation(
    _ flags: UInt32 = 0, type: UInt32 = 1, width: UInt32 = 0, parent: Int32 = 0,
    reserved: UInt32 = 0, table: UInt64 = 0
  ) -> ioasid_alloc {
    ioasid_alloc(
      argsz: 32, flags: flags, type: type, addr_width: width,
      parent: UInt32(bitPattern: parent), reserved: reserved, table: table)
  }

  func alloc(
    _ flags: UInt32 = 0, type: UInt32 = 1, width: UInt32 = 0, parent: Int32 = 0,
    reserved: UInt32 = 0, table: UInt64 = 0
  ) -> Int32 {
    var cmd = Self.allocation(
      flags, type: type, width: width, parent: parent, reserved: reserved, table: table)
    return caller.ioctl(file, IOASID_ALLOC, &cmd)
  }

  /// A page table of the user's.
  func allocTable(
    _ format: UserTable.Format = .intelFirstStage, width: UInt32 = 48, parent: Int32,
    root: UInt64 = 0x1000
  ) -> Int32 {
    alloc(
      IOASID_ALLOC_PARENT
        | (format.isPASIDTable ? IOASID_ALLOC_USER_PASID_TABLE : IOASID_ALLOC_USER_PAGE_TABLE),
      type: format.rawValue, width: width, parent: parent, table: root)
  }

  func map(
    _ ioasid: Int32, _ iova: UInt64, to address: UInt64, length: UInt64 = 0x1000,
    flags: UInt32 = 3
  ) -> Int32 {
    var cmd = ioasid_dma_map()
    cmd.argsz = 48
    cmd.ioasid = UInt32(bitPattern: ioasid)
    cmd.map = vfio_iommu_type1_dma_map(
      argsz: 32, flags: flags, vaddr: address, iova: iova, size: length)
    return caller.ioctl(file, IOASID_MAP_DMA, &cmd)
  }

  func unmap(_ ioasid: Int32, _ iova: UInt64, length: UInt64 = 0x1000) -> Int32 {
    unmapped(ioasid, iova, length: length).result
  }

  /// With how many bytes were unmapped.
  func unmapped(
    _ ioasid: Int32, _ iova: UInt64, length: UInt64 = 0x1000
  ) -> (result: Int32, size: UInt64) {
    var cmd = ioasid_dma_unmap()
    cmd.argsz = 40
    cmd.unmap_argsz = 24
    cmd.ioasid = UInt32(bitPattern: ioasid)
    cmd.iova = iova
    cmd.size = length
    let result = caller.ioctl(file, IOASID_UNMAP_DMA, &cmd)
    return (result, cmd.size)
  }

  func free(_ ioasid: Int32) -> Int32 {
    caller.ioctl(file, IOASID_FREE, at: UInt64(UInt32(bitPattern: ioasid)))
  }

  func invalidate(
    _ ioasid: Int32, _ granularity: UInt32, _ caches: UInt32, pasid: UInt32 = 0,
    cookie: UInt64 = 0, address: UInt64 = 0, size: UInt64 = 0
  ) -> Int32 {
    var cmd = ioasid_invalidate_cache(
      argsz: 48, flags: 0, ioasid: UInt32(bitPattern: ioasid), granularity: granularity,
      caches: caches, vpasid: pasid, cookie: cookie, addr: address, size: size)
    return caller.ioctl(file, IOASID_INVALIDATE_CACHE, &cmd)
  }

  func bindTable(
    _ ioasid: Int32, _ format: UserTable.Format = .intelFirstStage, width: UInt32 = 48,
    root: UInt64 = 0x1000
  ) -> Int32 {
    var cmd = ioasid_bind_pgtable(
      argsz: 32, flags: 0, ioasid: UInt32(bitPattern: ioasid), format: format.rawValue,
      addr_width: width, reserved: 0, addr: root)
    return caller.ioctl(file, IOASID_BIND_PGTABLE, &cmd)
  }

  func unbindTable(_ ioasid: Int32, addr: UInt64 = 0) -> Int32 {
    var cmd = ioasid_bind_pgtable()
    cmd.argsz = 32
    cmd.ioasid = UInt32(bitPattern: ioasid)
    cmd.addr = addr
    return caller.ioctl(file, IOASID_UNBIND_PGTABLE, &cmd)
  }

  func faultDescriptor(_ ioasid: Int32) -> Int32 {
    var cmd = ioasid_page_fault_fd(
      argsz: 16, flags: 0, ioasid: UInt32(bitPattern: ioasid), reserved: 0)
    return caller.ioctl(file, IOASID_PAGE_FAULT_FD, &cmd)
  }

  func respond(_ ioasid: Int32, _ cookie: UInt32, code: UInt32 = 0) -> Int32 {
    var cmd = ioasid_page_response(
      argsz: 20, flags: 0, ioasid: UInt32(bitPattern: ioasid), cookie: cookie, code: code)
    return caller.ioctl(file, IOASID_PAGE_RESPONSE, &cmd)
  }

  /// What a word of DMA at an IOVA reads; nil where it faults.
  func word(_ iova: UInt64, pasid: UInt32? = nil) -> UInt32? {
    let port = engine.iommu.port(
      for: engine.requester, pasid: pasid.map { PASID(rawValue: $0) })
    var value: UInt32 = 0
    do {
      try withUnsafeMutableBytes(of: &value) { try port.read(IOVA(iova), into: $0) }
      return value
    } catch {
      return nil
    }
  }
}

/// A guest whose memory is mapped in a parent: room for tables of its own.
struct IOASIDGuest {
  let rig: IOASIDRig
  let parent: Int32
  /// Where its memory is for us, and for the guest.
  static let memory: UInt64 = 0x10_0000
  static let base: UInt64 = 0x4000_0000

  init(_ engine: EngineRig) throws {
    rig = try IOASIDRig(engine)
    #expect(rig.bind() == 0)
    parent = rig.alloc()
    #expect(rig.map(parent, Self.base, to: Self.memory, length: 0x10_0000) == 0)
  }

  /// A page's address for the guest.
  func page(_ number: UInt64) -> UInt64 { Self.base + number * 0x1000 }

  func put(_ value: UInt64, at guest: UInt64) {
    rig.caller.put(value, at: guest - Self.base + Self.memory)
  }

  /// Writes a page's number at its start.
  func mark(_ number: UInt64) { put(number, at: page(number)) }

  /// Four levels of 512 entries from a page on, for one address.
  func mapTable(
    _ iova: UInt64, from first: UInt64, to target: UInt64,
    entry: (_ address: UInt64, _ isLeaf: Bool) -> UInt64
  ) {
    for level in 0..<4 as Range<UInt64> {
      let index = iova >> (39 - 9 * level) & 511
      put(
        level == 3 ? entry(target, true) : entry(page(first + level + 1), false),
        at: page(first + level) + index * 8)
    }
  }
}
