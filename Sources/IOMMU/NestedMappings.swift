// SPDX-License-Identifier: Apache-2.0
//
// What the user of a nested address space has mapped (MODEL B5): ranges of its IOVA to ranges of
// its parent's, found from either side. What is mapped in fact is in the space's areas.

import PageTables

/// One map call on a nested address space.
struct NestedMapping: Equatable, Sendable {
  /// First and last IOVA of the child, both inclusive, in bytes.
  let first: UInt64
  let last: UInt64
  /// The first IOVA of the parent.
  let parentFirst: UInt64
  /// What was asked for; the parent may allow less.
  let permissions: Permissions

  var range: ClosedRange<UInt64> { first...last }
  var parentRange: ClosedRange<UInt64> { parentFirst...parentFirst + (last - first) }
  /// In bytes. Never the whole 64-bit space.
  var length: UInt64 { last &- first &+ 1 }

  /// The child's addresses of the part of a range of the parent's that this refers to.
  func range(ofParent range: ClosedRange<UInt64>) -> ClosedRange<UInt64> {
    let shared = range.clamped(to: parentRange)
    return first + (shared.lowerBound - parentFirst)...first + (shared.upperBound - parentFirst)
  }
}

/// All mappings of one nested address space. No two share a byte of the child; many may share
/// the parent's. A value; guarded by its space.
struct NestedMappings: Sendable {
  /// By the child's IOVA and by the parent's; none before the first mapping. An array, so that a
  /// space that does not nest pays one word for it.
  private var indices: [IntervalIndex] = []

  mutating func insert(_ mapping: NestedMapping) {
    if indices.isEmpty {
      indices = [IntervalIndex(side: .child), IntervalIndex(side: .parent)]
    }
    for index in indices.indices { indices[index].insert(mapping) }
  }

  mutating func remove(_ mapping: NestedMapping) {
    for index in indices.indices { indices[index].remove(mapping) }
  }

  /// The mappings that share a byte with a range of the child's IOVA, in its order.
  func overlapping(_ range: ClosedRange<UInt64>) -> [NestedMapping] {
    indices.first?.overlapping(range) ?? []
  }

  /// The mappings that refer to a byte of a range of the parent's IOVA.
  func referring(to range: ClosedRange<UInt64>) -> [NestedMapping] {
    indices.last?.overlapping(range) ?? []
  }

  /// All of them, in order of the child's IOVA.
  var all: [NestedMapping] { overlapping(0...UInt64.max) }
}

/// Mappings in the order of one side's addresses, cut into chunks that know how far they reach.
private struct IntervalIndex: Sendable {
  enum Side: Sendable { case child, parent }

  private struct Chunk: Sendable {
    /// Never empty.
    var mappings: [NestedMapping]
    /// The highest last address of any of them.
    var reach: UInt64
  }

  let side: Side
  private var chunks: [Chunk] = []

  private static let chunkCapacity = 128

  init(side: Side) { self.side = side }

  private func range(of mapping: NestedMapping) -> ClosedRange<UInt64> {
    switch side {
    case .child: mapping.range
    case .parent: mapping.parentRange
    }
  }

  /// No two mappings have the same: the child's addresses tell them apart.
  private func key(of mapping: NestedMapping) -> (UInt64, UInt64) {
    (range(of: mapping).lowerBound, mapping.first)
  }

  /// The chunk that a mapping is in or belongs into. There is one at least.
  private func chunkIndex(for mapping: NestedMapping) -> Int {
    var low = 0
    var high = chunks.count
    while low < high {
      let middle = (low + high) / 2
      if key(of: chunks[middle].mappings[0]) <= key(of: mapping) {
        low = middle + 1
      } else {
        high = middle
      }
    }
    return max(0, low - 1)
  }

  /// Where a mapping is, or belongs, in its chunk.
  private func index(of mapping: NestedMapping, in chunk: [NestedMapping]) -> Int {
    var low = 0
    var high = chunk.count
    while low < high {
      let middle = (low + high) / 2
      if key(of: chunk[middle]) < key(of: mapping) { low = middle + 1 } else { high = middle }
    }
    return low
  }

  mutating func insert(_ mapping: NestedMapping) {
    let last = range(of: mapping).upperBound
    guard !chunks.isEmpty else {
      chunks.append(Chunk(mappings: [mapping], reach: last))
      return
    }
    let chunk = chunkIndex(for: mapping)
    chunks[chunk].mappings.insert(mapping, at: index(of: mapping, in: chunks[chunk].mappings))
    chunks[chunk].reach = max(chunks[chunk].reach, last)
    guard chunks[chunk].mappings.count > Self.chunkCapacity else { return }
    let tail = Array(chunks[chunk].mappings[(Self.chunkCapacity / 2)...])
    chunks[chunk].mappings.removeSubrange((Self.chunkCapacity / 2)...)
    chunks[chunk].reach = reach(of: chunks[chunk].mappings)
    chunks.insert(Chunk(mappings: tail, reach: reach(of: tail)), at: chunk + 1)
  }

  mutating func remove(_ mapping: NestedMapping) {
    guard !chunks.isEmpty else { return }
    let chunk = chunkIndex(for: mapping)
    let index = index(of: mapping, in: chunks[chunk].mappings)
    guard index < chunks[chunk].mappings.count, chunks[chunk].mappings[index] == mapping else {
      return
    }
    chunks[chunk].mappings.remove(at: index)
    if chunks[chunk].mappings.isEmpty {
      chunks.remove(at: chunk)
    } else {
      chunks[chunk].reach = reach(of: chunks[chunk].mappings)
    }
  }

  private func reach(of mappings: [NestedMapping]) -> UInt64 {
    mappings.reduce(0) { max($0, range(of: $1).upperBound) }
  }

  func overlapping(_ range: ClosedRange<UInt64>) -> [NestedMapping] {
    var found: [NestedMapping] = []
    for chunk in chunks where chunk.reach >= range.lowerBound {
      guard self.range(of: chunk.mappings[0]).lowerBound <= range.upperBound else { break }
      for mapping in chunk.mappings where self.range(of: mapping).overlaps(range) {
        found.append(mapping)
      }
    }
    return found
  }
}
