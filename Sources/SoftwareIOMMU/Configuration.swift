// SPDX-License-Identifier: Apache-2.0
//
// What one software IOMMU is: a machine file's data, checked.

import IOMMU
import PageTables

extension SoftwareIOMMU {
  /// What an IOMMU of the machine can do. Constant while it exists.
  public struct Configuration: Hashable, Sendable {
    /// Which vendor's tables and registers it has.
    public enum Format: Hashable, Sendable {
      /// Intel VT-d second stage with 3 levels (39 bits), 4 (48) or 5 (57).
      case intelSecondStage(levels: Int)
      /// AMD host tables, as many levels as the address width needs.
      case amdV1
    }

    public var format: Format
    /// Width of the addresses that it translates, in bits.
    public var addressBits: Int
    /// Ranges that no address space may map, the MSI window included.
    public var reservedRegions: [ReservedRegion]
    /// Width of PASIDs in bits, 0 to 20; 0 is none. Host tables of AMD take none.
    public var pasidBits: UInt8
    /// Whether it can force accesses to snoop; then all its translations do.
    public var snoopControl: Bool
    /// Whether it keeps accessed and dirty bits in the page tables that ask for it. On by
    /// default, as in server processors of both vendors since 2022.
    public var tracksDirty: Bool
    /// Most table pages (of 4 KiB) that one page table may have.
    public var maximumTablePages: Int

    /// - Parameters:
    ///   - addressBits: nil for what the format translates (AMD: 48). Clamped to that, and
    ///     to at least 32, so that the MSI window exists.
    ///   - reservedRegions: Beside the MSI window, which every machine reserves.
    public init(
      format: Format = .intelSecondStage(levels: 4), addressBits: Int? = nil,
      reservedRegions: [ReservedRegion] = [], pasidBits: UInt8 = 0, snoopControl: Bool = true,
      tracksDirty: Bool = true, maximumTablePages: Int = .max
    ) {
      let widest: Int
      switch format {
      case .intelSecondStage(let levels):
        let levels = min(max(levels, 3), 5)
        self.format = .intelSecondStage(levels: levels)
        widest = IntelSecondStage.addressBits(levels: levels)
        self.addressBits = min(max(addressBits ?? widest, 32), widest)
        self.pasidBits = min(pasidBits, 20)
      case .amdV1:
        self.format = format
        self.addressBits = min(max(addressBits ?? 48, 32), 64)
        self.pasidBits = 0
      }
      self.reservedRegions =
        [ReservedRegion(InterruptRemapper.window, kind: .msi)]
        + reservedRegions.filter { $0.range != InterruptRemapper.window }
      self.snoopControl = snoopControl
      self.tracksDirty = tracksDirty
      self.maximumTablePages = maximumTablePages
    }

    /// Levels of its page tables.
    var levels: Int {
      switch format {
      case .intelSecondStage(let levels): levels
      case .amdV1: (addressBits - 12 + 8) / 9
      }
    }
  }
}
