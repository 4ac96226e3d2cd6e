// SPDX-License-Identifier: Apache-2.0
//
// Typed access over a bus port, so that device models need no pointers.

import IOMMU
import PageTables

extension BusPort {
  /// Reads one little-endian value.
  public func load<Value: FixedWidthInteger & BitwiseCopyable>(
    _ address: IOVA, as type: Value.Type = Value.self
  ) throws(BusError) -> Value {
    var value: Value = 0
    // SAFETY: the buffer is the value itself, and it does not leave the closure.
    try unsafe withUnsafeMutableBytes(of: &value) { (bytes) throws(BusError) in
      try unsafe read(address, into: bytes)
    }
    return Value(littleEndian: value)
  }

  /// Writes 4 bytes, little-endian: in the MSI window, an interrupt.
  public func store(_ value: UInt32, at address: IOVA) throws(BusError) {
    let little = value.littleEndian
    // SAFETY: the buffer is the value itself, and it does not leave the closure.
    try unsafe withUnsafeBytes(of: little) { (bytes) throws(BusError) in
      try unsafe write(address, from: bytes)
    }
  }

  /// Reads eight little-endian 64-bit words: a descriptor, usually.
  public func loadWords(_ address: IOVA) throws(BusError) -> InlineArray<8, UInt64> {
    var words = InlineArray<8, UInt64>(repeating: 0)
    // SAFETY: the buffer is the array itself (64 bytes), and it does not leave the closure.
    try unsafe withUnsafeMutableBytes(of: &words) { (bytes) throws(BusError) in
      try unsafe read(address, into: bytes)
    }
    for index in words.indices { words[index] = UInt64(littleEndian: words[index]) }
    return words
  }
}
