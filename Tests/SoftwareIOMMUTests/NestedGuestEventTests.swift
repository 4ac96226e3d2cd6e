// SPDX-License-Identifier: Apache-2.0
//
// Records of AMD's and RISC-V's IOMMUs where tables of users are at fault, or the parent below
// them, against vectors by hand (MODEL H2, B5): 48882, 2.5.3; RISC-V IOMMU 1.0, 2.3 and 3.2, in the
// order of its steps.

import HardwareTables
import IOMMU
import PageTables
import Testing

@testable import SoftwareIOMMU

extension NestedBench {
  /// What one access has recorded, of an access that fails.
  fileprivate func record(_ iova: UInt64, pasid: UInt32?, reading: Bool) -> [Words4] {
    let port = bench.iommu.port(for: Bench.device, pasid: pasid.map { PASID(rawValue: $0) })
    _ = EventQueueTests.abort { () throws(DMAFault) in
      if reading {
        _ = try port.load(IOVA(iova), as: UInt8.self)
      } else {
        try port.store(UInt8(1), at: IOVA(iova))
      }
    }
    return bench.iommu.eventQueue.drain().events.map(\.words)
  }
}

extension NestedEventTests {
  /// A RISC-V guest with a page at 0x5000 of its table, and at 0x7000 one that the parent does not
  /// map.
  private struct RISCVRig {
    let guest: Guest
    let root: UInt64
    let leaf: UInt64
    let updates: Bool
    static let device: UInt64 = 0xE020 << 40
    static let isProcess: UInt64 = 1 << 32

    init(updates: Bool = false) throws {
      self.updates = updates
      guest = try Guest(.init(architecture: .riscv, pasidBits: 20))
      root = guest.page()
      leaf = guest.mapRISCV(0x5000, to: guest.page(), in: root)
      guest.mapRISCV(0x7000, to: NestedEventTests.outside, in: root)
    }

    /// - Parameter control: Of `tc`, beside V and SADE.
    func attach(_ control: UInt64 = 0, _ context: UInt64? = nil) throws {
      try guest.attach(
        try guest.bench.iommu.makeNestedDomain(
          for: Bench.device, parent: guest.parent, attributes: [],
          data: RISCVNestedContext(
            translationControl: 1 | control | (updates ? 1 << 8 : 0),
            firstStageContext: context ?? 9 << 60 | root >> 12
          ).userData))
    }

    /// What one access has recorded, of an access that fails.
    func record(
      _ iova: UInt64, reading: Bool = false, process: UInt32? = nil
    ) -> [Words4] {
      guest.record(iova, pasid: process, reading: reading)
    }

    /// CAUSE and TTYP of an untranslated access.
    static func words(
      _ cause: UInt64, reading: Bool = false, process: UInt64? = nil, _ iova: UInt64,
      _ second: UInt64 = 0
    ) -> [Words4] {
      var first = cause | (reading ? 2 : 3) << 34 | device
      if let process { first |= isProcess | process << 12 }
      return [Words4(first, 0, iova, second)]
    }
  }

  @Test(
    "H2: RISC-V: page faults of the first stage have the access's cause, and no iotval2 (3.2)")
  func riscvFirstStage() throws {
    let rig = try RISCVRig()
    try rig.attach()
    #expect(rig.record(0x6123) == RISCVRig.words(15, 0x6123))
    #expect(rig.record(0x6123, reading: true) == RISCVRig.words(13, reading: true, 0x6123))
    // Not canonical: Sv48's bits 63 to 48 are not bit 47.
    #expect(rig.record(1 << 47) == RISCVRig.words(15, 1 << 47))
    // Without SADE a leaf that was not accessed, or not written, faults; so do one without rights,
    // W without R, and a superpage that is not aligned.
    let entry = rig.guest[rig.leaf]
    for (broken, reads) in [
      (entry & ~0xC0, true), (entry & ~0x80, false), (entry & ~0xE, true), (entry & ~2, true),
      (entry & ~4, false), (entry | 1 << 54, true), (entry & ~1, true), (entry & ~0x10, true),
    ] {
      rig.guest[rig.leaf] = broken
      try rig.attach()
      #expect(
        rig.record(0x5008, reading: reads)
          == RISCVRig.words(reads ? 13 : 15, reading: reads, 0x5008))
    }
    #expect(rig.guest.isIntact)
  }

  @Test(
    "H2: RISC-V: guest-page faults have the guest-physical address; bit 0 of implicit accesses, bit 1 of writes",
    arguments: [false, true])
  func riscvSecondStage(updates: Bool) throws {
    let rig = try RISCVRig(updates: updates)
    try rig.attach()
    // The page itself: bits 63 to 2 of where it would be.
    #expect(rig.record(0x7123) == RISCVRig.words(23, 0x7123, Self.outside | 0x120))
    #expect(
      rig.record(0x7123, reading: true)
        == RISCVRig.words(21, reading: true, 0x7123, Self.outside | 0x120))
    // Fetches of the first stage's entries: the cause stays that of the access. They are reads,
    // with SADE too (3.2, note).
    rig.guest[rig.root + 8] = Self.outside >> 2 | 1
    let iova: UInt64 = 1 << 39 | 5 << 30
    #expect(rig.record(iova) == RISCVRig.words(23, iova, Self.outside | 5 * 8 | 1))
    #expect(
      rig.record(iova, reading: true)
        == RISCVRig.words(21, reading: true, iova, Self.outside | 5 * 8 | 1))
    // The root.
    try rig.attach(0, 9 << 60 | Self.outside >> 12)
    #expect(rig.record(0x5000) == RISCVRig.words(23, 0x5000, Self.outside | 1))
    // Bare: the address is the guest-physical one.
    try rig.attach(0, 0)
    #expect(
      rig.record(Self.outside | 0x457)
        == RISCVRig.words(23, Self.outside | 0x457, Self.outside | 0x454))
    #expect(rig.guest.isIntact)
  }

  @Test(
    "H2: RISC-V: processes: 260 before the directory is read, then 266, 267, 21 and 23 (2.3)")
  func riscvProcesses() throws {
    let rig = try RISCVRig()
    let (directory, iosatp) = (rig.guest.page(), 9 << 60 | rig.root >> 12)
    try rig.attach()
    #expect(rig.record(0x5000, process: 3) == RISCVRig.words(260, process: 3, 0x5000))
    let (pdtv, pd8) = (1 << 5 as UInt64, 1 << 60 | directory >> 12)
    try rig.attach(pdtv, pd8)
    #expect(rig.record(0x5000, process: 256) == RISCVRig.words(260, process: 256, 0x5000))
    #expect(rig.record(0x5000, process: 3) == RISCVRig.words(266, process: 3, 0x5000))
    // PC.ta: V, and a bit that is reserved; PC.fsc: a mode that is.
    for (word, context) in [(1 | 1 << 3, iosatp), (1, 7 << 60)] as [(UInt64, UInt64)] {
      rig.guest[directory + 3 * 16] = word
      rig.guest[directory + 3 * 16 + 8] = context
      try rig.attach(pdtv, pd8)
      #expect(rig.record(0x5000, process: 3) == RISCVRig.words(267, process: 3, 0x5000))
    }
    rig.guest[directory + 3 * 16] = 1
    rig.guest[directory + 3 * 16 + 8] = iosatp
    try rig.attach(pdtv, pd8)
    #expect(rig.record(0x6000, process: 3) == RISCVRig.words(15, process: 3, 0x6000))
    #expect(
      rig.record(0x7000, process: 3) == RISCVRig.words(23, process: 3, 0x7000, Self.outside))
    // The directory itself: an implicit read, with the cause of the access (2.3.2).
    try rig.attach(pdtv, 1 << 60 | Self.outside >> 12)
    #expect(
      rig.record(0x5000, process: 3)
        == RISCVRig.words(23, process: 3, 0x5000, Self.outside | 3 * 16 | 1))
    #expect(
      rig.record(0x5000, reading: true, process: 3)
        == RISCVRig.words(21, reading: true, process: 3, 0x5000, Self.outside | 3 * 16 | 1))
    #expect(rig.guest.isIntact)
  }

  @Test(
    "H2: AMD: a PASID's guest tables: GN, PASID, US; PR, PE and RZ; the host's have the domain")
  func amdPASIDs() throws {
    let guest = try Guest(.init(architecture: .amd, pasidBits: 16))
    let virtual = try guest.virtualIOMMU(type: 0x77)
    try virtual.addDevice(Bench.device, virtualID: 0x0102)
    let (gcr3, root) = (guest.page(), guest.page())
    let leaf = guest.mapAMD(0x5000, to: guest.page(), in: root)
    guest.mapAMD(0x7000, to: Self.outside, in: root)
    guest[gcr3 + 5 * 8] = root | 1
    guest[gcr3 + 6 * 8] = Self.outside | 1
    func attach(_ table: UInt64) throws {
      try guest.attach(
        try virtual.makeNestedDomain(attributes: [], data: Guest.amdData(gcr3: table)))
    }
    func record(_ iova: UInt64, pasid: UInt32 = 5, reading: Bool = false) -> [Words4] {
      guest.record(iova, pasid: pasid, reading: reading)
    }
    func words(_ flags: UInt64, _ iova: UInt64, pasid: UInt64 = 5) -> [Words4] {
      [Words4(2 << 60 | flags << 48 | pasid << 32 | 0xE020, iova, 0, 0)]
    }
    let (gn, us, pr, rw, pe, rz) =
      (1, 4, 0x10, 0x20, 0x40, 0x80)
      as (
        UInt64, UInt64, UInt64, UInt64, UInt64, UInt64
      )
    try attach(gcr3)
    #expect(record(0x6123) == words(gn | us | rw, 0x6123))
    #expect(record(0x6123, reading: true) == words(gn | us, 0x6123))
    #expect(record(1 << 47) == words(gn | us | rw, 1 << 47), "not canonical")
    let entry = guest[leaf]
    guest[leaf] = entry & ~2
    try attach(gcr3)
    #expect(record(0x5001) == words(gn | us | pr | rw | pe, 0x5001), "not writable")
    guest[leaf] = entry & ~4
    try attach(gcr3)
    #expect(
      record(0x5001, reading: true) == words(gn | us | pr | pe, 0x5001), "the supervisor's")
    guest[leaf] = entry
    // PS in the top level is reserved.
    guest[root] |= 1 << 7
    try attach(gcr3)
    #expect(record(0x5001) == words(gn | us | pr | rw | rz, 0x5001))
    guest[root] &= ~(1 << 7)
    // What the host does not map: its own, with the DomainID, which is 0.
    try attach(gcr3)
    #expect(record(0x7001) == words(us | rw, 0x7001, pasid: 0))
    #expect(record(0x5001, pasid: 6) == words(us | rw, 0x5001, pasid: 0), "nor the root")
    // No entry of the GCR3 table; the table out of reach.
    #expect(record(0x5001, pasid: 7) == words(gn | us | rw, 0x5001, pasid: 7))
    try attach(Self.outside)
    #expect(record(0x5001).count == 1)
    #expect(guest.isIntact)
  }
}
