// SPDX-License-Identifier: Apache-2.0
//
// One engine that carries out the descriptors of several channels, each with its own way to
// memory: what a mediated copy engine's slices share.

import IOMMU
import SoftwareIOMMU
import Synchronization
import VFIO

/// The engine behind several channels: one thread, which sleeps while none has work. Thread-safe.
///
/// Its lock is below the channels': a channel wakes it with none of its own held.
final class SharedCopyEngine: Sendable {
  /// What a channel has had of the engine.
  struct Usage: Hashable, Sendable {
    var descriptors: UInt64 = 0
    var bytes: UInt64 = 0
  }

  /// Bytes of a turn.
  static let quantum = 256 << 10
  /// What the smallest descriptor counts for: fetching it takes the engine's time too.
  static let leastCost = 4096

  private struct Member: Sendable {
    let core: CopyEngineCore
    let function: FunctionPort
    let port: any BusPort
    var usage = Usage()
  }

  private struct State: Sendable {
    var members: [ObjectIdentifier: Member] = [:]
    var turns = FairTurns<ObjectIdentifier>(quantum: SharedCopyEngine.quantum)
    /// Whose turn it is, and whether it was woken since it was asked for work.
    var current: ObjectIdentifier?
    var currentWoken = false
    var hasThread = false
    var isStopping = false
  }

  private let monitor = Monitor(State())
  private let thread = Guarded<DeviceThread?>(nil)

  func add(_ core: CopyEngineCore, function: FunctionPort) {
    monitor.change { state in
      state.members[ObjectIdentifier(core)] = Member(
        core: core, function: function, port: function.makePort())
    }
  }

  /// Forgets a channel that takes no work in hand any more.
  func remove(_ core: CopyEngineCore) {
    monitor.change { state in
      state.members[ObjectIdentifier(core)] = nil
      state.turns.remove(ObjectIdentifier(core))
    }
  }

  func usage(of core: CopyEngineCore) -> Usage {
    monitor.withLock { $0.members[ObjectIdentifier(core)]?.usage ?? Usage() }
  }

  /// A channel has work.
  /// - Returns: False where the host has no thread for the engine.
  func wake(_ core: CopyEngineCore) -> Bool {
    let id = ObjectIdentifier(core)
    let needsThread = monitor.change { state -> Bool in
      guard !state.isStopping, state.members[id] != nil else { return false }
      if state.current == id { state.currentWoken = true }
      state.turns.wake(id)
      guard !state.hasThread else { return false }
      state.hasThread = true
      return true
    }
    guard needsThread else { return true }
    let hasStarted = thread.withLock { thread -> Bool in
      guard !monitor.withLock({ $0.isStopping }) else { return true }
      thread = DeviceThread { [self] in run() }
      return thread != nil
    }
    if !hasStarted {
      monitor.change { state in
        state.hasThread = false
        state.turns.remove(id)
      }
    }
    return hasStarted
  }

  /// Ends the thread. The channels have stopped before.
  func stop() {
    monitor.change { $0.isStopping = true }
    thread.withLock { thread in
      defer { thread = nil }
      return thread
    }?.join()
  }

  // MARK: The thread

  private enum Turn {
    case member(Member)
    case end
  }

  private func run() {
    while true {
      let turn = monitor.wait { state -> Turn? in
        if state.isStopping { return .end }
        guard let id = state.turns.next() else { return nil }
        guard let member = state.members[id] else {
          state.turns.remove(id)
          return nil
        }
        state.current = id
        state.currentWoken = false
        return .member(member)
      }
      guard case .member(let member) = turn else { return }
      let id = ObjectIdentifier(member.core)
      guard let work = member.core.takeWork() else {
        monitor.change { state in
          state.current = nil
          // Work that came after it was asked has not been seen.
          if !state.currentWoken, state.members[id] != nil { state.turns.sleep(id) }
        }
        continue
      }
      let bytes = member.core.perform(work, member.port, member.function)
      monitor.change { state in
        state.current = nil
        guard state.members[id] != nil else { return }
        state.turns.charge(id, bytes: max(bytes, Self.leastCost))
        state.members[id]?.usage.bytes &+= UInt64(bytes)
        state.members[id]?.usage.descriptors &+= 1
      }
    }
  }
}
