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

  /// Reads one aligned integer in one access; nil where the page was not there.
  @inline(__always)
  static func load<T: FixedWidthInteger & BitwiseCopyable>(_ address: UInt64) -> T? {
    var value: T = 0
    if let guarded = unsafe guarded {
      let done = unsafe withUnsafeMutableBytes(of: &value) { bytes in
        // SAFETY: as in `copy`; a nonempty buffer has a base address.
        unsafe guarded(
          bytes.baseAddress.unsafelyUnwrapped,
          UnsafeRawPointer(bitPattern: UInt(address)).unsafelyUnwrapped, bytes.count)
      }
      return done ? value : nil
    }
    // SAFETY: as in `copy`; the address is a multiple of the integer's size.
    return unsafe UnsafePointer<T>(bitPattern: UInt(address)).unsafelyUnwrapped.pointee
  }

  /// Writes one aligned integer in one access; false where the page was not there.
  @inline(__always)
  static func store<T: FixedWidthInteger & BitwiseCopyable>(
    _ value: T, at address: UInt64
  ) -> Bool {
    if let guarded = unsafe guarded {
      return unsafe withUnsafeBytes(of: value) { bytes in
        // SAFETY: as in `load`.
        unsafe guarded(
          UnsafeMutableRawPointer(bitPattern: UInt(address)).unsafelyUnwrapped,
          bytes.baseAddress.unsafelyUnwrapped, bytes.count)
      }
    }
    // SAFETY: as in `load`.
    unsafe UnsafeMutablePointer<T>(bitPattern: UInt(address)).unsafelyUnwrapped.pointee = value
    return true
  }
}
