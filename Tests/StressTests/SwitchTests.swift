// SPDX-License-Identifier: Apache-2.0
//
// MODEL C2, D1: the switch between security contexts is one step. `swift run iommu-stress
// --switches` runs it for as long as asked.

import Stress
import Testing

@Suite("Switches") struct SwitchTests {
  @Test(
    "C2, C7, D1, D2: DMA under every kind of switch meets the old context or the new one",
    arguments: [1, 2] as [UInt64])
  func sound(seed: UInt64) throws {
    let report = try runSwitches(SwitchOptions(seed: seed, rounds: 10))
    #expect(report.failure == nil, "seed \(seed)")
    for kind in Switch.allCases {
      #expect(report.switches[kind] ?? 0 >= 10, "too seldom: \(kind.rawValue)")
    }
    #expect(report.accesses > 0)
  }

  @Test(
    "C2, D1: a driver that switches in two steps, in part or late is found out",
    arguments: Breakage.allCases)
  func broken(breakage: Breakage) throws {
    let report = try runSwitches(
      SwitchOptions(seed: 3, rounds: .max, maximumSwitches: 1_000_000, breakage: breakage))
    let failure = try #require(report.failure, "\(report.lines)")
    switch breakage {
    case .throughHost: #expect(failure.contains("met the host's memory"), "\(failure)")
    case .throughBlocked: #expect(failure.contains("met blocked"), "\(failure)")
    case .firstOnly: #expect(failure.contains("could meet"), "\(failure)")
    // Or it is met in a table that was emptied meanwhile.
    case .late: #expect(failure.hasPrefix("D1") || failure.hasPrefix("C2"), "\(failure)")
    }
  }
}
