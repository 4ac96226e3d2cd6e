// SPDX-License-Identifier: Apache-2.0
//
// The memory of page tables: pages of 512 entries that DMA reads while they are written, and
// the pool that they come from. All pointers of this module are in this file.

import Synchronization

/// One page of a table: 512 entries at a multiple of 4 KiB.
///
/// A handle without ownership: valid while the page's pool has it handed out. Entries are
/// atomic: one writer (serialized by the owner of the table) and any number of readers.
@safe
@frozen
public struct TablePage: @unchecked Sendable {
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
  public func load(_ index: Int) -> UInt64 {
    // SAFETY: a page has 512 entries.
    unsafe entries[index & 511].load(ordering: .acquiring)
  }

  @inlinable @inline(__always)
  func store(_ entry: UInt64, at index: Int) {
    // SAFETY: a page has 512 entries.
    unsafe entries[index & 511].store(entry, ordering: .releasing)
  }

  /// Replaces an entry unless it has changed meanwhile.
  /// - Returns: What it was; equal to `expected` where it was replaced.
  @inlinable @inline(__always)
  func exchange(_ expected: UInt64, for entry: UInt64, at index: Int) -> UInt64 {
    // SAFETY: a page has 512 entries.
    unsafe entries[index & 511].compareExchange(
      expected: expected, desired: entry, ordering: .acquiringAndReleasing
    ).original
  }

  /// Takes bits out of an entry, whatever else changes in it.
  @inlinable @inline(__always)
  func remove(_ bits: UInt64, at index: Int) {
    // SAFETY: a page has 512 entries.
    _ = unsafe entries[index & 511].bitwiseAnd(~bits, ordering: .acquiringAndReleasing)
  }

  /// Chunks are aligned to their size, in bytes: see `TableStore`.
  @inlinable @inline(__always)
  static var chunkSize: UInt { 256 << 10 }

  /// The notes that the pool keeps beside each page, in the first page of its chunk.
  @usableFromInline
  struct Note {
    /// Entries in use. The chunk's own note has `mark` here.
    @usableFromInline var live: Int
    /// Link of the gather list: the next page's address, or 0.
    @usableFromInline var next: UInt64
  }

  @inlinable @inline(__always)
  var note: UnsafeMutablePointer<Note> {
    // SAFETY: pages lie in chunks aligned to their size, which begin with one note a page.
    unsafe UnsafeMutablePointer<Note>(
      bitPattern: UInt(address) & ~(TablePage.chunkSize - 1)
    ).unsafelyUnwrapped
      + Int(truncatingIfNeeded: (UInt(address) & (TablePage.chunkSize - 1)) >> 12)
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
    unsafe UnsafeMutablePointer<Atomic<UInt64>>(
      bitPattern: UInt(address) & ~(TablePage.chunkSize - 1)
    ).unsafelyUnwrapped
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

/// Where one table's pages come from.
///
/// A class for the compiler's sake: generic builders are inlined into other modules, and those
/// must not see how the store is laid out. One table refers to it, and nobody else.
@usableFromInline
final class TablePool: @unchecked Sendable {
  // Unchecked: one table owns it and guards it as it guards itself.
  private var store = TableStore()
  private let limit: Int

  init(limit: Int) { self.limit = limit }

  /// Pages handed out.
  var used: Int { store.used }

  /// Bytes that the pool holds, in use or not.
  var footprint: Int { store.footprint }

  /// Whether so many more pages may be taken.
  @usableFromInline
  func has(_ count: Int) -> Bool { limit - store.used >= count }

  /// A page of zero entries. The caller has asked `has`.
  @usableFromInline
  func take() -> TablePage { store.take() }

  /// Takes back a page whose entries are all zero, once no walk can be in it.
  @usableFromInline
  func put(_ page: TablePage) { store.put(page) }
}

/// Chunks of 64 pages, of which the first holds notes.
///
/// Pages come back all zero (a page leaves a table only when its last entry was cleared), so
/// that mapping and unmapping in turn writes no page anew. A chunk that is empty while another
/// is empty too goes back to the system.
@safe
struct TableStore: ~Copyable {
  private static let allFree = ~UInt64(1)

  private struct Chunk {
    var address: UInt
    /// Bit n: page n is free.
    var free: UInt64
    /// Pages from this number on were never used and are not zeroed yet.
    var fresh: Int
  }

  private var chunks: [Chunk] = []
  /// Where to look for a free page first.
  private var hint = 0
  private(set) var used = 0

  deinit {
    for chunk in chunks { Self.release(chunk.address) }
  }

  var footprint: Int { chunks.count * Int(TablePage.chunkSize) }

  mutating func take() -> TablePage {
    if hint >= chunks.count || chunks[hint].free == 0 { findRoom() }
    let index = chunks[hint].free.trailingZeroBitCount
    chunks[hint].free &= chunks[hint].free &- 1
    used += 1
    let page = TablePage(address: UInt64(chunks[hint].address + UInt(index) << 12))
    if index >= chunks[hint].fresh {
      chunks[hint].fresh = index + 1
      // SAFETY: the page lies in a chunk that this pool allocated and nobody else uses it;
      // zero bytes are an initialized Atomic of 0.
      let raw = unsafe UnsafeMutableRawPointer(page.entries)
      _ = unsafe raw.initializeMemory(as: UInt8.self, repeating: 0, count: 4096)
      unsafe page.note.initialize(to: TablePage.Note(live: 0, next: 0))
    }
    return page
  }

  mutating func put(_ page: TablePage) {
    let chunkAddress = UInt(page.address) & ~(TablePage.chunkSize - 1)
    let index = Int((UInt(page.address) - chunkAddress) >> 12)
    if chunks[hint].address != chunkAddress {
      guard let found = chunks.firstIndex(where: { $0.address == chunkAddress }) else { return }
      hint = found
    }
    chunks[hint].free |= 1 << UInt64(index)
    used -= 1
    if chunks[hint].free == Self.allFree, chunks.count > 1,
      let other = chunks.indices.first(where: {
        $0 != hint && chunks[$0].free == Self.allFree
      })
    {
      Self.release(chunks[hint].address)
      chunks.remove(at: hint)
      hint = other > hint ? other - 1 : other
    }
  }

  private mutating func findRoom() {
    if let found = chunks.firstIndex(where: { $0.free != 0 }) {
      hint = found
      return
    }
    // Released in deinit or by `put`.
    let memory = UnsafeMutableRawPointer.allocate(
      byteCount: Int(TablePage.chunkSize), alignment: Int(TablePage.chunkSize))
    // SAFETY: the chunk's first word, which is nobody's yet; zero is an Atomic of 0.
    unsafe memory.initializeMemory(as: UInt64.self, repeating: 0, count: 1)
    hint = chunks.count
    chunks.append(
      Chunk(address: UInt(bitPattern: memory), free: Self.allFree, fresh: 1))
  }

  private static func release(_ address: UInt) {
    // SAFETY: an address that `findRoom` allocated; nothing uses its pages any more. Atomics
    // of trivial values need no deinitialization.
    unsafe UnsafeMutableRawPointer(bitPattern: address)?.deallocate()
  }
}
