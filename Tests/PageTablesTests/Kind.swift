// SPDX-License-Identifier: Apache-2.0
//
// Every format with every number of levels, as test arguments, and helpers of all suites.

import Testing

@testable import PageTables

/// A format with a number of levels, as a test argument.
enum Kind: CaseIterable, Sendable, CustomTestStringConvertible {
  case intel3, intel4, intel5, amd1, amd2, amd3, amd4, amd5, amd6
  case intelFirst4, intelFirst5, amdGuest4, amdGuest5
  case sv39, sv48, sv57, sv39x4, sv48x4, sv57x4
  case arm4KiB1, arm4KiB2, arm4KiB3, arm4KiB4, arm16KiB2, arm16KiB3, arm16KiB4
  case arm64KiB2, arm64KiB3
  case armStage2With4KiB2, armStage2With4KiB3, armStage2With4KiB4
  case armStage2With16KiB2, armStage2With16KiB3, armStage2With64KiB2, armStage2With64KiB3

  var testDescription: String { "\(self)" }

  /// Runs a generic test for this kind.
  func run(_ test: some TableTest) throws {
    switch self {
    case .intel3: try test.run(IntelSecondStage.self, levels: 3)
    case .intel4: try test.run(IntelSecondStage.self, levels: 4)
    case .intel5: try test.run(IntelSecondStage.self, levels: 5)
    case .amd1: try test.run(AMDv1.self, levels: 1)
    case .amd2: try test.run(AMDv1.self, levels: 2)
    case .amd3: try test.run(AMDv1.self, levels: 3)
    case .amd4: try test.run(AMDv1.self, levels: 4)
    case .amd5: try test.run(AMDv1.self, levels: 5)
    case .amd6: try test.run(AMDv1.self, levels: 6)
    case .intelFirst4: try test.run(IntelFirstStage.self, levels: 4)
    case .intelFirst5: try test.run(IntelFirstStage.self, levels: 5)
    case .amdGuest4: try test.run(AMDv2.self, levels: 4)
    case .amdGuest5: try test.run(AMDv2.self, levels: 5)
    case .sv39: try test.run(RISCVFirstStage.self, levels: 3)
    case .sv48: try test.run(RISCVFirstStage.self, levels: 4)
    case .sv57: try test.run(RISCVFirstStage.self, levels: 5)
    case .sv39x4: try test.run(RISCVSecondStage.self, levels: 3)
    case .sv48x4: try test.run(RISCVSecondStage.self, levels: 4)
    case .sv57x4: try test.run(RISCVSecondStage.self, levels: 5)
    case .arm4KiB1: try test.run(ArmStage1<Granule4KiB>.self, levels: 1)
    case .arm4KiB2: try test.run(ArmStage1<Granule4KiB>.self, levels: 2)
    case .arm4KiB3: try test.run(ArmStage1<Granule4KiB>.self, levels: 3)
    case .arm4KiB4: try test.run(ArmStage1<Granule4KiB>.self, levels: 4)
    case .arm16KiB2: try test.run(ArmStage1<Granule16KiB>.self, levels: 2)
    case .arm16KiB3: try test.run(ArmStage1<Granule16KiB>.self, levels: 3)
    case .arm16KiB4: try test.run(ArmStage1<Granule16KiB>.self, levels: 4)
    case .arm64KiB2: try test.run(ArmStage1<Granule64KiB>.self, levels: 2)
    case .arm64KiB3: try test.run(ArmStage1<Granule64KiB>.self, levels: 3)
    case .armStage2With4KiB2: try test.run(ArmStage2<Granule4KiB>.self, levels: 2)
    case .armStage2With4KiB3: try test.run(ArmStage2<Granule4KiB>.self, levels: 3)
    case .armStage2With4KiB4: try test.run(ArmStage2<Granule4KiB>.self, levels: 4)
    case .armStage2With16KiB2: try test.run(ArmStage2<Granule16KiB>.self, levels: 2)
    case .armStage2With16KiB3: try test.run(ArmStage2<Granule16KiB>.self, levels: 3)
    case .armStage2With64KiB2: try test.run(ArmStage2<Granule64KiB>.self, levels: 2)
    case .armStage2With64KiB3: try test.run(ArmStage2<Granule64KiB>.self, levels: 3)
    }
  }
}

protocol TableTest {
  func run<Format: PageTableFormat>(_ format: Format.Type, levels: Int) throws
}

/// Why a walk failed; nil where it did not.
func reason<Result>(_ body: () throws -> Result) -> WalkFault.Reason? {
  fault(body)?.reason
}

/// The fault of a walk; nil where there was none.
func fault<Result>(_ body: () throws -> Result) -> WalkFault? {
  do {
    _ = try body()
    return nil
  } catch {
    if let fault = error as? WalkFault { return fault }
    Issue.record("\(error)")
    return nil
  }
}

/// A leaf and its entry, written out by hand.
struct LeafVector: Sendable {
  var address: UInt64
  var shift: Int
  var level: Int
  var permissions: Permissions
  var attributes: LeafAttributes = []
  var entry: UInt64
}

/// Writes and reads a leaf.
func check<Format: PageTableFormat>(
  _ leaf: LeafVector, _ format: Format.Type,
  _ configuration: Format.Configuration = .init(), allows: Rights? = nil,
  sourceLocation: SourceLocation = #_sourceLocation
) {
  let entry = Format.leafEntry(
    leaf.address, shift: leaf.shift, level: leaf.level, permissions: leaf.permissions,
    attributes: leaf.attributes, configuration)
  #expect(
    entry == leaf.entry,
    "0x\(String(entry, radix: 16)), not 0x\(String(leaf.entry, radix: 16))",
    sourceLocation: sourceLocation)
  read(leaf, format, configuration, allows: allows, sourceLocation: sourceLocation)
}

/// Reads a leaf, of which `leafEntry` might have made another.
func read<Format: PageTableFormat>(
  _ leaf: LeafVector, _ format: Format.Type,
  _ configuration: Format.Configuration = .init(), allows: Rights? = nil,
  sourceLocation: SourceLocation = #_sourceLocation
) {
  let entry = leaf.entry
  #expect(Format.isPresent(entry), sourceLocation: sourceLocation)
  #expect(Format.isLeaf(entry, level: leaf.level), sourceLocation: sourceLocation)
  #expect(
    Format.defect(entry, level: leaf.level, configuration) == nil,
    sourceLocation: sourceLocation)
  #expect(
    Format.leafDefect(entry, level: leaf.level, writes: false, configuration) == nil,
    sourceLocation: sourceLocation)
  #expect(
    Format.address(entry, configuration) & ~Format.leafMask(entry, level: leaf.level)
      == leaf.address,
    sourceLocation: sourceLocation)
  #expect(
    Format.leafShift(entry, level: leaf.level) == leaf.shift, sourceLocation: sourceLocation)
  let rights = Format.effective(
    Format.rights(entry, level: leaf.level, configuration), configuration)
  if let allows {
    #expect(rights == allows, sourceLocation: sourceLocation)
  } else {
    #expect(
      rights.permissions(privileged: false).intersection(.readWrite)
        == Format.granted(leaf.permissions).intersection(.readWrite),
      sourceLocation: sourceLocation)
  }
}

extension PageTableFormat {
  /// Whether hardware stops at this entry whatever the access.
  static func refuses(
    _ entry: UInt64, level: Int, _ configuration: Configuration = .init()
  ) -> Bool { defect(entry, level: level, configuration) != nil }
}
