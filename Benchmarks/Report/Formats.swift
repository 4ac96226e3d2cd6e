// SPDX-License-Identifier: Apache-2.0
//
// Format × operation: each figure, and for walks the ratio to the fastest format with as many
// levels.

import Foundation

/// One operation: what the benchmark calls it, by what to divide, and what it may take.
private struct Operation {
  var name: String
  var title: String
  var divisor = 1.0
  /// In nanoseconds.
  var limit: Double?
  /// Whether formats with as many levels are compared, to be within 1.3 of each other.
  var isCompared = false
}

private let operations = [
  Operation(name: "walk", title: "walk", divisor: 1024, limit: 60, isCompared: true),
  Operation(name: "overlapping walk", title: "overlapping", divisor: 1024, limit: 60),
  Operation(
    name: "two-stage walk", title: "two stages", divisor: 1024, limit: 250, isCompared: true),
  Operation(name: "map + unmap", title: "map + unmap", divisor: 1000, limit: 250),
  Operation(name: "map 1 GiB", title: "map 1 GiB", limit: 3e6),
  Operation(name: "read dirty", title: "dirty, of 1,024 leaves"),
]

private let fairRatio = 1.3
private let byteRatio = 1.01

/// The table, and what missed its target.
func formatTable(_ values: [String: [Double]]) -> (table: [[String]], missed: [String]) {
  let prefix = "map + unmap: "
  let names = values.keys.filter { $0.hasPrefix(prefix) && $0.hasSuffix(" levels") }
    .map { String($0.dropFirst(prefix.count)) }.sorted()
  var missed: [String] = names.isEmpty ? ["formats: not measured"] : []
  // The fastest of each number of levels.
  var fastest: [String: Double] = [:]
  for operation in operations where operation.isCompared {
    for name in names {
      guard let time = median(values["\(operation.name): \(name)"]) else { continue }
      let key = operation.name + levels(name)
      fastest[key] = min(fastest[key] ?? .infinity, time)
    }
  }
  let limits = operations.map { operation in
    (operation.limit.map { "≤ \(show($0))" } ?? "")
      + (operation.isCompared ? String(format: ", ≤ %.1f ×", fairRatio) : "")
  }
  var table = [
    ["format, smallest leaves"] + operations.map(\.title) + ["tables", "with their pool"],
    ["target"] + limits + [String(format: "≤ %.2f × radix", byteRatio)],
  ]
  for name in names {
    var line = [name]
    for operation in operations {
      guard let measured = median(values["\(operation.name): \(name)"]) else {
        line.append("")
        continue
      }
      let figure = measured / operation.divisor
      var isMissed = operation.limit.map { figure > $0 } ?? false
      var cell = show(figure)
      if operation.isCompared, let best = fastest[operation.name + levels(name)] {
        cell += String(format: ", %.2f ×", measured / best)
        isMissed = isMissed || measured / best > fairRatio
      }
      line.append(cell + (isMissed ? " !" : ""))
      if isMissed { missed.append("\(operation.title) of \(name)") }
    }
    for metric in ["tables", "held"] {
      guard let share = median(values["\(metric): bytes: \(name)"]) else { continue }
      let isMissed = metric == "tables" && share / 10_000 > byteRatio
      line.append(String(format: "%.3f ×", share / 10_000) + (isMissed ? " !" : ""))
      if isMissed { missed.append("bytes of \(name)") }
    }
    table.append(line)
  }
  if let hit = median(values["translate: hit"]) {
    table.append(["IOTLB hit, whatever the format", show(hit / 1e6) + (hit > 10e6 ? " !" : "")])
  }
  return (table, missed)
}

/// The end of a name: "4 levels".
private func levels(_ name: String) -> String {
  name.split(separator: ",").last.map(String.init) ?? ""
}
