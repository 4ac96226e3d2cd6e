// SPDX-License-Identifier: Apache-2.0
//
// One table of what was measured: figure, target, ratio to its reference in the same run; and one
// of format × operation.

import Foundation

/// A line of the table.
struct Row {
  var what: String
  /// Name of a measurement, and by what to divide it.
  var name: String
  var divisor = 1.0
  /// nil where the target is a ratio.
  var target: Double?
  /// Another measurement, and what the ratio to it may be.
  var reference: Reference?

  struct Reference {
    var name: String
    var divisor = 1.0
    var word: String
    /// How the ratio is formed, and its limit; nil where it is for information.
    var kind: Kind
    var limit: Double?
  }

  enum Kind {
    /// Ours over the reference's: at most the limit.
    case times
    /// The reference's over ours: at least the limit.
    case share
    /// Ours less the reference's, in nanoseconds: at most the limit.
    case above
  }
}

let million = 1e6
let thousand = 1e3

let rows: [Row] = [
  Row(
    what: "translate, same page again", name: "translate: same page", divisor: thousand,
    target: 3),
  Row(what: "translate, IOTLB hit", name: "translate: hit", divisor: million, target: 10),
  Row(
    what: "translate, IOTLB hit, 2 threads", name: "translate: hit, 2 threads",
    divisor: 2 * million,
    reference: .init(
      name: "translate: hit", divisor: million, word: "rate of one thread", kind: .share,
      limit: 1.8)),
  Row(
    what: "translate, miss, 4 levels", name: "translate: miss, 4 levels", divisor: million,
    target: 60),
  Row(
    what: "translate, random over 1 mapping", name: "translate: random over 1", divisor: million
  ),
  Row(
    what: "translate, random over 100 mappings", name: "translate: random over 100",
    divisor: million, target: 15),
  Row(
    what: "translate, random over 1,000", name: "translate: random over 1000", divisor: million,
    target: 20),
  Row(
    what: "translate, random over 10,000", name: "translate: random over 10000",
    divisor: million, target: 40),
  Row(
    what: "translate, random over 100,000", name: "translate: random over 100000",
    divisor: million, target: 80),
  Row(
    what: "translate, random over 1,000,000", name: "translate: random over 1000000",
    divisor: million),
  Row(what: "map + unmap 4 KiB", name: "map + unmap 4 KiB", divisor: thousand, target: 250),
  Row(
    what: "map + unmap 4 KiB, no table", name: "map + unmap 4 KiB, no table",
    divisor: thousand, target: 230),
  Row(what: "map + unmap 2 MiB", name: "map + unmap 2 MiB", divisor: thousand),
  Row(what: "map + unmap 1 GiB", name: "map + unmap 1 GiB", divisor: thousand),
  Row(what: "map 1 GiB", name: "map 1 GiB", target: 5_000),
  Row(
    what: "map + unmap 64 MiB in 4 KiB leaves", name: "map + unmap 64 MiB in 4 KiB leaves",
    target: 850_000),
  Row(
    what: "IOAS_MAP + IOAS_UNMAP 4 KiB, no table",
    name: "IOAS MAP + IOAS UNMAP 4 KiB, no table", divisor: thousand, target: 230),
  Row(
    what: "IOAS_MAP + IOAS_UNMAP 4 KiB, one table",
    name: "IOAS MAP + IOAS UNMAP 4 KiB, one table", divisor: thousand, target: 950),
  Row(
    what: "IOAS_MAP + IOAS_UNMAP 64 MiB in 4 KiB leaves",
    name: "IOAS MAP + IOAS UNMAP 64 MiB in 4 KiB leaves", target: 850_000),
  Row(
    what: "copy engine, 1 MiB, in process", name: "copy engine: 1 MiB", divisor: 64,
    reference: .init(
      name: "memcpy: 1 MiB", divisor: 64, word: "of memcpy", kind: .share, limit: 0.8)),
  Row(
    what: "NVMe, a random read of 4 KiB, 32 at a time, in process",
    name: "NVMe: 4 KiB random reads", divisor: 100 * thousand, target: 10_000),
  Row(
    what: "NVMe, the same of another process's shared memory", name: "NVMe read shared",
    target: 10_000),
  Row(
    what: "NVMe, the same of another process's private memory", name: "NVMe read private",
    target: 10_000),
  Row(
    what: "NVMe, from a doorbell to the completion, 512 bytes, shared memory",
    name: "doorbell shared", target: 5_000),
  Row(
    what: "NVMe, from a doorbell to the completion, 512 bytes, private memory",
    name: "doorbell private"),
  Row(
    what: "copy engine, 1 MiB, another process's shared memory", name: "copy shared",
    reference: .init(name: "memcpy shared", word: "of memcpy", kind: .share, limit: 0.6)),
  Row(
    what: "copy engine, 1 MiB, another process's private memory", name: "copy private",
    reference: .init(name: "memcpy private", word: "of memcpy", kind: .share, limit: 0.6)),
  Row(
    what: "a trapped ioctl", name: "call",
    reference: .init(
      name: "notification", word: "× an empty notification", kind: .times, limit: 1.3)),
  Row(
    what: "a load from a mapped register", name: "register",
    reference: .init(
      name: "fault", word: "× an empty SIGBUS and ptrace round trip", kind: .times, limit: 1.5)),
  Row(what: "the same register by pread", name: "register by pread"),
  Row(
    what: "a stat of the host's file, view by paths", name: "path",
    reference: .init(
      name: "path notification", word: "× its empty notification", kind: .times, limit: 1.3)),
  Row(
    what: "the least that can tell that it is the host's: read the path, look it up; in C",
    name: "path floor",
    reference: .init(name: "path notification", word: "× the empty notification", kind: .times)),
  Row(
    what: "a stat of the host's file, view by paths, against that least", name: "path",
    reference: .init(name: "path floor", word: "× the least", kind: .times, limit: 1.1)),
  Row(
    what: "a build's opens and stats, view by paths", name: "files by paths",
    reference: .init(
      name: "files in namespace", word: "× in a mount namespace", kind: .times, limit: 2)),
  Row(
    what: "iommu run -- true", name: "run true",
    reference: .init(name: "true", word: "more than true", kind: .above, limit: 30 * million)),
]

/// The cells of a row, and whether its target was missed.
func cells(_ row: Row, _ values: [String: [Double]]) -> (cells: [String], missed: Bool) {
  guard let measured = median(values[row.name]) else {
    return ([row.what, "not measured", "", "", ""], true)
  }
  let figure = measured / row.divisor
  var target = row.target.map { "≤ \(show($0))" } ?? ""
  var missed = row.target.map { figure > $0 } ?? false
  var ratio = row.target.map { String(format: "%.2f × target", figure / $0) } ?? ""
  if let reference = row.reference, let other = median(values[reference.name]) {
    let base = other / reference.divisor
    switch reference.kind {
    case .times:
      let value = figure / base
      ratio = String(format: "%.2f ", value) + reference.word + " (\(show(base)))"
      target = reference.limit.map { String(format: "≤ %.1f ×", $0) } ?? ""
      missed = reference.limit.map { value > $0 } ?? false
    case .share:
      let value = base / figure
      ratio = String(format: "%.2f ", value) + reference.word + " (\(show(base)))"
      target = reference.limit.map { String(format: "≥ %.1f ×", $0) } ?? ""
      missed = reference.limit.map { value < $0 } ?? false
    case .above:
      let value = figure - base
      ratio = "\(show(value)) \(reference.word) (\(show(base)))"
      target = reference.limit.map { "≤ \(show($0)) more" } ?? ""
      missed = reference.limit.map { value > $0 } ?? false
    }
  }
  let verdict = target.isEmpty ? "" : missed ? "MISSED" : "met"
  return ([row.what, show(figure), target, ratio, verdict], missed)
}

let arguments = CommandLine.arguments
guard arguments.count == 4 else {
  FileHandle.standardError.write(Data("Usage: report ENGINE FORMATS PROBE\n".utf8))
  exit(2)
}
let values = try measurements(engines: [arguments[1], arguments[2]], probe: arguments[3])
var table = [["what", "figure", "target", "ratio to its reference", ""]]
var missed: [String] = []
for row in rows {
  let line = cells(row, values)
  table.append(line.cells)
  if line.missed { missed.append(row.what) }
}
show(table)
print("")
let formats = formatTable(values)
show(formats.table)
missed += formats.missed
print("")
print(missed.isEmpty ? "All targets met." : "Missed: \(missed.joined(separator: "; ")).")
