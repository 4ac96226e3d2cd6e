// SPDX-License-Identifier: Apache-2.0
//
// Translation: the same page again, hits, misses, and random addresses over many mappings.

import Benchmark
import Dispatch
import IOMMU
import PageTables
import SoftwareIOMMU

extension Benchmark.Configuration {
  /// Nanoseconds for each of very many repetitions.
  static var repeated: Benchmark.Configuration {
    Benchmark.Configuration(
      metrics: [.wallClock, .throughput], timeUnits: .nanoseconds, warmupIterations: 3,
      scalingFactor: .kilo,
      maxDuration: .seconds(1), maxIterations: 5_000)
  }
  /// As `repeated`, over so many addresses that one pass is far longer than the clock's steps.
  static var sweep: Benchmark.Configuration {
    Benchmark.Configuration(
      metrics: [.wallClock, .throughput], timeUnits: .nanoseconds, warmupIterations: 2,
      scalingFactor: .mega,
      maxDuration: .seconds(2), maxIterations: 100)
  }
}

func translateBenchmarks() {
  Benchmark("translate: same page", configuration: .repeated) {
    (benchmark, state: Translating) in
    let address = IOVA(1 << 40 + 0x100)
    try state.port.transaction { port in
      benchmark.startMeasurement()
      for _ in benchmark.scaledIterations {
        blackHole(try port.translate(address, for: .read).address)
      }
      benchmark.stopMeasurement()
    }
  } setup: {
    try Translating(mappings: 1, size: 2 << 20)
  }

  sweep("translate: hit", mappings: 64, size: 4096)
  // One page in each of so many that neither cache holds it: each access walks four levels.
  sweep("translate: miss, 4 levels", mappings: 65_536, size: 4096, stride: true)
  for count in [1, 100, 1_000, 10_000, 100_000, 1_000_000] {
    sweep("translate: random over \(count)", mappings: count, size: 2 << 20)
  }

  Benchmark("translate: hit, 2 threads", configuration: .sweep) {
    (benchmark, states: [Translating]) in
    let ports = states.map(\.port)
    let addresses = Sequence64.addresses(1 << 16, base: 1 << 40, mappings: 64, size: 4096)
    let count = benchmark.scaledIterations.count
    benchmark.startMeasurement()
    DispatchQueue.concurrentPerform(iterations: 2) { index in
      blackHole(try? visit(addresses, port: ports[index], count: count))
    }
    benchmark.stopMeasurement()
  } setup: {
    [
      try Translating(mappings: 64, size: 4096),
      try Translating(mappings: 64, size: 4096, number: 1),
    ]
  }
}

private func sweep(_ name: String, mappings: Int, size: UInt64, stride: Bool = false) {
  Benchmark(name, configuration: .sweep) { (benchmark, state: Translating) in
    let addresses =
      stride
      ? (0..<65_536).map { (1 << 40) + UInt64($0) * 7919 % 65_536 * size }
      : Sequence64.addresses(1 << 20, base: 1 << 40, mappings: mappings, size: size)
    benchmark.startMeasurement()
    blackHole(try visit(addresses, port: state.port, count: benchmark.scaledIterations.count))
    benchmark.stopMeasurement()
  } setup: {
    try Translating(mappings: mappings, size: size)
  }
}

/// Translates each address in turn, around and around; 32 to a transaction, as a device holds
/// one for a piece of a copy rather than for each page.
private func visit(_ addresses: [UInt64], port: DMAPort, count: Int) throws -> UInt64 {
  var sum: UInt64 = 0
  var index = 0
  for _ in 0..<count / 32 {
    sum &+= try port.transaction { port throws(DMAFault) in
      var sum: UInt64 = 0
      for place in index..<index + 32 {
        sum &+= try port.translate(IOVA(addresses[place]), for: .read).address
      }
      return sum
    }
    index += 32
    if index == addresses.count { index = 0 }
  }
  return sum
}

/// A port whose device is attached to a space with so many mappings of one piece of memory.
private struct Translating {
  /// Keeps what the port goes through.
  let fixture: Fixture
  let port: DMAPort

  init(mappings: Int, size: UInt64, number: UInt8 = 0) throws {
    fixture = try Fixture(number: number)
    port = fixture.port
    let memory = try LocalMemory(byteCount: size, alignment: size)
    _ = try fixture.map(memory, count: mappings)
  }
}
