// SPDX-License-Identifier: Apache-2.0
//
// Tables that users own on /dev/ioasid (MODEL B2, B9, G1, H1, K1), on an IOMMU that notes what it
// is asked.

import CLinuxABI
import Foundation
import IOMMU
import PageTables
import SoftwareIOMMU
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct IOASIDUserTableTests {
  typealias Granularity = CacheInvalidation.Granularity

  let rig: IOASIDRig
  let iommu: UserTableIOMMU
  let parent: Int32

  init() throws {
    (rig, iommu) = try IOASIDRig.notingTables()
    parent = rig.alloc()
  }

  // MARK: Tables

  @Test("B2: a user's table has format, width and root from the start, and its parent below")
  func life() throws {
    rig.caller.put(UInt32(0x77), at: 0x8000)
    #expect(rig.map(parent, 0x1000, to: 0x8000) == 0)
    let child = rig.allocTable(parent: parent, root: 0x4000)
    #expect(child > 0 && iommu.tables.isEmpty, "nothing is made before an attach")
    #expect(rig.attach(child) == 0)
    let table = try #require(iommu.table())
    #expect(
      table.table == UserTable(format: .intelFirstStage, width: 48, root: 0x4000)
        && table.attributes == .pasid)
    #expect(table.parent.translate(IOVA(0x1000)) != nil, "the parent's mappings are below")
    #expect(rig.map(parent, 0x2000, to: 0x9000) == 0)
    #expect(table.parent.translate(IOVA(0x2000)) != nil, "and what comes later")
    #expect(rig.free(child) == -EBUSY && rig.free(parent) == -EBUSY)
    #expect(rig.detach(parent) == -EINVAL, "it is attached to the child")
    #expect(rig.detach(child) == 0 && iommu.table() == nil)
    #expect(rig.free(parent) == -EBUSY, "its child is there")
    #expect(rig.free(child) == 0 && rig.free(parent) == 0)
  }

  @Test("B2: one table of a parent serves all that nests on it, and devices on the parent too")
  func sharedParent() throws {
    let first = rig.allocTable(parent: parent)
    let second = rig.allocTable(parent: parent, root: 0x2000)
    #expect(rig.attach(first) == 0 && rig.attach(second, pasid: 3) == 0)
    #expect(iommu.parents == 1 && iommu.tables.count == 2)
    let below = iommu.tables.map { ObjectIdentifier($0.parent) }
    #expect(below[0] == below[1])
    #expect(rig.attach(parent, pasid: 4) == 0)
    let own = try #require(iommu.paging(PASID(rawValue: 4)))
    #expect(ObjectIdentifier(own) == below[0])
    // Gone with the last of them, and made again.
    #expect(rig.detach(parent, pasid: 4) == 0)
    #expect(rig.detach(second, pasid: 3) == 0 && rig.detach(first) == 0)
    #expect(rig.attach(first) == 0 && iommu.parents == 2)
    #expect(rig.attach(second) == 0, "one step from table to table")
    #expect(iommu.table()?.table.root == 0x2000)
  }

  @Test("B2: a table needs a parent, a format, a width and an aligned root, or is refused")
  func badTables() {
    let page = IOASID_ALLOC_USER_PAGE_TABLE
    let pasids = IOASID_ALLOC_USER_PASID_TABLE
    let up = IOASID_ALLOC_PARENT
    func refused(
      _ flags: UInt32, type: UInt32 = 2, width: UInt32 = 48, parent: Int32? = nil,
      table: UInt64 = 0x1000
    ) -> Int32 {
      rig.alloc(flags, type: type, width: width, parent: parent ?? self.parent, table: table)
    }
    #expect(refused(page) == -EINVAL, "no parent")
    #expect(refused(page | pasids | up) == -EINVAL)
    #expect(refused(page | up | IOASID_ALLOC_ENFORCE_SNOOP) == -EINVAL)
    #expect(refused(pasids | up) == -EINVAL, "a page table's format")
    #expect(refused(page | up, type: 19, width: 9) == -EINVAL, "a PASID table's")
    #expect(refused(up, type: 2, table: 0) == -EINVAL, "a format without its flag")
    for type in [0, 1, 6, 15, 22, 0x101] as [UInt32] {
      #expect(refused(page | up, type: type) == -EINVAL)
    }
    for width in [0, 47, 64, .max] as [UInt32] {
      #expect(refused(page | up, width: width) == -EINVAL)
    }
    #expect(refused(page | up, table: 0x1800) == -EINVAL)
    #expect(refused(page | up, table: 1 << 52) == -EINVAL)
    #expect(refused(page | up, parent: 99) == -ENOENT)
    #expect(refused(page | up, type: 3) == -EOPNOTSUPP, "no IOMMU here walks AMD's")
    #expect(refused(page | up, width: 57) == -EOPNOTSUPP, "nor five levels")
    #expect(refused(pasids | up, type: 21, width: 20) == -EOPNOTSUPP)
    let child = rig.allocTable(parent: parent)
    #expect(refused(page | up, parent: child) == -EINVAL, "nothing nests on a user's table")
    #expect(rig.alloc(up, parent: child) == -EINVAL)
    #expect(
      rig.reason(
        IOASID_ALLOC,
        IOASIDRig.allocation(page | up, type: 2, width: 57, parent: parent, table: 0x1000))
        == "the IOMMUs of this machine walk an Intel first-stage table of 48 bits, not of 57")
  }

  @Test("B2: what a user's table maps is its own business: MAP_DMA and UNMAP_DMA are EPERM")
  func noMaps() {
    let child = rig.allocTable(parent: parent)
    #expect(rig.map(child, 0x1000, to: 0x2000) == -EPERM)
    #expect(rig.unmap(child, 0x1000) == -EPERM)
    #expect(rig.map(parent, 0x1000, to: 0x8000) == 0, "the parent is the kernel's")
  }

  @Test(
    "B2: a table that a device's IOMMU does not walk is EINVAL at the attach, and changes nothing"
  )
  func misfit() throws {
    // A machine with two IOMMUs, of which only the other one walks AMD's tables.
    let other = UserTableIOMMU(
      rig.engine.iommu, formats: [UserTable.Support(.amdGuest, widths: [48, 57])])
    let group = rig.engine.system.addGroup()
    _ = try rig.engine.system.addDevice(
      name: "0000:e2:00.0", requester: RequesterID(bus: 0xE2, device: 0, function: 0),
      driver: other, group: group)
    let child = rig.allocTable(.amdGuest, parent: parent)
    #expect(child > 0)
    #expect(rig.attach(parent) == 0)
    #expect(rig.attach(child) == -EINVAL)
    #expect(iommu.paging() != nil && iommu.tables.isEmpty && iommu.parents == 0)
    #expect(rig.detach(parent) == 0, "it is where it was")
    #expect(rig.attach(child, pasid: 1) == -EINVAL)
  }

  @Test("B9: a PASID table stands for all PASIDs of a device, alone")
  func pasidTable() throws {
    let child = rig.allocTable(.amdGuestCR3, width: 9, parent: parent, root: 0x3000)
    #expect(child > 0)
    #expect(rig.attach(child, pasid: 5) == -EINVAL, "it has all of them")
    #expect(rig.attach(child) == 0)
    #expect(
      iommu.table()?.table == UserTable(format: .amdGuestCR3, width: 9, root: 0x3000)
        && iommu.table()?.attributes == [])
    let pageTable = rig.allocTable(parent: parent)
    #expect(rig.attach(pageTable, pasid: 5) == -EINVAL, "the PASIDs are the user's table's")
    #expect(rig.detach(child) == 0)
    #expect(rig.attach(pageTable, pasid: 5) == 0)
    #expect(rig.attach(child) == -EINVAL, "a PASID is attached")
    #expect(rig.detach(pageTable, pasid: 5) == 0 && rig.attach(child) == 0)
  }

  // MARK: What there is

  @Test("B8: CHECK_EXTENSION says of users' tables what the machine's IOMMUs walk")
  func extensions() throws {
    func answers(_ rig: IOASIDRig) -> [Int32] {
      (5...8).map { rig.caller.ioctl(rig.file, IOASID_CHECK_EXTENSION, at: UInt64($0)) }
    }
    #expect(answers(rig) == [1, 1, 1, 0])
    let one = try IOASIDRig(
      EngineRig(driver: {
        UserTableIOMMU($0, formats: [UserTable.Support(.riscvFirstStage, widths: [39])])
      }))
    #expect(answers(one) == [1, 1, 0, 0])
    let none = try IOASIDRig(EngineRig(driver: { UserTableIOMMU($0, formats: []) }))
    #expect(answers(none) == [1, 0, 0, 0])
    #expect(none.allocTable(parent: none.alloc()) == -EOPNOTSUPP)
  }

  @Test("B8: DEVICE_GET_INFO's chain: ranges, nesting, page tables, PASID tables, PASIDs")
  func information() {
    let at: UInt64 = 0x2_0000
    var info = ioasid_device_info()
    info.argsz = 4096
    info.cookie = IOASIDRig.cookie
    rig.caller.put(info, at: at)
    #expect(rig.caller.ioctl(rig.file, IOASID_DEVICE_GET_INFO, at: at) == 0)
    var chain: [(id: UInt16, at: UInt64)] = []
    var offset = UInt64(rig.caller.get(ioasid_device_info.self, at: at).cap_offset)
    while offset != 0 {
      let header = rig.caller.get(vfio_info_cap_header.self, at: at + offset)
      chain.append((header.id, at + offset))
      offset = UInt64(header.next)
    }
    #expect(chain.map(\.id) == [1, 3, 4, 5, 2])
    let nesting = rig.caller.get(ioasid_device_info_cap_nesting.self, at: chain[1].at)
    #expect(nesting.kinds == IOASID_NESTING_SOFTWARE | IOASID_NESTING_HARDWARE)
    for (index, type, widths) in [
      (2, IOASID_TYPE_INTEL_FIRST_STAGE, 1 << 48),
      (3, IOASID_TYPE_AMD_GCR3_TABLE, 1 << 9 | 1 << 18),
    ] as [(Int, UInt32, UInt64)] {
      let table = rig.caller.get(ioasid_device_info_cap_user_table.self, at: chain[index].at)
      let format = rig.caller.get(ioasid_user_table_format.self, at: chain[index].at + 16)
      #expect(table.nr_formats == 1 && format.type == type && format.addr_widths == widths)
    }
  }

  @Test("K1: the numbers of the formats are the engine's")
  func numbers() {
    let pages = [
      IOASID_TYPE_INTEL_FIRST_STAGE, IOASID_TYPE_AMD_GUEST, IOASID_TYPE_ARM_SMMUV3_STAGE1,
      IOASID_TYPE_RISCV_FIRST_STAGE,
    ]
    let pasids = [
      IOASID_TYPE_ARM_CD_TABLE, IOASID_TYPE_ARM_CD_TABLE_4K, IOASID_TYPE_ARM_CD_TABLE_64K,
      IOASID_TYPE_AMD_GCR3_TABLE, IOASID_TYPE_AMD_GCR3_TABLE_5_LEVELS,
      IOASID_TYPE_RISCV_PROCESS_DIRECTORY,
    ]
    let all = UserTable.Format.allCases
    #expect(all.filter { !$0.isPASIDTable }.map(\.rawValue) == pages)
    #expect(all.filter(\.isPASIDTable).map(\.rawValue) == pasids)
  }

  // MARK: Invalidation

  @Test("G1: INVALIDATE_CACHE of a page table, by device, by PASID and by range")
  func invalidation() throws {
    let child = rig.allocTable(parent: parent)
    #expect(rig.invalidate(child, IOASID_INVALIDATE_RANGE, 1, size: 4096) == 0, "not attached")
    #expect(rig.attach(child, pasid: 7) == 0)
    let table = try #require(iommu.table(PASID(rawValue: 7)))
    let cookie = IOASIDRig.cookie
    #expect(
      rig.invalidate(child, IOASID_INVALIDATE_RANGE, 1, address: 0x5000, size: 0x2000) == 0)
    #expect(rig.invalidate(child, IOASID_INVALIDATE_PASID, 1, pasid: 7) == 0)
    #expect(rig.invalidate(child, IOASID_INVALIDATE_DEVICE, 1, cookie: cookie) == 0)
    #expect(
      rig.invalidate(child, IOASID_INVALIDATE_RANGE, 1, address: .max - 4095, size: 4096) == 0)
    let seen = table.invalidations
    let zero = PASID(rawValue: 0)
    #expect(
      seen.map(\.request.granularity) == [
        Granularity.range(zero, 0x5000...0x6FFF), .pasid(PASID(rawValue: 7)), .device,
        .range(zero, UInt64.max - 4095...UInt64.max),
      ])
    #expect(seen.allSatisfy { $0.request.caches == .iotlb })
    #expect(seen.map(\.device) == [nil, nil, rig.engine.requester, nil])
  }

  @Test("G1: INVALIDATE_CACHE says what it cannot do, and does nothing then")
  func badInvalidations() throws {
    let child = rig.allocTable(parent: parent)
    let free = rig.allocTable(parent: parent)
    #expect(rig.attach(child) == 0)
    let table = try #require(iommu.table())
    let cookie = IOASIDRig.cookie
    #expect(rig.invalidate(child, 0, 1) == -EINVAL && rig.invalidate(child, 4, 1) == -EINVAL)
    #expect(rig.invalidate(child, 1, 0, cookie: cookie) == -EINVAL)
    #expect(rig.invalidate(child, 1, 8, cookie: cookie) == -EINVAL)
    #expect(rig.invalidate(99, 3, 1, size: 1) == -ENOENT)
    #expect(rig.invalidate(parent, 3, 1, size: 1) == -EINVAL, "B1: the kernel's")
    #expect(rig.invalidate(child, 1, 1, cookie: 5) == -ENOENT, "no such cookie")
    #expect(rig.invalidate(free, 1, 1, cookie: cookie) == -EINVAL, "not attached to it")
    #expect(rig.invalidate(child, 3, 1) == -EINVAL, "no bytes")
    #expect(rig.invalidate(child, 3, 1, address: .max, size: 2) == -EOVERFLOW)
    #expect(rig.invalidate(child, 2, 1, pasid: 9) == -EINVAL, "not attached by it")
    #expect(rig.invalidate(child, 1, 4, cookie: cookie) == -EINVAL, "no table of PASIDs")
    #expect(rig.invalidate(child, 1, 2, cookie: cookie) == -EOPNOTSUPP, "no ATS")
    #expect(table.invalidations.isEmpty)
    #expect(rig.invalidate(child, 2, 1) == 0, "PASID 0 is DMA without one")
  }

  @Test("G1, B9: of a PASID table its entries are forgotten by device or PASID")
  func pasidCache() throws {
    let child = rig.allocTable(.amdGuestCR3, width: 9, parent: parent)
    #expect(rig.attach(child) == 0)
    let cookie = IOASIDRig.cookie
    #expect(rig.invalidate(child, 1, 5, cookie: cookie) == 0)
    #expect(rig.invalidate(child, 2, 4, pasid: 511, cookie: cookie) == 0)
    #expect(rig.invalidate(child, 3, 1, pasid: 2, address: 0x1000, size: 0x1000) == 0)
    #expect(rig.invalidate(child, 3, 4, pasid: 2, cookie: cookie, size: 1) == -EINVAL)
    #expect(rig.invalidate(child, 2, 4, pasid: 512, cookie: cookie) == -EINVAL, "too wide")
    #expect(rig.invalidate(child, 2, 4, pasid: 1, cookie: 5) == -ENOENT)
    let seen = try #require(iommu.table()).invalidations
    #expect(
      seen.map(\.request) == [
        CacheInvalidation(.device, of: [.iotlb, .pasid]),
        CacheInvalidation(.pasid(PASID(rawValue: 511)), of: .pasid),
        CacheInvalidation(.range(PASID(rawValue: 2), 0x1000...0x1FFF), of: .iotlb),
      ])
  }

  @Test("G1: an array of invalidations stops at the first bad one, and says how many were done")
  func counts() throws {
    let child = rig.allocTable(parent: parent)
    #expect(rig.attach(child) == 0)
    let context = try #require(rig.file as? any ContextFile).context
    let good = SpaceInvalidation(
      CacheInvalidation(.device, of: .iotlb), cookie: IOASIDRig.cookie)
    let bad = SpaceInvalidation(CacheInvalidation(.device, of: .iotlb), cookie: 1)
    let id = ObjectID(UInt32(child))
    let (handled, failure) = try context.invalidate([good, good, bad, good], of: id)
    #expect(handled == 2 && failure?.errno == .noSuchFileOrDirectory)
    #expect(iommu.table()?.invalidations.count == 2)
    #expect(try context.invalidate([], of: id).handled == 0)
    #expect(throws: IOMMUError.self) {
      try context.invalidate([], of: ObjectID(UInt32(parent)))
    }
  }
}
