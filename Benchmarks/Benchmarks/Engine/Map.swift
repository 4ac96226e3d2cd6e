// SPDX-License-Identifier: Apache-2.0
//
// Mapping and unmapping, with one page table attached unless the name says otherwise.

import Benchmark
import IOMMU
import PageTables

func mapBenchmarks() {
  cycle("map + unmap 4 KiB", size: 4096, alignment: 4096)
  cycle("map + unmap 2 MiB", size: 2 << 20, alignment: 2 << 20)
  cycle("map + unmap 1 GiB", size: 1 << 30, alignment: 1 << 30)
  cycle("map + unmap 4 KiB, no table", size: 4096, alignment: 4096, attached: false)

  // Memory that lies a page off its IOVA modulo 2 MiB: no leaf can be larger than 4 KiB.
  Benchmark("map + unmap 64 MiB in 4 KiB leaves", configuration: .once) {
    (benchmark, state: Mapped) in
    let (fixture, memory) = (state.fixture, state.memory)
    for _ in benchmark.scaledIterations {
      try fixture.context.map(
        memory, start: 4096, length: 64 << 20, into: fixture.space, at: .fixed(IOVA(1 << 40)))
      try fixture.context.unmap(1 << 40...(1 << 40) + (64 << 20) - 1, from: fixture.space)
    }
  } setup: {
    try Mapped(size: 65 << 20, alignment: 2 << 20)
  }

  Benchmark("map 1 GiB", configuration: .once) { (benchmark, state: Mapped) in
    let (fixture, memory) = (state.fixture, state.memory)
    benchmark.startMeasurement()
    try fixture.context.map(
      memory, start: 0, length: 1 << 30, into: fixture.space, at: .fixed(IOVA(1 << 40)))
    benchmark.stopMeasurement()
    try fixture.context.unmap(1 << 40...(1 << 40) + (1 << 30) - 1, from: fixture.space)
  } setup: {
    try Mapped(size: 1 << 30, alignment: 1 << 30)
  }
}

extension Benchmark.Configuration {
  /// Long enough to be measured alone.
  static var once: Benchmark.Configuration {
    Benchmark.Configuration(
      metrics: [.wallClock, .throughput], timeUnits: .nanoseconds, warmupIterations: 3,
      scalingFactor: .one,
      maxDuration: .seconds(1), maxIterations: 2_000)
  }
}

private func cycle(_ name: String, size: UInt64, alignment: UInt64, attached: Bool = true) {
  Benchmark(name, configuration: .repeated) { (benchmark, state: Mapped) in
    let (fixture, memory, space) = (state.fixture, state.memory, state.space)
    let range = UInt64(1 << 40)...(1 << 40) + size - 1
    for _ in benchmark.scaledIterations {
      try fixture.context.map(
        memory, start: 0, length: size, into: space, at: .fixed(IOVA(1 << 40)))
      try fixture.context.unmap(range, from: space)
    }
  } setup: {
    try Mapped(size: size, alignment: alignment, attached: attached)
  }
}

/// What a mapping benchmark works on.
private struct Mapped {
  let fixture: Fixture
  let memory: LocalMemory
  let space: ObjectID

  init(size: UInt64, alignment: UInt64, attached: Bool = true) throws {
    fixture = try Fixture()
    memory = try LocalMemory(byteCount: size, alignment: alignment)
    space = attached ? fixture.space : try fixture.context.allocateIOAS()
  }
}
