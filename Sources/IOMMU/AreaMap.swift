// SPDX-License-Identifier: Apache-2.0
//
// The ordered map of an address space: which IOVA ranges are mapped, and to which bytes.
// A sorted sequence cut into chunks: two binary searches find an area, and an insertion
// moves one chunk at the most.

import PageTables

/// One mapped range (Linux: `iopt_area`).
struct Area: Sendable {
  /// First and last IOVA, both inclusive, in bytes.
  let first: UInt64
  let last: UInt64
  /// Where the bytes come from; `start` is the offset of `first` in them, in bytes.
  let pages: Pages
  let start: UInt64
  let permissions: Permissions

  /// In bytes. Never the whole 64-bit space: lengths are below 2⁶⁴ by the interface.
  var length: UInt64 { last &- first &+ 1 }

  /// Whether it stands for memory that the parent of a nested space does not map.
  var isHole: Bool { pages === Pages.hole }
}

/// Areas in order of IOVA, none overlapping another.
struct AreaMap: Sendable {
  /// Chunks are never empty; areas ascend through them.
  private var chunks: [[Area]] = []
  /// The first IOVA of each chunk, for the outer search.
  private var starts: [UInt64] = []
  private(set) var count = 0

  private static let chunkCapacity = 128

  var isEmpty: Bool { count == 0 }

  /// Where an area is.
  struct Position: Equatable {
    fileprivate var chunk: Int
    fileprivate var index: Int
  }

  subscript(position: Position) -> Area { chunks[position.chunk][position.index] }

  /// The ends of an area, without a reference to its memory.
  func bounds(at position: Position) -> (first: UInt64, last: UInt64) {
    let first = chunks[position.chunk][position.index].first
    return (first, chunks[position.chunk][position.index].last)
  }

  /// The first area that ends at or after `iova`; nil where all end before it.
  func firstEnding(atOrAfter iova: UInt64) -> Position? {
    firstEnding(atOrAfter: iova, in: count)
  }

  @inline(__always)
  private func firstEnding(atOrAfter iova: UInt64, in count: Int) -> Position? {
    guard count > 0 else { return nil }
    // The last chunk that starts at or before iova, or the first one.
    var low = 0
    var high = starts.count
    while low < high {
      let middle = (low + high) / 2
      if starts[middle] <= iova { low = middle + 1 } else { high = middle }
    }
    var position = Position(chunk: max(0, low - 1), index: 0)
    position.index = Self.firstEnding(atOrAfter: iova, in: chunks[position.chunk])
    if position.index == chunks[position.chunk].count {
      position = Position(chunk: position.chunk + 1, index: 0)
      return position.chunk < chunks.count ? position : nil
    }
    return position
  }

  private static func firstEnding(atOrAfter iova: UInt64, in chunk: [Area]) -> Int {
    var low = 0
    var high = chunk.count
    while low < high {
      let middle = (low + high) / 2
      if chunk[middle].last < iova { low = middle + 1 } else { high = middle }
    }
    return low
  }

  /// The first area that shares a byte with `range`.
  func firstOverlap(with range: ClosedRange<UInt64>) -> Position? {
    guard let position = firstEnding(atOrAfter: range.lowerBound),
      bounds(at: position).first <= range.upperBound
    else { return nil }
    return position
  }

  func position(after position: Position) -> Position? {
    var next = position
    next.index += 1
    if next.index == chunks[next.chunk].count {
      next = Position(chunk: next.chunk + 1, index: 0)
    }
    return next.chunk < chunks.count ? next : nil
  }

  /// Adds an area that overlaps no other.
  mutating func insert(_ area: consuming Area) {
    count += 1
    guard let position = firstEnding(atOrAfter: area.first, in: count - 1) else {
      append(consume area)
      return
    }
    chunks[position.chunk].insert(consume area, at: position.index)
    starts[position.chunk] = chunks[position.chunk][0].first
    split(position.chunk)
  }

  private mutating func append(_ area: consuming Area) {
    let first = area.first
    if chunks.isEmpty || chunks[chunks.count - 1].count == Self.chunkCapacity {
      var chunk: [Area] = []
      chunk.reserveCapacity(chunks.isEmpty ? 4 : Self.chunkCapacity)
      chunk.append(consume area)
      chunks.append(chunk)
      starts.append(first)
    } else {
      if chunks[chunks.count - 1].isEmpty { starts[chunks.count - 1] = first }
      chunks[chunks.count - 1].append(consume area)
    }
  }

  private mutating func split(_ index: Int) {
    guard chunks[index].count > Self.chunkCapacity else { return }
    let half = chunks[index].count / 2
    let tail = Array(chunks[index][half...])
    chunks[index].removeSubrange(half...)
    chunks.insert(tail, at: index + 1)
    starts.insert(tail[0].first, at: index + 1)
  }

  /// Takes an area out and returns it. Positions at and after it are void.
  mutating func remove(at position: Position) -> Area {
    count -= 1
    let area = chunks[position.chunk].remove(at: position.index)
    if chunks[position.chunk].isEmpty, chunks.count > 1 {
      chunks.remove(at: position.chunk)
      starts.remove(at: position.chunk)
    } else if chunks[position.chunk].isEmpty {
      // The storage of the last chunk is kept: mapping and unmapping one area in turn is
      // common.
      starts[position.chunk] = 0
    } else {
      starts[position.chunk] = chunks[position.chunk][0].first
    }
    return area
  }

  /// Calls `body` for each area in order of IOVA, until it throws.
  func visit(_ body: (Area) throws(IOMMUError) -> Void) throws(IOMMUError) {
    for chunk in chunks { for area in chunk { try body(area) } }
  }
}
