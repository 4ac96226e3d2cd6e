// SPDX-License-Identifier: Apache-2.0
//
// What a virtual IOMMU tells its guest: events in a queue of limited depth, numbered, so that the
// reader knows how many were lost (MODEL H2; Linux: `struct iommufd_veventq`).

import PageTables
import SystemPackage

/// A queue of events of one kind, an object of a context. Thread-safe.
///
/// A record is a header of two 32-bit words, flags and sequence number, and then the event.
/// Where events were lost at the end of the queue, a header alone says so, with the number of
/// the last of them.
public final class VirtualEventQueue: Sendable {
  /// Names the queue in its context. Linux: `out_veventq_id`.
  public let id: ObjectID
  /// Whether a record waits to be read.
  public let readiness = Readiness()
  let virtualIOMMU: VirtualIOMMUObject
  let type: UInt32

  /// `struct iommufd_vevent_header`, in bytes.
  public static let headerLength = 8
  /// Events that wait are memory of ours: as many as the largest hardware queue holds.
  public static let maximumDepth: UInt32 = 1 << 19
  /// `IOMMU_VEVENTQ_FLAG_LOST_EVENTS`.
  public static let lostEvents: UInt32 = 1

  private struct Event: Sendable {
    let sequence: UInt32
    /// Nil where it stands for lost events.
    let data: [UInt8]?
  }

  private struct State: Sendable {
    /// In order; those before `first` were read.
    var events: [Event] = []
    var first = 0
    /// The number of the last lost event, where nothing came after it. Always last in line.
    var lost: UInt32?
    /// Events that were not yet delivered, those under way to a reader included.
    var count: UInt32 = 0
    /// Of the next event: 0 to `Int32.max`.
    var sequence: UInt32 = 0

    var isEmpty: Bool { first == events.count && lost == nil }
  }

  private let depth: UInt32
  private let state = RankedMutex(.virtualEventQueue, State())

  init(id: ObjectID, virtualIOMMU: VirtualIOMMUObject, type: UInt32, depth: UInt32) {
    self.id = id
    self.virtualIOMMU = virtualIOMMU
    self.type = type
    self.depth = depth
  }

  /// Takes an event, or counts it as lost where the queue is full.
  ///
  /// Linux: `iommufd_viommu_report_event`, `iommufd_vevent_handler`.
  func add(_ data: [UInt8]) {
    state.withLock { state in
      if state.count == depth {
        state.lost = state.sequence
      } else {
        // The gap in the numbers says that events were lost before this one.
        state.lost = nil
        state.events.append(Event(sequence: state.sequence, data: data))
        state.count += 1
      }
      state.sequence = (state.sequence + 1) & UInt32(Int32.max)
      readiness.recordAdded()
    }
  }

  /// Delivers whole records, oldest first. Never blocks.
  /// - Parameters:
  ///   - count: The most bytes that the reader has room for.
  ///   - deliver: Gets a header and its event, without locks held. Where it throws, the record
  ///     is the oldest one again.
  /// - Returns: Bytes delivered: 0 where there is nothing.
  /// - Throws: Where nothing was delivered before: `EINVAL` where the first record does not fit,
  ///   what `deliver` threw.
  public func read(
    count: Int, deliver: ([UInt8]) throws(IOMMUError) -> Void
  ) throws(IOMMUError) -> Int {
    var done = 0
    while let event = takeOldest() {
      let record = Self.header(of: event) + (event.data ?? [])
      do throws(IOMMUError) {
        guard record.count <= count - done else { throw Self.tooShort(count, record) }
        try deliver(record)
      } catch {
        putBack(event)
        guard done > 0 else { throw error }
        break
      }
      if event.data != nil { state.withLock { $0.count -= 1 } }
      done += record.count
    }
    return done
  }

  private static func tooShort(_ count: Int, _ record: [UInt8]) -> IOMMUError {
    IOMMUError(
      .invalidArgument,
      "the oldest event, of \(record.count) bytes with its header, does not fit in \(count): "
        + "events are read whole")
  }

  private static func header(of event: Event) -> [UInt8] {
    let flags = event.data == nil ? lostEvents : 0
    return [flags, event.sequence].littleEndianBytes
  }

  private func takeOldest() -> Event? {
    state.withLock { state in
      var taken: Event?
      if state.first < state.events.count {
        taken = state.events[state.first]
        state.first += 1
        if state.first == state.events.count || state.first == 1024 {
          state.events.removeFirst(state.first)
          state.first = 0
        }
      } else if let lost = state.lost {
        state.lost = nil
        taken = Event(sequence: lost, data: nil)
      }
      if taken != nil, state.isEmpty { readiness.emptied() }
      return taken
    }
  }

  private func putBack(_ event: Event) {
    state.withLock { state in
      if event.data == nil {
        // A later event, or a later loss, says the same.
        guard state.isEmpty else { return }
        state.lost = event.sequence
      } else if state.first > 0 {
        state.first -= 1
        state.events[state.first] = event
      } else {
        state.events.insert(event, at: 0)
      }
      readiness.recordAdded()
    }
  }

  /// Events that were not yet delivered, and whether the last ones were lost.
  public var pending: (events: UInt32, isLossy: Bool) {
    state.withLock { ($0.count, $0.lost != nil) }
  }
}

/// Where a driver reports events of one virtual IOMMU: data, not a call into the engine (MODEL
/// A4). Thread-safe; its lock is a leaf but for those of its queues.
public final class VirtualEvents: Sendable {
  /// By type.
  private let queues = RankedMutex<[UInt32: VirtualEventQueue]>(.virtualEvents, [:])

  package init() {}

  /// Queues an event where the guest has a queue for its kind.
  ///
  /// Linux: `iommufd_viommu_report_event`. A queue that is full loses the event and says so.
  /// - Parameter type: `IOMMU_VEVENTQ_TYPE_…`.
  /// - Throws: `EOPNOTSUPP` where nobody made a queue of the type, `EINVAL` for no data.
  public func report(_ data: [UInt8], type: UInt32) throws(IOMMUError) {
    guard !data.isEmpty else {
      throw IOMMUError(.invalidArgument, "an event of type \(hex(type)) without data")
    }
    // Under the lock: a queue that was destroyed gets no events any more.
    let found = queues.withLock { queues in
      queues[type]?.add(data)
      return queues[type] != nil
    }
    guard found else {
      throw IOMMUError(
        .operationNotSupported,
        "the virtual IOMMU has no queue for events of type \(hex(type)); allocate one with "
          + "IOMMU_VEVENTQ_ALLOC")
    }
  }

  func hasQueue(type: UInt32) -> Bool { queues.withLock { $0[type] != nil } }

  func add(_ queue: VirtualEventQueue) { queues.withLock { $0[queue.type] = queue } }

  func remove(_ queue: VirtualEventQueue) { queues.withLock { $0[queue.type] = nil } }
}
