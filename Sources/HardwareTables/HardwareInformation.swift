// SPDX-License-Identifier: Apache-2.0
//
// What IOMMU_GET_HW_INFO tells of the hardware's registers, as in memory:
// include/uapi/linux/iommufd.h, struct iommu_hw_info_vtd, _arm_smmuv3 and _amd.

/// IOMMU_HW_INFO_TYPE_INTEL_VTD: 24 bytes.
public struct IntelHardwareInformation: Hashable, Sendable {
  /// IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17: second-stage tables must not be read-only.
  public var hasReadOnlyErratum: Bool
  /// CAP_REG and ECAP_REG.
  public var capability: UInt64
  public var extended: UInt64

  public init(capability: UInt64, extended: UInt64, hasReadOnlyErratum: Bool = false) {
    self.capability = capability
    self.extended = extended
    self.hasReadOnlyErratum = hasReadOnlyErratum
  }

  /// Three words, little-endian.
  public var words: SIMD3<UInt64> {
    SIMD3(.place(hasReadOnlyErratum, 0), capability, extended)
  }

  public init(decoding words: SIMD3<UInt64>) {
    self.init(
      capability: words[1], extended: words[2], hasReadOnlyErratum: words[0].bit(0))
  }

  public var capabilities: IntelCapabilities {
    IntelCapabilities(capability: capability, extended: extended)
  }
}

/// IOMMU_HW_INFO_TYPE_ARM_SMMUV3: 40 bytes.
public struct SMMUHardwareInformation: Hashable, Sendable {
  /// SMMU_IDR0 to SMMU_IDR5; what is not in [0...5] is 0.
  public var idr: SIMD8<UInt32>
  /// SMMU_IIDR and SMMU_AIDR.
  public var iidr: UInt32
  public var aidr: UInt32

  public init(idr: SIMD8<UInt32>, iidr: UInt32, aidr: UInt32) {
    self.idr = idr
    self.idr[6] = 0
    self.idr[7] = 0
    self.iidr = iidr
    self.aidr = aidr
  }

  /// Five words, little-endian; the rest is 0. Flags are all reserved.
  public var words: Words8 {
    var words = Words8()
    for index in 0..<3 {
      words[1 + index] = UInt64(idr[2 * index]) | UInt64(idr[2 * index + 1]) << 32
    }
    words[4] = UInt64(iidr) | UInt64(aidr) << 32
    return words
  }

  public init(decoding words: Words8) {
    var idr = SIMD8<UInt32>()
    for index in 0..<6 {
      let word = words[1 + index / 2]
      idr[index] = UInt32(index % 2 == 0 ? word.bits(31, 0) : word.bits(63, 32))
    }
    self.init(
      idr: idr, iidr: UInt32(words[4].bits(31, 0)), aidr: UInt32(words[4].bits(63, 32)))
  }

  public var capabilities: SMMUCapabilities {
    SMMUCapabilities(idr0: idr[0], idr1: idr[1], idr3: idr[3], idr5: idr[5])
  }
}

/// IOMMU_HW_INFO_TYPE_AMD: 16 bytes.
public struct AMDHardwareInformation: Hashable, Sendable {
  /// The two extended feature registers.
  public var efr: UInt64
  public var efr2: UInt64

  public init(efr: UInt64, efr2: UInt64) {
    self.efr = efr
    self.efr2 = efr2
  }

  public var words: Words2 { Words2(efr, efr2) }

  public init(decoding words: Words2) { self.init(efr: words[0], efr2: words[1]) }

  public var capabilities: AMDCapabilities { AMDCapabilities(rawValue: efr) }
}
