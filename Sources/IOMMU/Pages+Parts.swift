// SPDX-License-Identifier: Apache-2.0
//
// Pins of different parts of one piece of memory: copies of parts of a mapping, accessors that
// pin a few pages, areas that were cut. What any of them covers is pinned and counted once.

import PageTables

/// Where pinned memory is in physical space.
enum Placed: Sendable {
  case nowhere
  /// In one stretch, the usual case: no memory is allocated for it. The address is that of
  /// offset 0 of the memory, whether that is pinned or not: it may lie below 0.
  case one(PhysicalAddress)
  case many([Segment])
  /// Its exporter has taken it back: nothing is to be mapped.
  case revoked

  /// A stretch of the memory.
  struct Segment: Sendable {
    /// Offset of the stretch in the memory, in bytes.
    let offset: UInt64
    let length: UInt64
    let physical: PhysicalAddress
  }

  mutating func append(_ segment: Segment) {
    if case .many(var segments) = self {
      self = .nowhere
      segments.append(segment)
      self = .many(segments)
    } else {
      self = .many([segment])
    }
  }

  /// The stretches of a range that was pinned in one go.
  func segments(of range: Range<UInt64>) -> [Segment] {
    switch self {
    case .one(let base):
      [
        Segment(
          offset: range.lowerBound, length: range.upperBound - range.lowerBound,
          physical: PhysicalAddress(base.rawValue &+ range.lowerBound))
      ]
    case .many(let segments): segments
    case .nowhere, .revoked: []
    }
  }

  /// Calls `body` for each physically contiguous part of `start ..< start + length`, in order.
  @inline(__always)
  func forEachSegment(
    start: UInt64, length: UInt64,
    _ body: (_ offset: UInt64, PhysicalAddress, _ length: UInt64) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    switch self {
    case .nowhere:
      assertionFailure("memory is used that is not pinned")
    case .one(let base):
      try body(0, PhysicalAddress(base.rawValue &+ start), length)
    case .many(let segments):
      let end = start + length
      for segment in segments {
        let from = max(start, segment.offset)
        let to = min(end, segment.offset + segment.length)
        guard from < to else { continue }
        let physical = PhysicalAddress(segment.physical.rawValue + (from - segment.offset))
        try body(from - start, physical, to - from)
      }
    case .revoked:
      break
    }
  }
}

/// Pins of different ranges of one piece of memory.
struct PinnedParts: Sendable {
  /// A stretch that was pinned in one go. It is let go once nobody covers any of it.
  struct Piece: Sendable {
    let range: Range<UInt64>
    let placed: Placed
    /// Bytes of it that somebody covers.
    var used: UInt64
  }

  var coverage = PinCoverage()
  /// In order, none overlapping another; together at least what is covered.
  var pieces: [Piece] = []

  /// Bytes that somebody covers.
  private(set) var byteCount: UInt64 = 0

  /// The index of the first piece that ends after an offset.
  private func firstPiece(endingAfter offset: UInt64) -> Int {
    var low = 0
    var high = pieces.count
    while low < high {
      let middle = (low + high) / 2
      if pieces[middle].range.upperBound <= offset { low = middle + 1 } else { high = middle }
    }
    return low
  }

  /// The pieces that share bytes with a range, by index.
  private func pieceIndices(in range: Range<UInt64>) -> Range<Int> {
    let first = firstPiece(endingAfter: range.lowerBound)
    var end = first
    while end < pieces.count, pieces[end].range.lowerBound < range.upperBound { end += 1 }
    return first..<end
  }

  /// The parts of a range that no piece holds.
  func unheld(in range: Range<UInt64>) -> [Range<UInt64>] {
    var gaps: [Range<UInt64>] = []
    var cursor = range.lowerBound
    for index in pieceIndices(in: range) {
      let piece = pieces[index].range
      if piece.lowerBound > cursor { gaps.append(cursor..<piece.lowerBound) }
      cursor = piece.upperBound
    }
    if cursor < range.upperBound { gaps.append(cursor..<range.upperBound) }
    return gaps
  }

  /// Bytes of a range that nobody covers.
  func uncoveredBytes(in range: Range<UInt64>) -> UInt64 {
    coverage.gaps(in: range).reduce(0) { $0 + ($1.upperBound - $1.lowerBound) }
  }

  /// Adds a piece that overlaps no other and that nobody covers yet.
  mutating func insert(_ range: Range<UInt64>, _ placed: Placed) {
    pieces.insert(
      Piece(range: range, placed: placed, used: 0),
      at: firstPiece(endingAfter: range.lowerBound))
  }

  /// One more user of a range that pieces hold.
  mutating func cover(_ range: Range<UInt64>, count: Int = 1) {
    for gap in coverage.gaps(in: range) {
      byteCount += gap.upperBound - gap.lowerBound
      use(gap) { $0 += $1 }
    }
    for _ in 0..<count { coverage.add(range) }
  }

  private mutating func use(
    _ range: Range<UInt64>, _ change: (_ used: inout UInt64, _ bytes: UInt64) -> Void
  ) {
    for index in pieceIndices(in: range) {
      let shared = pieces[index].range.clamped(to: range)
      change(&pieces[index].used, shared.upperBound - shared.lowerBound)
    }
  }

  /// One user less of a range.
  /// - Returns: Bytes that nobody covers any more, and the pieces to let go.
  mutating func uncover(_ range: Range<UInt64>) -> (freed: UInt64, pieces: [Piece]) {
    var bytes: UInt64 = 0
    var released: [Piece] = []
    for gap in coverage.remove(range) {
      bytes += gap.upperBound - gap.lowerBound
      use(gap) { $0 -= $1 }
    }
    let touched = pieceIndices(in: range)
    for index in touched.reversed() where pieces[index].used == 0 {
      released.append(pieces.remove(at: index))
    }
    byteCount -= bytes
    return (bytes, released)
  }

  /// Where a range is that pieces hold.
  func placed(_ range: Range<UInt64>) -> Placed {
    let indices = pieceIndices(in: range)
    if indices.count == 1 { return pieces[indices.lowerBound].placed }
    return .many(pieces[indices].flatMap { $0.placed.segments(of: $0.range) })
  }

  /// Where all of it is.
  var segments: [Placed.Segment] { pieces.flatMap { $0.placed.segments(of: $0.range) } }
}

extension Pages {
  /// The slow half of `pin`.
  func pinPart(
    _ range: Range<UInt64>, _ pins: inout Pins, in memory: PhysicalMemory
  ) throws(IOMMUError) -> Placed {
    var parts = pins.parts ?? separate(pins)
    // The only reference from here on: the arrays are changed in place.
    pins.parts = nil
    defer { pins.parts = parts }
    var placed: [(range: Range<UInt64>, placed: Placed)] = []
    do throws(IOMMUError) {
      for gap in parts.unheld(in: range) {
        placed.append((gap, try place(gap, for: nil, in: memory)))
      }
      try pins.account?.charge(parts.uncoveredBytes(in: range))
    } catch {
      for piece in placed { release(piece.placed, piece.range, in: memory) }
      throw error
    }
    for piece in placed { parts.insert(piece.range, piece.placed) }
    parts.cover(range)
    pins.users = 0
    pins.placed = .nowhere
    return parts.placed(range)
  }

  /// The slow half of `unpin`.
  func unpinPart(_ range: Range<UInt64>, _ pins: inout Pins, in memory: PhysicalMemory) {
    var parts = pins.parts ?? separate(pins)
    pins.parts = nil
    pins.users = 0
    pins.placed = .nowhere
    let (freed, pieces) = parts.uncover(range)
    for piece in pieces { release(piece.placed, piece.range, in: memory) }
    pins.account?.uncharge(freed)
    if !parts.coverage.isEmpty { pins.parts = parts }
  }

  /// As `place`, no more than `most` bytes at a time.
  func placeInSteps(
    _ range: Range<UInt64>, _ most: UInt64, for account: MemoryAccount?,
    in memory: PhysicalMemory
  ) throws(IOMMUError) -> Placed {
    var segments: [Placed.Segment] = []
    do throws(IOMMUError) {
      var first = range.lowerBound
      while first < range.upperBound {
        let step = first..<first + min(most, range.upperBound - first)
        segments += try place(step, for: nil, in: memory).segments(of: step)
        first = step.upperBound
      }
      try account?.charge(range.upperBound - range.lowerBound)
    } catch {
      release(.many(segments), range, in: memory)
      throw error
    }
    return .many(segments)
  }

  /// Pins of one range, as parts.
  private func separate(_ pins: Pins) -> PinnedParts {
    var parts = PinnedParts()
    guard pins.users > 0 else { return parts }
    parts.insert(pins.range, pins.placed)
    parts.cover(pins.range, count: pins.users)
    return parts
  }
}
