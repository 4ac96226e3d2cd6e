// SPDX-License-Identifier: Apache-2.0
//
// docs/security-model.md answers the seeds' questions by types and tests: this keeps it true.

import Foundation
import Testing

@Suite struct SecurityPageTests {
  /// The rows that the page has to have.
  private static let rows: Set<String> = [
    "A1", "A2", "A3", "A4", "B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "C1", "C2", "C3",
    "C4", "C5", "C6", "C7", "D1", "D2", "D3", "E1", "E2", "E3", "E4", "E5", "F1", "F2", "J2",
    "K1",
  ]

  private static func page() throws -> String {
    try DocumentationFiles.text("docs/security-model.md")
  }

  @Test("A1 to F2, J2, K1: each row of the model is answered, by a test and a mail")
  func complete() throws {
    var found: Set<String> = []
    for line in try Self.page().split(separator: "\n") {
      guard let row = line.firstMatch(of: #/^\| ([A-Z][0-9]) \|/#)?.1 else { continue }
      let cells = line.split(separator: "|").map { $0.trimmingCharacters(in: .whitespaces) }
      #expect(cells.count == 5, "\(row)")
      #expect(cells[3].contains("\""), "\(row) names a test")
      #expect(cells[4].wholeMatch(of: #/[a-ep](, [a-ep])*/#) != nil, "\(row) names a mail")
      found.insert(String(row))
    }
    #expect(found == Self.rows)
  }

  @Test("A1 to F2, J2, K1: every test that docs/security-model.md names exists")
  func named() throws {
    let page = try Self.page()
    let missing = try DocumentationFiles.missingTests(namedBy: page.drop { $0 != "|" })
    #expect(missing == [])
  }

  @Test("A1 to F2, J2, K1: every type and call that docs/security-model.md names exists")
  func types() throws {
    let sources =
      try DocumentationFiles.files("Sources", ".swift").map(DocumentationFiles.text).joined()
      + DocumentationFiles.files("Sources/CLinuxABI", ".h").map(DocumentationFiles.text)
      .joined()
    let names = try Self.page().matches(of: #/`([A-Z]\w+)(?:\.(\w+))?(?:\([^`]*\))?`/#)
    var missing: [String] = []
    for name in names {
      for part in [name.1, name.2].compactMap({ $0 }) where part.first != "E" || part.count > 9
      {
        if sources.firstMatch(of: try Regex("\\b\(part)\\b")) == nil {
          missing.append(String(part))
        }
      }
    }
    #expect(missing == [] && names.count > 40)
  }
}
