// SPDX-License-Identifier: Apache-2.0
//
// Tables that users own, where they lie: in pinned memory, read and marked a word at a time. What
// a word says is believed nowhere: it is an address of the parent's at most.

import IOMMU
import PageTables
import Synchronization

/// The machine's physical space as the memory of tables. Trivial to copy; used inside a port's
/// transaction, which keeps what is pinned in place.
///
/// Memory of this process is read and marked in single accesses, as by hardware. Memory that is
/// reached by calls has no such access: it is marked by reading, comparing and writing, and what
/// its owner writes to the same word at that moment may be lost to them.
@safe
struct PhysicalTables: TableMemory {
  private let memory: Unmanaged<PhysicalMemory>

  /// - Parameter memory: Outlives this; a port keeps its own.
  init(_ memory: PhysicalMemory) { unsafe self.memory = .passUnretained(memory) }

  /// Where a word is: an address of this process, or nil where it is reached by calls.
  @inline(__always)
  private func local(_ address: UInt64) throws(TableMemoryFault) -> UInt64? {
    // SAFETY: the memory outlives this value, see `init`.
    let window = unsafe memory._withUnsafeGuaranteedRef {
      $0.window(around: PhysicalAddress(address))
    }
    // A window may end inside a page, but not before the word does.
    guard let window, address & 7 == 0, window.last &- address >= 7 else { throw .unreachable }
    guard window.isLocal else { return nil }
    let place = address &+ window.displacement
    guard place & 7 == 0 else { throw .unreachable }
    return place
  }

  @inline(__always)
  func load(_ address: UInt64) throws(TableMemoryFault) -> UInt64 {
    if let place = try local(address) {
      // SAFETY: an aligned word of pinned memory, which stays while the transaction lasts.
      return unsafe UInt64(littleEndian: Self.word(place).pointee.load(ordering: .acquiring))
    }
    return try loadRemote(address)
  }

  @inline(__always)
  func compareExchange(
    _ address: UInt64, expected: UInt64, desired: UInt64
  ) throws(TableMemoryFault) -> Bool {
    if let place = try local(address) {
      // SAFETY: as in `load`. The second stage let it be written, so it is pinned for that.
      return unsafe Self.word(place).pointee.compareExchange(
        expected: expected.littleEndian, desired: desired.littleEndian,
        ordering: .acquiringAndReleasing
      ).exchanged
    }
    guard try loadRemote(address) == expected else { return false }
    try storeRemote(desired, at: address)
    return true
  }

  @inline(__always)
  private static func word(_ place: UInt64) -> UnsafePointer<Atomic<UInt64>> {
    // SAFETY: see `load`; nothing at this address is of another type that Swift knows of.
    unsafe UnsafePointer(bitPattern: UInt(place)).unsafelyUnwrapped
  }

  @inline(never)
  private func loadRemote(_ address: UInt64) throws(TableMemoryFault) -> UInt64 {
    var word: UInt64 = 0
    // SAFETY: the bytes of a local variable; as in `local`.
    let isThere = unsafe withUnsafeMutableBytes(of: &word) { bytes in
      unsafe memory._withUnsafeGuaranteedRef {
        unsafe $0.readRemote(at: PhysicalAddress(address), into: bytes)
      }
    }
    guard isThere else { throw .unreachable }
    return UInt64(littleEndian: word)
  }

  @inline(never)
  private func storeRemote(_ word: UInt64, at address: UInt64) throws(TableMemoryFault) {
    // SAFETY: as in `loadRemote`.
    let isThere = unsafe withUnsafeBytes(of: word.littleEndian) { bytes in
      unsafe memory._withUnsafeGuaranteedRef {
        unsafe $0.writeRemote(at: PhysicalAddress(address), from: bytes)
      }
    }
    guard isThere else { throw .unreachable }
  }
}
