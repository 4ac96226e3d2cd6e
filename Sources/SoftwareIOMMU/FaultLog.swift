// SPDX-License-Identifier: Apache-2.0
//
// Counts DMA faults by requester and PASID, and passes a few of them on to the event log: the first
// of each kind from each source, then at a bounded rate (MODEL H2). A device that faults in a
// loop costs a bounded amount of memory and log.

import IOMMU
import PageTables
import Synchronization

/// Which faults of one source the event log is told of.
package struct FaultRate: Hashable, Sendable {
  /// Bit n: a fault with reason n was logged.
  private var seen: UInt32 = 0
  /// Faults that may still be logged in the current interval.
  private var credit = FaultLog.burst
  private var interval: ContinuousClock.Instant?

  package init() {}

  /// Whether one more is logged: the first of each kind, and a bounded number of others.
  package mutating func admits(_ reason: DMAFault.Reason) -> Bool {
    let bit: UInt32 = 1 << UInt32(reason.rawValue)
    if seen & bit == 0 {
      seen |= bit
      return true
    }
    let now = ContinuousClock.now
    if interval.map({ now - $0 >= FaultLog.interval }) ?? true {
      interval = now
      credit = FaultLog.burst
    }
    guard credit > 0 else { return false }
    credit -= 1
    return true
  }
}

/// The faults of one IOMMU. Thread-safe.
public final class FaultLog: Sendable {
  /// What is known of the faults of one source: a requester, or one of its PASIDs.
  public struct Record: Hashable, Sendable {
    /// How many, since the IOMMU was made.
    public var count: UInt64 = 0
    /// How many of them the event log was spared.
    public var suppressed: UInt64 = 0
    /// The latest one.
    public var latest: DMAFault?
    fileprivate var rate = FaultRate()
  }

  /// At most `burst` repeated faults of one source are logged in each `interval`, as Linux
  /// limits its messages.
  public static let burst = 10
  public static let interval: Duration = .seconds(5)

  private let records = RankedMutex<[SoftwareIOMMU.Source: Record]>(.faultLog, [:])
  private let events: EventLog

  init(events: EventLog) { self.events = events }

  func record(_ fault: DMAFault) {
    let recording = events.isRecording
    let source = SoftwareIOMMU.Source(requester: fault.requester, pasid: fault.pasid)
    let logs = records.withLock { records -> Bool in
      var record = records[source] ?? Record()
      defer { records[source] = record }
      record.count &+= 1
      record.latest = fault
      guard recording else { return false }
      guard record.rate.admits(fault.reason) else {
        record.suppressed &+= 1
        return false
      }
      return true
    }
    if logs {
      events.append(
        .fault(
          source: events.sources.source(fault.requester, fault.pasid), iova: fault.iova,
          access: fault.access, reason: "\(fault.reason)"))
    }
  }

  /// What is known of one source's faults; an empty record where it never had one.
  /// - Parameter pasid: Nil for DMA without one, which is counted apart.
  public subscript(requester: RequesterID, pasid pasid: PASID? = nil) -> Record {
    records.withLock {
      $0[SoftwareIOMMU.Source(requester: requester, pasid: pasid)] ?? Record()
    }
  }

  /// All faults of all requesters.
  public var count: UInt64 { records.withLock { $0.values.reduce(0) { $0 &+ $1.count } } }
}
