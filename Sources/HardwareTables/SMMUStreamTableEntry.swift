// SPDX-License-Identifier: Apache-2.0
//
// The stream table entry of an SMMUv3: Arm System Memory Management Unit Architecture version
// 3 (IHI 0070), section 5.2. The Non-secure interface.

/// A stream table entry (STE) of 64 bytes: the fields, without any check.
public struct SMMUStreamTableEntry: Hashable, Sendable {
  public var words: Words8

  @inlinable
  public init(_ words: Words8) { self.words = words }

  /// V.
  @inlinable public var isValid: Bool { words[0].bit(0) }
  /// Config: 0 to 3 abort, 4 bypass, 5 stage 1, 6 stage 2, 7 both.
  @inlinable public var config: UInt8 { UInt8(words[0].bits(3, 1)) }
  /// Config[2], Config[0], Config[1].
  @inlinable public var passesTraffic: Bool { words[0].bit(3) }
  @inlinable public var hasStage1: Bool { words[0].bit(3) && words[0].bit(1) }
  @inlinable public var hasStage2: Bool { words[0].bit(3) && words[0].bit(2) }

  /// S1Fmt: 0 linear (3 too), 1 two levels of 4 KiB, 2 two levels of 64 KiB.
  @inlinable public var contextTableFormat: UInt8 { UInt8(words[0].bits(5, 4)) }
  /// S1ContextPtr, in bytes; an intermediate physical address where there is a stage 2.
  @inlinable public var contextTable: UInt64 { words[0] & .mask(55, 6) }
  /// S1CDMax: log 2 of the number of context descriptors; 0 is without substreams.
  @inlinable public var contextCountShift: UInt8 { UInt8(words[0].bits(63, 59)) }

  /// S1DSS: transactions without a substream are 0 terminated (3 too), 1 bypass stage 1,
  /// 2 use substream 0.
  @inlinable public var defaultSubstream: UInt8 { UInt8(words[1].bits(1, 0)) }
  /// S2FWB.
  @inlinable public var forcesWriteBack: Bool { words[1].bit(25) }
  /// MEV: records may be merged.
  @inlinable public var mergesEvents: Bool { words[1].bit(19) }
  /// PPAR: automatic responses carry the PASID.
  @inlinable public var responsesHavePASID: Bool { words[1].bit(18) }
  /// S1STALLD: stage 1 does not stall.
  @inlinable public var disablesStage1Stall: Bool { words[1].bit(27) }
  /// EATS: ATS is 0 off, 1 full, 2 of stage 1 only, 3 full with checks of permissions.
  @inlinable public var ats: UInt8 { UInt8(words[1].bits(29, 28)) }
  /// STRW: the StreamWorld, 0 EL1 or 2 EL2.
  @inlinable public var streamWorld: UInt8 { UInt8(words[1].bits(31, 30)) }

  /// S2VMID.
  @inlinable public var vmid: UInt16 { UInt16(words[2].bits(15, 0)) }
  /// S2T0SZ: stage 2 takes 64 - S2T0SZ bits.
  @inlinable public var stage2Size: UInt8 { UInt8(words[2].bits(37, 32)) }
  /// S2SL0, and S2SL0_2 above it.
  @inlinable
  public var stage2StartLevel: UInt8 {
    UInt8(words[2].bits(39, 38) | words[3].bits(2, 2) &<< 2)
  }
  /// S2TG; nil for the reserved value.
  @inlinable
  public var stage2Granule: SMMUGranule? { SMMUGranule(tg0: words[2].bits(47, 46)) }
  /// S2PS, in bits.
  @inlinable
  public var stage2OutputWidth: Int {
    SMMUCapabilities.addressWidth(Int(words[2].bits(50, 48)))
  }
  /// S2AA64.
  @inlinable public var stage2IsAArch64: Bool { words[2].bit(51) }
  /// S2ENDI.
  @inlinable public var stage2IsBigEndian: Bool { words[2].bit(52) }
  /// S2AFFD: access flags count as set.
  @inlinable public var stage2IgnoresAccessFlag: Bool { words[2].bit(53) }
  /// S2PTW: walks of stage 1 may not go through device memory.
  @inlinable public var protectsWalks: Bool { words[2].bit(54) }
  /// S2HD and S2HA.
  @inlinable public var stage2UpdatesDirty: Bool { words[2].bit(55) }
  @inlinable public var stage2UpdatesAccessFlag: Bool { words[2].bit(56) }
  /// S2S and S2R.
  @inlinable public var stage2Stalls: Bool { words[2].bit(57) }
  @inlinable public var stage2Records: Bool { words[2].bit(58) }
  /// S2HAFT: of tables too.
  @inlinable public var stage2UpdatesTables: Bool { words[2].bit(59) }

  /// S2DS: 52-bit addresses with granules of 4 and 16 KiB.
  @inlinable public var stage2HasLargeAddresses: Bool { words[3].bit(3) }
  /// S2TTB, in bytes.
  @inlinable public var stage2Table: UInt64 { words[3] & .mask(51, 4) }
}
