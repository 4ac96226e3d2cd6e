// SPDX-License-Identifier: Apache-2.0
//
// Every page-table format that is compared, and every pair of two stages that belong together. All
// generic code is specialised here, in closures (methods of generic classes are not); what uses
// them calls them for a thousand walks at a time.

import PageTables

/// A format with a number of levels.
public struct TableCase: Sendable {
  /// "FORMAT, N levels".
  public let name: String
  public let levels: Int
  /// log2 of a granule's bytes.
  public let granuleShift: Int
  /// A table of it, with walked pages where it is `filled`.
  public let make: @Sendable (_ filled: Bool) throws -> TableOperations

  /// Whether it is the number of levels that the granule is mostly used with.
  public var isUsual: Bool { levels == (granuleShift == 12 ? 4 : 3) }
}

/// Two stages with a number of levels each.
public struct NestedCase: Sendable {
  public let name: String
  public let levels: Int
  public let granuleShift: Int
  public let make: @Sendable () throws -> NestedOperations

  public var isUsual: Bool { levels == (granuleShift == 12 ? 4 : 3) }
}

public func tableCases() -> [TableCase] {
  [
    tables(IntelFirstStage.self, "Intel first stage", 4...5),
    tables(AMDv2.self, "AMD v2", 4...5),
    tables(ArmStage1<Granule4KiB>.self, "Arm stage 1, 4 KiB", 3...4),
    tables(ArmStage1<Granule16KiB>.self, "Arm stage 1, 16 KiB", 3...4),
    tables(ArmStage1<Granule64KiB>.self, "Arm stage 1, 64 KiB", 3...3),
    tables(RISCVFirstStage.self, "RISC-V Sv39, Sv48, Sv57", 3...5),
    tables(IntelSecondStage.self, "Intel second stage", 3...5),
    tables(AMDv1.self, "AMD v1", 3...6),
    tables(ArmStage2<Granule4KiB>.self, "Arm stage 2, 4 KiB", 3...4),
    tables(ArmStage2<Granule16KiB>.self, "Arm stage 2, 16 KiB", 3...3),
    tables(ArmStage2<Granule64KiB>.self, "Arm stage 2, 64 KiB", 3...3),
    tables(RISCVSecondStage.self, "RISC-V Sv39x4, Sv48x4, Sv57x4", 3...5),
  ].flatMap { $0 }
}

/// Named for the first stage.
public func nestedCases() -> [NestedCase] {
  [
    nested(IntelFirstStage.self, IntelSecondStage.self, "Intel first stage", 4...5),
    nested(AMDv2.self, AMDv1.self, "AMD v2", 4...5),
    nested(
      ArmStage1<Granule4KiB>.self, ArmStage2<Granule4KiB>.self, "Arm stage 1, 4 KiB", 3...4),
    nested(
      ArmStage1<Granule16KiB>.self, ArmStage2<Granule16KiB>.self, "Arm stage 1, 16 KiB", 3...3),
    nested(
      ArmStage1<Granule64KiB>.self, ArmStage2<Granule64KiB>.self, "Arm stage 1, 64 KiB", 3...3),
    nested(RISCVFirstStage.self, RISCVSecondStage.self, "RISC-V Sv39, Sv48, Sv57", 3...5),
  ].flatMap { $0 }
}

@inline(__always)
private func tables<Format: PageTableFormat>(
  _ format: Format.Type, _ name: String, _ range: ClosedRange<Int>
) -> [TableCase] {
  range.map { levels in
    TableCase(
      name: "\(name), \(levels) levels", levels: levels, granuleShift: Format.granuleShift
    ) { try tableOperations(format, levels: levels, isFilled: $0) }
  }
}

@inline(__always)
private func nested<First: PageTableFormat, Second: PageTableFormat>(
  _ first: First.Type, _ second: Second.Type, _ name: String, _ range: ClosedRange<Int>
) -> [NestedCase] {
  range.map { levels in
    NestedCase(
      name: "\(name), \(levels) levels", levels: levels, granuleShift: First.granuleShift
    ) { try nestedOperations(first, second, levels: levels) }
  }
}
