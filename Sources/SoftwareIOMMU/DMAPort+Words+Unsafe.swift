// SPDX-License-Identifier: Apache-2.0
//
// The short accesses of a device: descriptors, completion words, interrupts.

import IOMMU
import PageTables

extension DMAPort {
  /// Reads one little-endian integer of 1 to 8 bytes; in one access where it is aligned.
  ///
  /// - Throws: The fault, which is counted.
  @inlinable
  public func load<T: FixedWidthInteger>(
    _ iova: IOVA, as type: T.Type = T.self
  ) throws(DMAFault) -> T {
    precondition(T.bitWidth <= 64)
    return T(truncatingIfNeeded: try loadWord(iova, size: T.bitWidth / 8))
  }

  /// Writes one little-endian integer of 1 to 8 bytes; in one access where it is aligned. A
  /// 4-byte one may be an interrupt, as in `write`.
  ///
  /// - Throws: The fault, which is counted.
  @inlinable
  public func store<T: FixedWidthInteger>(_ value: T, at iova: IOVA) throws(DMAFault) {
    precondition(T.bitWidth <= 64)
    try storeWord(UInt64(truncatingIfNeeded: value), size: T.bitWidth / 8, at: iova)
  }

  @usableFromInline
  func loadWord(_ iova: IOVA, size: Int) throws(DMAFault) -> UInt64 {
    let address = iova.rawValue
    if address & UInt64(size &- 1) == 0 {
      enter()
      defer { leave() }
      let hit = try findOrRecover(address, IOTLB.readFlag, .read)
      if hit.isLocal {
        return LocalAccess.load(hit.address(address), size: size)
      }
    }
    var value: UInt64 = 0
    // SAFETY: the first `size` bytes, 8 at most, of a word.
    try unsafe withUnsafeMutableBytes(of: &value) { bytes throws(DMAFault) in
      try unsafe read(iova, into: UnsafeMutableRawBufferPointer(rebasing: bytes[..<size]))
    }
    return UInt64(littleEndian: value)
  }

  @usableFromInline
  func storeWord(_ value: UInt64, size: Int, at iova: IOVA) throws(DMAFault) {
    let address = iova.rawValue
    if isInterrupt(address, size) {
      return try raise(address, data: UInt32(truncatingIfNeeded: value))
    }
    if address & UInt64(size &- 1) == 0 {
      enter()
      defer { leave() }
      let hit = try findOrRecover(address, IOTLB.writeFlag, .write)
      if hit.isLocal {
        LocalAccess.store(value, at: hit.address(address), size: size)
        return
      }
    }
    // SAFETY: the first `size` bytes, 8 at most, of a word.
    try unsafe withUnsafeBytes(of: value.littleEndian) { bytes throws(DMAFault) in
      try unsafe write(iova, from: UnsafeRawBufferPointer(rebasing: bytes[..<size]))
    }
  }
}
