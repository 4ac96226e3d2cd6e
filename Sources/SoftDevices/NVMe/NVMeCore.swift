// SPDX-License-Identifier: Apache-2.0
//
// What joins a controller's registers to its thread: the lock between them, the wake-ups, reset and
// the end. The thread's own half is NVMeEngine.

import IOMMU
import PageTables
import SoftwareIOMMU
import Synchronization
import VFIO

/// The controller without its bus interface. Thread-safe.
final class NVMeCore: Sendable {
  /// All that a register access can see or change.
  struct State: Sendable {
    var registers: NVMeRegisters
    var doorbells = DoorbellState()
    /// A function-level reset waits for the thread.
    var isResetting = false
    var isStopping = false
    var hasThread = false
    /// Stopped so that the state can move: the thread is to stand still.
    var isQuiesced = false
    /// The thread does.
    var isParked = false
    /// The thread is to give its state.
    var wantsSnapshot = false
    var snapshot: NVMeState?
    /// What the flushing thread has done.
    var flushed: [NVMeFlusher.Result] = []
    /// The thread is to go on with this, of a controller that is stopped.
    var loading: NVMeState?

    /// Whether the thread is wanted for more than commands.
    var hasRequests: Bool {
      !registers.requests.isEmpty || isResetting || isStopping || !doorbells.errors.isEmpty
        || isQuiesced || wantsSnapshot || !flushed.isEmpty
    }
  }

  let configuration: NVMeConfiguration
  let stores: [BlockStore]
  let monitor: Monitor<State>
  let line = NVMeLine()
  /// Set with each request, so that the thread need not take the lock to see that there is none.
  let attention = Atomic(false)
  /// As `DoorbellState.rings`, for a look without the lock.
  let rings = Atomic<UInt64>(0)
  private let function = Guarded<FunctionPort?>(nil)
  private let thread = Guarded<DeviceThread?>(nil)

  init(configuration: NVMeConfiguration, stores: [BlockStore]) {
    self.configuration = configuration
    self.stores = stores
    monitor = Monitor(State(registers: NVMeRegisters(queueEntries: configuration.queueEntries)))
  }

  func connect(to port: FunctionPort) {
    function.withLock { $0 = port }
    line.connect(to: port)
  }

  // MARK: Registers

  func read(_ offset: UInt64, width: Int) -> UInt64 {
    monitor.withLock { $0.registers.read(offset, width: width) }
  }

  /// A write of 4 aligned bytes below the doorbells.
  func write(_ offset: UInt64, _ value: UInt32) {
    let needsThread = monitor.change { state -> Bool in
      let mask = state.registers.interruptMask
      state.registers.write(offset, value)
      if state.registers.interruptMask != mask { line.setMask(state.registers.interruptMask) }
      guard state.hasRequests, !state.isStopping else { return false }
      attention.store(true, ordering: .releasing)
      guard !state.hasThread else { return false }
      state.hasThread = true
      return true
    }
    if needsThread { start() }
  }

  /// A ring that came as a write of a register.
  func ring(_ offset: UInt64, _ value: UInt32) {
    monitor.change { state in
      state.doorbells.ring(Int(offset / 4), value)
      if !state.doorbells.errors.isEmpty { attention.store(true, ordering: .releasing) }
      rings.store(state.doorbells.rings, ordering: .releasing)
    }
  }

  // MARK: The thread

  func start() {
    guard let function = function.withLock({ $0 }) else { return }
    // Under the lock, so that `stop` either sees the thread or keeps it from being started.
    let hasStarted = thread.withLock { thread -> Bool in
      let isStopping = monitor.change { state -> Bool in
        if state.isStopping { state.hasThread = false }
        return state.isStopping
      }
      guard !isStopping else { return true }
      thread = DeviceThread { [self] in NVMeEngine(core: self, function: function).run() }
      return thread != nil
    }
    guard !hasStarted else { return }
    // The host has no thread left: what was asked for cannot be.
    monitor.change { state in
      state.hasThread = false
      state.registers.requests = []
      state.registers.status.insert(.fatal)
      state.registers.status.remove(.shutdownOccurring)
    }
  }

  /// Flushes are done: the thread completes their commands.
  func complete(_ results: [NVMeFlusher.Result]) {
    monitor.change { state in
      state.flushed += results
      attention.store(true, ordering: .releasing)
    }
  }

  /// Function-level reset. When it returns, no DMA goes on.
  func reset() {
    monitor.change { state in
      state.isResetting = true
      attention.store(true, ordering: .releasing)
    }
    monitor.wait { state -> Void? in
      if !state.hasThread, state.isResetting {
        state.isResetting = false
        state.registers.powerOn()
      }
      return state.isResetting ? nil : ()
    }
    line.reset()
  }

  /// Ends the thread. When it returns, no DMA goes on, now or later.
  func stop() {
    monitor.change { state in
      state.isStopping = true
      attention.store(true, ordering: .releasing)
    }
    thread.withLock { thread in
      defer { thread = nil }
      return thread
    }?.join()
    line.reset()
  }
}
