// SPDX-License-Identifier: Apache-2.0
//
// The hardware's own queue of faults: bounded, in the architecture's records, with its overflow
// (MODEL H2). See `EventRing` for the four families' rules.

import HardwareTables
import IOMMU
import Synchronization

/// The fault recording registers, event log, event queue or fault queue of one IOMMU. Thread-safe.
///
/// The IOMMU records each DMA that it aborts. Nobody has to read: what finds no room is lost and
/// counted, and costs a faulting device no lock.
public final class EventQueue: Sendable {
  private struct State: Sendable {
    var ring: EventRing
    /// How many of the losses a drain has told.
    var told: UInt64 = 0
  }

  private let state: RankedMutex<State>
  /// Whether records are lost until somebody takes some or acknowledges the overflow.
  private let isClosed = Atomic(false)
  /// Records that were lost while it was.
  private let lostOutside = Atomic<UInt64>(0)
  private let configuration: SoftwareIOMMU.Configuration

  /// Records that fit: of VT-d as many as its registers say (CAP.NFR); of AMD as Linux has them;
  /// of the others a page.
  init(_ configuration: SoftwareIOMMU.Configuration, count: Int? = nil) {
    self.configuration = configuration
    let usual =
      switch configuration.architecture {
      case .intel: Int(configuration.capabilityRegister >> 40 & 0xFF) + 1
      case .amd: 512
      case .smmuV3, .riscv: 128
      }
    state = RankedMutex(
      .hardwareEvents,
      State(ring: EventRing(configuration.architecture, count: count ?? usual)))
  }

  /// Records a fault, or loses it.
  /// - Returns: The record; nil where the architecture has none of this fault.
  @discardableResult
  func report(_ fault: DMAFault) -> HardwareEvent? {
    guard let event = fault.event(of: configuration) else { return nil }
    if isClosed.load(ordering: .relaxed) {
      lostOutside.add(1, ordering: .relaxed)
    } else {
      state.withLock { state in
        if !state.ring.append(event) { isClosed.store(true, ordering: .relaxed) }
      }
    }
    return event
  }

  // MARK: Software's side

  /// How many records fit.
  public var capacity: Int { state.withLock { $0.ring.capacity } }
  /// Records that wait to be taken.
  public var count: Int { state.withLock { $0.ring.count } }
  /// Records that were lost since the IOMMU was made.
  public var lost: UInt64 { state.withLock { lost(of: $0) } }
  /// Whether records were lost since the overflow was acknowledged: PFO, EventOverflow, OVFLG,
  /// fqof.
  public var hasOverflowed: Bool { state.withLock { $0.ring.hasOverflowed } }
  /// The registers that a driver would read.
  public var registers: EventRing.Registers { state.withLock { $0.ring.registers } }

  private func lost(of state: State) -> UInt64 {
    state.ring.lost &+ lostOutside.load(ordering: .relaxed)
  }

  /// Takes the oldest record; nil where there is none.
  public func next() -> HardwareEvent? {
    state.withLock { state in
      let event = state.ring.takeFirst()
      reopen(state)
      return event
    }
  }

  /// Clears the overflow, as the architecture has it: records that wait stay.
  public func acknowledgeOverflow() {
    state.withLock { state in
      state.ring.acknowledgeOverflow()
      reopen(state)
    }
  }

  private func reopen(_ state: State) {
    if state.ring.hasRoom { isClosed.store(false, ordering: .relaxed) }
  }

  /// What a driver's interrupt handler does: takes all records, oldest first, and acknowledges an
  /// overflow.
  /// - Returns: The records, and how many were lost since the last drain.
  public func drain() -> (events: [HardwareEvent], lost: UInt64) {
    state.withLock { state in
      var events: [HardwareEvent] = []
      events.reserveCapacity(state.ring.count)
      while let event = state.ring.takeFirst() { events.append(event) }
      let lost = lost(of: state)
      defer { state.told = lost }
      state.ring.acknowledgeOverflow()
      reopen(state)
      return (events, lost &- state.told)
    }
  }
}
