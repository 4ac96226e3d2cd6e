// SPDX-License-Identifier: Apache-2.0
//
// A machine file's text, before YAML sees it: read with a limit, known to be UTF-8, free of
// control characters, and without the nesting and aliases that make YAML readers explode.

import SystemPackage

/// The text of a machine file, and its lines for messages.
struct MachineText {
  let file: String
  let text: String
  private let lines: [Substring.UnicodeScalarView]

  /// The largest file that is read, in bytes.
  static let sizeLimit = 1 << 20
  /// Brackets and braces that may be opened in one file: what bounds the YAML reader's
  /// recursion.
  static let bracketLimit = 2_000
  /// Columns of indentation before a line's first word, likewise.
  static let indentationLimit = 200
  /// Aliases (`*name`) in one file: what bounds their expansion.
  static let aliasLimit = 16

  /// - Throws: `MachineFileError` where the bytes are not acceptable text.
  init(file: String, bytes: [UInt8]) throws(MachineFileError) {
    self.file = file
    guard bytes.count <= Self.sizeLimit else {
      throw MachineFileError(
        file: file,
        message: "found a file of more than \(Self.sizeLimit) bytes, expected a machine")
    }
    guard let text = String(validating: bytes, as: UTF8.self) else {
      throw Self.notUTF8(file: file, bytes: bytes)
    }
    var scalars = Substring(text).unicodeScalars
    if scalars.first == "\u{FEFF}" { scalars.removeFirst() }
    self.text = String(scalars)
    lines = Self.split(Substring(self.text).unicodeScalars)
    try checkLines()
  }

  /// Reads a file, or standard input for `-`.
  init(path: String) throws(MachineFileError) {
    do {
      let descriptor =
        path == "-" ? FileDescriptor.standardInput : try .open(FilePath(path), .readOnly)
      var bytes: [UInt8] = []
      var piece = [UInt8](repeating: 0, count: 65_536)
      while bytes.count <= Self.sizeLimit {
        // SAFETY: the buffer is `piece`'s own and is used within the call only.
        let count = try unsafe piece.withUnsafeMutableBytes { buffer in
          try unsafe descriptor.read(into: buffer)
        }
        if count == 0 { break }
        bytes += piece[..<count]
      }
      if path != "-" { try descriptor.close() }
      try self.init(file: path == "-" ? "standard input" : path, bytes: bytes)
    } catch let error as MachineFileError {
      throw error
    } catch let error as Errno {
      throw MachineFileError(file: path, message: "cannot read the machine file: \(error)")
    } catch {
      throw MachineFileError(file: path, message: "cannot read the machine file: \(error)")
    }
  }

  /// A problem at a place of this file, with its line for the caret.
  func problem(line: Int, column: Int, _ message: String) -> MachineFileError.Problem {
    let excerpt = lines.indices.contains(line - 1) ? String(lines[line - 1].prefix(160)) : ""
    return MachineFileError.Problem(
      line: line, column: column, message: message,
      excerpt: column <= 160 ? excerpt : "")
  }

  func error(line: Int, column: Int, _ message: String) -> MachineFileError {
    MachineFileError(
      file: file, problems: [problem(line: line, column: column, message)])
  }

  /// The line and column of the last thing in the file that is not white space: where what is
  /// missing should have been.
  var end: (line: Int, column: Int) {
    let last = lines.lastIndex { line in line.contains { $0 != " " && $0 != "\t" } }
    guard let last else { return (1, 1) }
    return (last + 1, lines[last].count + 1)
  }

  /// The first line after `line` that has `key` as a mapping key at `column`: where YAML's
  /// complaint about a duplicate key belongs.
  func repetition(of key: String, after line: Int, column: Int) -> Int? {
    for number in lines.indices.dropFirst(line) {
      let rest = lines[number].dropFirst(column - 1)
      if lines[number].prefix(column - 1).contains(where: { $0 != " " && $0 != "-" }) {
        continue
      }
      if rest.starts(with: key.unicodeScalars),
        rest.dropFirst(key.unicodeScalars.count).first == ":"
      {
        return number + 1
      }
    }
    return nil
  }

  // MARK: Checks

  private static let lineBreaks: Set<Unicode.Scalar> = [
    "\n", "\r", "\u{85}", "\u{2028}", "\u{2029}",
  ]

  /// Lines as YAML counts them.
  private static func split(
    _ scalars: Substring.UnicodeScalarView
  ) -> [Substring.UnicodeScalarView] {
    var lines: [Substring.UnicodeScalarView] = []
    var start = scalars.startIndex
    var index = start
    while index < scalars.endIndex {
      let scalar = scalars[index]
      let next = scalars.index(after: index)
      if lineBreaks.contains(scalar) {
        lines.append(scalars[start..<index])
        start = next
        if scalar == "\r", next < scalars.endIndex, scalars[next] == "\n" {
          start = scalars.index(after: next)
        }
        index = start
      } else {
        index = next
      }
    }
    lines.append(scalars[start...])
    return lines
  }

  private func checkLines() throws(MachineFileError) {
    var brackets = 0
    var aliases = 0
    for (number, line) in lines.enumerated() {
      var leading = true
      var previous: Unicode.Scalar = " "
      for (offset, scalar) in line.enumerated() {
        if scalar.value < 0x20 && scalar != "\t" || scalar.value == 0x7f {
          throw error(
            line: number + 1, column: offset + 1,
            "found the control character 0x\(String(scalar.value, radix: 16)), expected text")
        }
        leading = leading && " \t-?:".unicodeScalars.contains(scalar)
        if leading, offset >= Self.indentationLimit {
          throw error(
            line: number + 1, column: offset + 1,
            "found more than \(Self.indentationLimit) columns of indentation")
        }
        if scalar == "[" || scalar == "{" { brackets += 1 }
        if scalar == "*", " \t-?:,[{".unicodeScalars.contains(previous) { aliases += 1 }
        previous = scalar
        if brackets > Self.bracketLimit {
          throw error(
            line: number + 1, column: offset + 1,
            "found more than \(Self.bracketLimit) brackets; write long lists with '- '")
        }
        if aliases > Self.aliasLimit {
          throw error(
            line: number + 1, column: offset + 1,
            "found more than \(Self.aliasLimit) aliases; write the values out")
        }
      }
    }
  }

  /// Points at the first byte that is not UTF-8.
  private static func notUTF8(file: String, bytes: [UInt8]) -> MachineFileError {
    var decoder = UTF8()
    var iterator = bytes.makeIterator()
    var line = 1
    var column = 1
    while case .scalarValue(let scalar) = decoder.decode(&iterator) {
      if scalar == "\n" {
        (line, column) = (line + 1, 1)
      } else {
        column += 1
      }
    }
    return MachineFileError(
      file: file,
      problems: [
        MachineFileError.Problem(
          line: line, column: column, message: "found bytes that are not UTF-8, expected text")
      ])
  }
}
