// SPDX-License-Identifier: Apache-2.0
//
// Tables that users own, as the proposal's calls describe them: a format, a width and where the
// table begins, all given at once (MODEL B2, B9). Linux describes them in each vendor's own words:
// UserData.swift.

import PageTables
import SystemPackage

/// A table in a user's memory that an IOMMU walks, nested on one of the engine's.
public struct UserTable: Hashable, Sendable {
  /// What kind of table it is. The numbers are those of `IOASID_TYPE_…`.
  public enum Format: UInt32, CaseIterable, Hashable, Sendable {
    /// Intel VT-d first stage, in scalable mode. `IOASID_TYPE_INTEL_FIRST_STAGE`.
    case intelFirstStage = 2
    /// AMD guest (v2) page table. `IOASID_TYPE_AMD_GUEST`.
    case amdGuest = 3
    /// Arm SMMUv3 stage 1: VMSAv8-64, granule 4 KiB, the lower half (TTBR0).
    /// `IOASID_TYPE_ARM_SMMUV3_STAGE1`.
    case armStage1 = 4
    /// RISC-V first stage: Sv39, Sv48 or Sv57. `IOASID_TYPE_RISCV_FIRST_STAGE`.
    case riscvFirstStage = 5
    /// Arm SMMUv3 context descriptors in a row. `IOASID_TYPE_ARM_CD_TABLE`.
    case armContextDescriptors = 16
    /// The same in two levels, whose leaves are 4 KiB. `IOASID_TYPE_ARM_CD_TABLE_4K`.
    case armContextDescriptors4K = 17
    /// The same in two levels, whose leaves are 64 KiB. `IOASID_TYPE_ARM_CD_TABLE_64K`.
    case armContextDescriptors64K = 18
    /// AMD guest CR3 table, of page tables of 4 levels. `IOASID_TYPE_AMD_GCR3_TABLE`.
    case amdGuestCR3 = 19
    /// The same, of page tables of 5 levels. `IOASID_TYPE_AMD_GCR3_TABLE_5_LEVELS`.
    case amdGuestCR3FiveLevels = 20
    /// RISC-V process directory. `IOASID_TYPE_RISCV_PROCESS_DIRECTORY`.
    case riscvProcessDirectory = 21
  }

  public var format: Format
  /// In bits: of the addresses that a page table translates, or of the PASIDs that a PASID table
  /// has entries for.
  public var width: Int
  /// First byte, in the parent's addresses.
  public var root: UInt64

  public init(format: Format, width: Int, root: UInt64) {
    self.format = format
    self.width = width
    self.root = root
  }
}

extension UserTable.Format {
  /// Whether it is a table of PASIDs: one space stands for all PASIDs of a device (MODEL B9).
  public var isPASIDTable: Bool { rawValue >= 16 }

  /// The widths that its specification has.
  public var widths: UserTable.Widths {
    switch self {
    // VT-d 4.1, 9.6, FSPM; AMD 48882, 2.2.2.1, GuestPagingMode.
    case .intelFirstStage, .amdGuest: [48, 57]
    // VMSAv8-64, TxSZ 16 to 39; 52 bits would take FEAT_LPA2's descriptors.
    case .armStage1: .init(25...48)
    // RISC-V IOMMU 1.0, 2.1.3.6: fsc.MODE and pdtp.MODE.
    case .riscvFirstStage: [39, 48, 57]
    case .riscvProcessDirectory: [8, 17, 20]
    // IHI 0070, 5.2, S1CDMax; 0 is one descriptor, without substreams.
    case .armContextDescriptors: .init(0...20)
    case .armContextDescriptors4K: .init(7...20)
    case .armContextDescriptors64K: .init(11...20)
    // AMD 48882, 2.2.2.1, GLX: one, two or three levels of 9 bits; PASIDs have 20.
    case .amdGuestCR3, .amdGuestCR3FiveLevels: [9, 18, 20]
    }
  }

  /// What its first byte is a multiple of.
  var alignment: UInt64 {
    switch self {
    // IHI 0070, 5.2: S1ContextPtr has bits 51 to 6.
    case .armContextDescriptors: 64
    case .intelFirstStage, .amdGuest, .armStage1, .riscvFirstStage, .armContextDescriptors4K,
      .armContextDescriptors64K, .amdGuestCR3, .amdGuestCR3FiveLevels, .riscvProcessDirectory:
      4096
    }
  }

  /// Bits of the addresses that a pointer to it holds.
  var pointerBits: UInt64 {
    switch self {
    // 44 bits of page number.
    case .riscvFirstStage, .riscvProcessDirectory: 56
    default: 52
    }
  }
}

extension UserTable.Format: CustomStringConvertible {
  /// With its article, for sentences.
  public var description: String {
    switch self {
    case .intelFirstStage: "an Intel first-stage table"
    case .amdGuest: "an AMD guest (v2) table"
    case .armStage1: "an SMMUv3 stage 1 table"
    case .riscvFirstStage: "a RISC-V first-stage table"
    case .armContextDescriptors: "a table of SMMUv3 context descriptors"
    case .armContextDescriptors4K: "a two-level table of SMMUv3 context descriptors (4 KiB)"
    case .armContextDescriptors64K: "a two-level table of SMMUv3 context descriptors (64 KiB)"
    case .amdGuestCR3: "an AMD guest CR3 table"
    case .amdGuestCR3FiveLevels: "an AMD guest CR3 table of five-level tables"
    case .riscvProcessDirectory: "a RISC-V process directory"
    }
  }
}

extension UserTable {
  /// Widths in bits, 0 to 63.
  public struct Widths: Hashable, Sendable, ExpressibleByArrayLiteral {
    /// Bit n stands for n bits.
    public var rawValue: UInt64

    public init(rawValue: UInt64) { self.rawValue = rawValue }

    public init(arrayLiteral elements: Int...) {
      rawValue = elements.reduce(0) { $0 | 1 << UInt64($1) }
    }

    public init(_ range: ClosedRange<Int>) {
      rawValue = range.reduce(0) { $0 | 1 << UInt64($1) }
    }

    public func contains(_ width: Int) -> Bool {
      (0..<64).contains(width) && rawValue >> UInt64(width) & 1 != 0
    }

    /// Lowest first.
    public var all: [Int] { (0..<64).filter(contains) }
  }

  /// A format that an IOMMU walks, and in which widths.
  public struct Support: Hashable, Sendable {
    public var format: Format
    public var widths: Widths

    public init(_ format: Format, widths: Widths) {
      self.format = format
      self.widths = widths
    }
  }

  /// Refuses what no IOMMU could walk, whatever it supports.
  /// - Throws: `EINVAL`.
  func check() throws(IOMMUError) {
    guard format.widths.contains(width) else {
      throw IOMMUError(
        .invalidArgument,
        "\(format) is \(Self.list(format.widths)) bits wide, not \(width)")
    }
    guard root & (format.alignment - 1) == 0, root >> format.pointerBits == 0 else {
      throw IOMMUError(
        .invalidArgument,
        "\(format) begins at a multiple of \(format.alignment) below 2^\(format.pointerBits), "
          + "not at \(hex(root))")
    }
  }

  /// "39, 48 or 57".
  static func list(_ widths: Widths) -> String {
    let words = widths.all.map(String.init)
    guard let last = words.last, words.count > 1 else { return words.first ?? "no" }
    guard words.count < 4 else { return "\(words[0]) to \(last)" }
    return words.dropLast().joined(separator: ", ") + " or " + last
  }
}

/// What is to be forgotten of a user's table (MODEL G1), as the proposal says it.
public struct CacheInvalidation: Hashable, Sendable {
  /// Which caches.
  public struct Caches: OptionSet, Hashable, Sendable {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// The IOMMU's translations. `IOASID_CACHE_IOTLB`.
    public static let iotlb = Caches(rawValue: 1)
    /// A device's own translations (ATS). `IOASID_CACHE_DEVICE_TLB`.
    public static let deviceTLB = Caches(rawValue: 2)
    /// The IOMMU's entries of a PASID table. `IOASID_CACHE_PASID`.
    public static let pasid = Caches(rawValue: 4)
  }

  /// How much of each.
  public enum Granularity: Hashable, Sendable {
    /// All. `IOASID_INVALIDATE_DEVICE`.
    case device
    /// All of one PASID; 0 stands for DMA without one. `IOASID_INVALIDATE_PASID`.
    case pasid(PASID)
    /// Addresses of one PASID, both ends inclusive. `IOASID_INVALIDATE_RANGE`.
    case range(PASID, ClosedRange<UInt64>)
  }

  public var caches: Caches
  public var granularity: Granularity

  public init(_ granularity: Granularity, of caches: Caches) {
    self.granularity = granularity
    self.caches = caches
  }
}

// What a driver without such tables answers.
extension IOMMUDriver {
  public func userTables(for device: RequesterID) -> [UserTable.Support] { [] }

  public func makeUserTable(
    _ table: UserTable, for device: RequesterID, parent: any PagingDomain,
    attributes: PagingAttributes
  ) throws(IOMMUError) -> any NestedDomain {
    throw IOMMUError(.operationNotSupported, "\(name) does not walk \(table.format)")
  }
}

extension NestedDomain {
  public func invalidate(
    _ request: CacheInvalidation, of device: RequesterID?
  ) throws(IOMMUError) {
    throw IOMMUError(
      .operationNotSupported, "this IOMMU takes invalidations of its own formats only")
  }
}
