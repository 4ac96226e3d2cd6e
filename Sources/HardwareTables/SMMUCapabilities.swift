// SPDX-License-Identifier: Apache-2.0
//
// What an SMMUv3 can do, as far as its tables and commands ask: Arm System Memory Management
// Unit Architecture version 3 (IHI 0070), sections 6.3.1 to 6.3.6, SMMU_IDR0 to SMMU_IDR5.

/// The ID registers of the Non-secure programming interface, of an implementation of SMMUv3.1
/// or later. Permission indirection and 128-bit descriptors are taken as not there.
public struct SMMUCapabilities: Hashable, Sendable {
  /// SMMU_IDR0, 1, 3 and 5.
  public var idr0: UInt32
  public var idr1: UInt32
  public var idr3: UInt32
  public var idr5: UInt32

  @inlinable
  public init(idr0: UInt32, idr1: UInt32, idr3: UInt32, idr5: UInt32) {
    self.idr0 = idr0
    self.idr1 = idr1
    self.idr3 = idr3
    self.idr5 = idr5
  }

  @inlinable @inline(__always)
  func field(_ register: UInt32, _ high: Int, _ low: Int) -> Int {
    Int(truncatingIfNeeded: UInt64(register).bits(high, low))
  }

  /// S2P and S1P: the stages.
  @inlinable public var hasStage2: Bool { field(idr0, 0, 0) != 0 }
  @inlinable public var hasStage1: Bool { field(idr0, 1, 1) != 0 }
  /// TTF: tables of AArch32 (LPAE) and of AArch64.
  @inlinable public var hasAArch32Tables: Bool { field(idr0, 2, 2) != 0 }
  @inlinable public var hasAArch64Tables: Bool { field(idr0, 3, 3) != 0 }
  /// HTTU: 0 none, 1 access flag, 2 dirty state too, 3 access flag of tables too.
  @inlinable public var hardwareUpdate: Int { field(idr0, 7, 6) }
  /// Hyp: StreamWorld EL2.
  @inlinable public var hasHypervisorStreams: Bool { field(idr0, 9, 9) != 0 }
  @inlinable public var hasATS: Bool { field(idr0, 10, 10) != 0 }
  /// NS1ATS: split-stage ATS is not there.
  @inlinable public var lacksSplitStageATS: Bool { field(idr0, 11, 11) != 0 }
  @inlinable public var has16BitASID: Bool { field(idr0, 12, 12) != 0 }
  @inlinable public var hasPRI: Bool { field(idr0, 16, 16) != 0 }
  @inlinable public var has16BitVMID: Bool { field(idr0, 18, 18) != 0 }
  /// CD2L: two-level tables of context descriptors.
  @inlinable public var hasTwoLevelContextTables: Bool { field(idr0, 19, 19) != 0 }
  /// TTENDIAN: 0 both, 2 little, 3 big.
  @inlinable public var endianness: Int { field(idr0, 22, 21) }
  /// STALL_MODEL: 0 stall and terminate, 1 no stall, 2 stall always.
  @inlinable public var stallModel: Int { field(idr0, 25, 24) }
  /// TERM_MODEL: terminated transactions are aborted, never read as zero.
  @inlinable public var alwaysAborts: Bool { field(idr0, 26, 26) != 0 }
  /// ST_LEVEL: two-level stream tables.
  @inlinable public var hasTwoLevelStreamTables: Bool { field(idr0, 28, 27) == 1 }

  /// SIDSIZE and SSIDSIZE: bits of a StreamID and of a SubstreamID.
  @inlinable public var streamIDWidth: Int { field(idr1, 5, 0) }
  @inlinable public var substreamIDWidth: Int { field(idr1, 10, 6) }

  /// FWB: stage 2 sets memory types.
  @inlinable public var hasForcedWriteBack: Bool { field(idr3, 8, 8) != 0 }
  /// STT: small translation tables.
  @inlinable public var hasSmallTables: Bool { field(idr3, 9, 9) != 0 }
  /// RIL: invalidation by range, with level hints.
  @inlinable public var hasRangeInvalidation: Bool { field(idr3, 10, 10) != 0 }
  /// DPT: device permission table.
  @inlinable public var hasDevicePermissionTable: Bool { field(idr3, 15, 15) != 0 }

  /// DS: 52-bit addresses with granules of 4 and 16 KiB.
  @inlinable public var hasLargeAddresses: Bool { field(idr5, 7, 7) != 0 }
  /// VAX: 52-bit virtual addresses.
  @inlinable public var has52BitVirtual: Bool { field(idr5, 11, 10) >= 1 }

  /// OAS, in bits.
  @inlinable
  public var outputAddressWidth: Int { Self.addressWidth(field(idr5, 2, 0)) }
  /// IAS, in bits (3.4): at least 40 with AArch32 tables.
  @inlinable
  public var inputAddressWidth: Int {
    hasAArch32Tables ? Swift.max(40, outputAddressWidth) : outputAddressWidth
  }

  /// The encoding that OAS, CD.IPS and STE.S2PS share, in bits. 56 bits go with 128-bit
  /// descriptors only.
  @inlinable
  static func addressWidth(_ code: Int) -> Int {
    switch code {
    case 0: 32
    case 1: 36
    case 2: 40
    case 3: 42
    case 4: 44
    case 5: 48
    default: 52
    }
  }

  /// GRAN4K, GRAN16K and GRAN64K.
  @inlinable
  public func supports(_ granule: SMMUGranule) -> Bool {
    switch granule {
    case .size4KiB: field(idr5, 4, 4) != 0
    case .size16KiB: field(idr5, 5, 5) != 0
    case .size64KiB: field(idr5, 6, 6) != 0
    }
  }
}

/// A translation granule, by log 2 of its bytes.
public enum SMMUGranule: UInt8, Hashable, Sendable, CaseIterable {
  case size4KiB = 12
  case size16KiB = 14
  case size64KiB = 16

  /// The encoding of CD.TG0 and STE.S2TG; nil for the reserved value.
  @inlinable
  init?(tg0: UInt64) {
    switch tg0 {
    case 0: self = .size4KiB
    case 1: self = .size64KiB
    case 2: self = .size16KiB
    default: return nil
    }
  }

  /// The encoding of CD.TG1; nil for the reserved value.
  @inlinable
  init?(tg1: UInt64) {
    switch tg1 {
    case 1: self = .size16KiB
    case 2: self = .size4KiB
    case 3: self = .size64KiB
    default: return nil
    }
  }

  /// Bits of an address that one level resolves.
  @inlinable var stride: Int { Int(rawValue) - 3 }
}
