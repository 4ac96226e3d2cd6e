// SPDX-License-Identifier: Apache-2.0
//
// What a port's DMA goes through, and which formats of tables the engine fills.

import IOMMU
import PageTables

/// What a port's DMA goes through, as the DMA path wants it: values, no references. Whoever
/// posts it keeps the table alive until the port has taken a later one.
enum PortContext: Sendable {
  case unknown
  case blocked
  /// Its device has not confirmed an invalidation: what it keeps is refused.
  case cutOff
  case host
  case intelFirstStage(PageTableRoot<IntelFirstStage>)
  case intelSecondStage(PageTableRoot<IntelSecondStage>)
  case amdV1(PageTableRoot<AMDv1>)
  case amdV2(PageTableRoot<AMDv2>)
  case armStage1(PageTableRoot<ArmStage1<Granule4KiB>>)
  case armStage2(PageTableRoot<ArmStage2<Granule4KiB>>)
  case riscvFirstStage(PageTableRoot<RISCVFirstStage>)
  case riscvSecondStage(PageTableRoot<RISCVSecondStage>)
  case process(ProcessRoot)
  case intelNested(IntelNestedRoot)
  case smmuNested(SMMUNestedRoot)
  case amdNested(AMDNestedRoot)
  case riscvNested(RISCVNestedRoot)
}

/// A format of which the engine makes tables.
protocol EngineFormat: PageTableFormat {
  /// A port's way through a table.
  static func portContext(_ root: PageTableRoot<Self>) -> PortContext
  /// How many levels an IOMMU's tables of this format have.
  static func levels(_ configuration: SoftwareIOMMU.Configuration) -> Int
  /// The addresses that they translate, in bits; nil for all that the levels do.
  static func addressBits(_ configuration: SoftwareIOMMU.Configuration) -> Int?
}

extension EngineFormat {
  static func levels(_ configuration: SoftwareIOMMU.Configuration) -> Int {
    configuration.levels
  }

  static func addressBits(_ configuration: SoftwareIOMMU.Configuration) -> Int? {
    configuration.addressBits
  }
}

extension IntelFirstStage: EngineFormat {
  static func portContext(_ root: PageTableRoot<Self>) -> PortContext { .intelFirstStage(root) }

  static func levels(_ configuration: SoftwareIOMMU.Configuration) -> Int {
    max(4, configuration.levels)
  }
}

extension IntelSecondStage: EngineFormat {
  static func portContext(_ root: PageTableRoot<Self>) -> PortContext {
    .intelSecondStage(root)
  }
}

extension AMDv1: EngineFormat {
  static func portContext(_ root: PageTableRoot<Self>) -> PortContext { .amdV1(root) }
}

extension AMDv2: EngineFormat {
  static func portContext(_ root: PageTableRoot<Self>) -> PortContext { .amdV2(root) }

  static func levels(_ configuration: SoftwareIOMMU.Configuration) -> Int {
    min(max(4, configuration.levels), 5)
  }
}

extension ArmStage1<Granule4KiB>: EngineFormat {
  static func portContext(_ root: PageTableRoot<Self>) -> PortContext { .armStage1(root) }
}

extension ArmStage2<Granule4KiB>: EngineFormat {
  static func portContext(_ root: PageTableRoot<Self>) -> PortContext { .armStage2(root) }

  /// The fewest with a root of up to 16 tables: 40 bits take 3.
  static func levels(_ configuration: SoftwareIOMMU.Configuration) -> Int {
    levels(addressBits: configuration.addressBits - extraRootBits)
  }
}

extension RISCVFirstStage: EngineFormat {
  static func portContext(_ root: PageTableRoot<Self>) -> PortContext { .riscvFirstStage(root) }
}

extension RISCVSecondStage: EngineFormat {
  static func portContext(_ root: PageTableRoot<Self>) -> PortContext {
    .riscvSecondStage(root)
  }

  /// Two more than the first stage: Sv39x4 translates 41.
  static func addressBits(_ configuration: SoftwareIOMMU.Configuration) -> Int? { nil }
}
