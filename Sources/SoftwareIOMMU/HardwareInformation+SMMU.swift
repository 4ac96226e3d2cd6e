// SPDX-License-Identifier: Apache-2.0
//
// What an SMMUv3's registers say of a configuration: Arm System Memory Management Unit
// Architecture version 3 (IHI 0070), sections 6.3.1 to 6.3.8, SMMU_IDR0 to SMMU_IDR5, SMMU_IIDR
// and SMMU_AIDR.

import HardwareTables

extension SoftwareIOMMU.Configuration {
  /// What the tables and commands of an SMMUv3 are checked against.
  var smmuCapabilities: SMMUCapabilities { smmuInformation.capabilities }

  /// SMMUv3.1, as what it says of itself is complete for that: 3.2 has S2FWB. IIDR is 0, as no
  /// implementer's number is ours.
  var smmuInformation: SMMUHardwareInformation {
    SMMUHardwareInformation(
      idr: SIMD8(smmuIDR0, smmuIDR1, 0, smmuIDR3, 0, smmuIDR5, 0, 0), iidr: 0, aidr: 1)
  }

  /// BTM, Hyp, MSI, SEV, ATOS, VMW and VATOS are clear.
  private var smmuIDR0: UInt32 {
    var register: UInt32 = .bit(0, hasSecondStage)  // S2P
    register |= .bit(1, hasFirstStage)  // S1P
    register |= .field(0b10, at: 2)  // TTF: AArch64
    register |= .bit(4)  // COHACC
    register |= .field(tracksDirty ? 2 : 0, at: 6)  // HTTU: access flag and dirty state
    register |= .bit(10, hasDeviceTLBs)  // ATS
    // NS1ATS: translations of both stages only.
    register |= .bit(11, hasDeviceTLBs && hasFirstStage && hasSecondStage)
    register |= .bit(12, hasFirstStage)  // ASID16
    register |= .bit(16, pageRequests)  // PRI
    register |= .bit(18, hasSecondStage)  // VMID16
    register |= .bit(19, hasFirstStage)  // CD2L: two-level tables of context descriptors
    register |= .field(0b10, at: 21)  // TTENDIAN: little
    register |= .field(0b01, at: 24)  // STALL_MODEL: nothing stalls, as PCI Express wants it
    register |= .bit(26)  // TERM_MODEL: what is terminated is aborted
    register |= .field(0b01, at: 27)  // ST_LEVEL: two-level stream tables too
    return register
  }

  private var smmuIDR1: UInt32 {
    var register: UInt32 = .field(32, at: 0)  // SIDSIZE: a requester id with its segment
    register |= .field(pasidBits, at: 6)  // SSIDSIZE
    // PRIQS: log 2 of the entries.
    let entries = pageRequests ? max(pageRequestQueueLength, 1) : 1
    register |= .field(min(entries.bitWidth - 1 - entries.leadingZeroBitCount, 19), at: 11)
    register |= .field(7, at: 16)  // EVENTQS
    register |= .field(8, at: 21)  // CMDQS
    return register
  }

  /// FWB, STT, E0PD, PTWNNC and DPT are clear, and PPS: the auto-generated response has no PASID
  /// unless the stream table entry asks for it.
  private var smmuIDR3: UInt32 {
    var register: UInt32 = .bit(2, hasFirstStage)  // HAD: CD.HAD0 and CD.HAD1
    register |= .bit(4, hasSecondStage)  // XNX: execution by privilege in stage 2
    register |= .bit(10)  // RIL: invalidation by range
    register |= .field(0b10, at: 11)  // BBML: level 2, nothing cached conflicts
    return register
  }

  /// DS and VAX are clear: 48 bits at most.
  private var smmuIDR5: UInt32 {
    var register: UInt32 = .field(Self.smmuAddressSize(addressBits), at: 0)  // OAS
    register |= .bit(4)  // GRAN4K
    // The engine's tables are of 4 KiB; users' above them may have the others.
    register |= .bit(5, nests)  // GRAN16K
    register |= .bit(6, nests)  // GRAN64K
    return register
  }

  /// The encoding of OAS: the smallest size that there is for so many bits.
  private static func smmuAddressSize(_ bits: Int) -> Int {
    let sizes = [32, 36, 40, 42, 44, 48]
    return sizes.firstIndex { $0 >= bits } ?? sizes.count - 1
  }
}
