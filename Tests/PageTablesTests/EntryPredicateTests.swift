// SPDX-License-Identifier: Apache-2.0
//
// What formats say of one entry in two ways: in the steps of their specification, and in one
// comparison where walks spend their time.

import FuzzSupport
import Testing

@testable import PageTables

@Suite("B2: what formats say of an entry agrees with itself")
struct EntryPredicateTests {
  @Test(
    "B2: an entry points to a table where it is present, has no defect and is no leaf",
    arguments: 0..<12)
  func predicates(format: Int) {
    switch format {
    case 0: check(IntelFirstStage.self)
    case 1: check(AMDv2.self)
    case 2: check(ArmStage1<Granule4KiB>.self)
    case 3: check(ArmStage1<Granule16KiB>.self)
    case 4: check(ArmStage1<Granule64KiB>.self)
    case 5: check(RISCVFirstStage.self)
    case 6: check(IntelSecondStage.self)
    case 7: check(AMDv1.self)
    case 8: check(ArmStage2<Granule4KiB>.self)
    case 9: check(ArmStage2<Granule16KiB>.self)
    case 10: check(ArmStage2<Granule64KiB>.self)
    default: check(RISCVSecondStage.self)
    }
  }

  private func check<Format: PageTableFormat>(_ format: Format.Type)
  where Format.Configuration: RandomConfiguration {
    var random = Random(state: 0x7AB1E)
    var tables = 0
    var leaves = 0
    for _ in 0..<200_000 {
      let switches = Format.Configuration.random(&random)
      let level = Int.random(in: 1...Format.levelRange.upperBound, using: &random)
      let address = random.next() & 0xFFFF_FFFF_F000
      // A right entry with none to three bits changed, or any bits at all.
      var entry = Format.tableEntry(address, level: max(level, 2))
      for _ in 0..<Int.random(in: 0...3, using: &random) {
        entry ^= 1 << UInt64.random(in: 0..<64, using: &random)
      }
      if Int.random(in: 0..<4, using: &random) == 0 { entry = random.next() }
      let isSound =
        Format.isPresent(entry) && Format.defect(entry, level: level, switches) == nil
      let isLeaf = isSound && Format.isLeaf(entry, level: level)
      let isTable =
        isSound && !isLeaf && Format.childLevel(entry, level: level) == level - 1
      if Format.pointsToTable(entry, level: level, switches) != isTable {
        Issue.record("\(format), level \(level), \(String(entry, radix: 16)): \(switches)")
        return
      }
      if isTable { tables += 1 }
      guard isLeaf else { continue }
      leaves += 1
      let size: UInt64 = 1 << UInt64(Format.leafShift(entry, level: level))
      if Format.leafMask(entry, level: level) != size - 1 {
        Issue.record("\(format), level \(level), \(String(entry, radix: 16)): its mask")
        return
      }
    }
    #expect(tables > 1000 && leaves > 1000, "\(tables) tables, \(leaves) leaves")
  }
}
