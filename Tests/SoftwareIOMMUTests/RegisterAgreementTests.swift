// SPDX-License-Identifier: Apache-2.0
//
// What the registers offer is what there is: the tables that the engine can ask for, and those of
// users that the checks of HardwareTables let through, over all configurations.

import IOMMU
import PageTables
import Testing

@testable import HardwareTables
@testable import SoftwareIOMMU

/// Every choice of a machine file, with the widths that each architecture has.
let everyConfiguration: [Configuration] = {
  var all: [Configuration] = []
  for architecture in SoftwareIOMMU.Architecture.allCases {
    let sizes: [(levels: Int?, bits: Int?)] =
      switch architecture {
      case .intel, .riscv: [(3, nil), (4, nil), (5, nil)]
      case .amd: [(nil, 39), (nil, 48), (nil, 57), (nil, 64)]
      case .smmuV3: [32, 36, 40, 42, 44, 48].map { (nil, $0) }
      }
    for size in sizes {
      for stage in SoftwareIOMMU.Stage.allCases {
        for pasidBits: UInt8 in [0, 1, 8, 20] {
          for flags in 0..<8 {
            all.append(
              Configuration(
                architecture: architecture, stage: stage, levels: size.levels,
                addressBits: size.bits, pasidBits: pasidBits, pageRequests: flags & 1 != 0,
                tracksDirty: flags & 2 != 0, nests: flags & 4 != 0))
          }
        }
      }
    }
  }
  return all
}()

extension Configuration {
  fileprivate static func of(_ architecture: SoftwareIOMMU.Architecture) -> [Configuration] {
    everyConfiguration.filter { $0.architecture == architecture }
  }

  /// Whether a table with these attributes can be had.
  fileprivate func makes(_ attributes: PagingAttributes) throws -> Bool {
    do throws(IOMMUError) {
      _ = try Bench(self).iommu.makePagingDomain(for: Bench.device, attributes: attributes)
      return true
    } catch {
      try #require(error.errno == .notSupportedOnSocket)
      return false
    }
  }
}

private func passes(_ check: () throws(NestedTableError) -> Void) -> Bool {
  do throws(NestedTableError) {
    try check()
    return true
  } catch {
    return false
  }
}

@Suite("B8: what the registers offer is what there is")
struct RegisterAgreementTests {
  @Test("B8: VT-d: NEST, PASID, SSADS, SAGAW and MGAW agree with the tables that can be had")
  func intelTables() throws {
    for configuration in Configuration.of(.intel) {
      let unit = configuration.intelCapabilities
      #expect(try configuration.makes(.nestParent) == unit.has(.nesting))
      #expect(try configuration.makes(.pasid) == unit.has(.pasid))
      #expect(
        try configuration.makes(.dirtyTracking) == unit.has(.secondStageAccessedDirty))
      // What each claims of the modes (11.4.3): none of them without scalable mode.
      for feature: IntelCapabilities.Feature in [
        .nesting, .pasid, .secondStage, .firstStage, .secondStageAccessedDirty, .pageWalkSnoop,
        .supervisorRequests, .extendedAccessed, .ridPASID,
      ] {
        #expect(!unit.has(feature) || unit.has(.scalableMode))
      }
      #expect(!unit.has(.nesting) || unit.has(.firstStage) && unit.has(.secondStage))
      #expect(!unit.has(.pageRequests) || unit.has(.deviceTLB))
      // A second stage of the width that MGAW says has the levels that SAGAW has.
      let levels = IntelSecondStage.levels(addressBits: configuration.addressBits)
      #expect((3...5).filter(unit.hasSecondStage) == [levels])
      #expect(Int(unit.capability >> 16 & 0x3F) + 1 == configuration.addressBits)
      if configuration.nests {
        let domain = try Bench(configuration).iommu.makePagingDomain(
          for: Bench.device, attributes: .nestParent)
        #expect(domain.geometry.aperture.upperBound == 1 << configuration.addressBits - 1)
      }
    }
  }

  @Test("B13: VT-d: users' first stages pass as FSTS, FS5LP, SRS and EAFS offer them")
  func intelUsers() throws {
    for configuration in Configuration.of(.intel) where configuration.nests {
      let unit = configuration.intelCapabilities
      for width: UInt32 in [39, 48, 57] {
        for flags in 0..<8 {
          let flags = IntelNestedTable.Flags(rawValue: UInt64(flags))
          let table = IntelNestedTable(flags: flags, table: 0x1000, addressWidth: width)
          let offered =
            (width == 48 || width == 57 && unit.hasFiveLevelFirstStage)
            && (!flags.contains(.supervisor) || unit.has(.supervisorRequests))
            && (!flags.contains(.extendedAccessed) || unit.has(.extendedAccessed))
          #expect(passes { () throws(NestedTableError) in try table.check(unit) } == offered)
          guard offered else { continue }
          // Nested over what the engine's entry would be, hardware takes it.
          let levels = IntelSecondStage.levels(addressBits: configuration.addressBits)
          let parent = Words8(
            0x2000 | 2 << 6 | UInt64(levels - 2) << 2 | 1, 0x0080_0001, 0, 0, 0, 0, 0, 0)
          let entry = try IntelPASIDEntry(decoding: try table.entry(parent: parent, unit), unit)
          #expect(entry.translation == .nested)
          #expect(entry.firstStageLevels == (width == 57 ? 5 : 4))
        }
      }
    }
  }

  @Test("B8: AMD: GTSup, GIOSup, GCR3TRPMode, HDSup, HATS and PASmax agree with the tables")
  func amdTables() throws {
    for configuration in Configuration.of(.amd) {
      let iommu = configuration.amdCapabilities
      // What Linux's driver asks for before it makes a table to nest on.
      let nests =
        iommu.has(.guestTranslation) && iommu.has(.guestIO)
        && configuration.secondFeatureRegister & 8 != 0
      #expect(try configuration.makes(.nestParent) == nests)
      #expect(try configuration.makes(.dirtyTracking) == iommu.has(.hostDirty))
      if try configuration.makes(.pasid) {
        #expect(iommu.has(.guestTranslation))
        #expect(iommu.pasidWidth == Int(configuration.pasidBits))
      }
      let levels = IntelSecondStage.levels(addressBits: configuration.addressBits)
      #expect(levels <= iommu.mostHostLevels)
      if iommu.has(.guestTranslation) { #expect(min(levels, 5) <= iommu.mostGuestLevels) }
    }
  }

  @Test("B13: AMD: users' guest tables pass as GATS and GLXSup offer them")
  func amdUsers() throws {
    for configuration in Configuration.of(.amd) where configuration.nests {
      let iommu = configuration.amdCapabilities
      for paging: UInt64 in 0...1 {
        for glx: UInt64 in 0...2 {
          // V, TV, GIoV, GV, GLX, a GCR3 table.
          let words = Words4(
            1 << 58 | glx << 56 | 3 << 54 | 3, 0, paging << 54, 0)
          let offered = 4 + Int(paging) <= iommu.mostGuestLevels
          #expect(
            passes { () throws(NestedTableError) in
              _ = try AMDNestedEntry(decoding: words, iommu)
            } == offered)
          guard offered else { continue }
          let user = try AMDNestedEntry(decoding: words, iommu)
          let levels = UInt64(
            max(3, IntelSecondStage.levels(addressBits: configuration.addressBits)))
          let parent = AMDDeviceTableEntry(
            Words4(0x6000_0000_0000_2003 | levels << 9, 1, 0, 0))
          try user.entry(parent: parent, domain: 1).check(iommu)
        }
      }
    }
  }

  @Test("B8: SMMUv3: S1P, S2P, SSIDSIZE, HTTU and OAS agree with the tables that can be had")
  func smmuTables() throws {
    for configuration in Configuration.of(.smmuV3) {
      let smmu = configuration.smmuCapabilities
      #expect(try configuration.makes(.nestParent) == configuration.nests)
      if configuration.nests { #expect(smmu.hasStage1 && smmu.hasStage2) }
      #expect(try configuration.makes(.pasid) == (smmu.substreamIDWidth > 0))
      #expect(try configuration.makes(.dirtyTracking) == (smmu.hardwareUpdate == 2))
      if try configuration.makes(.pasid) { #expect(smmu.hasStage1) }
      #expect(smmu.outputAddressWidth == configuration.addressBits)
      #expect(configuration.stage == .first ? smmu.hasStage1 : smmu.hasStage2)
      // 6.3.1, 6.3.2: RES0 without what they go with.
      #expect(!smmu.hasPRI || smmu.hasATS)
      #expect(smmu.streamIDWidth < 7 || smmu.hasTwoLevelStreamTables)
    }
  }

  @Test("B13: SMMUv3: users' stream table entries and context descriptors are legal as offered")
  func smmuUsers() throws {
    for configuration in Configuration.of(.smmuV3) where configuration.nests {
      let smmu = configuration.smmuCapabilities
      // The engine's entry: Config 6, S2AA64, S2TG 4 KiB, S2PS as OAS.
      let bits = configuration.addressBits
      let levels = ArmStage2<Granule4KiB>.levels(configuration)
      let size = UInt64(64 - bits) | UInt64(levels - 2) << 6 | 1 << 19
      let code = UInt64([32, 36, 40, 42, 44, 48].firstIndex(of: bits) ?? 5)
      let parent = SMMUStreamTableEntry(
        Words8(0xD, 0, (size | code << 16) << 32 | 1, 0x10000, 0, 0, 0, 0))
      #expect(parent.illegality(smmu) == nil, "\(bits) bits")
      for count: UInt64 in [0, UInt64(configuration.pasidBits)] {
        for format: UInt64 in [0, 1, 2] {
          let words = Words2(count << 59 | 0x4000 | format << 4 | 0xB, 0)
          let user = try SMMUNestedEntry(decoding: words)
          #expect(user.entry(parent: parent).illegality(smmu) == nil)
        }
      }
      let tooMany = try SMMUNestedEntry(
        decoding: Words2(UInt64(configuration.pasidBits + 1) << 59 | 0x400B, 0))
      // Without substreams S1CDMax is not looked at.
      #expect(
        tooMany.entry(parent: parent).illegality(smmu)
          == (configuration.pasidBits > 0 ? .contextCount : nil))

      let entry = try SMMUNestedEntry(decoding: Words2(0x400B, 0)).entry(parent: parent)
      // T0SZ 16, EPD1, V, IPS as OAS, AA64, A, R; ASID 0xFFFF.
      let base: UInt64 = 0xFFFF_6200_C000_0010 | code << 32
      func reason(_ bits: UInt64) -> SMMUContextDescriptor.Illegality? {
        SMMUContextDescriptor(Words8(base | bits, 0x10000, 0, 0, 0, 0, 0, 0))
          .illegality(entry, smmu)
      }
      for granule: UInt64 in 0...2 { #expect(reason(granule << 6) == nil) }
      #expect(reason(3 << 6) == .granule)
      #expect(reason(3 << 42) == (configuration.tracksDirty ? nil : .hardwareUpdate))
      #expect(reason(1 << 44) == .stallNotSupported)
      #expect(reason(1 << 15) == .endianness)
    }
  }

  @Test("B13: RISC-V: users' modes pass as Sv39, Sv48 and Sv57 offer them, PD8 to PD20 too")
  func riscv() throws {
    for configuration in Configuration.of(.riscv) {
      let iommu = configuration.riscvCapabilities
      #expect(try configuration.makes(.nestParent) == configuration.nests)
      #expect(try configuration.makes(.pasid) == iommu.has(.pd8))
      #expect(try configuration.makes(.dirtyTracking) == iommu.has(.updatesAccessedDirty))
      let levels = configuration.levels
      for mode: UInt64 in 8...10 {
        let context = RISCVProcessContext(Words2(1, mode << 60 | 1))
        let offered = configuration.hasFirstStage && Int(mode) - 5 <= levels
        #expect((context.misconfiguration(iommu, is32Bit: false) == nil) == offered)
      }
      #expect(
        [RISCVCapabilities.Feature.sv39x4, .sv48x4, .sv57x4].count { iommu.has($0) }
          == (configuration.hasSecondStage ? levels - 2 : 0))
    }
  }
}
