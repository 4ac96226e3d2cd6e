// SPDX-License-Identifier: Apache-2.0
//
// The storage of the synthetic physical space: one entry for each slot of 1 GiB, in chunks
// that are made when first used and then never move, so that DMA reads it without a lock.

import PageTables
import Synchronization

/// Maps slots of physical space to segments. Writers are serialized by `PhysicalMemory`.
///
/// A reader may only look up an address that a page table gave it, inside the invalidation
/// protocol of the driver: the slot was filled before the table entry was published, and is
/// emptied after the last reader of that entry is known to be gone.
@safe
@usableFromInline
final class SegmentTable: @unchecked Sendable {
  // Unchecked: chunk pointers are published by an atomic release store and read by an acquire
  // load; entries follow the protocol above.

  @usableFromInline static let slotShift: UInt64 = 30
  @usableFromInline static let chunkShift: UInt64 = 10
  @usableFromInline static let chunkSlots = 1 << 10
  @usableFromInline static let chunkCount = 1 << 12
  /// 2²² slots of 1 GiB are the 52 bits of a physical address.
  static let slotCount = chunkSlots * chunkCount

  @usableFromInline let chunks: UnsafeMutablePointer<Atomic<UInt>>

  /// The slots of a chunk in two arrays: windows, which DMA reads, lie close together, 32 bytes
  /// each; what else a segment is lies beside them.
  @safe
  @usableFromInline
  struct Chunk {
    @usableFromInline let windows: UnsafeMutablePointer<LocalWindow?>
    let segments: UnsafeMutablePointer<Segment?>
  }

  init() {
    // SAFETY: allocated for chunkCount elements, all initialized here, freed in deinit.
    unsafe chunks = .allocate(capacity: Self.chunkCount)
    for index in 0..<Self.chunkCount {
      unsafe (chunks + index).initialize(to: Atomic(0))
    }
  }

  deinit {
    for index in 0..<Self.chunkCount {
      guard let chunk = unsafe published(index) else { continue }
      // SAFETY: a published chunk was allocated and initialized by `makeChunk`.
      unsafe chunk.pointee.windows.deallocate()
      unsafe chunk.pointee.segments.deinitialize(count: Self.chunkSlots)
      unsafe chunk.pointee.segments.deallocate()
      unsafe chunk.deallocate()
    }
    unsafe chunks.deinitialize(count: Self.chunkCount)
    unsafe chunks.deallocate()
  }

  @inlinable @inline(__always)
  func published(_ index: Int) -> UnsafeMutablePointer<Chunk>? {
    // SAFETY: every caller's index is below chunkCount; a published chunk lives as long as the
    // table.
    let bits = unsafe chunks[index].load(ordering: .acquiring)
    return unsafe UnsafeMutablePointer<Chunk>(bitPattern: bits)
  }

  /// The segment in a slot; nil where the slot is empty. No lock, no allocation.
  func segment(at slot: Int) -> Segment? {
    let chunkIndex = slot >> Int(Self.chunkShift)
    guard chunkIndex < Self.chunkCount, let chunk = unsafe published(chunkIndex) else {
      return nil
    }
    return unsafe chunk.pointee.segments[slot & (Self.chunkSlots - 1)]
  }

  /// Where an address lies in this process, read without touching a reference count.
  @inlinable
  func window(at slot: Int) -> LocalWindow? {
    let chunkIndex = slot >> Int(Self.chunkShift)
    guard chunkIndex < Self.chunkCount, let chunk = unsafe published(chunkIndex) else {
      return nil
    }
    return unsafe chunk.pointee.windows[slot & (Self.chunkSlots - 1)]
  }

  /// Puts a run into an empty slot.
  /// - Parameter first: Physical address of the run's first byte.
  func fill(_ slot: Int, with run: consuming PinnedRun, at first: UInt64) {
    // SAFETY: the slot is inside its chunk; writers are serialized by the owner's lock. The
    // slot is empty, so nothing is overwritten that would have to be released.
    let chunk = unsafe chunk(for: slot)
    let index = slot & (Self.chunkSlots - 1)
    unsafe chunk.pointee.windows[index] = LocalWindow(
      first: first, last: first + run.length - 1, displacement: run.address &- first,
      isLocal: run.isLocal)
    unsafe (chunk.pointee.segments + index).initialize(to: Segment(run: run, first: first))
  }

  /// Empties a slot.
  func clear(_ slot: Int) {
    // SAFETY: as in `fill`.
    let chunk = unsafe chunk(for: slot)
    let index = slot & (Self.chunkSlots - 1)
    unsafe chunk.pointee.windows[index] = nil
    unsafe chunk.pointee.segments[index] = nil
  }

  private func chunk(for slot: Int) -> UnsafeMutablePointer<Chunk> {
    let index = slot >> Int(Self.chunkShift)
    precondition(index < Self.chunkCount)
    if let chunk = unsafe published(index) { return unsafe chunk }
    // SAFETY: freed in deinit; only the serialized writer makes chunks.
    let windows = UnsafeMutablePointer<LocalWindow?>.allocate(capacity: Self.chunkSlots)
    unsafe windows.initialize(repeating: nil, count: Self.chunkSlots)
    let segments = UnsafeMutablePointer<Segment?>.allocate(capacity: Self.chunkSlots)
    unsafe segments.initialize(repeating: nil, count: Self.chunkSlots)
    let chunk = UnsafeMutablePointer<Chunk>.allocate(capacity: 1)
    unsafe chunk.initialize(to: Chunk(windows: windows, segments: segments))
    unsafe chunks[index].store(UInt(bitPattern: chunk), ordering: .releasing)
    return unsafe chunk
  }
}

/// What fills a slot: the part of a pinned run that lies in it.
@usableFromInline
struct Segment: Sendable {
  @usableFromInline let run: PinnedRun
  /// Physical address of the run's first byte.
  @usableFromInline let first: UInt64

  func contains(_ address: PhysicalAddress) -> Bool {
    address.rawValue >= first && address.rawValue - first < run.length
  }
}

/// How physical addresses of one segment become addresses of this process.
public struct LocalWindow: Sendable {
  /// First and last physical address, both inclusive, in bytes.
  public let first: UInt64
  public let last: UInt64
  /// Added (wrapping) to a physical address it gives the local one. Meaningless where
  /// `isLocal` is false.
  public let displacement: UInt64
  /// False where the memory is reached by calls (`PhysicalMemory.read`, `.write`).
  public let isLocal: Bool

  @usableFromInline
  init(first: UInt64, last: UInt64, displacement: UInt64, isLocal: Bool) {
    self.first = first
    self.last = last
    self.displacement = displacement
    self.isLocal = isLocal
  }
}
