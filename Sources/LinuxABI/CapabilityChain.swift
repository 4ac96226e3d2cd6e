// SPDX-License-Identifier: Apache-2.0
//
// Capabilities behind a structure, each with `struct vfio_info_cap_header`: what the *_GET_INFO
// calls of containers and of /dev/ioasid answer with.

/// Capabilities one after another, each on a multiple of 8 bytes.
struct CapabilityChain {
  private(set) var bytes: [UInt8] = []
  /// Where the chain begins, in bytes from the structure's start.
  private let start: Int
  /// Offset in `bytes` of the last capability's `next`.
  private var link: Int?

  init(at start: Int) { self.start = start }

  /// `struct vfio_info_cap_header`, version 1. The capability before it leads here.
  mutating func addHeader(_ id: UInt32) {
    if let link {
      let next = UInt32(start + bytes.count)
      for byte in 0..<4 { bytes[link + byte] = UInt8(truncatingIfNeeded: next >> (8 * byte)) }
    }
    add(UInt16(truncatingIfNeeded: id))
    add(UInt16(1))
    link = bytes.count
    add(UInt32(0))
  }

  mutating func add<Value: FixedWidthInteger>(_ value: Value) {
    for byte in 0..<MemoryLayout<Value>.size {
      bytes.append(UInt8(truncatingIfNeeded: value >> (8 * byte)))
    }
  }

  /// A capability of ranges of IOVA, both ends inclusive: their count, four bytes of zero, and
  /// `struct vfio_iova_range` for each.
  mutating func addRanges(_ id: UInt32, _ ranges: [ClosedRange<UInt64>]) {
    addHeader(id)
    add(UInt32(ranges.count))
    add(UInt32(0))
    for range in ranges {
      add(range.lowerBound)
      add(range.upperBound)
    }
  }
}
