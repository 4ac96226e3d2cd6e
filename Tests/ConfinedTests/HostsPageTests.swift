// SPDX-License-Identifier: Apache-2.0
//
// docs/hosts.md has a table of what works on which host: it is what `iommu doctor` finds there.
//
//     UPDATE_PAGES=1 swift test --filter HostsPageTests      writes it anew

import Foundation
import Testing

@Suite struct HostsPageTests {
  /// A host that can be had here, and how the doctor is called on it.
  private struct Host: Sendable {
    var name: String
    var isRoot: Bool
    var doctor: @Sendable () throws -> Finished

    static let all = [
      Host("host, root") { try run([Built.iommu, "doctor", "--json"]) },
      Host("host, user", isRoot: false) {
        try run(lowered + [Built.iommu, "doctor", "--json"])
      },
      Host("host, user, no user namespaces", isRoot: false) {
        try confined(
          [Built.iommu, "doctor", "--json"],
          options: ["seccomp", "capabilities", "mounts"].flatMap { ["--without", $0] },
          as: .unprivileged)
      },
      Host("container, root") { try confined([Built.iommu, "doctor", "--json"]) },
      Host("container, user", isRoot: false) {
        try confined([Built.iommu, "doctor", "--json"], as: .nobody)
      },
      Host("container of Docker 20.10, root") {
        try confined([Built.iommu, "doctor", "--json"], options: ["--profile", "20.10"])
      },
    ]

    init(
      _ name: String, isRoot: Bool = true, _ doctor: @escaping @Sendable () throws -> Finished
    ) {
      (self.name, self.isRoot, self.doctor) = (name, isRoot, doctor)
    }

    private static var lowered: [String] {
      getuid() == 0 ? ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] : []
    }
  }

  /// What a doctor reports, as its JSON has it.
  private struct Report: Decodable {
    struct Finding: Decodable, Hashable {
      var feature, mechanism: String
      var works, required: Bool
      var lost, remedy: String

      enum CodingKeys: String, CodingKey {
        case feature, mechanism, works, required, remedy
        case lost = "lost-without"
      }
    }
    var works: Bool
    var findings: [Finding]
  }

  @Test("The table of hosts is what iommu doctor finds on each")
  func table() throws {
    let hosts = Host.all.filter { getuid() == 0 || !$0.isRoot }
    var reports: [(name: String, report: Report)] = []
    for host in hosts {
      let run = try host.doctor()
      let report = try JSONDecoder().decode(Report.self, from: Data(run.output.utf8))
      #expect(run.status == (report.works ? 0 : 1), "\(host.name): \(run)")
      reports.append((host.name, report))
    }
    let found = Self.markdown(reports)
    if ProcessInfo.processInfo.environment["UPDATE_PAGES"] != nil {
      try Page.write(table: found.joined(separator: "\n"))
    }
    // On the page are the hosts of a kernel that has all; what this one lacks nobody can compare.
    let missing = reports[0].report.findings.filter { !$0.works }.map(\.mechanism)
    let page = Self.rows(try Page.table().split(separator: "\n").map(String.init))
    let own = Self.rows(found)
    for row in own where !missing.contains(row["how"] ?? "") {
      let same = page.first { $0["what"] == row["what"] && $0["how"] == row["how"] }
      for (column, value) in row {
        #expect(
          same?[column] == value,
          "docs/hosts.md: \(row["what"] ?? ""), \(column); UPDATE_PAGES=1 writes it anew")
      }
    }
    if missing.isEmpty, getuid() == 0 { #expect(page.count == own.count) }
  }

  /// A table's rows, by the names of its columns.
  private static func rows(_ lines: [String]) -> [[String: String]] {
    func cells(_ line: String) -> [String] {
      line.split(separator: "|", omittingEmptySubsequences: false).dropFirst().dropLast()
        .map { $0.trimmingCharacters(in: .whitespaces) }
    }
    let head = cells(lines.first ?? "")
    return lines.dropFirst(2).map { line in
      Dictionary(zip(head, cells(line))) { first, _ in first }
    }
  }

  /// The table's lines, the head and its rule first.
  private static func markdown(_ reports: [(name: String, report: Report)]) -> [String] {
    // In the doctor's order; what only another host has comes after what it is another way to.
    var order: [Report.Finding] = []
    for (_, report) in reports {
      for finding in report.findings
      where !order.contains(where: { $0.mechanism == finding.mechanism }) {
        let last = order.lastIndex { $0.feature == finding.feature } ?? order.count - 1
        order.insert(finding, at: last + 1)
      }
    }
    func line(_ cells: [String]) -> String { "| " + cells.joined(separator: " | ") + " |" }
    var lines = [
      line(["what", "how"] + reports.map(\.name)),
      "|" + String(repeating: "---|", count: reports.count + 2),
    ]
    for row in order {
      lines.append(
        line(
          [row.feature, row.mechanism]
            + reports.map { _, report in
              report.findings.first { $0.mechanism == row.mechanism }
                .map { $0.works ? "yes" : $0.required ? "**no**" : "no" } ?? ""
            }))
    }
    lines.append(
      line(
        ["`iommu run`", ""] + reports.map { $0.report.works ? "works" : "**does not work**" }))
    return lines
  }
}

/// docs/hosts.md.
private enum Page {
  private static let file = URL(filePath: #filePath).deletingLastPathComponent()
    .deletingLastPathComponent().deletingLastPathComponent().appending(path: "docs/hosts.md")
  private static let (begin, end) = (
    "<!-- What follows is written by HostsPageTests. -->\n", "\n<!-- End of the table. -->"
  )

  /// The text before the table, the table, what comes after it.
  private static func parts() throws -> (before: String, table: String, after: String) {
    let text = try String(contentsOf: file, encoding: .utf8)
    let first = try #require(text.range(of: begin), "docs/hosts.md has a place for the table")
    let last = try #require(text.range(of: end), "docs/hosts.md has an end of the table")
    return (
      String(text[..<first.upperBound]), String(text[first.upperBound..<last.lowerBound]),
      String(text[last.lowerBound...])
    )
  }

  static func table() throws -> String { try parts().table }

  static func write(table: String) throws {
    let (before, _, after) = try parts()
    try (before + table + after).write(to: file, atomically: true, encoding: .utf8)
  }
}
