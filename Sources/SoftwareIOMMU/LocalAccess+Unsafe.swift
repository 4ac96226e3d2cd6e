// SPDX-License-Identifier: Apache-2.0
//
// All accesses of DMA to memory that is mapped in this process go through this file. Pages of
// a file raise SIGBUS here once its owner has truncated it: whoever maps files of others has
// to handle that signal, and give the device a page in their place.

import Glibc

/// Copies and words within this process.
enum LocalAccess {
  /// Copies between two addresses of this process, which may overlap.
  @inline(__always)
  static func copy(to destination: UInt64, from source: UInt64, count: Int) {
    // SAFETY: whoever calls has both ranges from a translation inside a transaction, or from
    // a buffer that it holds: neither is zero, and both live until it returns.
    unsafe memmove(
      UnsafeMutableRawPointer(bitPattern: UInt(destination)).unsafelyUnwrapped,
      UnsafeRawPointer(bitPattern: UInt(source)).unsafelyUnwrapped, count)
  }

  /// Reads one aligned little-endian integer of 1, 2, 4 or 8 bytes in one access.
  @inline(__always)
  static func load(_ address: UInt64, size: Int) -> UInt64 {
    // SAFETY: as in `copy`; the address is a multiple of the size.
    let from = unsafe UnsafeRawPointer(bitPattern: UInt(address)).unsafelyUnwrapped
    return switch size {
    case 8: unsafe UInt64(littleEndian: from.load(as: UInt64.self))
    case 4: unsafe UInt64(UInt32(littleEndian: from.load(as: UInt32.self)))
    case 2: unsafe UInt64(UInt16(littleEndian: from.load(as: UInt16.self)))
    default: unsafe UInt64(from.load(as: UInt8.self))
    }
  }

  /// Writes one aligned little-endian integer of 1, 2, 4 or 8 bytes in one access.
  @inline(__always)
  static func store(_ value: UInt64, at address: UInt64, size: Int) {
    // SAFETY: as in `load`.
    let to = unsafe UnsafeMutableRawPointer(bitPattern: UInt(address)).unsafelyUnwrapped
    switch size {
    case 8: unsafe to.storeBytes(of: value.littleEndian, as: UInt64.self)
    case 4:
      unsafe to.storeBytes(of: UInt32(truncatingIfNeeded: value).littleEndian, as: UInt32.self)
    case 2:
      unsafe to.storeBytes(of: UInt16(truncatingIfNeeded: value).littleEndian, as: UInt16.self)
    default: unsafe to.storeBytes(of: UInt8(truncatingIfNeeded: value), as: UInt8.self)
    }
  }
}
