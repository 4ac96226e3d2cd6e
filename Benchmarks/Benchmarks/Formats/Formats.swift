// SPDX-License-Identifier: Apache-2.0
//
// The same operations on every page-table format: `Benchmarks/run` prints format × operation. The
// names say which: "OPERATION: FORMAT, N levels".

import Benchmark
import Fixtures

let benchmarks: @Sendable () -> Void = {
  for format in tableCases() { measure(format) }
  for format in nestedCases() {
    Benchmark("two-stage walk: \(format.name)", configuration: .repeated) {
      (benchmark, state: NestedOperations) in
      blackHole(try state.walk())
    } setup: {
      try format.make()
    }
  }
}

extension Benchmark.Configuration {
  /// Each long enough to be measured alone.
  fileprivate static var repeated: Self {
    Benchmark.Configuration(
      metrics: [.wallClock, .throughput], timeUnits: .nanoseconds, warmupIterations: 5,
      scalingFactor: .one, maxDuration: .milliseconds(200), maxIterations: 20_000)
  }
}

private func measure(_ format: TableCase) {
  Benchmark("walk: \(format.name)", configuration: .repeated) {
    (benchmark, state: TableOperations) in
    blackHole(try state.walk())
  } setup: {
    try format.make(true)
  }

  Benchmark("overlapping walk: \(format.name)", configuration: .repeated) {
    (benchmark, state: TableOperations) in
    blackHole(try state.overlappingWalk())
  } setup: {
    try format.make(true)
  }

  Benchmark("map + unmap: \(format.name)", configuration: .repeated) {
    (benchmark, state: TableOperations) in
    try state.mapAndUnmap(1000)
  } setup: {
    try format.make(false)
  }

  Benchmark("map 1 GiB: \(format.name)", configuration: .repeated) {
    (benchmark, state: TableOperations) in
    benchmark.startMeasurement()
    try state.mapGibibyte()
    benchmark.stopMeasurement()
    state.unmapGibibyte()
  } setup: {
    try format.make(false)
  }

  Benchmark("read dirty: \(format.name)", configuration: .repeated) {
    (benchmark, state: TableOperations) in
    blackHole(state.readDirty())
  } setup: {
    try format.make(true)
  }

  // In ten-thousandths, for a metric is a whole number.
  let tables = BenchmarkMetric.custom("tables", useScalingFactor: false)
  let held = BenchmarkMetric.custom("held", useScalingFactor: false)
  Benchmark(
    "bytes: \(format.name)",
    configuration: .init(
      metrics: [.throughput, tables, held], warmupIterations: 0, maxIterations: 1)
  ) { benchmark in
    let state = try format.make(false)
    try state.mapGibibyte()
    let overhead = state.overhead()
    benchmark.measurement(tables, Int(overhead.tables * 10_000))
    benchmark.measurement(held, Int(overhead.held * 10_000))
  }
}
