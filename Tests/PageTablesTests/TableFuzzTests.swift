// SPDX-License-Identifier: Apache-2.0
//
// What the suites of random operations and random entries do, from other seeds every time and
// for as long as asked.

import FuzzSupport
import Testing

@testable import PageTables

@Suite("B2: random operations and random entries, of every format")
struct TableFuzzTests {
  @Test("B2: random operations on every format agree with the model that has no tables")
  func operations() {
    struct Body: TableTest {
      let random: Random

      func run<Format: PageTableFormat>(_ format: Format.Type, levels: Int) throws {
        var random = random
        var run = TableRun<Format>(
          levels: levels, keepsDirty: random.bool(),
          maximumPages: random.bool() ? .max : Int.random(in: 1...64, using: &random),
          random: random)
        for _ in 0..<100 { try run.step() }
        run.end()
      }
    }
    Fuzzing.run("TableFuzzTests/operations") { random in
      for kind in Kind.allCases { try kind.run(Body(random: Random(state: random.next()))) }
    }
  }

  @Test("B2: walks of random entries of every family agree with the slow walks")
  func entries() {
    Fuzzing.run("TableFuzzTests/entries") { random in
      _ = RandomEntryTests.riscv(&random)
      _ = RandomEntryTests.x86(&random)
      _ = RandomEntryTests.arm(Granule4KiB.self, &random)
      _ = RandomEntryTests.arm(Granule16KiB.self, &random)
      _ = RandomEntryTests.arm(Granule64KiB.self, &random)
    }
  }
}
