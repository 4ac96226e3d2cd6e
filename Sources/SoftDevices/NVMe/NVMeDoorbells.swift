// SPDX-License-Identifier: Apache-2.0
//
// The doorbells of a controller: a word for each queue, which a program stores and the controller's
// thread reads; in pages that the carrier keeps, or here where nobody does.

import IOMMU
import VFIO

/// Doorbells where nobody carries pages of them: each ring is a write of a register.
final class OwnDoorbells: DoorbellPages {
  private let words: Guarded<[UInt32]>
  let byteCount: UInt64

  init(byteCount: UInt64) {
    self.byteCount = byteCount
    words = Guarded(Array(repeating: 0, count: Int(byteCount / 4)))
  }

  func open() {}
  func close() {}
  func load(_ offset: UInt64) -> UInt32 { words.withLock { $0[Int(offset / 4)] } }
  func store(_ value: UInt32, at offset: UInt64) {
    words.withLock { $0[Int(offset / 4)] = value }
  }
}

/// Rings that name no queue, or say what its ring cannot be (NVM Express 1.4, 5.2).
enum DoorbellError: UInt8, Sendable {
  case noSuchQueue = 0
  case invalidValue = 1
}

/// What a trapped ring needs to know. Plain data, under the core's monitor.
struct DoorbellState: Sendable {
  /// Where rings go; nil while the controller is not ready, when they go nowhere.
  var words: (any DoorbellPages)?
  /// Entries of the queue of each word; 0 where there is none.
  var sizes: [UInt32] = []
  /// For the thread to report.
  var errors: [DoorbellError] = []
  /// Counts rings, so that the thread never sleeps through one.
  var rings: UInt64 = 0

  /// Most of the same that wait to be reported.
  private static let errorLimit = 16

  /// Takes a ring that came as a write of a register.
  /// - Parameter index: Of the word.
  mutating func ring(_ index: Int, _ value: UInt32) {
    guard let words else { return }
    let size = index < sizes.count ? sizes[index] : 0
    if size == 0 || value >= size {
      if errors.count < Self.errorLimit {
        errors.append(size == 0 ? .noSuchQueue : .invalidValue)
      }
    } else {
      words.store(value, at: UInt64(index) * 4)
    }
    rings &+= 1
  }

  /// The word of a submission queue's tail, and of a completion queue's head.
  static func tail(of queue: UInt16) -> Int { Int(queue) * 2 }
  static func head(of queue: UInt16) -> Int { Int(queue) * 2 + 1 }
}
