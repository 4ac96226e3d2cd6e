// SPDX-License-Identifier: Apache-2.0
//
// The stress test for a moment; `swift run iommu-stress` runs it for as long as asked. Under the
// thread sanitizer it is the test of the locks.

import Stress
import Testing

@Suite struct StressTests {
  @Test(
    "A4, B1, C2, D1, G2: everything at once breaks no invariant and leaves nothing",
    arguments: [1, 2] as [UInt64])
  func everythingAtOnce(seed: UInt64) throws {
    let report = try runStress(
      StressOptions(seconds: 1, threads: 8, seed: seed, doesEverything: true))
    #expect(report.failure == nil, "seed \(seed)")
    for operation in Operation.allCases {
      #expect(report.counts[operation] ?? 0 > 0, "never done: \(operation.rawValue)")
    }
  }
}
