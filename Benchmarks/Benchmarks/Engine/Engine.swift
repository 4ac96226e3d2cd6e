// SPDX-License-Identifier: Apache-2.0
//
// The benchmarks of the engine, in process. `Benchmarks/run` prints them beside their targets.

import Benchmark

let benchmarks: @Sendable () -> Void = {
  translateBenchmarks()
  mapBenchmarks()
  commandBenchmarks()
  copyBenchmarks()
  nvmeBenchmarks()
}
