// SPDX-License-Identifier: Apache-2.0
//
// YAML nodes with the machine file's manners: typed values or a problem at the node's place,
// known keys, required keys, numbers in decimal or hexadecimal.

import Yams

/// Reads nodes of one machine file and collects what is wrong with them.
final class MachineReader {
  let text: MachineText
  private(set) var problems: [MachineFileError.Problem] = []
  /// IOMMUs that the file has and describes wrongly, by name; "" where that is wrong too. What
  /// names them is no mistake.
  var faultyIOMMUs: Set<String> = []

  init(text: MachineText) { self.text = text }

  /// The root node. Syntax errors end the reading at once.
  func root() throws(MachineFileError) -> Node {
    let root: Node?
    do {
      root = try Yams.compose(yaml: text.text, .basic, .default, .utf8)
    } catch let error as YamlError {
      throw convert(error)
    } catch {
      throw MachineFileError(file: text.file, message: "\(error)")
    }
    guard let root, !isNull(root) else {
      throw text.error(
        line: 1, column: 1,
        "found an empty file, expected a machine; `iommu machine --yaml` prints one to start from"
      )
    }
    return root
  }

  /// Notes a problem at a node.
  func report(_ node: Node, _ message: String) {
    let mark = node.mark
    problems.append(
      text.problem(line: mark?.line ?? 1, column: mark?.column ?? 1, message))
  }

  /// Throws what was collected, in file order.
  func finish() throws(MachineFileError) {
    guard !problems.isEmpty else { return }
    throw MachineFileError(
      file: text.file,
      problems: problems.sorted { ($0.line, $0.column) < ($1.line, $1.column) })
  }

  // MARK: Mappings and sequences

  /// A mapping with known keys only.
  struct Fields {
    let node: Node
    fileprivate var values: [String: Node]

    subscript(key: String) -> Node? { values[key] }
  }

  /// The fields of a mapping; unknown keys and missing ones are reported.
  /// - Returns: nil where the node is not a mapping.
  func fields(
    of node: Node, what: String, known: [String], required: [String]
  ) -> Fields? {
    guard let mapping = node.mapping else {
      report(
        node,
        "found \(describe(node)), expected \(what) with the keys \(known.joined(separator: ", "))"
      )
      return nil
    }
    var fields = Fields(node: node, values: [:])
    var misspelt: Set<String> = []
    for (key, value) in mapping {
      guard let name = key.scalar?.string else {
        report(key, "found \(describe(key)) as a key, expected a word")
        continue
      }
      if known.contains(name) {
        fields.values[name] = value
      } else if let near = nearest(to: name, of: known) {
        misspelt.insert(near)
        report(key, "found the unknown key '\(clip(name))' in \(what), did you mean '\(near)'?")
      } else {
        report(
          key,
          "found the unknown key '\(clip(name))' in \(what), expected one of "
            + known.joined(separator: ", "))
      }
    }
    let missing = required.filter { fields.values[$0] == nil && !misspelt.contains($0) }
    if !missing.isEmpty {
      report(
        node,
        "found \(what) without \(missing.map { "'\($0)'" }.joined(separator: " and "))")
    }
    return fields
  }

  /// The items of a list.
  func items(of node: Node, what: String, limit: Int) -> [Node] {
    guard let sequence = node.sequence else {
      report(node, "found \(describe(node)), expected a list of \(what)")
      return []
    }
    if sequence.count > limit {
      report(node, "found \(sequence.count) \(what), expected at most \(limit)")
      return []
    }
    return Array(sequence)
  }

  // MARK: Scalars

  func word(_ node: Node, expected: String) -> String? {
    guard let scalar = node.scalar, !isNull(node) else {
      report(node, "found \(describe(node)), expected \(expected)")
      return nil
    }
    return scalar.string
  }

  /// One of a set of words.
  func choice<Choice: RawRepresentable & CaseIterable>(
    _ node: Node, _ what: String, of type: Choice.Type
  ) -> Choice? where Choice.RawValue == String {
    let words = Choice.allCases.map(\.rawValue)
    let expected = "\(what): \(words.joined(separator: ", "))"
    guard let word = word(node, expected: expected) else { return nil }
    if let choice = Choice(rawValue: word) { return choice }
    report(node, unknown(word, expected: expected, of: words))
    return nil
  }

  /// The sentence for a word that is none of `words`.
  func unknown(_ word: String, expected: String, of words: [String]) -> String {
    "found '\(clip(word))', expected \(expected)"
      + (nearest(to: word, of: words).map { "; did you mean '\($0)'?" } ?? "")
  }

  func flag(_ node: Node) -> Bool? {
    switch node.scalar.map({ ($0.style == .plain, $0.string) }) {
    case (true, "true")?: return true
    case (true, "false")?: return false
    default:
      report(node, "found \(describe(node)), expected true or false")
      return nil
    }
  }

  /// A number in decimal or, after `0x`, hexadecimal.
  func number(
    _ node: Node, _ what: String, in range: ClosedRange<UInt64>, hexadecimal: Bool = false
  ) -> UInt64? {
    func show(_ value: UInt64) -> String { hexadecimal ? hexText(value) : String(value) }
    let expected =
      range == 0...UInt64.max
      ? "\(what) of at most 64 bits"
      : "\(what) from \(show(range.lowerBound)) to \(show(range.upperBound))"
    guard let scalar = node.scalar, scalar.style == .plain, !isNull(node) else {
      report(node, "found \(describe(node)), expected \(expected)")
      return nil
    }
    guard let value = Self.number(scalar.string) else {
      report(node, "found '\(clip(scalar.string))', expected \(expected)")
      return nil
    }
    guard range.contains(value) else {
      report(node, "found \(clip(scalar.string)), expected \(expected)")
      return nil
    }
    return value
  }

  /// A size in bytes: a number, also with KiB, MiB or GiB behind it.
  func size(_ node: Node, _ what: String, in range: ClosedRange<UInt64>) -> UInt64? {
    let expected =
      "\(what) from \(sizeText(range.lowerBound)) to \(sizeText(range.upperBound))"
    guard let scalar = node.scalar, scalar.style == .plain, !isNull(node),
      let value = Self.size(scalar.string), range.contains(value)
    else {
      report(node, "found \(describe(node)), expected \(expected)")
      return nil
    }
    return value
  }

  private static func size(_ text: String) -> UInt64? {
    for (unit, shift) in sizeUnits where text.hasSuffix(unit) {
      let digits = text.dropLast(unit.count)
      guard let count = number(String(digits.last == " " ? digits.dropLast() : digits)) else {
        return nil
      }
      let (value, overflow) = count.multipliedReportingOverflow(by: 1 << shift)
      return overflow ? nil : value
    }
    return number(text)
  }

  /// nil where the text is not a number, or one of more than 64 bits.
  static func number(_ text: String) -> UInt64? {
    // UInt64's own initializer takes a sign, which no number here has.
    guard text.utf8.first.map({ (0x30...0x39).contains($0) }) == true else { return nil }
    guard text.hasPrefix("0x") || text.hasPrefix("0X") else { return UInt64(text) }
    let digits = text.dropFirst(2)
    return digits.first?.isHexDigit == true ? UInt64(digits, radix: 16) : nil
  }

  // MARK: Words for nodes

  /// What a node is, for messages.
  func describe(_ node: Node) -> String {
    switch node {
    case .mapping: return "a mapping"
    case .sequence: return "a list"
    case .alias: return "an alias"
    case .scalar(let scalar):
      if isNull(node) { return "nothing" }
      return scalar.style == .plain
        ? "'\(clip(scalar.string))'" : "the text \"\(clip(scalar.string))\""
    }
  }

  private func isNull(_ node: Node) -> Bool {
    guard let scalar = node.scalar, scalar.style == .plain else { return false }
    return ["", "~", "null"].contains(scalar.string)
  }

  private func clip(_ text: String) -> String {
    text.count <= 40 ? text : text.prefix(40) + "…"
  }

  // MARK: Syntax errors

  private func convert(_ error: YamlError) -> MachineFileError {
    switch error {
    case .scanner(let context, let problem, let mark, _),
      .parser(let context, let problem, let mark, _),
      .composer(let context, let problem, let mark, _):
      let reason = context.map { "\(problem) (\($0.text), line \($0.mark.line))" } ?? problem
      return text.error(
        line: mark.line, column: mark.column, "found text that is not YAML: \(reason)")
    case .duplicatedKeysInMapping(let duplicates, let context):
      let key = duplicates.first ?? "?"
      let first = context.mark
      if let line = text.repetition(of: key, after: first.line, column: first.column) {
        return text.error(
          line: line, column: first.column,
          "found the key '\(clip(key))' again, expected each key once (first on line \(first.line))"
        )
      }
      return text.error(
        line: first.line, column: first.column,
        "found the key '\(clip(key))' twice in one mapping, expected each key once")
    case .reader(let problem, _, _, _):
      return MachineFileError(file: text.file, message: "found unreadable text: \(problem)")
    default:
      return MachineFileError(file: text.file, message: "found text that is not YAML: \(error)")
    }
  }
}

private let sizeUnits: [(String, UInt64)] = [("GiB", 30), ("MiB", 20), ("KiB", 10)]

/// `1MiB`; plain bytes where no unit fits.
func sizeText(_ value: UInt64) -> String {
  for (unit, shift) in sizeUnits where value > 0 && value & (1 << shift - 1) == 0 {
    return "\(value >> shift)\(unit)"
  }
  return "\(value)"
}

/// `0x1000`.
func hexText(_ value: some BinaryInteger) -> String { "0x" + String(value, radix: 16) }
