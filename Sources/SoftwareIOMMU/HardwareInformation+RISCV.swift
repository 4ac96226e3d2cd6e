// SPDX-License-Identifier: Apache-2.0
//
// What a RISC-V IOMMU's register says of a configuration: RISC-V IOMMU Architecture 1.0, section
// 5.3 (capabilities). Linux tells programs nothing of it.

import HardwareTables

extension SoftwareIOMMU.Configuration {
  /// What the tables and commands of a RISC-V IOMMU are checked against. `fctl` is 0.
  var riscvCapabilities: RISCVCapabilities {
    RISCVCapabilities(rawValue: riscvCapabilityRegister)
  }

  /// `capabilities`. Sv32, MSI_FLAT, MSI_MRIF, T2GPA, END, HPM, DBG and QOSID are clear; IGS is 0,
  /// messages.
  private var riscvCapabilityRegister: UInt64 {
    guard architecture == .riscv else { return 0 }
    var register: UInt64 = 0x10  // version 1.0
    for levels in 3...max(3, min(levels, 5)) {
      register |= .bit(9 + levels - 3, hasFirstStage)  // Sv39, Sv48, Sv57
      register |= .bit(17 + levels - 3, hasSecondStage)  // Sv39x4, Sv48x4, Sv57x4
    }
    register |= .bit(15)  // Svpbmt
    register |= .bit(24, tracksDirty)  // AMO_HWAD
    register |= .bit(25, hasDeviceTLBs)  // ATS
    register |= .field(56, at: 32)  // PAS
    register |= .bit(38, pasidBits > 0)  // PD8
    register |= .bit(39, pasidBits > 8)  // PD17
    register |= .bit(40, pasidBits > 17)  // PD20
    return register
  }
}
