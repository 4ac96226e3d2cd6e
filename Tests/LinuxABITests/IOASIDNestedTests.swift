// SPDX-License-Identifier: Apache-2.0
//
// DMA through page tables that a user of /dev/ioasid wrote into its own memory (MODEL B2, B3, G1,
// G2): the software IOMMU walks them, on the parent.

import CLinuxABI
import Foundation
import IOMMU
import PageTables
import SoftwareIOMMU
import TestSupport
import Testing

@testable import LinuxABI

/// Intel's first stage: 4 levels, entries of 8 bytes, present 1, writable 2, user 4.
@Suite struct IOASIDNestedTests {
  let guest: IOASIDGuest
  let rig: IOASIDRig
  let parent: Int32
  static let iova: UInt64 = 0x7F12_3456_7000

  init() throws {
    guest = try IOASIDGuest(EngineRig(iommu: .init(pasidBits: 8)))
    (rig, parent) = (guest.rig, guest.parent)
  }

  /// Tables in pages 1 to 4; the leaf of an address in the last.
  private func mapTable(_ iova: UInt64, to target: UInt64, flags: UInt64 = 7) {
    guest.mapTable(iova, from: 1, to: target) { $0 | ($1 ? flags : 7) }
  }

  @Test("B2: DMA goes through the user's table and the parent's, and nowhere else")
  func walks() throws {
    mapTable(Self.iova, to: guest.page(8))
    guest.put(0xCAFE, at: guest.page(8) + 0x10)
    let child = rig.allocTable(parent: parent, root: guest.page(1))
    #expect(child > 0)
    #expect(rig.attach(child) == 0 && rig.word(Self.iova + 0x10) == 0xCAFE)
    #expect(rig.word(Self.iova + 0x1000) == nil, "not in the user's table")
    #expect(rig.word(guest.page(8)) == nil, "not by the parent's address")
    mapTable(Self.iova + 0x1000, to: 0x8000)
    #expect(rig.word(Self.iova + 0x1000) == nil, "nor where the parent maps nothing")
    #expect(rig.detach(child) == 0 && rig.word(Self.iova + 0x10) == nil)
    #expect(rig.attach(child, pasid: 5) == 0)
    #expect(rig.word(Self.iova + 0x10, pasid: 5) == 0xCAFE && rig.word(Self.iova) == nil)
    #expect(rig.attach(parent) == 0 && rig.word(guest.page(8) + 0x10) == 0xCAFE)
    #expect(rig.word(Self.iova + 0x10, pasid: 5) == 0xCAFE, "both, side by side")
  }

  @Test(
    "G1, G2: after INVALIDATE_CACHE the changed table holds, by range, by PASID and by device")
  func invalidation() throws {
    let child = rig.allocTable(parent: parent, root: guest.page(1))
    mapTable(Self.iova, to: guest.page(8))
    for number in 8...11 as ClosedRange<UInt64> { guest.mark(number) }
    #expect(rig.attach(child) == 0)
    #expect(rig.word(Self.iova) == 8)
    let ways: [(UInt64) -> Int32] = [
      { _ in
        rig.invalidate(child, IOASID_INVALIDATE_RANGE, 1, address: Self.iova, size: 4096)
      },
      { _ in rig.invalidate(child, IOASID_INVALIDATE_PASID, 1) },
      { rig.invalidate(child, IOASID_INVALIDATE_DEVICE, 3, cookie: $0) },
    ]
    for (index, invalidate) in ways.enumerated() {
      let next = 9 + UInt64(index)
      mapTable(Self.iova, to: guest.page(next))
      #expect(
        rig.word(Self.iova) == UInt32(next - 1), "the cache is one: stale until it is told")
      #expect(invalidate(IOASIDRig.cookie) == 0)
      #expect(rig.word(Self.iova) == UInt32(next))
    }
  }

  @Test("B5, G2: what the parent unmaps is gone through the user's table, and comes back")
  func parentChanges() throws {
    let child = rig.allocTable(parent: parent, root: guest.page(1))
    mapTable(Self.iova, to: guest.page(0x80))
    let other: UInt64 = 0x40_0000
    guest.put(1, at: guest.page(0x80))
    rig.caller.put(UInt32(2), at: other)
    #expect(rig.attach(child) == 0 && rig.word(Self.iova) == 1)
    #expect(rig.map(parent, guest.page(0x200), to: other) == 0)
    mapTable(Self.iova, to: guest.page(0x200))
    #expect(rig.invalidate(child, IOASID_INVALIDATE_RANGE, 1, size: .max) == 0)
    #expect(rig.word(Self.iova) == 2)
    #expect(rig.unmap(parent, guest.page(0x200)) == 0 && rig.word(Self.iova) == nil)
    #expect(rig.map(parent, guest.page(0x200), to: other) == 0 && rig.word(Self.iova) == 2)
  }

  @Test("K1: BIND_PGTABLE on an attached child sends its DMA through the table, UNBIND not")
  func binding() throws {
    mapTable(Self.iova, to: guest.page(8))
    guest.put(0xB1D, at: guest.page(8))
    let child = rig.alloc(IOASID_ALLOC_PARENT, parent: parent)
    #expect(rig.attach(child) == 0 && rig.word(Self.iova) == nil)
    #expect(rig.bindTable(child, root: guest.page(1)) == 0 && rig.word(Self.iova) == 0xB1D)
    #expect(rig.unbindTable(child) == 0 && rig.word(Self.iova) == nil)
  }

  @Test("B2: a root that nothing is mapped at is no error but of the device's DMA")
  func emptyRoot() {
    let child = rig.allocTable(parent: parent, root: 0xF_FFFF_FFFF_F000)
    #expect(child > 0 && rig.attach(child) == 0 && rig.word(Self.iova) == nil)
  }
}
