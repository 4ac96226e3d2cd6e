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
  let rig: IOASIDRig
  let parent: Int32
  /// Where the guest's memory is for us, and for the guest.
  static let memory: UInt64 = 0x10_0000
  static let guest: UInt64 = 0x4000_0000
  static let iova: UInt64 = 0x7F12_3456_7000

  init() throws {
    rig = try IOASIDRig(EngineRig(iommu: .init(pasidBits: 8)))
    #expect(rig.bind() == 0)
    parent = rig.alloc()
    #expect(rig.map(parent, Self.guest, to: Self.memory, length: 0x10_0000) == 0)
  }

  private func page(_ number: UInt64) -> UInt64 { Self.guest + number * 0x1000 }

  private func put(_ value: UInt64, at guest: UInt64) {
    rig.caller.put(value, at: guest - Self.guest + Self.memory)
  }

  /// Tables in pages 1 to 4; the leaf of an address in the last.
  private func mapTable(_ iova: UInt64, to target: UInt64, flags: UInt64 = 7) {
    for level in 0..<4 {
      let index = iova >> UInt64(39 - 9 * level) & 511
      let entry = level == 3 ? target : page(UInt64(level) + 2)
      put(entry | (level == 3 ? flags : 7), at: page(UInt64(level) + 1) + index * 8)
    }
  }

  @Test("B2: DMA goes through the user's table and the parent's, and nowhere else")
  func walks() throws {
    mapTable(Self.iova, to: page(8))
    rig.caller.put(UInt32(0xCAFE), at: Self.memory + 0x8010)
    let child = rig.allocTable(parent: parent, root: page(1))
    #expect(child > 0)
    #expect(rig.attach(child) == 0 && rig.word(Self.iova + 0x10) == 0xCAFE)
    #expect(rig.word(Self.iova + 0x1000) == nil, "not in the user's table")
    #expect(rig.word(page(8)) == nil, "not by the parent's address")
    mapTable(Self.iova + 0x1000, to: 0x8000)
    #expect(rig.word(Self.iova + 0x1000) == nil, "nor where the parent maps nothing")
    #expect(rig.detach(child) == 0 && rig.word(Self.iova + 0x10) == nil)
    #expect(rig.attach(child, pasid: 5) == 0)
    #expect(rig.word(Self.iova + 0x10, pasid: 5) == 0xCAFE && rig.word(Self.iova) == nil)
    #expect(rig.attach(parent) == 0 && rig.word(page(8) + 0x10) == 0xCAFE)
    #expect(rig.word(Self.iova + 0x10, pasid: 5) == 0xCAFE, "both, side by side")
  }

  @Test(
    "G1, G2: after INVALIDATE_CACHE the changed table holds, by range, by PASID and by device")
  func invalidation() throws {
    let child = rig.allocTable(parent: parent, root: page(1))
    mapTable(Self.iova, to: page(8))
    for number in 8...11 as ClosedRange<UInt64> {
      rig.caller.put(UInt32(number), at: Self.memory + number * 0x1000)
    }
    #expect(rig.attach(child) == 0)
    let port = rig.engine.iommu.port(for: rig.engine.requester)
    func word() throws -> UInt32 {
      var value: UInt32 = 0
      try withUnsafeMutableBytes(of: &value) { try port.read(IOVA(Self.iova), into: $0) }
      return value
    }
    #expect(try word() == 8)
    let ways: [(UInt64) -> Int32] = [
      { _ in
        rig.invalidate(child, IOASID_INVALIDATE_RANGE, 1, address: Self.iova, size: 4096)
      },
      { _ in rig.invalidate(child, IOASID_INVALIDATE_PASID, 1) },
      { rig.invalidate(child, IOASID_INVALIDATE_DEVICE, 3, cookie: $0) },
    ]
    for (index, invalidate) in ways.enumerated() {
      let next = 9 + UInt64(index)
      mapTable(Self.iova, to: page(next))
      #expect(try word() == UInt32(next - 1), "the cache is one: stale until it is told")
      #expect(invalidate(IOASIDRig.cookie) == 0)
      #expect(try word() == UInt32(next))
    }
  }

  @Test("B5, G2: what the parent unmaps is gone through the user's table, and comes back")
  func parentChanges() throws {
    let child = rig.allocTable(parent: parent, root: page(1))
    mapTable(Self.iova, to: page(0x80))
    let other: UInt64 = 0x40_0000
    rig.caller.put(UInt32(1), at: Self.memory + 0x80000)
    rig.caller.put(UInt32(2), at: other)
    #expect(rig.attach(child) == 0 && rig.word(Self.iova) == 1)
    #expect(rig.map(parent, page(0x200), to: other) == 0)
    mapTable(Self.iova, to: page(0x200))
    #expect(rig.invalidate(child, IOASID_INVALIDATE_RANGE, 1, size: .max) == 0)
    #expect(rig.word(Self.iova) == 2)
    #expect(rig.unmap(parent, page(0x200)) == 0 && rig.word(Self.iova) == nil)
    #expect(rig.map(parent, page(0x200), to: other) == 0 && rig.word(Self.iova) == 2)
  }

  @Test("K1: BIND_PGTABLE on an attached child sends its DMA through the table, UNBIND not")
  func binding() throws {
    mapTable(Self.iova, to: page(8))
    rig.caller.put(UInt32(0xB1D), at: Self.memory + 0x8000)
    let child = rig.alloc(IOASID_ALLOC_PARENT, parent: parent)
    #expect(rig.attach(child) == 0 && rig.word(Self.iova) == nil)
    #expect(rig.bindTable(child, root: page(1)) == 0 && rig.word(Self.iova) == 0xB1D)
    #expect(rig.unbindTable(child) == 0 && rig.word(Self.iova) == nil)
  }

  @Test("B2: a root that nothing is mapped at is no error but of the device's DMA")
  func emptyRoot() {
    let child = rig.allocTable(parent: parent, root: 0xF_FFFF_FFFF_F000)
    #expect(child > 0 && rig.attach(child) == 0 && rig.word(Self.iova) == nil)
  }
}
