// SPDX-License-Identifier: Apache-2.0
//
// What each kind of IOMMU has: the stage that Linux's driver chooses, levels, widths, and the
// formats' names.

import IOMMU
import SoftwareIOMMU

extension IOMMUDescription.Kind {
  /// Of the tables that Linux's driver fills, where nothing asks for the other.
  public var stage: IOMMUDescription.Stage {
    switch self {
    case .intel, .amd: .second
    case .smmuV3, .riscv: .first
    }
  }

  /// Levels that its tables may be said to have, each with the width of addresses in bits; empty
  /// where the width alone is said.
  func sizes(_ stage: IOMMUDescription.Stage) -> [(levels: Int, width: Int)] {
    switch (self, stage) {
    case (.intel, .second), (.riscv, _): [(3, 39), (4, 48), (5, 57)]
    case (.amd, .second): [(3, 39), (4, 48), (5, 57), (6, 64)]
    case (.intel, .first), (.amd, .first): [(4, 48), (5, 57)]
    case (.smmuV3, _): []
    }
  }

  /// Levels of its tables, where the file says so many or nothing.
  func levels(_ stage: IOMMUDescription.Stage, _ levels: Int?, width: Int) -> Int {
    guard self == .smmuV3 else { return levels ?? IOMMUDescription.levels(for: width) }
    // Of stage 2, up to 16 tables are one root.
    return IOMMUDescription.levels(for: stage == .second ? width - 4 : width)
  }

  /// Widths of addresses that its tables may have, in bits.
  func widths(_ stage: IOMMUDescription.Stage) -> [Int] {
    // SMMU_IDR5.OAS (IHI 0070, 6.3.6) up to what granules of 4 KiB have.
    self == .smmuV3 ? [32, 36, 40, 42, 44, 48] : sizes(stage).map(\.width)
  }
}

extension IOMMUDescription.DirtyTracking {
  /// As the machine file spells it.
  var word: String {
    switch self {
    case .none: "false"
    case .bits: "true"
    case .software: "software"
    }
  }
}

extension IOMMUDescription {
  /// Levels that a table of 9 bits a level over 4 KiB pages needs for `width` bits.
  static func levels(for width: Int) -> Int { (width - 12 + 8) / 9 }

  /// Width of the addresses that its kernel-managed tables translate, in bits.
  var tableWidth: Int { kind == .riscv && stage == .second ? addressWidth + 2 : addressWidth }

  /// The table format's name in print: `Intel second stage`.
  public var formatName: String {
    switch (kind, stage) {
    case (.intel, .first): "Intel first stage"
    case (.intel, .second): "Intel second stage"
    case (.amd, .first): "AMD v2"
    case (.amd, .second): "AMD v1"
    case (.smmuV3, .first): "SMMUv3 stage 1"
    case (.smmuV3, .second): "SMMUv3 stage 2"
    case (.riscv, .first): "RISC-V Sv\(addressWidth)"
    case (.riscv, .second): "RISC-V Sv\(addressWidth)x4"
    }
  }

  /// What the IOMMU is made of.
  func configuration(reserved: [ReservedRegion]) -> SoftwareIOMMU.Configuration {
    let architecture: SoftwareIOMMU.Architecture =
      switch kind {
      case .intel: .intel
      case .amd: .amd
      case .smmuV3: .smmuV3
      case .riscv: .riscv
      }
    return SoftwareIOMMU.Configuration(
      architecture: architecture, stage: stage == .first ? .first : .second, levels: levels,
      addressBits: addressWidth, reservedRegions: reserved,
      pasidBits: UInt8(clamping: pasidBits), pageRequests: pageRequests,
      snoopControl: snoopControl, tracksDirty: dirtyTracking == .bits,
      tracksDirtyInSoftware: dirtyTracking == .software, nests: nesting,
      maximumTablePages: Machine.maximumTablePages)
  }
}
