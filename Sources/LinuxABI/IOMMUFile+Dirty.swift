// SPDX-License-Identifier: Apache-2.0
//
// The commands on dirty pages (MODEL I1): on and off, and the bitmap in the caller's memory.

import CLinuxABI
import IOMMU
import SystemPackage

extension Command {
  @Sendable
  static func hwptSetDirtyTracking(
    call: Invocation, cmd: inout iommu_hwpt_set_dirty_tracking
  ) throws(IOMMUError) {
    try requireOnly(IOMMU_HWPT_DIRTY_TRACKING_ENABLE, in: cmd.flags)
    try call.context.setDirtyTracking(
      cmd.flags & IOMMU_HWPT_DIRTY_TRACKING_ENABLE != 0, of: ObjectID(cmd.hwpt_id))
  }

  @Sendable
  static func hwptGetDirtyBitmap(
    call: Invocation, cmd: inout iommu_hwpt_get_dirty_bitmap
  ) throws(IOMMUError) {
    try requireOnly(IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR, in: cmd.flags)
    try requireZero(cmd.__reserved, "__reserved")
    try call.context.checkPageTable(ObjectID(cmd.hwpt_id))
    guard cmd.length > 0 else {
      throw IOMMUError(.invalidArgument, "dirty pages of no bytes")
    }
    let (last, overflow) = cmd.iova.addingReportingOverflow(cmd.length - 1)
    guard !overflow else {
      throw IOMMUError(
        .overflow,
        "iova \(hex(cmd.iova)) + length \(hex(cmd.length)) passes the last "
          + "address")
    }
    guard cmd.page_size > 0, (cmd.iova | (last &+ 1)) & (cmd.page_size - 1) == 0 else {
      throw IOMMUError(
        .invalidArgument,
        "the range is not a multiple of page_size \(hex(cmd.page_size))")
    }
    let clears = cmd.flags & IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR == 0
    // A bitmap that cannot be written loses nothing: bits are cleared once they are told.
    try tellDirty(call, cmd, last: last, clear: false)
    if clears { try tellDirty(call, cmd, last: last, clear: true) }
  }

  private static func tellDirty(
    _ call: Invocation, _ cmd: iommu_hwpt_get_dirty_bitmap, last: UInt64, clear: Bool
  ) throws(IOMMUError) {
    let dirty = try call.context.readDirty(
      of: ObjectID(cmd.hwpt_id), cmd.iova...last, clear: clear)
    // One bit a page, counted from the start of the range.
    let shift = UInt64(cmd.page_size.trailingZeroBitCount)
    let bitmap = UserBitmap(address: cmd.data, caller: call.caller)
    for range in dirty {
      try bitmap.set(
        (range.lowerBound - cmd.iova) >> shift...(range.upperBound - cmd.iova) >> shift)
    }
  }
}

/// A bitmap in a caller's memory, of which bits are set and none are cleared.
struct UserBitmap {
  let address: UInt64
  let caller: any Caller

  /// Bytes that are read and written at once.
  private static let window: UInt64 = 4096

  func set(_ bits: ClosedRange<UInt64>) throws(IOMMUError) {
    var first = bits.lowerBound
    while true {
      let byte = first / 8
      let end = min(bits.upperBound / 8, byte + Self.window - 1)
      var bytes = try caller.bytes(at: address &+ byte, count: Int(end - byte + 1))
      let last = min(bits.upperBound, end * 8 + 7)
      for bit in first...last { bytes[Int(bit / 8 - byte)] |= 1 << UInt8(bit % 8) }
      try caller.store(bytes: bytes, to: address &+ byte)
      if last == bits.upperBound { return }
      first = last + 1
    }
  }
}
