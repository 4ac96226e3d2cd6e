// SPDX-License-Identifier: Apache-2.0
//
// GET_HW_INFO's registers against values taken by hand from the specifications: VT-d revision 4.1,
// 11.4.2 and 11.4.3; AMD 48882, MMIO offsets 0030h and 01A0h; Arm SMMUv3 (IHI 0070), 6.3.1 to
// 6.3.8; RISC-V IOMMU 1.0, 5.3.

import HardwareTables
import IOMMU
import PageTables
import Testing

@testable import SoftwareIOMMU

typealias Configuration = SoftwareIOMMU.Configuration

/// Words of 64 bits, little-endian.
private func words(_ information: HardwareInformation) -> [UInt64] {
  stride(from: 0, to: information.data.count, by: 8).map { information.data.number(at: $0) }
}

private func information(_ configuration: Configuration) -> HardwareInformation {
  Bench(configuration).iommu.hardwareInformation(for: Bench.device)
}

@Suite("B8: registers say what the configuration gives")
struct RegisterTests {
  // MARK: VT-d

  @Test("B8: VT-d's CAP_REG and ECAP_REG (11.4.2, 11.4.3), bit by bit")
  func intel() {
    let standard = information(Configuration())
    #expect(standard.type == 1)
    // ND 6; SAGAW bit 2; MGAW 47; ZLR; FRO 22h; SSLPS 3; PSI; NFR 7; MAMV 18; DWD, DRD; FS1GP.
    // C, QI, IR, PT, SC; IRO 50h; MHMV 15; NEST (26); SRS (31); EAFS (34); SMTS (43), SSADS,
    // SSTS, FSTS, SMPWCS (45 to 48).
    #expect(words(standard) == [0, 0x01D2_078C_226F_0406, 0x0001_E804_84F0_50CB])
    // SAGAW bit 3, MGAW 56, FS5LP (60); DT (2), PRS (29), PSS 19 (35), PASID (40), RPS (49), no
    // SC.
    let full = Configuration(
      levels: 5, pasidBits: 20, pageRequests: true, snoopControl: false)
    #expect(words(information(full)) == [0, 0x11D2_078C_2278_0806, 0x0003_E99C_A4F0_504F])
    // Second stage alone, with dirty bits: scalable mode, and nothing of a first stage.
    let second = Configuration(nests: false)
    #expect(words(information(second)) == [0, 0x00D2_078C_226F_0406, 0x0001_6800_00F0_50CB])
    // SAGAW bit 1, MGAW 38. Legacy mode.
    let old = Configuration(levels: 3, tracksDirty: false, nests: false)
    #expect(words(information(old)) == [0, 0x00D2_078C_2266_0206, 0x0000_0000_00F0_50CB])
    // A first stage without nesting.
    let first = Configuration(stage: .first, tracksDirty: false, nests: false)
    #expect(words(information(first)) == [0, 0x01D2_078C_226F_0406, 0x0001_C804_80F0_50CB])
  }

  // MARK: AMD

  @Test("B8: AMD's extended feature registers (0030h, 01A0h), bit by bit")
  func amd() {
    let standard = information(Configuration(architecture: .amd))
    #expect(standard.type == 4)
    // NXSup, GTSup (3, 4), IASup (6), HATS and GATS 0, GLXSup 2 (14), PASmax 0, USSup (37), GIOSup,
    // HASup (48, 49), HDSup (52); GCR3TRPMode (3).
    #expect(words(standard) == [0x0013_0020_0000_8058, 0x8])
    // PPRSup (1), HATS 2 (10), GATS 1 (12), PASmax 15 (32), EPHSup (50).
    let full = Configuration(
      architecture: .amd, addressBits: 64, pasidBits: 16, pageRequests: true)
    #expect(words(information(full)) == [0x0017_002F_0000_985A, 0x8])
    // Host tables alone: HATS 1 (10).
    let old = Configuration(
      architecture: .amd, addressBits: 57, tracksDirty: false, nests: false)
    #expect(words(information(old)) == [0x0000_0000_0000_0440, 0])
    // PASIDs without nesting: PASmax 7, no GCR3TRPMode.
    let process = Configuration(
      architecture: .amd, pasidBits: 8, tracksDirty: false, nests: false)
    #expect(words(information(process)) == [0x0001_0027_0000_8058, 0])
  }

  // MARK: SMMUv3

  /// IDR0 to IDR5, IIDR and AIDR.
  private func registers(_ configuration: Configuration) -> [UInt32] {
    let words = words(information(configuration))
    #expect(words.count == 5 && words[0] == 0)
    return words.dropFirst().flatMap { [UInt32(truncatingIfNeeded: $0), UInt32($0 >> 32)] }
  }

  @Test("B8: SMMU_IDR0 to IDR5, IIDR and AIDR (6.3.1 to 6.3.8), bit by bit")
  func smmu() {
    let standard = Configuration(architecture: .smmuV3)
    #expect(information(standard).type == 2)
    // IDR0: S2P, S1P, TTF 2, COHACC (4), HTTU 2 (6), ASID16 (12), VMID16 (18), CD2L (19),
    // TTENDIAN 2 (21), STALL_MODEL 1 (24), TERM_MODEL (26), ST_LEVEL 1 (27).
    // IDR1: SIDSIZE 32, EVENTQS 7 (16), CMDQS 8 (21). IDR3: HAD (2), XNX (4), RIL (10), BBML 2
    // (11). IDR5: OAS 5, GRAN4K, 16K, 64K (4 to 6). AIDR: SMMUv3.1.
    #expect(
      registers(standard) == [0x0D4C_109B, 0x0107_0020, 0, 0x1414, 0, 0x75, 0, 1])
    // ATS (10), NS1ATS (11), PRI (16); SSIDSIZE 20 (6), PRIQS 9 (11).
    let full = Configuration(architecture: .smmuV3, pasidBits: 20, pageRequests: true)
    #expect(registers(full) == [0x0D4D_1C9B, 0x0107_4D20, 0, 0x1414, 0, 0x75, 0, 1])
    // Stage 2 alone, 40 bits: OAS 2. No HTTU, no HAD.
    let second = Configuration(
      architecture: .smmuV3, stage: .second, addressBits: 40, tracksDirty: false, nests: false)
    #expect(registers(second) == [0x0D44_0019, 0x0107_0020, 0, 0x1410, 0, 0x12, 0, 1])
    // Stage 1 alone: no VMID16, no XNX, no NS1ATS.
    let first = Configuration(architecture: .smmuV3, pageRequests: true, nests: false)
    #expect(registers(first) == [0x0D49_149A, 0x0107_4820, 0, 0x1404, 0, 0x15, 0, 1])
  }

  @Test(
    "B8: OAS is the smallest size for the width (6.3.6)",
    arguments: [(32, 0), (36, 1), (39, 2), (40, 2), (42, 3), (44, 4), (45, 5), (48, 5)])
  func outputSize(bits: Int, code: UInt32) {
    let configuration = Configuration(architecture: .smmuV3, addressBits: bits)
    #expect(registers(configuration)[5] & 7 == code)
  }

  // MARK: RISC-V

  @Test("B8: Linux tells nothing of a RISC-V IOMMU; its register (5.3) is for Swift")
  func riscv() {
    let standard = Configuration(architecture: .riscv)
    #expect(information(standard) == HardwareInformation(type: 0, data: []))
    // Version 1.0; Sv39, Sv48 (9, 10); Svpbmt (15); Sv39x4, Sv48x4 (17, 18); AMO_HWAD (24); PAS 56.
    #expect(standard.riscvCapabilities.rawValue == 0x0000_0038_0106_8610)
    // Sv57 and Sv57x4; ATS (25); PD8 and PD17 (38, 39).
    let full = Configuration(
      architecture: .riscv, levels: 5, pasidBits: 17, pageRequests: true)
    #expect(full.riscvCapabilities.rawValue == 0x0000_00F8_030E_8E10)
    let second = Configuration(
      architecture: .riscv, stage: .second, levels: 3, tracksDirty: false, nests: false)
    #expect(second.riscvCapabilities.rawValue == 0x0000_0038_0002_8010)
    let widest = Configuration(architecture: .riscv, pasidBits: 20)
    #expect(widest.riscvCapabilities.rawValue >> 38 & 7 == 7)
  }
}
