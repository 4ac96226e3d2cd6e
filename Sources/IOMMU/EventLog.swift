// SPDX-License-Identifier: Apache-2.0
//
// What happens inside the engine, for traces: a bounded log that the engine appends to and a
// reader drains. Data, not callbacks: calls run one way (MODEL A4).

import PageTables
import Synchronization

/// The events of one machine. Thread-safe. Costs one relaxed load while nobody records.
public final class EventLog: Sendable {
  public enum Event: Sendable {
    /// An area was added to or taken out of an address space. `length` in bytes.
    case map(ioas: ObjectID, iova: IOVA, length: UInt64, permissions: Permissions)
    case unmap(ioas: ObjectID, iova: IOVA, length: UInt64)
    /// An IOTLB invalidation completed on every port that uses an IOMMU's page table.
    case invalidate(iommu: String, iova: IOVA, length: UInt64)
    /// DMA was aborted, or a driver's access for its device. The source in words, as its user
    /// knows it: `DMASources.source`, or the name of a device without DMA of its own.
    case fault(source: String, iova: IOVA, access: Permissions, reason: String)
    /// A device asks for pages, from `iova` on, in one group (MODEL H1). The source in words.
    case pageRequest(
      source: String, iova: IOVA, access: Permissions, pages: Int, group: UInt32)
    /// What the device is told of a group; the answer in words.
    case pageResponse(source: String, group: UInt32, answer: String)
    /// An error was put into a device from outside; what, in words.
    case injectedFault(device: String, what: String)
    /// Something that has no case of its own, in a sentence that names who.
    case note(String)
    /// A requester's DMA context was switched; the text says to what.
    case context(RequesterID, String)
    /// An interrupt was delivered or suppressed.
    case interrupt(RequesterID, vector: UInt32)
  }

  public struct Entry: Sendable {
    /// Nanoseconds since the process first logged an event.
    public let time: UInt64
    public let event: Event
  }

  private struct State: Sendable {
    var entries: [Entry] = []
    var lost: UInt64 = 0
  }

  private let recording = Atomic(false)
  private let state = RankedMutex(.events, State())
  /// Entries kept between two drains; later ones are counted as lost.
  public static let capacity = 65_536

  /// How what is logged names who did DMA. The machine's `IOMMUSystem` keeps it.
  public let sources = DMASources()

  public init() {}

  /// Whether `append` keeps anything.
  @inline(__always)
  public var isRecording: Bool { recording.load(ordering: .relaxed) }

  public func startRecording() { recording.store(true, ordering: .relaxed) }

  /// Adds an event where somebody records; the event is not even made where nobody does.
  @inline(__always)
  public func append(_ event: @autoclosure () -> Event) {
    if isRecording { keep(event()) }
  }

  private func keep(_ event: Event) {
    let entry = Entry(time: Self.now(), event: event)
    state.withLock { state in
      if state.entries.count < Self.capacity {
        state.entries.append(entry)
      } else {
        state.lost += 1
      }
    }
  }

  /// Takes what has been logged since the last drain, and how many entries were lost.
  public func drain() -> (entries: [Entry], lost: UInt64) {
    state.withLock { state in
      defer { state = State() }
      return (state.entries, state.lost)
    }
  }

  private static func now() -> UInt64 {
    UInt64(
      (ContinuousClock.now - origin).components.seconds) * 1_000_000_000
      + UInt64((ContinuousClock.now - origin).components.attoseconds / 1_000_000_000)
  }
  private static let origin = ContinuousClock.now
}
