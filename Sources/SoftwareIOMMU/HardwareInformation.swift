// SPDX-License-Identifier: Apache-2.0
//
// The registers that GET_HW_INFO shows, in agreement with the configuration.
// VT-d revision 4.1, sections 11.4.2 (capability register) and 11.4.3 (extended capability
// register); AMD 48882, MMIO offset 0030h (extended feature register) and 01A0h (second one).

import IOMMU

extension SoftwareIOMMU.Configuration {
  /// VT-d capability register.
  var capabilityRegister: UInt64 {
    guard architecture == .intel else { return 0 }
    var register: UInt64 = 6  // ND: 16-bit domain ids
    register |= 1 << UInt64(8 + levels - 2)  // SAGAW: bit 1 is 3 levels, 2 is 4, 3 is 5
    register |= UInt64(addressBits - 1) << 16  // MGAW
    register |= 1 << 22  // ZLR: zero-length reads
    register |= 0x22 << 24  // FRO: fault records at 16 × this
    register |= 0b11 << 34  // SSLPS: 2 MiB and 1 GiB leaves
    register |= 1 << 39  // PSI: invalidation by page
    register |= 7 << 40  // NFR: fault records, less one
    register |= 18 << 48  // MAMV: invalidation of up to 2^18 pages
    register |= 1 << 54  // DWD: invalidation waits for writes
    register |= 1 << 55  // DRD: and for reads
    return register
  }

  /// VT-d extended capability register.
  var extendedCapabilityRegister: UInt64 {
    guard architecture == .intel else { return 0 }
    var register: UInt64 = 1 << 0  // C: walks are coherent
    register |= 1 << 1  // QI: queued invalidation
    register |= 1 << 3  // IR: interrupt remapping
    register |= 1 << 6  // PT: pass-through
    if snoopControl { register |= 1 << 7 }  // SC
    register |= 0x50 << 8  // IRO: IOTLB registers at 16 × this
    register |= 0xF << 20  // MHMV
    if pasidBits > 0 {
      register |= UInt64(pasidBits - 1) << 35  // PSS
      register |= 1 << 40  // PASID
    }
    if pasidBits > 0 || tracksDirty {
      register |= 1 << 43  // SMTS: scalable mode
      register |= 1 << 46  // SSTS: second stage in scalable mode
    }
    if tracksDirty {
      register |= 1 << 45  // SSADS: accessed and dirty bits in second-stage entries
      register |= 1 << 48  // SMPWC: coherent page walks in scalable mode
    }
    return register
  }

  /// AMD extended feature register.
  var extendedFeatureRegister: UInt64 {
    guard architecture == .amd else { return 0 }
    var register: UInt64 = 1 << 6  // IASup: INVALIDATE_IOMMU_ALL
    register |= UInt64(min(max(levels, 4), 6) - 4) << 10  // HATS: 4, 5 or 6 levels
    if tracksDirty {
      register |= 1 << 49  // HASup: accessed bits in host tables
      register |= 1 << 52  // HDSup: dirty bits in host tables
    }
    return register
  }

  /// Linux: `struct iommu_hw_info_vtd` {u32 flags, u32 reserved, u64 cap, u64 ecap} (type 1)
  /// and `struct iommu_hw_info_amd` {u64 efr, u64 efr2} (type 4).
  var hardwareInformation: HardwareInformation {
    func bytes(_ value: UInt64) -> [UInt8] {
      (0..<8).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
    }
    switch architecture {
    case .intel:
      return HardwareInformation(
        type: 1,
        data: bytes(0) + bytes(capabilityRegister) + bytes(extendedCapabilityRegister))
    case .amd:
      return HardwareInformation(type: 4, data: bytes(extendedFeatureRegister) + bytes(0))
    case .smmuV3, .riscv:
      return HardwareInformation(type: 0, data: [])
    }
  }
}
