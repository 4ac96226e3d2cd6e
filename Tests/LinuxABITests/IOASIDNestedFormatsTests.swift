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
  static let iova: UInt64 = 0x12_3456_7000

  private static func guest(_ architecture: SoftwareIOMMU.Architecture) throws -> IOASIDGuest {
    try IOASIDGuest(EngineRig(iommu: .init(architecture: architecture, pasidBits: 8)))
  }

  /// RISC-V privileged, 12.5: V, and of a leaf R, W, U, A, D; PPN from bit 10.
  private static func riscv(_ address: UInt64, _ isLeaf: Bool) -> UInt64 {
    ((address >> 12) << 10) | (isLeaf ? 0xD7 : 1)
  }

  /// Present, writable, user.
  private static func x86(_ address: UInt64, _ isLeaf: Bool) -> UInt64 { address | 7 }

  @Test(
    "B2: a RISC-V first-stage table of the user's, through the parent; by PASID it takes a directory"
  )
  func riscvFirstStage() throws {
    let guest = try Self.guest(.riscv)
    let rig = guest.rig
    guest.mapTable(Self.iova, from: 1, to: guest.page(0x20), entry: Self.riscv)
    guest.mark(0x20)
    let child = rig.allocTable(.riscvFirstStage, parent: guest.parent, root: guest.page(1))
    #expect(child > 0 && rig.attach(child, pasid: 3) == -EOPNOTSUPP)
    #expect(rig.attach(child) == 0)
    #expect(rig.word(Self.iova) == 0x20 && rig.word(guest.page(0x20)) == nil)
    guest.mark(0x21)
    guest.mapTable(Self.iova, from: 1, to: guest.page(0x21), entry: Self.riscv)
    #expect(
      rig.invalidate(
        child, IOASID_INVALIDATE_RANGE, IOASID_CACHE_IOTLB, address: Self.iova, size: 1) == 0)
    #expect(rig.word(Self.iova) == 0x21)
    #expect(rig.detach(child) == 0 && rig.word(Self.iova) == nil)
  }

  @Test(
    "G1: INVALIDATE_CACHE of an AMD or a RISC-V table is told to the event log (--trace)",
    arguments: [SoftwareIOMMU.Architecture.amd, .riscv])
  func told(architecture: SoftwareIOMMU.Architecture) throws {
    let guest = try Self.guest(architecture)
    let rig = guest.rig
    let child = rig.allocTable(
      architecture == .amd ? .amdGuestCR3 : .riscvProcessDirectory,
      width: architecture == .amd ? 9 : 8, parent: guest.parent, root: guest.page(1))
    #expect(child > 0 && rig.attach(child) == 0)
    let events = rig.engine.system.events
    events.startRecording()
    func invalidations() -> [IOVA] {
      events.drain().entries.compactMap {
        if case .invalidate(_, let iova, _) = $0.event { iova } else { nil }
      }
    }
    _ = invalidations()
    #expect(
      rig.invalidate(
        child, IOASID_INVALIDATE_DEVICE, IOASID_CACHE_IOTLB, cookie: IOASIDRig.cookie) == 0)
    #expect(invalidations() == [IOVA(0)])
    #expect(
      rig.invalidate(
        child, IOASID_INVALIDATE_RANGE, IOASID_CACHE_IOTLB, pasid: 3, address: Self.iova,
        size: 0x2000) == 0)
    #expect(invalidations() == [IOVA(Self.iova)])
    #expect(
      rig.invalidate(
        child, IOASID_INVALIDATE_PASID, IOASID_CACHE_PASID, pasid: 3,
        cookie: IOASIDRig.cookie) == 0)
    #expect(invalidations() == [IOVA(0)])
  }

  @Test("B9: a RISC-V process directory of the user's has a table for each PASID, and for none")
  func riscvProcesses() throws {
    let guest = try Self.guest(.riscv)
    let rig = guest.rig
    for (process, target) in [(0, 0x20), (3, 0x21)] as [(UInt64, UInt64)] {
      guest.mapTable(
        Self.iova, from: 4 + process * 4, to: guest.page(target), entry: Self.riscv)
      guest.mark(target)
      // ta: V; fsc: Sv48.
      guest.put(1, at: guest.page(1) + process * 16)
      guest.put(
        9 << 60 | guest.page(4 + process * 4) >> 12, at: guest.page(1) + process * 16 + 8)
    }
    let child = rig.allocTable(
      .riscvProcessDirectory, width: 8, parent: guest.parent, root: guest.page(1))
    #expect(child > 0 && rig.attach(child) == 0)
    #expect(rig.word(Self.iova) == 0x20 && rig.word(Self.iova, pasid: 3) == 0x21)
    #expect(rig.word(Self.iova, pasid: 4) == nil)
    guest.put(9 << 60 | guest.page(4) >> 12, at: guest.page(1) + 3 * 16 + 8)
    #expect(
      rig.invalidate(
        child, IOASID_INVALIDATE_PASID, IOASID_CACHE_PASID | IOASID_CACHE_IOTLB, pasid: 3,
        cookie: IOASIDRig.cookie) == 0)
    #expect(rig.word(Self.iova, pasid: 3) == 0x20)
  }

  @Test("B9: an AMD guest CR3 table of the user's has a table for each PASID")
  func amd() throws {
    let guest = try Self.guest(.amd)
    let rig = guest.rig
    guest.mapTable(Self.iova, from: 4, to: guest.page(0x20), entry: Self.x86)
    guest.mapTable(Self.iova, from: 8, to: guest.page(0x21), entry: Self.x86)
    guest.mark(0x20)
    guest.mark(0x21)
    guest.put(guest.page(4) | 1, at: guest.page(1) + 3 * 8)
    let child = rig.allocTable(
      .amdGuestCR3, width: 9, parent: guest.parent, root: guest.page(1))
    #expect(child > 0 && rig.attach(child, pasid: 3) == -EINVAL)
    #expect(rig.attach(child) == 0)
    #expect(rig.word(Self.iova, pasid: 3) == 0x20)
    #expect(rig.word(Self.iova, pasid: 4) == nil)
    guest.put(guest.page(8) | 1, at: guest.page(1) + 3 * 8)
    #expect(
      rig.invalidate(
        child, IOASID_INVALIDATE_DEVICE, IOASID_CACHE_PASID | IOASID_CACHE_IOTLB,
        cookie: IOASIDRig.cookie) == 0)
    #expect(rig.word(Self.iova, pasid: 3) == 0x21)
  }
}
