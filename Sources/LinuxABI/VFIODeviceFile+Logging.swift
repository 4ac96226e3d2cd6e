// SPDX-License-Identifier: Apache-2.0
//
// DMA_LOGGING_START, STOP and REPORT: which pages a device has written, as it says itself (MODEL
// I1). Facts: Linux 6.12, vfio_main.c.

import CLinuxABI
import IOMMU
import SystemPackage
import VFIO

extension VFIODeviceFile {
  /// As many as a page of 4 KiB holds.
  private static let mostRanges = 256

  func startLogging(_ call: FeatureCall) throws(IOMMUError) {
    let size = MemoryLayout<vfio_device_feature_dma_logging_control>.size
    guard
      try call.begins(VFIO_DEVICE_FEATURE_SET, size: size, named: "the start of DMA logging")
    else { return }
    var control = try call.caller.load(
      from: call.data, zero: vfio_device_feature_dma_logging_control())
    guard control.num_ranges > 0 else {
      throw IOMMUError(.invalidArgument, "no range is given to log the DMA to")
    }
    guard control.num_ranges <= Self.mostRanges else {
      throw IOMMUError(
        .argListTooLong, "\(control.num_ranges) ranges are more than \(Self.mostRanges)")
    }
    var ranges: [ClosedRange<UInt64>] = []
    for index in 0..<UInt64(control.num_ranges) {
      let range = try call.caller.load(
        from: control.ranges &+ index * 16, zero: vfio_device_feature_dma_logging_range())
      guard (range.iova | range.length) & (control.page_size &- 1) == 0 else {
        throw IOMMUError(
          .invalidArgument,
          "range \(hex(range.iova)) + \(hex(range.length)) is not made of pages of "
            + "\(hex(control.page_size)) bytes")
      }
      guard !range.iova.addingReportingOverflow(range.length).overflow else {
        throw IOMMUError(
          .overflow, "range \(hex(range.iova)) + \(hex(range.length)) passes the last address")
      }
      // As on Linux: nothing from 0 on is everything.
      let last = range.iova &+ range.length &- 1
      guard last >= range.iova else { continue }
      guard !ranges.contains(where: { $0.overlaps(range.iova...last) }) else {
        throw IOMMUError(
          .invalidArgument,
          "range \(hex(range.iova))...\(hex(last)) meets one that is given before it")
      }
      ranges.append(range.iova...last)
    }
    try function.log.start(ranges)
    // What is asked for is a hint.
    control.page_size = DMALog.pageSize
    do throws(IOMMUError) {
      try call.caller.store(control, to: call.data)
    } catch {
      function.log.stop()
      throw error
    }
  }

  func stopLogging(_ call: FeatureCall) throws(IOMMUError) {
    guard
      try call.begins(VFIO_DEVICE_FEATURE_SET, size: 0, named: "the end of DMA logging")
    else { return }
    function.log.stop()
  }

  func reportLogging(_ call: FeatureCall) throws(IOMMUError) {
    let size = MemoryLayout<vfio_device_feature_dma_logging_report>.size
    guard try call.begins(VFIO_DEVICE_FEATURE_GET, size: size, named: "the log of DMA") else {
      return
    }
    let report = try call.caller.load(
      from: call.data, zero: vfio_device_feature_dma_logging_report())
    guard report.page_size >= 4096, report.page_size & (report.page_size - 1) == 0 else {
      throw IOMMUError(
        .invalidArgument,
        "\(hex(report.page_size)) is no page size for a report: a power of two from 4 KiB up")
    }
    guard !report.iova.addingReportingOverflow(report.length).overflow else {
      throw IOMMUError(
        .overflow, "\(hex(report.iova)) + \(hex(report.length)) passes the last address")
    }
    let shift = UInt64(report.page_size.trailingZeroBitCount)
    let bitmap = UserBitmap(address: report.bitmap, caller: call.caller)
    let range = report.length > 0 ? report.iova...(report.iova + report.length - 1) : nil
    try function.log.report(range) { (pages) throws(IOMMUError) in
      try bitmap.set(
        (pages.lowerBound - report.iova) >> shift...(pages.upperBound - report.iova) >> shift)
    }
  }
}
