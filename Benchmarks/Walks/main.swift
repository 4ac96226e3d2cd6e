// SPDX-License-Identifier: Apache-2.0
//
// Walks every format with its usual number of levels, 1,024 times for each pass that it is told to
// make: what `Benchmarks/instructions` disassembles and counts.

import Fixtures

let passes = CommandLine.arguments.dropFirst().first.flatMap { Int($0) } ?? 1

do {
  var sum: UInt64 = 0
  for format in tableCases() where format.isUsual {
    let table = try format.make(true)
    for _ in 0..<passes { sum &+= try table.walk() }
  }
  for format in nestedCases() where format.isUsual {
    let tables = try format.make()
    for _ in 0..<passes { sum &+= try tables.walk() }
  }
  print("\(pageCount * UInt64(passes)) walks of each, to addresses that sum up to \(sum)")
} catch {
  print("a walk failed: \(error)")
}
