// SPDX-License-Identifier: Apache-2.0
//
// Memory of this process as a source: the library's way to map memory with no copy. One file
// holds the pointer.

import SystemPackage

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// Page-aligned, zeroed memory of this process that devices can be given access to.
///
/// Addresses of the source are offsets from its start, in bytes. The memory lives until the
/// last reference *and* the last mapping of it are gone, so DMA can never reach freed memory.
/// Thread-safe as an object; the bytes are shared with devices, and racing accesses to the
/// same bytes are as defined as they are on hardware: torn, not trapped.
@safe
public final class LocalMemory: MemorySource {
  /// In bytes, a multiple of 4 KiB.
  public let byteCount: UInt64
  private let base: UInt

  /// Allocates.
  /// - Parameters:
  ///   - byteCount: Rounded up to 4 KiB; not zero. Physical memory is used as it is touched.
  ///   - alignment: A power of two: 1 GiB lets page tables use leaves of 1 GiB.
  /// - Throws: `EINVAL`, `ENOMEM`.
  public init(byteCount: UInt64, alignment: UInt64 = 4096) throws(IOMMUError) {
    guard byteCount > 0, byteCount <= 1 << 46, alignment.nonzeroBitCount == 1,
      alignment <= 1 << 40
    else {
      throw IOMMUError(
        .invalidArgument,
        "\(hex(byteCount)) bytes aligned to \(hex(alignment)) cannot be allocated")
    }
    let size = (byteCount + 4095) & ~4095
    let slack = alignment > 4096 ? alignment : 0
    // SAFETY: a new anonymous mapping; checked below; unmapped exactly once.
    let mapping = unsafe mmap(
      nil, Int(size + slack), PROT_READ | PROT_WRITE,
      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    guard let mapping = unsafe mapping, unsafe mapping != MAP_FAILED else {
      throw IOMMUError(.noMemory, "\(hex(size)) bytes cannot be allocated")
    }
    let start = UInt(bitPattern: mapping)
    let aligned = (start + UInt(slack > 0 ? alignment - 1 : 0)) & ~UInt(alignment - 1)
    // SAFETY: gives back the parts of the mapping around the aligned range; nobody has seen
    // them.
    if aligned > start { unsafe munmap(mapping, Int(aligned - start)) }
    let end = aligned + UInt(size)
    let mapped = start + UInt(size + slack)
    if mapped > end {
      unsafe munmap(UnsafeMutableRawPointer(bitPattern: end), Int(mapped - end))
    }
    base = aligned
    self.byteCount = size
  }

  deinit {
    // SAFETY: this object's own mapping; pins hold the object, so no DMA can be under way.
    unsafe munmap(UnsafeMutableRawPointer(bitPattern: base), Int(byteCount))
  }

  public func pin(
    address: UInt64, length: UInt64, writable: Bool,
    place: (consuming PinnedRun) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    guard address <= byteCount, length <= byteCount - address else {
      throw IOMMUError(
        .badAddress,
        "bytes \(hex(address)) + \(hex(length)) lie outside memory of \(hex(byteCount)) bytes")
    }
    try place(
      PinnedRun(
        length: length, backing: .local(base: base + UInt(address), owner: self),
        identity: MemoryIdentity(space: 0, object: UInt64(base), offset: address)))
  }

  /// What its first byte is.
  var identity: MemoryIdentity { MemoryIdentity(space: 0, object: UInt64(base), offset: 0) }

  /// The bytes, for as long as the closure runs.
  public func withUnsafeMutableBytes<Result>(
    _ body: (UnsafeMutableRawBufferPointer) throws -> Result
  ) rethrows -> Result {
    // SAFETY: the mapping is this object's and outlives the closure.
    try withExtendedLifetime(self) {
      try unsafe body(
        UnsafeMutableRawBufferPointer(
          start: UnsafeMutableRawPointer(bitPattern: base), count: Int(byteCount)))
    }
  }

  /// A byte of the memory. Traps outside it, as an array does.
  public subscript(offset: Int) -> UInt8 {
    get { unsafe withUnsafeMutableBytes { unsafe $0[checked(offset)] } }
    set { unsafe withUnsafeMutableBytes { unsafe $0[checked(offset)] = newValue } }
  }

  private func checked(_ offset: Int) -> Int {
    precondition(offset >= 0 && offset < Int(byteCount), "offset outside the memory")
    return offset
  }
}
