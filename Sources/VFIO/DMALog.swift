// SPDX-License-Identifier: Apache-2.0
//
// Which pages a function's DMA has written, as the device itself keeps count (MODEL I1, J1).
// Linux: `struct vfio_log_ops`, VFIO_DEVICE_FEATURE_DMA_LOGGING_….

import IOMMU
import PageTables
import Synchronization
import SystemPackage

/// The log of one function: of what it writes without a PASID. Thread-safe. Off, it costs an access
/// one load.
public final class DMALog: Sendable {
  private struct Record: Sendable {
    /// In order; they do not meet. Both ends inclusive, in bytes.
    let ranges: [ClosedRange<UInt64>]
    /// Log2 of bytes to a bit.
    let shift: UInt64
    /// 64 pages each, by the number of the first one over 64.
    var words: [UInt64: UInt64] = [:]
  }

  private let isOn = Atomic(false)
  private let record = Guarded<Record?>(nil)

  init() {}

  /// Bytes to a bit, as bits: what a user may ask for, and gets.
  private static let pageSizes: ClosedRange<UInt64> = 4096...1 << 30

  /// Starts, empty.
  ///
  /// Linux: `VFIO_DEVICE_FEATURE_DMA_LOGGING_START`.
  /// - Parameters:
  ///   - ranges: What is logged; they do not meet. Both ends inclusive, in bytes.
  ///   - pageSize: What the user would like a bit to stand for, in bytes; any value.
  /// - Returns: What a bit stands for, in bytes: as asked where that is a power of two from 4 KiB
  ///   to 1 GiB, else 4 KiB.
  /// - Throws: `EINVAL` where it runs.
  public func start(
    _ ranges: [ClosedRange<UInt64>], pageSize: UInt64
  ) throws(IOMMUError) -> UInt64 {
    let size =
      Self.pageSizes.contains(pageSize) && pageSize & (pageSize - 1) == 0 ? pageSize : 4096
    return try record.withLock { (record) throws(IOMMUError) in
      guard record == nil else {
        throw IOMMUError(
          .invalidArgument, "the device logs its DMA already; stop that first")
      }
      record = Record(
        ranges: ranges.sorted { $0.lowerBound < $1.lowerBound },
        shift: UInt64(size.trailingZeroBitCount))
      isOn.store(true, ordering: .releasing)
      return size
    }
  }

  /// Stops, and forgets what was logged. Nothing where it does not run.
  ///
  /// Linux: `VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP`.
  public func stop() {
    record.withLock { record in
      record = nil
      isOn.store(false, ordering: .releasing)
    }
  }

  /// Tells which pages of a range were written since it was asked last, and forgets them. Those of
  /// an access that goes on meanwhile are told now or the next time.
  ///
  /// Linux: `VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT`.
  /// - Parameters:
  ///   - range: Both ends inclusive, in bytes; nil for none.
  ///   - tell: Is told whole pages, in order, cut to the range. Where it throws, nothing is
  ///     forgotten.
  /// - Throws: `EINVAL` where the log does not run; what `tell` throws.
  public func report(
    _ range: ClosedRange<UInt64>?, tell: (ClosedRange<UInt64>) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    let (shift, taken) = try record.withLock {
      (record) throws(IOMMUError) -> (UInt64, [UInt64: UInt64]) in
      guard let shift = record?.shift else {
        throw IOMMUError(
          .invalidArgument,
          "the device does not log its DMA; VFIO_DEVICE_FEATURE_DMA_LOGGING_START starts that")
      }
      guard let range else { return (shift, [:]) }
      let pages = range.lowerBound >> shift...range.upperBound >> shift
      var taken: [UInt64: UInt64] = [:]
      for (index, word) in record?.words ?? [:] {
        let found = word & Self.mask(pages, of: index)
        guard found != 0 else { continue }
        taken[index] = found
        record?.words[index] = word == found ? nil : word & ~found
      }
      return (shift, taken)
    }
    guard let range else { return }
    do throws(IOMMUError) {
      for (index, word) in taken.sorted(by: { $0.key < $1.key }) {
        var rest = word
        while rest != 0 {
          let first = UInt64(rest.trailingZeroBitCount)
          let count = UInt64((~(rest >> first)).trailingZeroBitCount)
          rest &= first + count >= 64 ? 0 : ~UInt64(0) << (first + count)
          let start = (index * 64 + first) << shift
          let last = ((index * 64 + first + count - 1) << shift) | ((1 << shift) - 1)
          try tell(max(start, range.lowerBound)...min(last, range.upperBound))
        }
      }
    } catch {
      record.withLock { record in
        for (index, word) in taken { record?.words[index, default: 0] |= word }
      }
      throw error
    }
  }

  /// The bits of a word that stand for pages of a range.
  private static func mask(_ pages: ClosedRange<UInt64>, of index: UInt64) -> UInt64 {
    let first = index * 64
    guard pages.upperBound >= first, pages.lowerBound <= first + 63 else { return 0 }
    let low = max(pages.lowerBound, first) - first
    let high = min(pages.upperBound, first + 63) - first
    return ~UInt64(0) << low & ~UInt64(0) >> (63 - high)
  }

  /// Logs a write that was made: after it, so that no page is forgotten before it is written.
  /// - Parameter count: In bytes.
  @inline(__always)
  func wrote(_ address: IOVA, _ count: Int) {
    guard isOn.load(ordering: .acquiring), count > 0 else { return }
    log(address.rawValue, UInt64(count))
  }

  private func log(_ address: UInt64, _ count: UInt64) {
    let (end, overflow) = address.addingReportingOverflow(count - 1)
    let last = overflow ? .max : end
    record.withLock { record in
      guard let shift = record?.shift, let ranges = record?.ranges else { return }
      for range in ranges where range.overlaps(address...last) {
        let pages =
          max(range.lowerBound, address) >> shift...min(range.upperBound, last) >> shift
        for index in pages.lowerBound / 64...pages.upperBound / 64 {
          record?.words[index, default: 0] |= Self.mask(pages, of: index)
        }
      }
    }
  }
}
