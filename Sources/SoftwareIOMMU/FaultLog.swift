// SPDX-License-Identifier: Apache-2.0
//
// Counts DMA faults by requester and PASID, and passes a few of them on to the event log: the first
// of each kind from each source, then at a bounded rate (MODEL H2). A device that faults in a
// loop, under however many PASIDs, costs a bounded amount of memory and log.

import HardwareTables
import IOMMU
import PageTables
import Synchronization

/// How many faults the event log is told of in each interval.
struct FaultBudget: Hashable, Sendable {
  private let burst: Int
  /// Faults that may still be logged in the current interval.
  private var credit: Int
  private var interval: ContinuousClock.Instant?

  init(_ burst: Int) {
    self.burst = burst
    credit = burst
  }

  mutating func spend() -> Bool {
    let now = ContinuousClock.now
    if interval.map({ now - $0 >= FaultLog.interval }) ?? true {
      interval = now
      credit = burst
    }
    guard credit > 0 else { return false }
    credit -= 1
    return true
  }
}

/// Which faults of one source the event log is told of.
package struct FaultRate: Hashable, Sendable {
  /// Bit n: a fault with reason n was logged.
  private var seen: UInt32 = 0
  private var budget = FaultBudget(FaultLog.burst)

  package init() {}

  /// Whether one more is logged: the first of each kind, and a bounded number of others.
  package mutating func admits(_ reason: DMAFault.Reason) -> Bool {
    let bit: UInt32 = 1 << UInt32(reason.rawValue)
    if seen & bit == 0 {
      seen |= bit
      return true
    }
    return budget.spend()
  }
}

/// The faults of one IOMMU. Thread-safe.
public final class FaultLog: Sendable {
  /// What is known of the faults of one source: a requester, or one of its PASIDs.
  public struct Record: Hashable, Sendable {
    /// How many, since the IOMMU was made or the log let go of the source.
    public var count: UInt64 = 0
    /// How many of them the event log was spared.
    public var suppressed: UInt64 = 0
    /// The latest one.
    public var latest: DMAFault?
    fileprivate var rate = FaultRate()
    /// When that was, by number.
    fileprivate var turn: UInt64 = 0
  }

  /// At most `burst` repeated faults of one source are logged in each `interval`, as Linux
  /// limits its messages.
  public static let burst = 10
  public static let interval: Duration = .seconds(5)
  /// At most as many faults are logged in each `interval` of all of a requester's PASIDs
  /// together, however many there are.
  public static let requesterBurst = 100
  /// Sources of which a record is kept: where there are more, the half that did not fault for
  /// longest is let go. `count` goes on counting them.
  public static let maximumSources = 1024

  fileprivate struct State: Sendable {
    var records: [SoftwareIOMMU.Source: Record] = [:]
    /// Of those with PASIDs.
    var requesters: [RequesterID: FaultBudget] = [:]
    var count: UInt64 = 0
  }

  private let state = RankedMutex(.faultLog, State())
  private let events: EventLog
  private let queue: EventQueue

  init(events: EventLog, queue: EventQueue) {
    self.events = events
    self.queue = queue
  }

  /// Counts a fault, records it as the hardware does, and logs it perhaps.
  func record(_ fault: DMAFault) {
    let event = queue.report(fault)
    let recording = events.isRecording
    let source = SoftwareIOMMU.Source(requester: fault.requester, pasid: fault.pasid)
    let logs = state.withLock { $0.add(fault, of: source, recording: recording) }
    if logs {
      events.append(
        .fault(
          source: events.sources.source(fault.requester, fault.pasid), iova: fault.iova,
          access: fault.access,
          reason: event.map { "\(fault.explanation) (\($0))" } ?? fault.explanation))
    }
  }

  /// Nothing of a source is known any more, but that its faults were counted.
  func forget(_ source: SoftwareIOMMU.Source) {
    state.withLock { _ = $0.records.removeValue(forKey: source) }
  }

  /// What is known of one source's faults; an empty record where it never had one.
  /// - Parameter pasid: Nil for DMA without one, which is counted apart.
  public subscript(requester: RequesterID, pasid pasid: PASID? = nil) -> Record {
    state.withLock {
      $0.records[SoftwareIOMMU.Source(requester: requester, pasid: pasid)] ?? Record()
    }
  }

  /// All faults of all requesters, since the IOMMU was made.
  public var count: UInt64 { state.withLock { $0.count } }

  /// Sources of which a record is kept.
  package var sourceCount: Int { state.withLock { $0.records.count } }
}

extension FaultLog.State {
  /// - Returns: Whether the event log is told.
  mutating func add(
    _ fault: DMAFault, of source: SoftwareIOMMU.Source, recording: Bool
  ) -> Bool {
    count &+= 1
    if records.count >= FaultLog.maximumSources, records[source] == nil { dropOldest() }
    // In place: a record is not copied while it is changed.
    return records[source, default: FaultLog.Record()].add(
      fault, turn: count, recording: recording, shared: &requesters)
  }

  /// What it costs is shared by as many sources that are new.
  private mutating func dropOldest() {
    let turns = records.values.map(\.turn).sorted()
    let middle = turns[turns.count / 2]
    records = records.filter { $0.value.turn >= middle }
    if requesters.count >= FaultLog.maximumSources { requesters = [:] }
  }
}

extension FaultLog.Record {
  fileprivate mutating func add(
    _ fault: DMAFault, turn: UInt64, recording: Bool,
    shared: inout [RequesterID: FaultBudget]
  ) -> Bool {
    count &+= 1
    latest = fault
    self.turn = turn
    guard recording else { return false }
    var admitted = rate.admits(fault.reason)
    if admitted, fault.pasid != nil {
      admitted =
        shared[fault.requester, default: FaultBudget(FaultLog.requesterBurst)].spend()
    }
    if !admitted { suppressed &+= 1 }
    return admitted
  }
}
