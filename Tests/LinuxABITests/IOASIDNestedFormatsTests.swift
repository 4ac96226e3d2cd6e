// SPDX-License-Identifier: Apache-2.0
//
// DMA through tables that a user of /dev/ioasid wrote (MODEL B2, B9, G1): RISC-V's first stage and
// process directory, AMD's guest CR3 table.

import CLinuxABI
import Foundation
import IOMMU
import PageTables
import SoftwareIOMMU
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct IOASIDNestedFormatsTests {
  static let memory: UInt64 = 0x10_0000
  static let guest: UInt64 = 0x4000_0000
  static let iova: UInt64 = 0x12_3456_7000

  private struct Rig {
    let calls: IOASIDRig
    let parent: Int32

    init(_ architecture: SoftwareIOMMU.Architecture) throws {
      calls = try IOASIDRig(EngineRig(iommu: .init(architecture: architecture, pasidBits: 8)))
      #expect(calls.bind() == 0)
      parent = calls.alloc()
      #expect(calls.map(parent, guest, to: memory, length: 0x10_0000) == 0)
    }

    func page(_ number: UInt64) -> UInt64 { guest + number * 0x1000 }

    func put(_ value: UInt64, at address: UInt64) {
      calls.caller.put(value, at: address - guest + memory)
    }

    func mark(_ number: UInt64) {
      calls.caller.put(UInt32(number), at: memory + number * 0x1000)
    }

    /// Four levels of 512 entries from a page on, for one address.
    func mapTable(
      from first: UInt64, to target: UInt64,
      entry: (_ address: UInt64, _ isLeaf: Bool) -> UInt64
    ) {
      for level in 0..<4 as Range<UInt64> {
        let index = iova >> (39 - 9 * level) & 511
        put(
          level == 3 ? entry(page(target), true) : entry(page(first + level + 1), false),
          at: page(first + level) + index * 8)
      }
    }
  }

  /// RISC-V privileged, 12.5: V, and of a leaf R, W, U, A, D; PPN from bit 10.
  private static func riscv(_ address: UInt64, _ isLeaf: Bool) -> UInt64 {
    ((address >> 12) << 10) | (isLeaf ? 0xD7 : 1)
  }

  /// Present, writable, user.
  private static func x86(_ address: UInt64, _ isLeaf: Bool) -> UInt64 { address | 7 }

  @Test("B2: a RISC-V first-stage table of the user's, through the parent")
  func riscvFirstStage() throws {
    let rig = try Rig(.riscv)
    rig.mapTable(from: 1, to: 0x20, entry: Self.riscv)
    rig.mark(0x20)
    let child = rig.calls.allocTable(.riscvFirstStage, parent: rig.parent, root: rig.page(1))
    #expect(child > 0 && rig.calls.attach(child) == 0)
    #expect(rig.calls.word(Self.iova) == 0x20 && rig.calls.word(rig.page(0x20)) == nil)
    rig.mark(0x21)
    rig.mapTable(from: 1, to: 0x21, entry: Self.riscv)
    #expect(
      rig.calls.invalidate(
        child, IOASID_INVALIDATE_RANGE, IOASID_CACHE_IOTLB, address: Self.iova, size: 1) == 0)
    #expect(rig.calls.word(Self.iova) == 0x21)
    #expect(rig.calls.detach(child) == 0 && rig.calls.word(Self.iova) == nil)
  }

  @Test("B9: a RISC-V process directory of the user's has a table for each PASID, and for none")
  func riscvProcesses() throws {
    let rig = try Rig(.riscv)
    for (process, target) in [(0, 0x20), (3, 0x21)] as [(UInt64, UInt64)] {
      rig.mapTable(from: 4 + process * 4, to: target, entry: Self.riscv)
      rig.mark(target)
      // ta: V; fsc: Sv48.
      rig.put(1, at: rig.page(1) + process * 16)
      rig.put(9 << 60 | rig.page(4 + process * 4) >> 12, at: rig.page(1) + process * 16 + 8)
    }
    let child = rig.calls.allocTable(
      .riscvProcessDirectory, width: 8, parent: rig.parent, root: rig.page(1))
    #expect(child > 0 && rig.calls.attach(child) == 0)
    #expect(rig.calls.word(Self.iova) == 0x20 && rig.calls.word(Self.iova, pasid: 3) == 0x21)
    #expect(rig.calls.word(Self.iova, pasid: 4) == nil)
    rig.put(9 << 60 | rig.page(4) >> 12, at: rig.page(1) + 3 * 16 + 8)
    #expect(
      rig.calls.invalidate(
        child, IOASID_INVALIDATE_PASID, IOASID_CACHE_PASID | IOASID_CACHE_IOTLB, pasid: 3,
        cookie: IOASIDRig.cookie) == 0)
    #expect(rig.calls.word(Self.iova, pasid: 3) == 0x20)
  }

  @Test("B9: an AMD guest CR3 table of the user's has a table for each PASID")
  func amd() throws {
    let rig = try Rig(.amd)
    rig.mapTable(from: 4, to: 0x20, entry: Self.x86)
    rig.mapTable(from: 8, to: 0x21, entry: Self.x86)
    rig.mark(0x20)
    rig.mark(0x21)
    rig.put(rig.page(4) | 1, at: rig.page(1) + 3 * 8)
    let child = rig.calls.allocTable(
      .amdGuestCR3, width: 9, parent: rig.parent, root: rig.page(1))
    #expect(child > 0 && rig.calls.attach(child, pasid: 3) == -EINVAL)
    #expect(rig.calls.attach(child) == 0)
    #expect(rig.calls.word(Self.iova, pasid: 3) == 0x20)
    #expect(rig.calls.word(Self.iova, pasid: 4) == nil)
    rig.put(rig.page(8) | 1, at: rig.page(1) + 3 * 8)
    #expect(
      rig.calls.invalidate(
        child, IOASID_INVALIDATE_DEVICE, IOASID_CACHE_PASID | IOASID_CACHE_IOTLB,
        cookie: IOASIDRig.cookie) == 0)
    #expect(rig.calls.word(Self.iova, pasid: 3) == 0x21)
  }
}
