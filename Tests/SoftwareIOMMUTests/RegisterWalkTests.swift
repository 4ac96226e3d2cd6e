// SPDX-License-Identifier: Apache-2.0
//
// What the registers offer is what DMA goes through: users' tables of every format that they name
// are attached and walked, and those that they do not name are refused, in every configuration.

import IOMMU
import PageTables
import Testing

@testable import HardwareTables
@testable import SoftwareIOMMU

@Suite("B8, B2: the formats that the registers offer are walked, and no others", .serialized)
struct RegisterWalkTests {
  /// Those that nest, of one size of PASID: it is no matter of formats.
  private static func nesting(_ architecture: SoftwareIOMMU.Architecture) -> [Configuration] {
    everyConfiguration.filter {
      $0.architecture == architecture && $0.nests && $0.pasidBits == 8 && !$0.pageRequests
    }
  }

  private func goesThrough(_ guest: NestedBench, _ iova: UInt64, _ target: UInt64) -> Bool {
    do throws(DMAFault) {
      try guest.bench.port.store(UInt64(0x77), at: IOVA(iova))
    } catch {
      return false
    }
    return guest[target] == 0x77
  }

  @Test("B8, B2: VT-d: first stages of 48 bits, and of 57 with FS5LP; bit 10 with EAFS")
  func intel() throws {
    for configuration in Self.nesting(.intel) {
      let unit = configuration.intelCapabilities
      for levels in 4...5 {
        let guest = try NestedBench(configuration, pages: 16)
        let (root, target) = (guest.page(), guest.page())
        let iova: UInt64 = levels == 5 ? 0x5A_7FFF_1234_5000 : 0x7FFF_1234_5000
        let leaf = guest.mapIntel(iova, to: target, in: root, levels: levels)
        let table = try guest.intel(root, flags: 2, width: levels == 5 ? 57 : 48)
        let refused = refusal { () throws(IOMMUError) in try guest.attach(table) }
        let offered = levels == 4 || unit.hasFiveLevelFirstStage
        #expect((refused == nil) == offered, "\(levels) levels of \(configuration)")
        guard offered else { continue }
        #expect(goesThrough(guest, iova, target))
        #expect(guest[leaf] & (1 << 10 | 1 << 6) == 1 << 10 | 1 << 6, "extended, dirty")
      }
    }
  }

  @Test("B8, B2: AMD: guest tables of as many levels as GATS, behind as many as GLXSup")
  func amd() throws {
    for configuration in Self.nesting(.amd) {
      let iommu = configuration.amdCapabilities
      for levels in 4...5 {
        for depth in 1...3 {
          let guest = try NestedBench(configuration, pages: 24)
          let (root, target) = (guest.page(), guest.page())
          let iova: UInt64 = levels == 5 ? 0x5A_7FFF_1234_5000 : 0x7FFF_1234_5000
          guest.map(
            iova, to: target, in: root, levels: levels, as: AMDv2.self, X86Switches())
          var table = root
          for _ in 0..<depth {
            let above = guest.page()
            guest[above] = table | 1
            table = above
          }
          let virtual = try guest.virtualIOMMU(type: 1)
          let data = NestedBench.amdData(
            gcr3: table, glx: UInt64(depth - 1), levels: UInt64(levels - 4))
          var domain: (any NestedDomain)?
          let refused = refusal { () throws(IOMMUError) in
            domain = try virtual.makeNestedDomain(attributes: [], data: data)
          }
          #expect((refused == nil) == (levels <= iommu.mostGuestLevels))
          guard let domain else { continue }
          #expect(depth <= iommu.mostCR3Levels)
          try guest.attach(domain)
          #expect(goesThrough(guest, iova, target), "\(levels) levels, GLX \(depth - 1)")
        }
      }
    }
  }

  @Test("B8, B2: SMMUv3: access and dirty state with HTTU, IPS up to OAS, 16-bit ASIDs")
  func smmu() throws {
    for configuration in Self.nesting(.smmuV3) {
      let smmu = configuration.smmuCapabilities
      for updates in [false, true] {
        let guest = try NestedBench(configuration, pages: 16)
        let (root, target, context) = (guest.page(), guest.page(), guest.page())
        let leaf = guest.mapArm(0x5000, to: target, in: root)
        // HA and HD find a leaf that is neither accessed nor written: AF, AP[2], DBM.
        if updates { guest[leaf] = guest[leaf] & ~(1 << 10) | 1 << 51 | 1 << 7 }
        guest.writeContext(
          context, table: root, asid: 0xFFFF, flags: updates ? 1 << 43 | 1 << 42 : 0)
        let virtual = try guest.virtualSMMU()
        try virtual.addDevice(Bench.device, virtualID: 7)
        try guest.attach(
          try virtual.makeNestedDomain(
            attributes: [], data: NestedBench.streamData(context | 5 << 1 | 1)))
        let offered = !updates || smmu.hardwareUpdate == 2
        #expect(goesThrough(guest, 0x5000, target) == offered, "\(configuration)")
        if updates, offered { #expect(guest[leaf] & (1 << 10 | 1 << 7) == 1 << 10) }
      }
    }
  }

  @Test("B8, B2: RISC-V: Sv39, Sv48 and Sv57 as far as offered; SADE with AMO_HWAD")
  func riscv() throws {
    for configuration in Self.nesting(.riscv) {
      let iommu = configuration.riscvCapabilities
      for levels in 3...5 {
        for updates in [false, true] {
          let guest = try NestedBench(configuration, pages: 16)
          let (root, target) = (guest.page(), guest.page())
          guest.map(
            0x1234_5000, to: target, in: root, levels: levels,
            as: PageTables.RISCVFirstStage.self, RISCVSwitches(updates: updates))
          let virtual = try guest.virtualIOMMU(type: RISCVVirtualIOMMU.type)
          try virtual.addDevice(Bench.device, virtualID: 7)
          let data = RISCVNestedContext(
            translationControl: updates ? 1 << 8 | 1 : 1,
            firstStageContext: UInt64(levels + 5) << 60 | root >> 12
          ).userData
          var domain: (any NestedDomain)?
          let refused = refusal { () throws(IOMMUError) in
            domain = try virtual.makeNestedDomain(attributes: [], data: data)
          }
          let mode = [RISCVCapabilities.Feature.sv39, .sv48, .sv57][levels - 3]
          let offered = iommu.has(mode) && (!updates || iommu.has(.updatesAccessedDirty))
          #expect((refused == nil) == offered)
          guard let domain else { continue }
          try guest.attach(domain)
          #expect(goesThrough(guest, 0x1234_5000, target), "\(levels) levels")
        }
      }
    }
  }
}
