// SPDX-License-Identifier: Apache-2.0
//
// The bytes of pages that a driver shares with a program, and such pages where no carrier keeps
// them: memory of this process, which a test maps by hand.

extension MmapArea {
  /// The bytes, for as long as the closure runs. A program may change them at any time: read
  /// each once, then check it.
  public func withUnsafeMutableBytes<Result>(
    _ body: (UnsafeMutableRawBufferPointer) throws -> Result
  ) rethrows -> Result {
    // SAFETY: the pages are this object's and outlive the closure.
    try withExtendedLifetime(self) {
      try unsafe body(
        UnsafeMutableRawBufferPointer(
          start: UnsafeMutableRawPointer(bitPattern: base), count: Int(length)))
    }
  }

  /// A little-endian 32-bit register, read or written in one access.
  /// - Parameter byte: Where it lies, a multiple of 4. Traps outside of the area, as an array
  ///   does: it is the driver's own constant.
  public subscript(word byte: Int) -> UInt32 {
    get {
      unsafe withUnsafeMutableBytes {
        unsafe UInt32(littleEndian: $0.load(fromByteOffset: checked(byte), as: UInt32.self))
      }
    }
    set {
      unsafe withUnsafeMutableBytes {
        unsafe $0.storeBytes(
          of: newValue.littleEndian, toByteOffset: checked(byte), as: UInt32.self)
      }
    }
  }

  private func checked(_ byte: Int) -> Int {
    precondition(byte >= 0 && byte & 3 == 0 && byte <= Int(length) - 4, "outside of the area")
    return byte
  }
}

/// Pages of this process that stand in for a file's. Thread-safe.
public final class LocalMmapBacking: MmapBacking {
  private struct Entry: Sendable {
    let memory: LocalMemory
    /// How many mappings a test pretends to have.
    var mappings = 0
  }

  private let state = RankedMutex(.sharedPages, [UInt64: Entry]())

  public init() {}

  public func makePages(at offset: UInt64, length: UInt64) throws(IOMMUError) -> UInt {
    let memory = try LocalMemory(byteCount: length)
    state.withLock { $0[offset] = Entry(memory: memory) }
    // SAFETY: the memory stays in the table until `freePages`.
    return unsafe memory.withUnsafeMutableBytes { UInt(bitPattern: $0.baseAddress) }
  }

  public func isMapped(at offset: UInt64, length: UInt64) -> Bool {
    state.withLock { ($0[offset]?.mappings ?? 0) > 0 }
  }

  public func freePages(at offset: UInt64, length: UInt64, base: UInt) {
    state.withLock { _ = $0.removeValue(forKey: offset) }
  }

  /// Does as one `mmap(2)` does of the area at `offset`; nil where there is none. Each call
  /// counts: `unmap` as often.
  public func map(offset: UInt64) -> LocalMemory? {
    state.withLock { state in
      state[offset]?.mappings += 1
      return state[offset]?.memory
    }
  }

  /// Does as `munmap(2)` does, or a fork's child that ends.
  public func unmap(offset: UInt64) { state.withLock { $0[offset]?.mappings -= 1 } }
}
