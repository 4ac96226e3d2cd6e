// SPDX-License-Identifier: Apache-2.0
//
// VFIO_IOMMU_DIRTY_PAGES, and the bitmap in the caller's memory that it and UNMAP_DMA fill.

import CLinuxABI
import IOMMU
import SystemPackage
import VFIO

extension Type1Call {
  func dirtyPages() throws(IOMMUError) {
    guard model == .type1v2 else {
      throw IOMMUError(
        .permissionDenied, "type1 containers track no dirty pages; type1v2 ones do")
    }
    let minimum = 8
    let start = VFIO_IOMMU_DIRTY_PAGES_FLAG_START
    let stop = VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP
    let get = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP
    let header = try caller.load(vfio_iommu_type1_dirty_bitmap(), from: argument, size: minimum)
    try checkHead(
      argsz: header.argsz, atLeast: minimum, flags: header.flags, known: start | stop | get)
    switch header.flags {
    case start: try container.startDirtyTracking()
    case stop: try container.stopDirtyTracking()
    case get: try getBitmap(header, after: minimum)
    default:
      throw IOMMUError(
        .invalidArgument, "flags \(hex(header.flags)) is not one of start, stop and get bitmap")
    }
  }

  private func getBitmap(
    _ header: vfio_iommu_type1_dirty_bitmap, after offset: Int
  ) throws(IOMMUError) {
    try checkHead(
      argsz: header.argsz,
      atLeast: offset + MemoryLayout<vfio_iommu_type1_dirty_bitmap_get>.size)
    let get = try caller.load(
      from: argument &+ UInt64(offset), zero: vfio_iommu_type1_dirty_bitmap_get())
    let range = try VFIOContainer.range(iova: get.iova, size: get.size)
    let dirty = try Type1Bitmap(get.bitmap, first: get.iova, size: get.size, caller: caller)
    try container.readDirty(range, pageSize: dirty.pageSize) { (mapping) throws(IOMMUError) in
      try dirty.set(mapping)
    }
  }
}

/// A bitmap in a caller's memory, one bit a page from an IOVA on, in words of 64 bits.
///
/// As on Linux a mapping overwrites the words that it has bits in: bits below its own stay, bits
/// above its own become 0. Words that no mapping touches are left alone.
struct Type1Bitmap {
  /// In bytes, as the caller gave it: maybe no page size at all.
  let pageSize: UInt64
  private let address: UInt64
  private let first: UInt64
  private let shift: UInt64
  private let caller: any Caller

  /// One past the last address that a program can have, as x86-64 without five-level paging has
  /// it.
  private static let addressLimit: UInt64 = (1 << 47) - 4096

  /// - Parameters: `first` and `size` of the range that the bits stand for.
  /// - Throws: `EINVAL` where the bitmap is no place in a program, is shorter than the range
  ///   needs, or longer than 256 MiB.
  init(
    _ bitmap: vfio_bitmap, first: UInt64, size: UInt64, caller: any Caller
  ) throws(IOMMUError) {
    address = bitmap.data
    pageSize = bitmap.pgsize
    shift = UInt64(pageSize.trailingZeroBitCount)
    self.first = first
    self.caller = caller
    let (end, overflow) = address.addingReportingOverflow(bitmap.size)
    guard !overflow, end <= Self.addressLimit else {
      throw IOMMUError(
        .invalidArgument,
        "the bitmap at \(hex(address)), of \(hex(bitmap.size)) bytes, is outside of all programs"
      )
    }
    let pages = size >> shift
    let needed = (pages / 64 + (pages % 64 == 0 ? 0 : 1)) * 8
    guard pages > 0, bitmap.size >= needed, bitmap.size > 0,
      bitmap.size <= VFIOContainer.longestBitmap
    else {
      throw IOMMUError(
        .invalidArgument,
        "a bitmap of \(bitmap.size) bytes does not do for \(hex(size)) bytes in pages of "
          + "\(hex(pageSize)): \(needed) are needed, of at most \(VFIOContainer.longestBitmap)")
    }
  }

  /// Bytes that are written at once.
  private static let window: UInt64 = 65_536

  /// Sets the bits of a mapping, which begins at or after `first`.
  func set(_ mapping: ClosedRange<UInt64>) throws(IOMMUError) {
    let start = (mapping.lowerBound - first) >> shift
    let last = (mapping.upperBound - first) >> shift
    var byte = start / 64 * 8
    let end = (last / 64 + 1) * 8
    var below = UInt64(0)
    if start % 64 != 0 {
      below =
        try caller.load(UInt64.self, from: address &+ byte, zero: 0) & (1 << (start % 64) - 1)
    }
    while byte < end {
      let count = min(Self.window, end - byte)
      var bytes = [UInt8](repeating: 0xff, count: Int(count))
      if byte == start / 64 * 8 {
        let word = below | ~UInt64(0) << (start % 64)
        for index in 0..<8 {
          bytes[index] = UInt8(truncatingIfNeeded: word >> (8 * UInt64(index)))
        }
      }
      if byte + count == end {
        let unused = 63 - last % 64
        for bit in (64 - unused)..<64 {
          bytes[Int(count) - 8 + Int(bit / 8)] &= ~(1 << UInt8(bit % 8))
        }
      }
      try caller.store(bytes: bytes, to: address &+ byte)
      byte += count
    }
  }
}
