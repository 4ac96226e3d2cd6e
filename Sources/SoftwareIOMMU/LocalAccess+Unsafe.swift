// SPDX-License-Identifier: Apache-2.0
//
// All accesses of DMA to memory that is mapped in this process go through this file, so that
// one place can guard them: memory of a client's file raises SIGBUS once the client has
// truncated the file.

import Glibc
import Synchronization

/// Copies that DMA does within this process.
public enum LocalAccess {
  /// Copies `count` bytes; false where a page of either side was not there. It may be called
  /// on any thread, and overlapping ranges are copied as by `memmove`.
  public typealias Copier =
    @convention(c) (
      _ destination: UnsafeMutableRawPointer, _ source: UnsafeRawPointer, _ count: Int
    ) -> Bool

  private static let copier = Atomic<UInt>(0)

  /// Has all later copies done by a function that survives pages that are not there.
  ///
  /// Without one, such a page raises SIGBUS in the device's thread. Set once, at start.
  public static func guardCopies(with copier: Copier) {
    // SAFETY: a C function pointer has the size of a word; `copy` makes it one again.
    unsafe Self.copier.store(unsafeBitCast(copier, to: UInt.self), ordering: .releasing)
  }

  @inline(__always)
  private static var guarded: Copier? {
    let bits = copier.load(ordering: .acquiring)
    // SAFETY: not zero only if `guardCopies` stored a function.
    return bits == 0 ? nil : unsafe unsafeBitCast(bits, to: Copier.self)
  }

  /// Copies between two addresses of this process.
  /// - Returns: False where a page was not there.
  static func copy(to destination: UInt64, from source: UInt64, count: Int) -> Bool {
    // SAFETY: whoever calls has both ranges from a translation inside a transaction, or from
    // a buffer that it holds: neither is zero, and both live until it returns.
    let to = unsafe UnsafeMutableRawPointer(bitPattern: UInt(destination)).unsafelyUnwrapped
    let from = unsafe UnsafeRawPointer(bitPattern: UInt(source)).unsafelyUnwrapped
    if let guarded = unsafe guarded { return unsafe guarded(to, from, count) }
    unsafe memmove(to, from, count)
    return true
  }

  /// Reads one aligned little-endian integer of 1, 2, 4 or 8 bytes in one access; nil where
  /// the page was not there.
  @inline(__always)
  static func load(_ address: UInt64, size: Int) -> UInt64? {
    // SAFETY: as in `copy`; the address is a multiple of the size.
    let from = unsafe UnsafeRawPointer(bitPattern: UInt(address)).unsafelyUnwrapped
    if unsafe guarded != nil {
      var value: UInt64 = 0
      let done = unsafe withUnsafeMutableBytes(of: &value) { bytes in
        copy(to: UInt64(UInt(bitPattern: bytes.baseAddress)), from: address, count: size)
      }
      return done ? UInt64(littleEndian: value) : nil
    }
    return switch size {
    case 8: unsafe UInt64(littleEndian: from.load(as: UInt64.self))
    case 4: unsafe UInt64(UInt32(littleEndian: from.load(as: UInt32.self)))
    case 2: unsafe UInt64(UInt16(littleEndian: from.load(as: UInt16.self)))
    default: unsafe UInt64(from.load(as: UInt8.self))
    }
  }

  /// Writes one aligned little-endian integer of 1, 2, 4 or 8 bytes in one access; false
  /// where the page was not there.
  @inline(__always)
  static func store(_ value: UInt64, at address: UInt64, size: Int) -> Bool {
    // SAFETY: as in `load`.
    let to = unsafe UnsafeMutableRawPointer(bitPattern: UInt(address)).unsafelyUnwrapped
    if unsafe guarded != nil {
      return unsafe withUnsafeBytes(of: value.littleEndian) { bytes in
        copy(to: address, from: UInt64(UInt(bitPattern: bytes.baseAddress)), count: size)
      }
    }
    switch size {
    case 8: unsafe to.storeBytes(of: value.littleEndian, as: UInt64.self)
    case 4:
      unsafe to.storeBytes(of: UInt32(truncatingIfNeeded: value).littleEndian, as: UInt32.self)
    case 2:
      unsafe to.storeBytes(of: UInt16(truncatingIfNeeded: value).littleEndian, as: UInt16.self)
    default: unsafe to.storeBytes(of: UInt8(truncatingIfNeeded: value), as: UInt8.self)
    }
    return true
  }
}
