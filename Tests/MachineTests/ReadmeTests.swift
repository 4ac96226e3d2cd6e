// SPDX-License-Identifier: Apache-2.0
//
// The README keeps its word: its example compiles and runs.

import Foundation
import Machine
import Testing

@Suite("README") struct ReadmeTests {
  @Test("the README's example runs") func runs() throws { try example() }

  @Test("the README's block is the example that is compiled") func same() throws {
    let here = URL(fileURLWithPath: #filePath)
    let root = here.deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
    let readme = try String(
      contentsOf: root.appendingPathComponent("README.md"), encoding: .utf8)
    let source = try String(
      contentsOf: here.deletingLastPathComponent().appendingPathComponent(
        "ReadmeExample.swift"),
      encoding: .utf8)
    let block = try #require(readme.between("```swift\n", "```"))
    let code = source.drop { $0 != "\n" }.split(separator: "\n\n", maxSplits: 1).last.map(
      String.init)
    #expect(block == code)
  }

  @Test("the machine file's documentation shows a machine that is accepted") func documented()
    throws
  {
    let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
      .deletingLastPathComponent().deletingLastPathComponent()
    let text = try String(
      contentsOf: root.appendingPathComponent("docs/machine-file.md"), encoding: .utf8)
    let block = try #require(text.between("```yaml\n", "```"))
    let machine = try MachineDescription(file: "docs", bytes: Array(block.utf8))
    #expect(machine.iommus.map(\.addressWidth) == [57, 48])
    #expect(machine.devices.count == 2)
    // What is commented out can be had by taking the "# " away.
    let lines = block.split(separator: "\n", omittingEmptySubsequences: false).map { line in
      line.hasPrefix("  # ") ? "  " + line.dropFirst(4) : String(line)
    }
    let whole = try MachineDescription(
      file: "docs", bytes: Array(lines.joined(separator: "\n").utf8))
    #expect(whole.devices.count == 4)
    _ = try Machine(whole)
  }
}

extension String {
  fileprivate func between(_ start: String, _ end: String) -> String? {
    guard let start = range(of: start),
      let end = self[start.upperBound...].range(of: end)
    else { return nil }
    return String(self[start.upperBound..<end.lowerBound])
  }
}
