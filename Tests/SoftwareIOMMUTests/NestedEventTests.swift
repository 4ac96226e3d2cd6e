// SPDX-License-Identifier: Apache-2.0
//
// What an IOMMU's hardware records where a user's own tables are at fault, or the parent below them
// (MODEL H2, B5).

import HardwareTables
import IOMMU
import PageTables
import Testing

@testable import SoftwareIOMMU

@Suite("H2: events of tables that users own", .serialized) struct NestedEventTests {
  typealias Guest = NestedBench

  /// Outside of what the parent maps.
  static let outside: UInt64 = 0x9000_0000

  static func fault(_ port: DMAPort, _ iova: UInt64) -> DMAFault? {
    EventQueueTests.abort { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(iova)) }
  }

  @Test("H2: VT-d: the first stage's faults are SFS and SGN.1, the parent's SSS")
  func intel() throws {
    let guest = try Guest(.init())
    let (root, target) = (guest.page(), guest.page())
    guest.mapIntel(0x5000, to: target, in: root)
    guest.mapIntel(0x7000, to: Self.outside, in: root)
    try guest.attach(try guest.intel(root))
    let port = guest.bench.port
    let queue = guest.bench.iommu.eventQueue
    for iova: UInt64 in [0x6000, 0x7123, 1 << 47] { _ = Self.fault(port, iova) }
    #expect(queue.drain().events.map(\.code) == [0x71, 0x79, 0x80])
    // The root itself is out of the parent's reach.
    try guest.attach(try guest.intel(Self.outside))
    guard case .walk(let walk, let tables)? = Self.fault(port, 0x5000)?.cause else {
      Issue.record("no walk")
      return
    }
    #expect(walk.stage == .second && walk.tableLevel == 4 && walk.ipa == Self.outside)
    #expect(tables.firstLevels == 4 && tables.secondLevels == 4)
    #expect(queue.drain().events.map(\.code) == [0x79])
    #expect(guest.isIntact)
  }

  @Test("H2: AMD: GN tells the guest's tables, with the PASID, from the host's")
  func amd() throws {
    let guest = try Guest(.init(architecture: .amd, pasidBits: 16))
    let virtual = try guest.virtualIOMMU(type: 0x77)
    try virtual.addDevice(Bench.device, virtualID: 0x0102)
    let (gcr3, root, target) = (guest.page(), guest.page(), guest.page())
    guest.mapAMD(0x5000, to: target, in: root)
    guest.mapAMD(0x7000, to: Self.outside, in: root)
    guest[gcr3] = root | 1
    try guest.attach(
      try virtual.makeNestedDomain(attributes: [], data: Guest.amdData(gcr3: gcr3)))
    let port = guest.bench.port
    for iova: UInt64 in [0x6000, 0x7123] { _ = Self.fault(port, iova) }
    let slice = guest.bench.iommu.port(for: Bench.device, pasid: PASID(rawValue: 7))
    #expect(Self.fault(slice, 0x5000)?.reason == .badConfiguration)
    #expect(
      guest.bench.iommu.eventQueue.drain().events.map(\.words) == [
        Words4(0x2021_0000_0000_E020, 0x6000, 0, 0),
        Words4(0x2020_0000_0000_E020, 0x7123, 0, 0),
        Words4(0x2025_0007_0000_E020, 0x5000, 0, 0),
      ])
    #expect(guest.isIntact)
  }

  @Test("H2: SMMUv3: S2, CLASS and IPA tell the stages apart; the guest is told of its own")
  func smmu() throws {
    let guest = try Guest(.init(architecture: .smmuV3, pasidBits: 8))
    let virtual = try guest.virtualSMMU()
    try virtual.addDevice(Bench.device, virtualID: 0x42)
    let (descriptor, root, target) = (guest.page(), guest.page(), guest.page())
    guest.mapArm(0x5000, to: target, in: root)
    guest.mapArm(0x7000, to: Self.outside, in: root)
    guest.writeContext(descriptor, table: root)
    func attach(_ word: UInt64) throws {
      try guest.attach(
        try virtual.makeNestedDomain(attributes: [], data: Guest.streamData(word)))
    }
    let port = guest.bench.port
    let queue = guest.bench.iommu.eventQueue
    let translate: UInt64 = 1 | 5 << 1
    try attach(translate | descriptor)
    let first = Self.fault(port, 0x6000)
    let second = Self.fault(port, 0x7123)
    let stream: UInt64 = 0xE020 << 32
    #expect(
      queue.drain().events.map(\.words) == [
        Words4(stream | 0x10, 0x0000_0200_0000_0000, 0x6000, 0),
        Words4(stream | 0x10, 0x0000_0280_0000_0000, 0x7123, Self.outside),
      ])
    #expect(first?.virtualSMMUEvent(stream: 0x42)?.prefix(8) == [0x10, 0, 0, 0, 0x42, 0, 0, 0])
    #expect(second?.virtualSMMUEvent(stream: 0x42) == nil, "the host's stage")

    // A descriptor that is not valid; one out of the parent's reach; no entry; an abort.
    guest[descriptor] = 0
    try attach(translate | descriptor)
    let bad = Self.fault(port, 0x5000)
    try attach(translate | Self.outside)
    _ = Self.fault(port, 0x5000)
    try attach(0)
    _ = Self.fault(port, 0x5000)
    try attach(1)
    #expect(Self.fault(port, 0x5000)?.reason == .blocked)
    #expect(
      queue.drain().events.map(\.words) == [
        Words4(stream | 0x0A, 0, 0, 0),
        Words4(stream | 0x10, 0x0000_0080_0000_0000, 0x5000, Self.outside),
        Words4(stream | 0x04, 0, 0, 0),
      ], "CD: V is clear; F_TRANSLATION, CLASS CD; C_BAD_STE; nothing of an abort")
    #expect(bad?.virtualSMMUEvent(stream: 0x42)?.prefix(8) == [0x0A, 0, 0, 0, 0x42, 0, 0, 0])
    #expect(guest.isIntact)
  }
}
