// SPDX-License-Identifier: Apache-2.0
//
// Wrong machine files: each says line, column, what was found and what was expected.

import Machine
import Testing

/// Edits the small machine and returns the first problem.
private func problem(
  replacing old: String, with new: String
) throws -> MachineFileError.Problem {
  let text = small.replacing(old, with: new)
  #expect(text != small)
  return try problem(in: text)
}

private func problem(in text: String) throws -> MachineFileError.Problem {
  try problem(in: Array(text.utf8))
}

private func problem(in bytes: [UInt8]) throws -> MachineFileError.Problem {
  let error = #expect(throws: MachineFileError.self) {
    try MachineDescription(file: "m.yaml", bytes: bytes)
  }
  return try #require(error?.problems.first)
}

struct BadEdit: Sendable, CustomTestStringConvertible {
  var old: String
  var new: String
  var line: Int
  var column: Int
  var words: [String]
  var testDescription: String { new }

  init(_ old: String, _ new: String, at line: Int, _ column: Int, _ words: String...) {
    self.old = old
    self.new = new
    self.line = line
    self.column = column
    self.words = words
  }
}

@Suite("Machine file errors") struct MachineFileErrorTests {
  @Test(
    "a wrong value is reported at its place, with what was expected",
    arguments: [
      BadEdit("kind: intel", "kind: itnel", at: 3, 11, "'itnel'", "intel, amd", "mean 'intel'"),
      BadEdit("kind: intel", "kind: [intel]", at: 3, 11, "a list", "intel, amd"),
      BadEdit("kind: intel", "kind:", at: 3, 10, "nothing", "intel, amd"),
      BadEdit("kind: intel", "kindd: intel", at: 3, 5, "unknown key 'kindd'", "mean 'kind'"),
      BadEdit("name: dmar0", "name: ../x", at: 2, 11, "'../x'", "letters, digits"),
      BadEdit("copy-engine", "copy_engine", at: 5, 12, "copy_engine", "mean 'copy-engine'"),
      BadEdit("copy-engine", "gpu", at: 5, 12, "'gpu'", "a device model: copy-engine"),
      BadEdit("0000:e0:04.0", "0000:e0:20.0", at: 6, 14, "up to 1f"),
      BadEdit("0000:e0:04.0", "0000:e0:04.8", at: 6, 14, "up to 7"),
      BadEdit("0000:e0:04.0", "0000:zz:04.0", at: 6, 14, "'0000:zz:04.0'", "a PCI address"),
      BadEdit("0000:e0:04.0", "10000:e0:04.0", at: 6, 14, "a PCI address"),
      BadEdit("0000:e0:04.0", "4", at: 6, 14, "'4'", "a PCI address"),
      BadEdit("group: 0", "group: -1", at: 7, 12, "'-1'", "a group number from 0 to"),
      BadEdit("group: 0", "group: 1048576", at: 7, 12, "1048576", "from 0 to 1048575"),
      BadEdit("group: 0", "group: 0xg", at: 7, 12, "'0xg'", "a group number"),
      BadEdit("group: 0", "group: 0x", at: 7, 12, "'0x'", "a group number"),
      BadEdit("group: 0", "group: \"0\"", at: 7, 12, "the text \"0\"", "a group number"),
      BadEdit("group: 0", "group: 0\n    iommu: dmar1", at: 8, 12, "dmar1", "mean 'dmar0'"),
      BadEdit("group: 0", "group: 0\n    version: 0x35", at: 8, 14, "0x35", "0x32 to 0x34"),
      BadEdit(
        "group: 0", "group: 0\n    local-memory: 2KiB", at: 8, 19, "'2KiB'", "4KiB to 1GiB"),
      BadEdit(
        "group: 0", "group: 0\n    local-memory: 12KiB", at: 8, 19, "12KiB", "power of two"),
      BadEdit(
        "group: 0", "group: 0\n    local-memory: 99999999999GiB", at: 8, 19, "GiB'",
        "4KiB to 1GiB"),
      BadEdit(
        "group: 0", "group: 0\n    root-port: e0:01.0", at: 8, 16, "0000:e0:01.0",
        "a lower bus"),
      BadEdit(
        "group: 0", "group: 0\n    root-port: none", at: 8, 16, "'none'", "a PCI address"),
      BadEdit("group: 0", "group: 0\n    fill: maybe", at: 8, 11, "'maybe'", "true or false"),
      BadEdit("group: 0", "group: 0\n    host_driver: none", at: 8, 5, "mean 'host-driver'"),
      BadEdit("group: 0", "group: 0\n    host-driver: vfio", at: 8, 18, "vfio-pci, none"),
      BadEdit(
        "kind: intel", "kind: intel\n    address-width: 40", at: 4, 20, "39, 48, 57"),
      BadEdit("kind: intel", "kind: intel\n    levels: 6", at: 4, 13, "from 3 to 5"),
      BadEdit(
        "kind: intel", "kind: intel\n    stage: third", at: 4, 12, "'third'", "first, second"),
      BadEdit(
        "kind: intel", "kind: intel\n    stage: first\n    levels: 3", at: 5, 13,
        "levels of the first stage from 4 to 5"),
      BadEdit(
        "kind: intel", "kind: amd\n    stage: first\n    address-width: 64", at: 5, 20,
        "of the first stage of 48, 57 bits"),
      BadEdit("kind: intel", "kind: amd\n    levels: 7", at: 4, 13, "from 3 to 6"),
      BadEdit(
        "kind: intel", "kind: smmuv3\n    levels: 4", at: 4, 13, "levels of an smmuv3",
        "'address-width' alone"),
      BadEdit(
        "kind: intel", "kind: smmuv3\n    address-width: 39", at: 4, 20,
        "32, 36, 40, 42, 44, 48 bits"),
      BadEdit(
        "kind: intel", "kind: riscv\n    address-width: 50", at: 4, 20, "39, 48, 57 bits"),
      BadEdit("kind: intel", "kind: riscv\n    levels: 2", at: 4, 13, "from 3 to 5"),
      BadEdit("kind: intel", "kind: amd\n    nesting: yes", at: 4, 14, "true or false"),
      BadEdit(
        "kind: intel", "kind: amd\n    dirty-tracking: hardware", at: 4, 21, "'hardware'",
        "true, false or software"),
      BadEdit("kind: intel", "kind: amd\n    nestin: true", at: 4, 5, "mean 'nesting'"),
      BadEdit("kind: intel", "kind: intel\n    pasid-bits: 21", at: 4, 17, "from 0 to 20"),
      BadEdit(
        "kind: intel", "kind: intel\n    levels: 4\n    address-width: 57", at: 5, 20,
        "57 bits beside 4 levels"),
      BadEdit("devices:", "device:", at: 4, 1, "'device'", "mean 'devices'"),
      BadEdit("  - model", "  - mod\u{1}el", at: 5, 8, "control character 0x1"),
      BadEdit("    group: 0", "\tgroup: 0", at: 7, 1, "not YAML"),
      BadEdit("name: dmar0", "name: \"dmar0", at: 8, 1, "not YAML"),
      BadEdit("group: 0", "group: 0\n    group: 1", at: 8, 5, "'group' again", "line 7"),
      BadEdit(
        "group: 0", "group: 0\nreserved: [{first: 0x2000, last: 0x1000}]", at: 8, 34, "0x1000",
        "at least 0x2000"),
      BadEdit(
        "group: 0", "group: 0\nreserved: [{first: 0, last: 0x10000000000000000}]", at: 8, 29,
        "64 bits"),
      BadEdit(
        "group: 0", "group: 0\nreserved: [{first: 0, last: 1, kind: msi}]", at: 8, 38,
        "reserved, direct"),
    ])
  func wrongValue(edit: BadEdit) throws {
    let problem = try problem(replacing: edit.old, with: edit.new)
    #expect((problem.line, problem.column) == (edit.line, edit.column), "\(problem.message)")
    for word in edit.words {
      #expect(problem.message.contains(word), "\(problem.message)")
    }
  }

  @Test("a second device with the address of a first is reported with both lines")
  func duplicateAddress() throws {
    let text = small + "  - { model: copy-engine, address: \"e0:04.0\", group: 1 }\n"
    let problem = try problem(in: text)
    #expect((problem.line, problem.column) == (8, 36))
    #expect(problem.message.contains("0000:e0:04.0 again"))
    #expect(problem.message.contains("line 6"))
  }

  @Test(
    "a root port has one bus below it, which is its own, and is no device",
    arguments: [
      (
        ["e1:00.0, root-port: \"e0:01.0\"", "e2:00.0, root-port: \"e0:01.0\""], "one bus below"
      ),
      (["e1:00.0, root-port: \"e0:01.0\"", "e1:00.1"], "on a root bus"),
      (
        ["e1:00.0, root-port: \"e0:01.0\"", "e1:00.1, root-port: \"e0:02.0\""],
        "below 0000:e0:02.0"
      ),
      (["e0:01.0", "e1:00.0, root-port: \"e0:01.0\""], "which is a device"),
      (
        ["e1:00.0, root-port: \"e0:01.0\"", "e2:00.0, root-port: \"e1:01.0\""],
        "below another port"
      ),
    ])
  func rootPorts(devices: [String], words: String) throws {
    let text =
      "iommus: [{name: dmar0, kind: intel}]\ndevices:\n"
      + devices.map {
        "  - {model: copy-engine, group: 0, address: \"\($0.replacing(",", with: "\",", maxReplacements: 1))}\n"
      }
      .map { $0.contains("\",") ? $0 : $0.replacing("}", with: "\"}") }.joined()
    let problem = try problem(in: text)
    #expect(problem.message.contains(words), "\(problem.message)")
  }

  @Test("a group behind two IOMMUs is refused") func dividedGroup() throws {
    let text = """
      iommus:
        - {name: a, kind: intel}
        - {name: b, kind: amd}
      devices:
        - {model: copy-engine, address: "e0:04.0", group: 1, iommu: a}
        - {model: copy-engine, address: "e0:04.1", group: 1, iommu: b}
      """
    let problem = try problem(in: text)
    #expect((problem.line, problem.column) == (6, 53))
    #expect(problem.message.contains("a group has one IOMMU"))
  }

  @Test("with two IOMMUs a device must name its own") func ambiguousIOMMU() throws {
    let text = """
      iommus: [{name: a, kind: intel}, {name: b, kind: amd}]
      devices: [{model: copy-engine, address: "e0:04.0", group: 1}]
      """
    #expect(try problem(in: text).message.contains("expected one of a, b"))
  }

  @Test("two IOMMUs of one name are refused") func duplicateIOMMU() throws {
    let text = "iommus: [{name: a, kind: intel}, {name: a, kind: amd}]\ndevices: []\n"
    let problem = try problem(in: text)
    #expect((problem.line, problem.column) == (1, 34))
    #expect(problem.message.contains("second IOMMU named 'a'"))
  }

  @Test(
    "an IOMMU that is described wrongly is there all the same: nobody who names it is blamed",
    arguments: [
      ("{name: d0, kind: itnel}", ""), ("{name: d0, kind: intel, levles: 4}", ""),
      ("{nmae: d0, kind: intel}", ""), ("{name: d0, kind: itnel}", "d2"),
    ])
  func faultyIOMMU(described: String, other: String) throws {
    let text = """
      iommus: [\(described), {name: d1, kind: intel}]
      bridges: [{address: "00:1c.0", bus: 1, iommu: d0}]
      devices:
        - {model: copy-engine, address: "01:00.0", iommu: d0}
        - {model: copy-engine, address: "e0:04.0", iommu: d1}
        - {model: copy-engine, address: "e0:05.0", iommu: \(other.isEmpty ? "d0" : other)}

      """
    let error = #expect(throws: MachineFileError.self) { try machine(text) }
    let problems = error?.problems ?? []
    #expect(
      problems.allSatisfy { $0.line == 1 || $0.line == 6 && !other.isEmpty }, "\(problems)")
    // A name that is nobody's is still one, among all that there are.
    let words = problems.last?.message ?? ""
    #expect(words.contains("the name of an IOMMU: d1, d0") == !other.isEmpty, "\(words)")
  }

  @Test("all problems are reported at once, in file order") func allAtOnce() throws {
    let text = small.replacing("intel", with: "itnel").replacing("copy-engine", with: "gpu")
      .replacing("group: 0", with: "group: x")
    let error = #expect(throws: MachineFileError.self) { try machine(text) }
    #expect(error?.problems.map(\.line) == [3, 5, 7])
  }

  @Test("missing keys are named") func missing() throws {
    let error = #expect(throws: MachineFileError.self) { try machine("iommus: [{kind: amd}]") }
    let messages = error?.problems.map(\.message) ?? []
    #expect(messages.contains { $0.contains("without 'devices'") })
    #expect(messages.contains { $0.contains("without 'name'") })
  }

  @Test("an empty file is refused", arguments: ["", "\n\n", "# nothing\n", "---\n", "~\n"])
  func empty(text: String) throws {
    let problem = try problem(in: text)
    #expect(problem.line == 1)
    #expect(problem.message.contains("empty file"))
  }

  @Test("a file that is no mapping is refused", arguments: ["- 1\n", "hello\n", "[[[]]]"])
  func notMapping(text: String) throws {
    #expect(try problem(in: text).message.contains("expected a machine"))
  }

  @Test("two documents are refused") func documents() throws {
    let problem = try problem(in: small + "---\n" + small)
    #expect(problem.line == 8)
    #expect(problem.message.contains("document"))
  }

  @Test("bytes that are not UTF-8 are refused at their place") func notUTF8() throws {
    let problem = try problem(in: Array("name: x\niom".utf8) + [0xff, 0x0a])
    #expect((problem.line, problem.column) == (2, 4))
    #expect(problem.message.contains("UTF-8"))
  }

  @Test("huge files are refused") func huge() throws {
    let text = [UInt8](repeating: UInt8(ascii: "#"), count: 1 << 20 + 1)
    #expect(try problem(in: text).message.contains("more than 1048576 bytes"))
  }

  @Test(
    "deep nesting is refused before it is read",
    arguments: ["[", "{a: ", "- ", "? "])
  func deep(piece: String) throws {
    let text = String(repeating: piece, count: 100_000)
    #expect(try problem(in: text).message.contains("more than"))
  }

  @Test(
    "nesting up to the limit does no harm",
    arguments: [("[", 2_000), ("- ", 100)])
  func nested(piece: String, count: Int) throws {
    _ = try problem(in: String(repeating: piece, count: count))
  }

  @Test("an alias bomb is refused before it is expanded") func bomb() throws {
    var text = "a0: &a0 [x, x]\n"
    for level in 1...40 {
      text += "a\(level): &a\(level) [*a\(level - 1), *a\(level - 1)]\n"
    }
    text += "? *a40\n: 1\n"
    let problem = try problem(in: text)
    #expect(problem.message.contains("aliases"))
    #expect(problem.line == 10)
  }

  @Test("a file that cannot be read says why") func unreadable() throws {
    let error = #expect(throws: MachineFileError.self) {
      try MachineDescription(path: "/nonexistent/m.yaml")
    }
    #expect("\(try #require(error))".hasPrefix("/nonexistent/m.yaml: error: cannot read"))
  }

  @Test("a message shows the line and a caret under the place") func rendering() throws {
    let error = #expect(throws: MachineFileError.self) {
      try machine(small.replacing("intel", with: "itnel"))
    }
    let expected = """
      m.yaml:3:11: error: found 'itnel', expected a kind of IOMMU: intel, amd, smmuv3, riscv; \
      did you mean 'intel'?
       3 |     kind: itnel
         |           ^
      """
    #expect("\(try #require(error))" == expected)
  }

  @Test("no damage to a file makes the reader crash") func damage() {
    let whole = Array(MachineDescription.standard.yaml.utf8)
    var random = SystemRandomNumberGenerator()
    for _ in 0..<300 {
      var bytes = whole
      for _ in 0..<Int.random(in: 1...4, using: &random) {
        let index = Int.random(in: 0..<bytes.count, using: &random)
        switch Int.random(in: 0..<3, using: &random) {
        case 0: bytes[index] = UInt8.random(in: 0...255, using: &random)
        case 1: bytes.removeSubrange(index...)
        default: bytes.insert(contentsOf: Array("- *a [{&?:".utf8), at: index)
        }
        if bytes.isEmpty { break }
      }
      do throws(MachineFileError) {
        _ = try MachineDescription(file: "m.yaml", bytes: bytes)
      } catch {
        #expect(!error.problems.isEmpty)
      }
    }
  }
}
