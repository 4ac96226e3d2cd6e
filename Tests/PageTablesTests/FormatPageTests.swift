// SPDX-License-Identifier: Apache-2.0
//
// docs/page-tables.md says of every format and feature where it is specified and what tests it:
// this is what keeps it true.

import Foundation
import Testing

@testable import PageTables

@Suite struct FormatPageTests {
  private static let root = URL(filePath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

  /// The page's sections, by the type that each is about; "" for what is about every format.
  private static func sections() throws -> [String: [[String]]] {
    let page = try String(
      contentsOf: root.appending(path: "docs/page-tables.md"), encoding: .utf8)
    var sections: [String: [[String]]] = [:]
    for section in page.components(separatedBy: "\n## ").dropFirst() {
      let name = section.firstMatch(of: #/(?m)^`(\w+)`\. Sections/#).map { String($0.1) } ?? ""
      sections[name] = section.split(separator: "\n").filter { $0.hasPrefix("| ") }.dropFirst()
        .map {
          $0.split(separator: "|", omittingEmptySubsequences: false)
            .map { $0.trimmingCharacters(in: .whitespaces) }
        }
    }
    return sections
  }

  @Test("B2: docs/page-tables.md has every format, with its features, sections and tests")
  func complete() throws {
    struct Names: TableTest {
      let names: Collected

      func run<Format: PageTableFormat>(_ format: Format.Type, levels: Int) throws {
        let name = String(describing: format)
        names.all.insert(String(name.prefix { $0 != "<" }))
      }
    }
    final class Collected { var all: Set<String> = [] }
    let names = Collected()
    for kind in Kind.allCases { try kind.run(Names(names: names)) }
    let sections = try Self.sections()
    #expect(Set(sections.keys) == names.all.union([""]))
    for (name, rows) in sections {
      #expect(rows.count >= 7, "\(name)")
      for row in rows {
        #expect(row.count == 5, "\(name): \(row)")
        #expect(!row[2].isEmpty && row[3].contains("\""), "\(name): \(row[1])")
      }
      // What every format has, under whatever name.
      for word in ["levels", "leaves", "tables", "ermissions", "accessed and dirty", "parent"]
      where name != "" {
        #expect(rows.contains { $0[1].contains(word) }, "\(name): \(word)")
      }
    }
  }

  @Test("B2: every test that docs/page-tables.md names exists")
  func named() throws {
    let directory = Self.root.appending(path: "Tests/PageTablesTests")
    let tests = try FileManager.default.contentsOfDirectory(atPath: directory.path)
      .filter { $0.hasSuffix(".swift") && $0 != "FormatPageTests.swift" }
      .map { try String(contentsOf: directory.appending(path: $0), encoding: .utf8) }.joined()
    let names = try Self.sections().values.joined().flatMap { row in
      row[3].matches(of: #/"([^"]+)"/#).map { String($0.1) }
    }
    #expect(names.count > 80)
    #expect(Set(names.filter { !tests.contains("\"\($0)\"") }) == [])
  }
}
