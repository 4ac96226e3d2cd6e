// SPDX-License-Identifier: Apache-2.0
//
// Whole values in and out of a caller's memory. All of the binary face's reading and writing
// of client structures goes through here: each is copied once, then checked.

import IOMMU
import SystemPackage

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

extension Caller {
  // The copies of structures are inlined into each command, which knows their types: a
  // generic copy takes longer than the rest of a short call.

  /// Copies one value in. `T` is a C structure or an integer: any bytes are a value of it
  /// (not spelled BitwiseCopyable, which C structures with unions are not).
  /// - Throws: `EFAULT`.
  @inline(__always)
  func load<T>(
    _ type: T.Type = T.self, from address: UInt64, zero: T
  ) throws(IOMMUError) -> T {
    try load(zero, from: address, size: MemoryLayout<T>.size)
  }

  /// Copies the first `size` bytes of a value in; the rest stay as in `initial`.
  @inline(__always)
  func load<T>(
    _ initial: T, from address: UInt64, size: Int
  ) throws(IOMMUError) -> T {
    try FailurePoint.pass(.copyIn)
    var value = initial
    let count = min(size, MemoryLayout<T>.size)
    // SAFETY: the buffer is the value's own storage, cut to its size.
    try unsafe withUnsafeMutableBytes(of: &value) { bytes throws(IOMMUError) in
      try unsafe copyIn(
        from: address,
        into: UnsafeMutableRawBufferPointer(start: bytes.baseAddress, count: count))
    }
    return value
  }

  /// Copies the first `size` bytes of a value out.
  /// - Throws: `EFAULT`.
  @inline(__always)
  func store<T>(
    _ value: T, to address: UInt64, size: Int = MemoryLayout<T>.size
  ) throws(IOMMUError) {
    try FailurePoint.pass(.copyOut)
    let count = min(size, MemoryLayout<T>.size)
    // SAFETY: the buffer is the value's own storage, cut to its size.
    try unsafe withUnsafeBytes(of: value) { bytes throws(IOMMUError) in
      try unsafe copyOut(
        UnsafeRawBufferPointer(start: bytes.baseAddress, count: count), to: address)
    }
  }

  /// Copies bytes out.
  /// - Throws: `EFAULT`.
  func store(bytes: [UInt8], to address: UInt64) throws(IOMMUError) {
    try FailurePoint.pass(.copyOut)
    var failure: IOMMUError?
    // SAFETY: the buffer is the array's storage for the length of the closure.
    unsafe bytes.withUnsafeBytes { buffer in
      do throws(IOMMUError) {
        try unsafe copyOut(buffer, to: address)
      } catch {
        failure = error
      }
    }
    if let failure { throw failure }
  }

  /// Copies `count` bytes in.
  /// - Throws: `EFAULT`.
  func bytes(at address: UInt64, count: Int) throws(IOMMUError) -> [UInt8] {
    try FailurePoint.pass(.scratch)
    try FailurePoint.pass(.copyIn)
    var bytes = [UInt8](repeating: 0, count: count)
    var failure: IOMMUError?
    // SAFETY: the buffer is the array's storage for the length of the closure.
    unsafe bytes.withUnsafeMutableBytes { buffer in
      do throws(IOMMUError) {
        try unsafe copyIn(from: address, into: buffer)
      } catch {
        failure = error
      }
    }
    if let failure { throw failure }
    return bytes
  }

  /// Whether `count` bytes are all zero. Linux: `check_zeroed_user`. In large pieces: a caller
  /// may say that its structure has 4 GiB, and everybody else waits.
  /// - Throws: `EFAULT`.
  func isZero(at address: UInt64, count: UInt64) throws(IOMMUError) -> Bool {
    try FailurePoint.pass(.copyIn)
    var chunk = [UInt8](repeating: 0, count: Int(min(count, 65_536)))
    var done: UInt64 = 0
    // Where a piece cannot be read, page by page: what is not zero before that is found first.
    var isPageWise = false
    while done < count {
      let most = isPageWise ? 4096 - Int((address &+ done) & 4095) : chunk.count
      let step = Int(min(UInt64(most), count - done))
      var failure: IOMMUError?
      // SAFETY: the buffer is the array's storage, cut to `step` bytes of it.
      unsafe chunk.withUnsafeMutableBytes { buffer in
        do throws(IOMMUError) {
          try unsafe copyIn(
            from: address &+ done,
            into: UnsafeMutableRawBufferPointer(rebasing: buffer[..<step]))
        } catch {
          failure = error
        }
      }
      if let failure {
        guard !isPageWise else { throw failure }
        isPageWise = true
        continue
      }
      guard Self.isZero(chunk, step) else { return false }
      done += UInt64(step)
    }
    return true
  }

  /// Whether the first `count` bytes, of which there is one, are zero.
  private static func isZero(_ bytes: [UInt8], _ count: Int) -> Bool {
    unsafe bytes.withUnsafeBytes { bytes in
      // SAFETY: both ranges lie within the first `count` bytes, which the array has. Each byte
      // is its follower, and the first one is zero.
      guard let base = bytes.baseAddress else { return true }
      return unsafe bytes[0] == 0 && memcmp(base, base + 1, count - 1) == 0
    }
  }
}
