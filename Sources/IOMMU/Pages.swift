// SPDX-License-Identifier: Apache-2.0
//
// One piece of memory that areas map (Linux: `iopt_pages`): pinned once however many areas,
// address spaces and page tables use it (MODEL B6), and only while one does.

import PageTables
import SystemPackage

/// Memory of a source, in whole host pages. Shared by the areas that map parts of it.
final class Pages: Sendable {
  let source: any MemorySource
  /// First byte in the source, a multiple of the host's page size.
  let address: UInt64
  /// In bytes, a multiple of the host's page size.
  let length: UInt64
  /// Whether the mapping that made this asked for device writes.
  let isWritable: Bool

  private struct Pins: Sendable {
    var users = 0
    var placed = Placed.nowhere
  }

  /// Where pinned memory is in physical space.
  enum Placed: Sendable {
    case nowhere
    /// In one stretch, the usual case: no memory is allocated for it.
    case one(PhysicalAddress)
    case many([Segment])

    /// A stretch of the memory.
    struct Segment: Sendable {
      /// Offset of the stretch in the pages, in bytes.
      let offset: UInt64
      let length: UInt64
      let physical: PhysicalAddress
    }
  }

  private let pins = RankedMutex(.pages, Pins())

  static let hostPage: UInt64 = 4096

  /// - Parameters:
  ///   - start: First byte that will be mapped, any alignment.
  ///   - length: In bytes, any alignment.
  /// - Throws: `EINVAL` for an empty or overlong range, `EOVERFLOW` where it wraps.
  init(
    source: any MemorySource, start: UInt64, length: UInt64, isWritable: Bool
  ) throws(IOMMUError) {
    guard length > 0, length <= UInt64.max - Self.hostPage else {
      throw IOMMUError(.invalidArgument, "a mapping of \(hex(length)) bytes cannot be made")
    }
    guard !start.addingReportingOverflow(length).overflow else {
      throw IOMMUError(
        .overflow, "memory at \(hex(start)) + \(hex(length)) bytes passes the last address")
    }
    self.source = source
    self.isWritable = isWritable
    address = start & ~(Self.hostPage - 1)
    let bytes = start - address + length
    self.length = (bytes + Self.hostPage - 1) & ~(Self.hostPage - 1)
  }

  /// Pins the memory, or counts one more user of the pin that is there.
  ///
  /// Linux: `iopt_area_fill_domain`'s pinning. Each success is undone by `unpin`.
  /// - Returns: Where it is, for as long as it is pinned.
  @discardableResult
  func pin(in memory: PhysicalMemory) throws(IOMMUError) -> Placed {
    // Sources are called under this lock so that two users never pin the same piece twice.
    try pins.withLock { (pins) throws(IOMMUError) in
      if pins.users == 0 { pins.placed = try place(in: memory) }
      pins.users += 1
      return pins.placed
    }
  }

  /// Whether somebody has pinned the memory.
  var isPinned: Bool { pins.withLock { $0.users > 0 } }

  /// How many have pinned the memory, and where it is: for snapshots.
  var pinState: (users: Int, placed: Placed) { pins.withLock { ($0.users, $0.placed) } }

  private func place(in memory: PhysicalMemory) throws(IOMMUError) -> Placed {
    var placed = Placed.nowhere
    var offset: UInt64 = 0
    do throws(IOMMUError) {
      try source.pin(address: address, length: length, writable: isWritable) {
        (run) throws(IOMMUError) in
        try FailurePoint.pass(.pin)
        let runLength = run.length
        let physical = try memory.insert(run, congruentTo: address &+ offset)
        if runLength == length {
          placed = .one(physical)
        } else {
          placed.append(
            Placed.Segment(offset: offset, length: runLength, physical: physical))
        }
        offset += runLength
      }
    } catch {
      release(placed, in: memory)
      throw error
    }
    return placed
  }

  private func release(_ placed: Placed, in memory: PhysicalMemory) {
    switch placed {
    case .nowhere: break
    case .one(let physical): memory.remove(physical, length: length)
    case .many(let segments):
      for segment in segments { memory.remove(segment.physical, length: segment.length) }
    }
  }

  func unpin(in memory: PhysicalMemory) {
    pins.withLock { pins in
      pins.users -= 1
      guard pins.users == 0 else { return }
      release(pins.placed, in: memory)
      pins.placed = .nowhere
    }
  }
}

extension Pages.Placed {
  fileprivate mutating func append(_ segment: Segment) {
    if case .many(var segments) = self {
      self = .nowhere
      segments.append(segment)
      self = .many(segments)
    } else {
      self = .many([segment])
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
    case .one(let physical):
      try body(0, PhysicalAddress(physical.rawValue + start), length)
    case .many(let segments):
      let end = start + length
      for segment in segments {
        let from = max(start, segment.offset)
        let to = min(end, segment.offset + segment.length)
        guard from < to else { continue }
        let physical = PhysicalAddress(segment.physical.rawValue + (from - segment.offset))
        try body(from - start, physical, to - from)
      }
    }
  }
}
