// SPDX-License-Identifier: Apache-2.0
//
// What VT-d's registers say of a configuration: Intel Virtualization Technology for Directed I/O,
// revision 4.1, sections 11.4.2 (capability register) and 11.4.3 (extended capability register).

import HardwareTables

extension SoftwareIOMMU.Configuration {
  /// Whether contexts are found in scalable mode. Without anything that needs it the unit is an
  /// old one: legacy mode only.
  var isScalable: Bool { hasFirstStage || tracksDirty }

  /// What the tables and queues of VT-d are checked against.
  var intelCapabilities: IntelCapabilities { intelInformation.capabilities }

  var intelInformation: IntelHardwareInformation {
    IntelHardwareInformation(
      capability: capabilityRegister, extended: extendedCapabilityRegister)
  }

  /// VT-d capability register. RWBF, CM (nothing is cached that is not present), PLMR, PHMR, PI,
  /// ESRTPS and ESIRTPS are clear.
  var capabilityRegister: UInt64 {
    guard architecture == .intel else { return 0 }
    var register: UInt64 = .field(6, at: 0)  // ND: 16-bit domain ids
    register |= .bit(8 + levels - 2)  // SAGAW: bit 1 is 3 levels, 2 is 4, 3 is 5
    register |= .field(addressBits - 1, at: 16)  // MGAW
    register |= .bit(22)  // ZLR: zero-length reads
    register |= .field(0x22, at: 24)  // FRO: fault records at 16 × this
    register |= .field(0b11, at: 34)  // SSLPS: 2 MiB and 1 GiB leaves
    register |= .bit(39)  // PSI: invalidation by page
    register |= .field(7, at: 40)  // NFR: fault records, less one
    register |= .field(18, at: 48)  // MAMV: invalidation of up to 2^18 pages
    register |= .bit(54)  // DWD: invalidation waits for writes
    register |= .bit(55)  // DRD: and for reads
    register |= .bit(56, hasFirstStage)  // FS1GP: first-stage leaves of 1 GiB
    register |= .bit(60, hasFirstStage && levels == 5)  // FS5LP: first stage of 5 levels
    return register
  }

  /// VT-d extended capability register. EIM, MTS, NWFS, DIT, PDS and VCS are clear; so is ERS
  /// (execute requests), for no device asks to execute.
  var extendedCapabilityRegister: UInt64 {
    guard architecture == .intel else { return 0 }
    var register: UInt64 = .bit(0)  // C: walks are coherent
    register |= .bit(1)  // QI: queued invalidation
    register |= .bit(2, hasDeviceTLBs)  // DT
    register |= .bit(3)  // IR: interrupt remapping
    register |= .bit(6)  // PT: pass-through
    register |= .bit(7, snoopControl)  // SC
    register |= .field(0x50, at: 8)  // IRO: IOTLB registers at 16 × this
    register |= .field(0xF, at: 20)  // MHMV
    register |= .bit(26, nests)  // NEST
    register |= .bit(29, pageRequests)  // PRS
    register |= .bit(31, hasFirstStage)  // SRS: walks know privilege
    register |= .bit(34, hasFirstStage)  // EAFS: the extended accessed bit
    if pasidBits > 0 {
      register |= .field(pasidBits - 1, at: 35)  // PSS
      register |= .bit(40)  // PASID
      register |= .bit(49)  // RPS: requests without PASID are not those of PASID 0
    }
    register |= .bit(43, isScalable)  // SMTS
    register |= .bit(45, tracksDirty)  // SSADS: accessed and dirty bits in the second stage
    register |= .bit(46, isScalable)  // SSTS: second stage in scalable mode
    register |= .bit(47, hasFirstStage)  // FSTS
    register |= .bit(48, isScalable)  // SMPWCS: walks of scalable mode are coherent
    return register
  }
}
