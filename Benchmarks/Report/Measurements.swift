// SPDX-License-Identifier: Apache-2.0
//
// What was measured, read from the benchmarks' results (JMH's JSON, one line a run) and the
// probe's lines; and how numbers and tables are printed.

import Foundation

/// Medians in nanoseconds, by name.
func measurements(engines: [String], probe: String) throws -> [String: [Double]] {
  var values: [String: [Double]] = [:]
  for line in try String(contentsOfFile: probe, encoding: .utf8).split(separator: "\n") {
    let fields = line.split(separator: "\t")
    guard fields.count == 2, let value = Double(fields[1]) else { continue }
    values[String(fields[0]), default: []].append(value)
  }
  for engine in engines {
    for line in try String(contentsOfFile: engine, encoding: .utf8).split(separator: "\n")
    where line.hasPrefix("[{") {
      for result in try JSONDecoder().decode([Result].self, from: Data(line.utf8)) {
        for (name, value) in result.medians { values[name, default: []].append(value) }
      }
    }
  }
  return values
}

struct Result: Decodable {
  var benchmark: String
  var secondaryMetrics: [String: Metric]

  /// Its time under its own name, and what else it measured under that and the metric's.
  var medians: [String: Double] {
    // "package.benchmark.TARGET.NAME".
    let last = benchmark.split(separator: ".", maxSplits: 3).last ?? ""
    let name = String(last.replacing("_", with: " "))
    var medians: [String: Double] = [:]
    for (key, metric) in secondaryMetrics {
      guard let median = metric.scorePercentiles["50.0"] else { continue }
      if key == "Time (wall clock)" {
        medians[name] = median * metric.nanoseconds
      } else {
        medians["\(key): \(name)"] = median
      }
    }
    return medians
  }

  struct Metric: Decodable {
    var scoreUnit: String
    var scorePercentiles: [String: Double]

    var nanoseconds: Double {
      switch scoreUnit.first {
      case "n": 1
      case "m": 1e6
      case "s": 1e9
      default: 1e3
      }
    }
  }
}

func show(_ nanoseconds: Double) -> String {
  switch nanoseconds {
  case ..<100: String(format: "%.1f ns", nanoseconds)
  case ..<10_000: String(format: "%.0f ns", nanoseconds)
  case ..<10_000_000: String(format: "%.1f µs", nanoseconds / 1e3)
  default: String(format: "%.1f ms", nanoseconds / 1e6)
  }
}

func median(_ values: [Double]?) -> Double? {
  guard let values, !values.isEmpty else { return nil }
  return values.sorted()[values.count / 2]
}

/// Lines of cells, padded so that columns begin below each other.
func show(_ table: [[String]]) {
  let columns = table.map(\.count).max() ?? 0
  let widths = (0..<columns).map { column in
    table.map { column < $0.count ? $0[column].count : 0 }.max() ?? 0
  }
  for line in table {
    let padded = zip(line, widths).map { $0 + String(repeating: " ", count: $1 - $0.count) }
    var text = padded.joined(separator: "  ")
    while text.last == " " { text.removeLast() }
    print(text)
  }
}
