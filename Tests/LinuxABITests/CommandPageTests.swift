// SPDX-License-Identifier: Apache-2.0
//
// docs/commands.md says of every command and flag what tests it: this is what keeps it true.

import Foundation
import Testing

@Suite struct CommandPageTests {
  @Test("L: every command and flag of the headers has a row in docs/commands.md")
  func complete() throws {
    let page = try DocumentationFiles.text("docs/commands.md")
    let named = Set(
      page.matches(of: #/`((?:IOMMU|IOMMUFD|VFIO|IOASID|KVM)_\w+)`/#).map { String($0.1) })
    let headers = [
      "iommufd_abi.h", "iommufd_selftest_abi.h", "vfio_abi.h", "ioasid_abi.h", "kvm_abi.h",
    ]
    for file in headers {
      let header = try DocumentationFiles.text("Sources/CLinuxABI/include/\(file)")
      let names = header.matches(of: #/(?m)^[#]define ([A-Z]\w+) /#).map { String($0.1) }
      #expect(names.count > 10, "\(file) was read")
      let missing = names.filter { !Self.isPlumbing($0) && !named.contains($0) }
      #expect(missing == [], "of \(file)")
    }
  }

  /// What the numbers of commands are made of, indices of an array, masks, the mock's figures.
  private static func isPlumbing(_ name: String) -> Bool {
    name.hasPrefix("IOMMUFD_CMD_") || name.hasPrefix("IOMMUFD_TYPE")
      || name.contains("SELFTEST") || name.contains("_ABI_H") || name.hasPrefix("MOCK_")
      || name.hasPrefix("IOMMU_TEST_") && !name.hasPrefix("IOMMU_TEST_OP_")
      || ["VFIO_TYPE", "VFIO_BASE", "VFIO_API_VERSION", "KVM_TYPE", "KVM_API_VERSION"]
        .contains(name)
      || name.hasPrefix("VFIO_PCI_") && name.hasSuffix("_INDEX")
      || name.hasPrefix("VFIO_PCI_NUM_") || name.hasSuffix("_MASK")
  }

  @Test("L: every test that docs/commands.md names exists")
  func named() throws {
    let page = try DocumentationFiles.text("docs/commands.md")
    #expect(try DocumentationFiles.missingTests(namedBy: page[...]) == [])
  }
}

/// Pages of the documentation, and what they name.
enum DocumentationFiles {
  private static let root = URL(filePath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

  static func text(_ path: String) throws -> String {
    try String(contentsOf: root.appending(path: path), encoding: .utf8)
  }

  static func files(_ directory: String, _ suffix: String) -> [String] {
    let names = FileManager.default.enumerator(atPath: root.appending(path: directory).path)
    return (names?.compactMap { $0 as? String } ?? [])
      .filter { $0.hasSuffix(suffix) && !$0.hasPrefix(".build") }
      .map { "\(directory)/\($0)" }
  }

  /// The tests in quotes, and cases as `group.name`, that a page names and that are not there.
  static func missingTests(namedBy page: Substring) throws -> [String] {
    let tests = try files("Tests", ".swift").map(text).joined()
    let cases = try files("Conformance/cases", ".c").map(text).joined()
    var missing: [String] = []
    let quoted = page.matches(of: #/"([^"]+)"/#).map { String($0.1) }
    for name in quoted where !tests.contains("\"\(name)\"") { missing.append(name) }
    let dotted = page.matches(of: #/`([a-z_]+)\.([a-z_0-9]+)`/#)
    for match in dotted where match.2 != "h" && !cases.contains("CASE(\(match.1), \(match.2),")
    {
      missing.append("\(match.1).\(match.2)")
    }
    #expect(quoted.count > 20 && dotted.count > 4, "the page was read")
    return missing
  }
}
