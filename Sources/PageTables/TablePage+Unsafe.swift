// SPDX-License-Identifier: Apache-2.0
//
// The memory of page tables: pages of entries that DMA reads while they are written. With
// `TablePool+Unsafe.swift`, where they come from, all pointers of this module.

import Synchronization

/// One table: as many entries as fit into a granule of its format, at a multiple of it. A root
/// may take several granules.
///
/// A handle without ownership: valid while the page's pool has it handed out. Entries are
/// atomic: one writer (serialized by the owner of the table) and any number of readers.
@safe
@frozen
public struct TablePage<Format: PageTableFormat>: @unchecked Sendable {
  // Unchecked: the entries behind the pointer are atomics; the notes beside them are touched
  // by the serialized writer only.
  @usableFromInline let entries: UnsafeMutablePointer<Atomic<UInt64>>

  /// - Parameter address: As an entry of the level above holds it; not zero.
  @inlinable @inline(__always)
  init(address: UInt64) {
    // SAFETY: the address was taken from a page of the pool (see `address`).
    unsafe entries =
      UnsafeMutablePointer<Atomic<UInt64>>(bitPattern: UInt(address)).unsafelyUnwrapped
  }

  /// What entries that point here hold: where the page lies in this process. User space has
  /// at most 57 bits of addresses on any host, and 47 unless it asks for more.
  @inlinable @inline(__always)
  public var address: UInt64 { unsafe UInt64(UInt(bitPattern: entries)) }

  @inlinable @inline(__always)
  func load(_ index: Int) -> UInt64 {
    // SAFETY: indexes come from `TableRoot.index`, or are below `TableRoot.entryCount`.
    unsafe entries[index].load(ordering: .acquiring)
  }

  @inlinable @inline(__always)
  func store(_ entry: UInt64, at index: Int) {
    // SAFETY: see `load`.
    unsafe entries[index].store(entry, ordering: .releasing)
  }

  /// Replaces an entry unless it has changed meanwhile.
  /// - Returns: What it was; equal to `expected` where it was replaced.
  @inlinable @inline(__always)
  func exchange(_ expected: UInt64, for entry: UInt64, at index: Int) -> UInt64 {
    // SAFETY: see `load`.
    unsafe entries[index].compareExchange(
      expected: expected, desired: entry, ordering: .acquiringAndReleasing
    ).original
  }

  /// Where the page's chunk begins: see `TableStore`.
  @inlinable @inline(__always)
  var chunk: UInt { UInt(address) & ~(chunkSize(granuleShift: Format.granuleShift) &- 1) }

  @inlinable @inline(__always)
  var note: UnsafeMutablePointer<PageNote> {
    // SAFETY: pages lie in chunks aligned to their size, which begin with one note a page.
    unsafe UnsafeMutablePointer<PageNote>(bitPattern: chunk).unsafelyUnwrapped
      + Int(
        truncatingIfNeeded: (UInt(address) &- chunk) >> UInt(Format.granuleShift))
  }

  /// Whether walks set accessed and dirty bits: of a root, whose chunk keeps it in the note of
  /// the page that holds the notes. A table has one root.
  @inlinable @inline(__always)
  var isMarking: Bool {
    get { unsafe mark.pointee.load(ordering: .acquiring) != 0 }
    nonmutating set { unsafe mark.pointee.store(newValue ? 1 : 0, ordering: .releasing) }
  }

  @inlinable @inline(__always)
  var mark: UnsafeMutablePointer<Atomic<UInt64>> {
    // SAFETY: as in `note`; the pool initializes it with the chunk.
    unsafe UnsafeMutablePointer<Atomic<UInt64>>(bitPattern: chunk).unsafelyUnwrapped
  }

  /// Entries in use.
  @inlinable @inline(__always)
  var live: Int {
    // SAFETY: see `note`.
    get { unsafe note.pointee.live }
    nonmutating set { unsafe note.pointee.live = newValue }
  }

  /// The page after this one in a gather list, 0 at its end.
  @inlinable @inline(__always)
  var next: UInt64 {
    // SAFETY: see `note`.
    get { unsafe note.pointee.next }
    nonmutating set { unsafe note.pointee.next = newValue }
  }
}

/// The notes that a pool keeps beside each page, in the first page of its chunk.
@usableFromInline
struct PageNote {
  /// Entries in use. The chunk's own note has `mark` here.
  @usableFromInline var live: Int
  /// Link of the gather list: the next page's address, or 0.
  @usableFromInline var next: UInt64

  @usableFromInline
  init(live: Int, next: UInt64) {
    self.live = live
    self.next = next
  }
}

/// Chunks are of 64 granules, and aligned to their size: see `TableStore`. In bytes.
@inlinable @inline(__always)
func chunkSize(granuleShift: Int) -> UInt { 64 << UInt(granuleShift) }

/// The memory of tables that `PageTable` made, by their addresses in this process. Not public:
/// it believes every address that it is given.
@usableFromInline
struct HostTableMemory: TableMemory {
  @inlinable @inline(__always)
  init() {}

  @inlinable @inline(__always)
  func entry(_ address: UInt64) -> UnsafeMutablePointer<Atomic<UInt64>> {
    // SAFETY: the address lies in a page that a live `PageTable` has linked.
    unsafe UnsafeMutablePointer(bitPattern: UInt(address)).unsafelyUnwrapped
  }

  @inlinable @inline(__always)
  func load(_ address: UInt64) throws(TableMemoryFault) -> UInt64 {
    // SAFETY: see `entry`.
    unsafe entry(address).pointee.load(ordering: .acquiring)
  }

  @inlinable @inline(__always)
  func compareExchange(
    _ address: UInt64, expected: UInt64, desired: UInt64
  ) throws(TableMemoryFault) -> Bool {
    // SAFETY: see `entry`.
    unsafe entry(address).pointee.compareExchange(
      expected: expected, desired: desired, ordering: .acquiringAndReleasing
    ).exchanged
  }
}
