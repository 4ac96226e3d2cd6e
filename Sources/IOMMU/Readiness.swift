// SPDX-License-Identifier: Apache-2.0
//
// Whether a queue of records has any, for poll (MODEL H1). The queue sets it, whoever carries
// descriptors hands in where it goes: calls run one way (A4).

/// Where a queue's readiness shows: the descriptor that a program polls. Thread-safe.
public protocol ReadinessSignal: AnyObject, Sendable {
  /// What poll answers from now on. `true` also wakes whoever waits, though it was true before:
  /// an edge-triggered waiter sees each record. Never blocks, takes no lock of the engine.
  func set(isReadable: Bool)
}

/// The readiness of one queue: set by the queue under its own lock, so that what is shown last
/// is what is so. Thread-safe.
///
/// Lock order: its lock is a leaf below the queue's; the carrier's signal is called under it.
public final class Readiness: Sendable {
  private struct State: Sendable {
    var isReadable = false
    var signal: (any ReadinessSignal)?
  }

  private let state = RankedMutex(.readiness, State())

  public init() {}

  /// Whether there are records.
  public var isReadable: Bool { state.withLock { $0.isReadable } }

  /// A record was added.
  public func recordAdded() {
    state.withLock { state in
      state.isReadable = true
      state.signal?.set(isReadable: true)
    }
  }

  /// No record is left.
  public func emptied() {
    state.withLock { state in
      guard state.isReadable else { return }
      state.isReadable = false
      state.signal?.set(isReadable: false)
    }
  }

  /// Shows the state there, from now on. The carrier calls it before the program has the
  /// descriptor, and with nil when the last descriptor is closed.
  public func show(on signal: (any ReadinessSignal)?) {
    state.withLock { state in
      state.signal = signal
      if state.isReadable { signal?.set(isReadable: true) }
    }
  }
}
