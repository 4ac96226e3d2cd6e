// SPDX-License-Identifier: Apache-2.0
//
// The queue of a work-queue engine and the thread that empties it: one command after another, each
// with DMA of its own PASID.

import IOMMU
import PageTables
import SoftwareIOMMU
import Synchronization
import VFIO

/// A bounded queue of commands. Thread-safe.
final class WorkQueue: Sendable {
  /// Most bytes of a command, and bytes copied between two looks at whether it is still wanted.
  static let lengthLimit: UInt64 = 1 << 20
  static let pieceLength: UInt64 = 64 << 10

  private struct State: Sendable {
    var waiting: [WorkCommand] = []
    /// The PASID of the command in hand.
    var current: PASID?
    var isHeld = false
    var errors: UInt32 = 0
    var hasThread = false
    var isStopping = false
  }

  private let depth: Int
  private let monitor = Monitor(State())
  private let function = Guarded<FunctionPort?>(nil)
  private let thread = Guarded<DeviceThread?>(nil)
  /// Where the thread waits for pages. Cancelled, under the monitor's lock, where the command in
  /// hand is to be dropped.
  private let waits = DeviceWait()

  init(depth: Int) { self.depth = depth }

  func connect(to function: FunctionPort) { self.function.withLock { $0 = function } }

  var occupancy: Int {
    monitor.withLock { $0.waiting.count + ($0.current == nil ? 0 : 1) }
  }
  var isHeld: Bool { monitor.withLock { $0.isHeld } }
  var errors: UInt32 { monitor.withLock { $0.errors } }

  func setHeld(_ value: Bool) { monitor.change { $0.isHeld = value } }

  func countError() { monitor.withLock { $0.errors &+= 1 } }

  /// - Parameter command: With the PASID that its DMA carries.
  func add(_ command: WorkCommand) -> DeferrableWrite {
    let outcome = monitor.change { state -> (answer: DeferrableWrite, needsThread: Bool) in
      guard !state.isStopping, state.waiting.count < depth else { return (.retry, false) }
      state.waiting.append(command)
      defer { state.hasThread = true }
      return (.accepted, !state.hasThread)
    }
    guard outcome.needsThread else { return outcome.answer }
    let hasStarted = thread.withLock { thread -> Bool in
      guard !monitor.withLock({ $0.isStopping }) else { return true }
      thread = DeviceThread { [self] in run() }
      return thread != nil
    }
    guard !hasStarted else { return .accepted }
    // The host has no thread left: as if there was no room.
    monitor.change { state in
      state.hasThread = false
      if !state.waiting.isEmpty { state.waiting.removeLast() }
    }
    return .retry
  }

  /// Drops the commands of a PASID. When it returns, none is in hand.
  func drain(_ pasid: PASID) {
    monitor.change { state in
      state.waiting.removeAll { $0.pasid == pasid }
      if state.current == pasid { waits.cancel() }
    }
    monitor.wait { state in state.current == pasid ? nil : () as Void? }
  }

  func reset() {
    monitor.change { state in
      state.waiting = []
      state.isHeld = false
      waits.cancel()
    }
    monitor.wait { state -> Void? in
      guard state.current == nil else { return nil }
      // The command that was in hand may have failed meanwhile.
      state.errors = 0
      return ()
    }
  }

  /// Ends the thread. When it returns, no DMA goes on, now or later.
  func stop() {
    monitor.change { $0.isStopping = true }
    reset()
    thread.withLock { thread in
      defer { thread = nil }
      return thread
    }?.join()
  }

  // MARK: The thread

  private func run() {
    guard let function = function.withLock({ $0 }) else { return }
    while true {
      let command = monitor.wait { state -> WorkCommand?? in
        if state.isStopping { return .some(nil) }
        guard !state.isHeld, !state.waiting.isEmpty else { return nil }
        let command = state.waiting.removeFirst()
        state.current = command.pasid
        waits.renew()
        return .some(command)
      }
      guard let command else { return }
      let failed = !perform(command, function.makePort(pasid: command.pasid, waits: waits))
      monitor.change { state in
        state.current = nil
        if failed { state.errors &+= 1 }
      }
    }
  }

  /// - Returns: Whether all went well.
  private func perform(_ command: WorkCommand, _ port: any BusPort) -> Bool {
    let words = command.words
    let operation = UInt8(truncatingIfNeeded: words[0] >> 32)
    let completes = words[0] & 1 << 40 != 0
    let isKnown =
      operation <= 2 && words[0] >> 41 == 0 && words[0] & 0xFFF0_0000 == 0
      && words[4] <= Self.lengthLimit && words[5] | words[6] | words[7] == 0
    var done: UInt64 = 0
    let status: WorkStatus? =
      isKnown ? transfer(operation, words, port, &done) : .badCommand
    guard let status else { return true }
    guard completes else { return status == .success }
    // Who sees the completion sees the data.
    atomicMemoryFence(ordering: .releasing)
    do throws(BusError) {
      try port.store(UInt64(status.rawValue) | done << 8, at: IOVA(words[1]))
    } catch {
      return waits.isCancelled
    }
    return status == .success
  }

  /// - Returns: Nil where it was cancelled.
  private func transfer(
    _ operation: UInt8, _ words: InlineArray<8, UInt64>, _ port: any BusPort,
    _ done: inout UInt64
  ) -> WorkStatus? {
    guard operation != 0 else { return .success }
    while done < words[4] {
      guard !waits.isCancelled else { return nil }
      let piece = Int(min(words[4] - done, Self.pieceLength))
      let destination = IOVA(words[3] &+ done)
      do throws(BusError) {
        if operation == 1 {
          try port.copy(from: IOVA(words[2] &+ done), to: destination, length: piece)
        } else {
          try port.fill(destination, pattern: words[2], length: piece)
        }
      } catch {
        // Its wait for a page was ended with it.
        if waits.isCancelled { return nil }
        return error.access.contains(.write) ? .destinationFault : .sourceFault
      }
      done += UInt64(piece)
    }
    return .success
  }
}
