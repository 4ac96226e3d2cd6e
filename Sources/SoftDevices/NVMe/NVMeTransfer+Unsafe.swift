// SPDX-License-Identifier: Apache-2.0
//
// A command's data on its way between the program's memory and the blocks: it rests in a buffer of
// the controller's own, so that a block is stored when all of it is at hand, or not at all.

import IOMMU
import PageTables
import VFIO

/// The buffers of one controller thread, and where the data of the command in hand is. Of one
/// thread.
@safe
final class NVMeTransfer {
  /// A stretch of the program's memory.
  struct Piece: Sendable {
    var address: UInt64
    /// In bytes, positive.
    var count: Int
    /// Of a read: data that nobody wants (SGL bit bucket).
    var isDiscarded = false
  }

  let port: any BusPort
  /// The longest transfer, in bytes.
  let limit: Int
  private let buffer: UnsafeMutableRawBufferPointer
  /// What is compared with the buffer; made when first needed.
  private var other: UnsafeMutableRawBufferPointer?
  /// PRP lists and SGL segments on their way.
  private let list: UnsafeMutableRawBufferPointer
  private(set) var pieces: [Piece] = []
  /// Bytes in `pieces`.
  private(set) var length = 0

  /// Bytes that `loadList` reads at once, at most: the largest page of memory.
  static let listLimit = 64 << 10

  init(port: any BusPort, limit: Int) {
    self.port = port
    self.limit = limit
    // SAFETY: both are this object's own, zeroed, and freed in deinit.
    unsafe buffer = .allocate(byteCount: max(limit, 16 << 10), alignment: 4096)
    unsafe list = .allocate(byteCount: Self.listLimit, alignment: 4096)
    _ = unsafe buffer.initializeMemory(as: UInt8.self, repeating: 0)
    _ = unsafe list.initializeMemory(as: UInt8.self, repeating: 0)
    pieces.reserveCapacity(limit / 4096 + 1)
  }

  deinit {
    unsafe buffer.deallocate()
    unsafe list.deallocate()
    unsafe other?.deallocate()
  }

  // MARK: Where the data is

  /// Starts with no data.
  func clear() {
    pieces.removeAll(keepingCapacity: true)
    length = 0
  }

  /// Appends a stretch, to the last one where it follows it.
  func append(_ address: UInt64, _ count: Int, isDiscarded: Bool = false) {
    guard count > 0 else { return }
    length += count
    if let last = pieces.last, last.isDiscarded == isDiscarded, address != 0 || isDiscarded,
      isDiscarded || last.address &+ UInt64(last.count) == address
    {
      pieces[pieces.count - 1].count += count
    } else {
      pieces.append(Piece(address: address, count: count, isDiscarded: isDiscarded))
    }
  }

  /// Reads part of a PRP list or an SGL segment.
  /// - Parameter count: Words of 64 bits, at most `listLimit / 8`.
  func loadList(_ address: UInt64, count: Int) throws(NVMeStatus) {
    // SAFETY: `count` words fit into the list's buffer.
    let part = unsafe UnsafeMutableRawBufferPointer(
      rebasing: list[..<min(count * 8, Self.listLimit)])
    do throws(BusError) {
      try unsafe port.read(IOVA(address), into: part)
    } catch {
      throw .dataTransferError
    }
  }

  /// A word of what `loadList` read.
  func listWord(_ index: Int) -> UInt64 {
    precondition(index >= 0 && index < Self.listLimit / 8)
    // SAFETY: the index was checked.
    return unsafe UInt64(littleEndian: list.load(fromByteOffset: index * 8, as: UInt64.self))
  }

  // MARK: Between memory and buffer

  /// Fills the buffer from the program's memory.
  /// - Throws: `dataTransferError` where any of it cannot be read.
  func receive() throws(NVMeStatus) {
    var done = 0
    for piece in pieces where !piece.isDiscarded {
      // SAFETY: the pieces together are no longer than the buffer: `length` is checked against
      // `limit` where they are made.
      let part = unsafe UnsafeMutableRawBufferPointer(
        rebasing: buffer[done..<done + piece.count])
      do throws(BusError) {
        try unsafe port.read(IOVA(piece.address), into: part)
      } catch {
        throw .dataTransferError
      }
      done += piece.count
    }
  }

  /// Writes the buffer to the program's memory.
  func send() throws(NVMeStatus) {
    var done = 0
    for piece in pieces {
      if !piece.isDiscarded {
        // SAFETY: as in `receive`.
        let part = unsafe UnsafeRawBufferPointer(rebasing: buffer[done..<done + piece.count])
        do throws(BusError) {
          try unsafe port.write(IOVA(piece.address), from: part)
        } catch {
          throw .dataTransferError
        }
      }
      done += piece.count
    }
  }

  // MARK: Between buffer and blocks

  /// - Parameters: In bytes; `count` is at most `limit`.
  func read(_ store: BlockStore, at offset: UInt64, count: Int) throws(NVMeStatus) {
    // SAFETY: the slice is checked against the buffer.
    try unsafe store.read(
      at: offset, into: UnsafeMutableRawBufferPointer(rebasing: buffer[..<count]))
  }

  func write(_ store: BlockStore, at offset: UInt64, count: Int) throws(NVMeStatus) {
    // SAFETY: as in `read`.
    try unsafe store.write(
      at: offset, from: UnsafeRawBufferPointer(rebasing: buffer[..<count]))
  }

  /// Whether the blocks are what is in the buffer.
  func isEqual(_ store: BlockStore, at offset: UInt64, count: Int) throws(NVMeStatus) -> Bool {
    let other: UnsafeMutableRawBufferPointer
    if let made = unsafe self.other {
      unsafe other = made
    } else {
      // SAFETY: freed in deinit.
      unsafe other = .allocate(byteCount: buffer.count, alignment: 4096)
      unsafe self.other = other
    }
    // SAFETY: both have `count` bytes: the slices are checked.
    let part = unsafe UnsafeMutableRawBufferPointer(rebasing: other[..<count])
    try unsafe store.read(at: offset, into: part)
    return unsafe part.elementsEqual(buffer[..<count])
  }

  // MARK: Small things

  /// Puts what a command answers into the buffer.
  func fill(_ bytes: ArraySlice<UInt8>) {
    // SAFETY: the slice is checked against the buffer.
    unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[..<bytes.count])
      .copyBytes(from: bytes)
  }

  /// Bytes of the buffer: what a command brought along.
  func bytes(_ range: Range<Int>) -> [UInt8] { unsafe Array(buffer[range]) }

  func word(_ index: Int) -> UInt64 {
    // SAFETY: checked against the buffer in debug builds, and by who calls: words of what was
    // received.
    unsafe UInt64(
      littleEndian: buffer.loadUnaligned(fromByteOffset: index * 8, as: UInt64.self))
  }
}
