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
  let kind: MappedMemory

  struct Pins: Sendable {
    /// How often `range` is pinned; used as long as all pins are of the same range, which is
    /// the usual case: no memory is allocated for it.
    var users = 0
    var range: Range<UInt64> = 0..<0
    var placed = Placed.nowhere
    /// Instead of the above: pins of different ranges.
    var parts: PinnedParts?
    /// Whom pins are charged to; nil is nobody.
    var account: MemoryAccount?
    /// Taken back by its exporter: no pin adds anything, and what was placed is gone.
    var isRevoked = false
    /// The address spaces that map memory which can be taken back.
    var mappers: [Mapper] = []

    /// In bytes; what is charged.
    var byteCount: UInt64 {
      parts?.byteCount ?? (users > 0 ? range.upperBound - range.lowerBound : 0)
    }
  }

  let pins: RankedMutex<Pins>

  static let hostPage: UInt64 = 4096

  /// - Parameters:
  ///   - start: First byte that will be mapped, any alignment.
  ///   - length: In bytes, any alignment.
  /// - Throws: `EOVERFLOW` where the range wraps, `EINVAL` where it is empty or overlong.
  init(
    source: any MemorySource, start: UInt64, length: UInt64, isWritable: Bool,
    kind: MappedMemory = .process, account: MemoryAccount? = nil
  ) throws(IOMMUError) {
    // In the order of Linux since 6.13. The last byte of a file may be the last offset; that of
    // a process may not.
    let reach = kind == .process ? length : length - min(length, 1)
    guard !start.addingReportingOverflow(reach).overflow else {
      throw IOMMUError(
        .overflow, "memory at \(hex(start)) + \(hex(length)) bytes passes the last address")
    }
    guard length > 0, length <= UInt64.max - Self.hostPage else {
      throw IOMMUError(.invalidArgument, "a mapping of \(hex(length)) bytes cannot be made")
    }
    self.source = source
    self.isWritable = isWritable
    self.kind = kind
    address = start & ~(Self.hostPage - 1)
    let bytes = start - address + length
    self.length = (bytes &+ Self.hostPage &- 1) & ~(Self.hostPage - 1)
    pins = RankedMutex(.pages, Pins(account: account))
  }

  /// No memory at all: what a nested address space maps where its parent maps nothing. As memory
  /// that was taken back, it can be pinned but fills no page table.
  static let hole = Pages()

  private init() {
    source = NoMemory()
    isWritable = false
    kind = .file
    address = 0
    length = 0
    pins = RankedMutex(.pages, Pins(isRevoked: true))
  }

  private final class NoMemory: MemorySource {
    func pin(
      address: UInt64, length: UInt64, writable: Bool,
      place: (consuming PinnedRun) throws(IOMMUError) -> Void
    ) throws(IOMMUError) {
      throw IOMMUError(.badAddress, "there is no memory")
    }
  }

  /// Pins the host pages around a part of the memory, or counts one more user of them.
  ///
  /// Linux: `iopt_area_fill_domain`'s pinning. What nobody had pinned is charged to the account.
  /// Each success is undone by `unpin` of the same part.
  /// - Parameters: `start` and `length` in bytes, within the memory.
  /// - Returns: Where it is, for as long as it is pinned.
  /// - Throws: `EFAULT` and what the source throws; `ENOMEM` where the account's limit, or
  ///   physical space, is used up. Then nothing is pinned for this call.
  @discardableResult
  func pin(
    start: UInt64, length: UInt64, in memory: PhysicalMemory
  ) throws(IOMMUError) -> Placed {
    let range = pageRange(start, length)
    // Sources are called under this lock so that two users never pin the same piece twice, and
    // the account so that what is charged is what is pinned.
    return try pins.withLock { (pins) throws(IOMMUError) in
      if pins.isRevoked { return .revoked }
      if pins.parts == nil {
        if pins.users == 0 {
          pins.placed = try place(range, for: pins.account, in: memory)
          pins.range = range
          pins.users = 1
          return pins.placed
        }
        if pins.range == range {
          pins.users += 1
          return pins.placed
        }
      }
      return try pinPart(range, &pins, in: memory)
    }
  }

  /// The host pages around a part, as offsets.
  @inline(__always)
  private func pageRange(_ start: UInt64, _ length: UInt64) -> Range<UInt64> {
    let first = start & ~(Self.hostPage - 1)
    let end = (start &+ length &+ Self.hostPage &- 1) & ~(Self.hostPage - 1)
    return first..<max(first, end)
  }

  /// What its account is charged for it, in bytes.
  var chargedBytes: UInt64 { pins.withLock { $0.account == nil ? 0 : $0.byteCount } }

  /// Who uses what of the memory, and where that is: for snapshots.
  var pinState: (coverage: [PinCoverage.Span], placed: [Placed.Segment]) {
    pins.withLock { pins in
      if let parts = pins.parts { return (parts.coverage.spans, parts.segments) }
      guard pins.users > 0 else { return ([], []) }
      return (
        [PinCoverage.Span(range: pins.range, users: pins.users)],
        pins.placed.segments(of: pins.range)
      )
    }
  }

  /// Where a part is, where all of it is pinned: for the time that `body` runs it stays there.
  /// - Returns: Nil where some of it is not pinned.
  func withPinned<Result>(
    start: UInt64, length: UInt64, _ body: (Placed) throws(IOMMUError) -> Result
  ) throws(IOMMUError) -> Result? {
    let range = pageRange(start, length)
    return try pins.withLock { (pins) throws(IOMMUError) -> Result? in
      if let parts = pins.parts {
        guard parts.coverage.covers(range) else { return nil }
        return try body(parts.placed(range))
      }
      guard pins.users > 0, pins.range.lowerBound <= range.lowerBound,
        range.upperBound <= pins.range.upperBound
      else { return nil }
      return try body(pins.placed)
    }
  }

  /// Ends one pin of a part.
  func unpin(start: UInt64, length: UInt64, in memory: PhysicalMemory) {
    let range = pageRange(start, length)
    pins.withLock { pins in
      if pins.isRevoked { return }
      if pins.parts == nil, pins.range == range {
        pins.users -= 1
        guard pins.users == 0 else { return }
        release(pins.placed, range, in: memory)
        pins.account?.uncharge(range.upperBound - range.lowerBound)
        pins.placed = .nowhere
      } else {
        unpinPart(range, &pins, in: memory)
      }
    }
  }

  /// Pins a range that nobody has pinned, and charges an account for it.
  func place(
    _ range: Range<UInt64>, for account: MemoryAccount?, in memory: PhysicalMemory
  ) throws(IOMMUError) -> Placed {
    let length = range.upperBound - range.lowerBound
    let most = memory.mostPinnedAtOnce
    if length > most { return try placeInSteps(range, most, for: account, in: memory) }
    var placed = Placed.nowhere
    var offset = range.lowerBound
    do throws(IOMMUError) {
      try source.pin(
        address: address + range.lowerBound, length: length, writable: isWritable
      ) {
        (run: consuming PinnedRun) throws(IOMMUError) in
        try FailurePoint.pass(.pin)
        let runLength = run.length
        let physical = try memory.insert(run, congruentTo: address &+ offset)
        if runLength == length {
          placed = .one(PhysicalAddress(physical.rawValue &- offset))
        } else {
          placed.append(
            Placed.Segment(offset: offset, length: runLength, physical: physical))
        }
        offset += runLength
      }
      // As on Linux: pinned first, counted then.
      try account?.charge(length)
    } catch {
      release(placed, range, in: memory)
      throw error
    }
    return placed
  }

  func release(_ placed: Placed, _ range: Range<UInt64>, in memory: PhysicalMemory) {
    switch placed {
    case .nowhere, .revoked: break
    case .one(let base):
      memory.remove(
        PhysicalAddress(base.rawValue &+ range.lowerBound),
        length: range.upperBound - range.lowerBound)
    case .many(let segments):
      for segment in segments { memory.remove(segment.physical, length: segment.length) }
    }
  }
}

/// What a mapping was made from (Linux: `enum iopt_address_type`).
public enum MappedMemory: Hashable, Sendable {
  /// A process's address space: bound to that process for good.
  case process
  /// A file: accounting can move to another process (`Context.changeOwner`).
  case file
  /// Memory that its exporter can take back (Linux: a DMA-buf): never accounted.
  case buffer
}
