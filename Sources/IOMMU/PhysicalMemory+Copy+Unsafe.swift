// SPDX-License-Identifier: Apache-2.0
//
// Copies between physical space and bytes of the engine's own, for control paths: slower than
// a device's port, and safe where a client has truncated the file behind a local mapping.

import PageTables

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

extension PhysicalMemory {
  /// This process's memory as a file: the kernel does the copy, so that a page that is gone
  /// is an error and no signal. Negative where the host does not allow it.
  private static let ownMemory = unsafe open("/proc/self/mem", O_RDWR | O_CLOEXEC)

  /// Copies out into `bytes` from index `start` on. The range is pinned and lies in one
  /// segment; `bytes` has room for it.
  /// - Returns: False where the memory is gone.
  func copyOut(
    of address: PhysicalAddress, length: Int, into bytes: inout [UInt8], at start: Int
  ) -> Bool {
    // SAFETY: the slice is checked against the array; the memory is pinned by the caller.
    unsafe bytes.withUnsafeMutableBytes { buffer in
      let part = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[start..<start + length])
      guard let window = window(around: address) else { return false }
      guard window.isLocal else { return unsafe readRemote(at: address, into: part) }
      let source = off_t(truncatingIfNeeded: address.rawValue &+ window.displacement)
      return unsafe pread(Self.ownMemory, part.baseAddress, length, source) == length
    }
  }

  /// Copies in from `bytes`, from index `start` on. As `copyOut`.
  func copyIn(
    to address: PhysicalAddress, length: Int, from bytes: [UInt8], at start: Int
  ) -> Bool {
    // SAFETY: as in `copyOut`; the memory was pinned for writing.
    unsafe bytes.withUnsafeBytes { buffer in
      let part = unsafe UnsafeRawBufferPointer(rebasing: buffer[start..<start + length])
      guard let window = window(around: address) else { return false }
      guard window.isLocal else { return unsafe writeRemote(at: address, from: part) }
      let target = off_t(truncatingIfNeeded: address.rawValue &+ window.displacement)
      return unsafe pwrite(Self.ownMemory, part.baseAddress, length, target) == length
    }
  }
}
