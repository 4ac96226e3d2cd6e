// SPDX-License-Identifier: Apache-2.0
//
// VFIO_IOMMU_GET_INFO of a container: a structure, and behind it a chain of capabilities in the
// order of type1: dirty bitmaps, mappings left, ranges of IOVA.

import CLinuxABI
import IOMMU
import VFIO

extension Type1Call {
  func getInfo() throws(IOMMUError) {
    let minimum = 16
    let whole = MemoryLayout<vfio_iommu_type1_info>.size
    var info = try caller.load(vfio_iommu_type1_info(), from: argument, size: minimum)
    try check(info.argsz, atLeast: minimum)
    let room = Int(info.argsz)
    let information = try container.information
    info.flags = VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS
    info.iova_pgsizes = information.pageSizes
    let chain = CapabilityChain(information, at: whole).bytes
    // All of the chain or none: who has no room learns how much it takes.
    if room < whole + chain.count {
      info.argsz = UInt32(whole + chain.count)
    } else {
      try caller.store(bytes: chain, to: argument &+ UInt64(whole))
      info.cap_offset = UInt32(whole)
    }
    try caller.store(info, to: argument, size: min(room, whole))
  }
}

/// Capabilities one after another, each on a multiple of 8 bytes.
private struct CapabilityChain {
  private(set) var bytes: [UInt8] = []
  /// Where the chain begins, in bytes from the structure's start.
  private let start: Int
  /// Offset in `bytes` of the last capability's `next`.
  private var link: Int?

  init(_ information: VFIOContainer.Information, at start: Int) {
    self.start = start
    addHeader(VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION)
    add(UInt32(0))
    add(UInt32(0))
    add(information.dirtyPageSizes)
    add(information.longestBitmap)
    addHeader(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL)
    add(information.mappingsLeft)
    add(UInt32(0))
    addHeader(VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE)
    add(UInt32(information.ranges.count))
    add(UInt32(0))
    for range in information.ranges {
      add(range.lowerBound)
      add(range.upperBound)
    }
  }

  /// `struct vfio_info_cap_header`, version 1. The capability before it leads here.
  private mutating func addHeader(_ id: UInt32) {
    if let link {
      let next = UInt32(start + bytes.count)
      for byte in 0..<4 { bytes[link + byte] = UInt8(truncatingIfNeeded: next >> (8 * byte)) }
    }
    add(UInt16(truncatingIfNeeded: id))
    add(UInt16(1))
    link = bytes.count
    add(UInt32(0))
  }

  private mutating func add<Value: FixedWidthInteger>(_ value: Value) {
    for byte in 0..<MemoryLayout<Value>.size {
      bytes.append(UInt8(truncatingIfNeeded: value >> (8 * byte)))
    }
  }
}
