// SPDX-License-Identifier: Apache-2.0
//
// What is wrong with a machine file: where, what was found, what was expected, and the line
// itself with a caret under the place.

/// Why a machine file was refused. Carries every problem that was found, in file order.
public struct MachineFileError: Error, Hashable, Sendable {
  /// The file as the user named it.
  public let file: String
  /// At least one.
  public let problems: [Problem]

  /// One mistake.
  public struct Problem: Hashable, Sendable {
    /// From 1. 0 where the file as a whole is meant (it cannot be read, say).
    public let line: Int
    /// From 1, in Unicode scalars.
    public let column: Int
    /// One sentence without a final full stop: what was found and what was expected.
    public let message: String
    /// The line, for the caret; empty where there is none to show.
    let excerpt: String

    public init(line: Int, column: Int, message: String, excerpt: String = "") {
      self.line = line
      self.column = column
      self.message = message
      self.excerpt = excerpt
    }
  }

  public init(file: String, problems: [Problem]) {
    self.file = file
    self.problems = problems
  }

  init(file: String, message: String) {
    self.init(file: file, problems: [Problem(line: 0, column: 0, message: message)])
  }

  /// How many problems are printed; further ones are counted.
  static let printed = 10
}

extension MachineFileError: CustomStringConvertible {
  /// As compilers print it: `FILE:LINE:COLUMN: error: …`, then the line and a caret.
  public var description: String {
    var lines = problems.prefix(Self.printed).map(describe)
    if problems.count > Self.printed {
      lines.append("\(file): \(problems.count - Self.printed) more errors")
    }
    return lines.joined(separator: "\n")
  }

  private func describe(_ problem: Problem) -> String {
    guard problem.line > 0 else { return "\(file): error: \(problem.message)" }
    let head = "\(file):\(problem.line):\(problem.column): error: \(problem.message)"
    guard !problem.excerpt.isEmpty else { return head }
    let number = String(problem.line)
    let margin = String(repeating: " ", count: number.count)
    // Tabs stay tabs in the caret's line, so that the caret lands under its place.
    let indent = String(
      problem.excerpt.unicodeScalars.prefix(problem.column - 1)
        .map { $0 == "\t" ? "\t" as Character : " " })
    return "\(head)\n \(number) | \(problem.excerpt)\n \(margin) | \(indent)^"
  }
}

/// Picks the known word that `word` was probably meant to be; nil where none is near.
func nearest(to word: String, of known: [String]) -> String? {
  func folded(_ text: String) -> [Character] {
    Array(text.lowercased().filter { $0 != "-" && $0 != "_" && $0 != " " })
  }
  let wanted = folded(word)
  guard !wanted.isEmpty, wanted.count <= 64 else { return nil }
  let ranked = known.map { (word: $0, distance: editDistance(wanted, folded($0))) }
  guard let best = ranked.min(by: { $0.distance < $1.distance }),
    best.distance <= max(1, min(wanted.count, best.word.count) / 3)
  else { return nil }
  return best.word
}

/// Levenshtein's distance, with a swap of neighbours as one edit.
private func editDistance(_ left: [Character], _ right: [Character]) -> Int {
  var before: [Int] = []
  var previous = Array(0...right.count)
  for row in left.indices {
    var current = [row + 1]
    for column in right.indices {
      var best = min(previous[column + 1], current[column]) + 1
      best = min(best, previous[column] + (left[row] == right[column] ? 0 : 1))
      if row > 0, column > 0, left[row] == right[column - 1], left[row - 1] == right[column] {
        best = min(best, before[column - 1] + 1)
      }
      current.append(best)
    }
    before = previous
    previous = current
  }
  return previous[right.count]
}
