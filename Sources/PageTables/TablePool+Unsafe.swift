// SPDX-License-Identifier: Apache-2.0
//
// Where the pages of one table come from: chunks of granules, with notes beside each.

import Synchronization

/// Where one table's pages come from.
///
/// A class for the compiler's sake: generic builders are inlined into other modules, and those
/// must not see how the store is laid out. One table refers to it, and nobody else.
@usableFromInline
final class TablePool: @unchecked Sendable {
  // Unchecked: one table owns it and guards it as it guards itself.
  private var store: TableStore
  private let limit: Int

  /// - Parameter limit: The most pages that may be handed out.
  init(granuleShift: Int, limit: Int) {
    store = TableStore(granuleShift: granuleShift)
    self.limit = limit
  }

  /// Pages handed out.
  var used: Int { store.used }

  /// Bytes that the pool holds, in use or not.
  var footprint: Int { store.footprint }

  /// Whether so many more pages may be taken.
  @usableFromInline
  func has(_ count: Int) -> Bool { limit - store.used >= count }

  /// Address of a page of zero entries. The caller has asked `has`.
  @usableFromInline
  func take() -> UInt64 { store.take() }

  /// Address of a run of pages of zero entries, aligned to its size.
  /// - Parameter count: A power of two, at most 32.
  func take(run count: Int) -> UInt64 { store.take(run: count) }

  /// Takes back a page whose entries are all zero, once no walk can be in it.
  @usableFromInline
  func put(_ address: UInt64) { store.put(address) }
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
    /// Bit n: page n has been zeroed, and has its note.
    var zeroed: UInt64 = 0
  }

  private let granuleShift: Int
  private var chunks: [Chunk] = []
  /// Where to look for a free page first.
  private var hint = 0
  private(set) var used = 0

  init(granuleShift: Int) { self.granuleShift = granuleShift }

  deinit {
    for chunk in chunks { Self.release(chunk.address) }
  }

  var footprint: Int { chunks.count * Int(chunkSize(granuleShift: granuleShift)) }

  mutating func take() -> UInt64 {
    if hint >= chunks.count || chunks[hint].free == 0 { findRoom() }
    let index = chunks[hint].free.trailingZeroBitCount
    return hand(index)
  }

  /// Roots: the first pages that a store hands out, so that there is room.
  mutating func take(run count: Int) -> UInt64 {
    if count == 1 { return take() }
    findRoom()
    // Aligned as the chunk is; the first page of it has the notes.
    for index in (count..<2 * count).reversed() { _ = hand(index) }
    return UInt64(chunks[hint].address + UInt(count) << UInt(granuleShift))
  }

  private mutating func hand(_ index: Int) -> UInt64 {
    let bit: UInt64 = 1 << UInt64(index)
    chunks[hint].free &= ~bit
    used += 1
    let address = chunks[hint].address + UInt(index) << UInt(granuleShift)
    if chunks[hint].zeroed & bit == 0 {
      chunks[hint].zeroed |= bit
      // SAFETY: the page lies in a chunk that this pool allocated and nobody else uses it;
      // zero bytes are an initialized Atomic of 0. The note is its own, in the first page.
      unsafe UnsafeMutableRawPointer(bitPattern: address).unsafelyUnwrapped
        .initializeMemory(as: UInt8.self, repeating: 0, count: 1 << granuleShift)
      unsafe (UnsafeMutablePointer<PageNote>(bitPattern: chunks[hint].address)
        .unsafelyUnwrapped + index).initialize(to: PageNote(live: 0, next: 0))
    }
    return UInt64(address)
  }

  mutating func put(_ address: UInt64) {
    let size = chunkSize(granuleShift: granuleShift)
    let chunkAddress = UInt(address) & ~(size - 1)
    let index = Int((UInt(address) - chunkAddress) >> UInt(granuleShift))
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
    let size = Int(chunkSize(granuleShift: granuleShift))
    let memory = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: size)
    // SAFETY: the chunk's first word, which is nobody's yet; zero is an Atomic of 0.
    unsafe memory.initializeMemory(as: UInt64.self, repeating: 0, count: 1)
    hint = chunks.count
    chunks.append(Chunk(address: UInt(bitPattern: memory), free: Self.allFree))
  }

  private static func release(_ address: UInt) {
    // SAFETY: an address that `findRoom` allocated; nothing uses its pages any more. Atomics
    // of trivial values need no deinitialization.
    unsafe UnsafeMutableRawPointer(bitPattern: address)?.deallocate()
  }
}
