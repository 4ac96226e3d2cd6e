// SPDX-License-Identifier: Apache-2.0
//
// Which parts of one piece of memory are pinned, and how often (Linux: the interval trees of
// `iopt_pages`): what is pinned counts once, whoever covers it (MODEL B6).

/// Ranges of bytes with the number of users of each. A value; guarded by its owner.
struct PinCoverage: Sendable {
  /// A stretch that the same number of users cover.
  struct Span: Equatable, Sendable {
    var range: Range<UInt64>
    /// At least 1.
    var users: Int
  }

  /// In order, none overlapping another, neighbours with equal users joined.
  private(set) var spans: [Span] = []

  var isEmpty: Bool { spans.isEmpty }

  /// Whether every byte of a range has a user.
  func covers(_ range: Range<UInt64>) -> Bool { gaps(in: range).isEmpty }

  /// The parts of a range that nobody uses, in order.
  func gaps(in range: Range<UInt64>) -> [Range<UInt64>] {
    var gaps: [Range<UInt64>] = []
    var cursor = range.lowerBound
    var index = firstEnding(after: cursor)
    while cursor < range.upperBound {
      guard index < spans.count, spans[index].range.lowerBound < range.upperBound else {
        gaps.append(cursor..<range.upperBound)
        break
      }
      let span = spans[index].range
      if span.lowerBound > cursor { gaps.append(cursor..<span.lowerBound) }
      cursor = span.upperBound
      index += 1
    }
    return gaps
  }

  /// One more user of a range.
  mutating func add(_ range: Range<UInt64>) { _ = change(range, by: 1) }

  /// One user less, of a range whose every byte has one.
  /// - Returns: The parts that nobody uses any more, in order.
  mutating func remove(_ range: Range<UInt64>) -> [Range<UInt64>] { change(range, by: -1) }

  /// The first span that ends after an offset, by binary search.
  private func firstEnding(after offset: UInt64) -> Int {
    var low = 0
    var high = spans.count
    while low < high {
      let middle = (low + high) / 2
      if spans[middle].range.upperBound <= offset { low = middle + 1 } else { high = middle }
    }
    return low
  }

  private mutating func change(_ range: Range<UInt64>, by count: Int) -> [Range<UInt64>] {
    var freed: [Range<UInt64>] = []
    let first = firstEnding(after: range.lowerBound)
    // The neighbours are rebuilt too, so that they are joined where that is due.
    let start = max(0, first - 1)
    var rebuilt: [Span] = []
    func append(_ range: Range<UInt64>, _ users: Int) {
      guard users > 0, !range.isEmpty else { return }
      if let last = rebuilt.last, last.range.upperBound == range.lowerBound,
        last.users == users
      {
        rebuilt[rebuilt.count - 1].range = last.range.lowerBound..<range.upperBound
      } else {
        rebuilt.append(Span(range: range, users: users))
      }
    }
    if start < first { append(spans[start].range, spans[start].users) }
    var cursor = range.lowerBound
    var index = first
    while index < spans.count, spans[index].range.lowerBound < range.upperBound {
      let span = spans[index]
      let from = max(span.range.lowerBound, range.lowerBound)
      let to = min(span.range.upperBound, range.upperBound)
      append(span.range.lowerBound..<from, span.users)
      if count > 0 { append(cursor..<from, count) }
      append(from..<to, span.users + count)
      if span.users + count == 0 { freed.append(from..<to) }
      append(to..<max(to, span.range.upperBound), span.users)
      cursor = to
      index += 1
    }
    if count > 0 { append(cursor..<max(cursor, range.upperBound), count) }
    let end = min(spans.count, index + 1)
    for span in spans[index..<end] { append(span.range, span.users) }
    spans.replaceSubrange(start..<end, with: rebuilt)
    return freed
  }
}
