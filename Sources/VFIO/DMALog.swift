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
    /// 64 pages each, by the number of the first one over 64.
    var words: [UInt64: UInt64] = [:]
  }

  private let isOn = Atomic(false)
  private let record = Guarded<Record?>(nil)

  init() {}

  /// Bytes to a bit. Large pages would not do: who asks for a part of one forgets no more than that
  /// part, and the rest is to be told later.
  public static let pageSize: UInt64 = 4096
  private static let shift: UInt64 = 12

  /// Starts, empty.
  ///
  /// Linux: `VFIO_DEVICE_FEATURE_DMA_LOGGING_START`.
  /// - Parameter ranges: What is logged; they do not meet. Both ends inclusive, in bytes.
  /// - Throws: `EINVAL` where it runs.
  public func start(_ ranges: [ClosedRange<UInt64>]) throws(IOMMUError) {
    try record.withLock { (record) throws(IOMMUError) in
      guard record == nil else {
        throw IOMMUError(
          .invalidArgument, "the device logs its DMA already; stop that first")
      }
      record = Record(ranges: ranges.sorted { $0.lowerBound < $1.lowerBound })
      isOn.store(true, ordering: .releasing)
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
  ///   - tell: Is told whole pages, in order, cut to the range. A page that was cut is told, and not
  ///     forgotten; where it throws, none is.
  /// - Throws: `EINVAL` where the log does not run; what `tell` throws.
  public func report(
    _ range: ClosedRange<UInt64>?, tell: (ClosedRange<UInt64>) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    let shift = Self.shift
    let taken = try record.withLock { (record) throws(IOMMUError) -> [UInt64: UInt64] in
      guard let words = record?.words else {
        throw IOMMUError(
          .invalidArgument,
          "the device does not log its DMA; VFIO_DEVICE_FEATURE_DMA_LOGGING_START starts that")
      }
      guard let range else { return [:] }
      let pages = range.lowerBound >> shift...range.upperBound >> shift
      let whole = Self.pages(within: range)
      var taken: [UInt64: UInt64] = [:]
      for (index, word) in words {
        let found = word & Self.mask(pages, of: index)
        guard found != 0 else { continue }
        taken[index] = found
        let left = word & ~(whole.map { Self.mask($0, of: index) } ?? 0)
        record?.words[index] = left == 0 ? nil : left
      }
      return taken
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

  /// The pages of which a range has all; nil for none.
  private static func pages(within range: ClosedRange<UInt64>) -> ClosedRange<UInt64>? {
    let first = range.lowerBound >> shift + (range.lowerBound % pageSize > 0 ? 1 : 0)
    let end = range.upperBound >> shift + (range.upperBound % pageSize == pageSize - 1 ? 1 : 0)
    return first < end ? first...end - 1 : nil
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
      guard let ranges = record?.ranges else { return }
      for range in ranges where range.overlaps(address...last) {
        let pages =
          max(range.lowerBound, address) >> Self.shift...min(range.upperBound, last)
          >> Self.shift
        for index in pages.lowerBound / 64...pages.upperBound / 64 {
          record?.words[index, default: 0] |= Self.mask(pages, of: index)
        }
      }
    }
  }
}
