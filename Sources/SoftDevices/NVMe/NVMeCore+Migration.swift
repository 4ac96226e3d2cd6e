// SPDX-License-Identifier: Apache-2.0
//
// How a controller's state moves to another one: stopped between two commands, saved, loaded.

import IOMMU
import VFIO

extension NVMeCore: DeviceMigration {
  var stateVersion: UInt32 { 1 }
  var stateLimit: Int { 64 << 10 }

  func quiesce() {
    monitor.change { state in
      state.isQuiesced = true
      attention.store(true, ordering: .releasing)
    }
    monitor.wait { state in !state.hasThread || state.isParked ? () : nil as Void? }
  }

  func resume() {
    let needsThread = monitor.change { state -> Bool in
      state.isQuiesced = false
      guard state.hasRequests else { return false }
      attention.store(true, ordering: .releasing)
      guard !state.hasThread, !state.isStopping else { return false }
      state.hasThread = true
      return true
    }
    if needsThread { start() }
  }

  func saveState() -> [UInt8] {
    monitor.change { state in
      state.snapshot = nil
      state.wantsSnapshot = state.hasThread
      attention.store(true, ordering: .releasing)
    }
    let state = monitor.wait { state -> NVMeState? in
      if let snapshot = state.snapshot {
        state.snapshot = nil
        return snapshot
      }
      guard !state.hasThread else { return nil }
      state.wantsSnapshot = false
      return NVMeState(registers: state.registers, configuration: configuration)
    }
    return state.bytes(of: configuration, stores)
  }

  func loadState(_ bytes: [UInt8]) throws(IOMMUError) {
    let loaded = try NVMeState(bytes, configuration: configuration, stores)
    let needsThread = monitor.change { state -> Bool in
      state.loading = loaded
      attention.store(true, ordering: .releasing)
      guard !state.hasThread, !state.isStopping else { return false }
      state.hasThread = true
      return true
    }
    if needsThread { start() }
    let isTaken = monitor.wait { state -> Bool? in
      if state.loading == nil { return true }
      guard !state.hasThread else { return nil }
      state.loading = nil
      return false
    }
    guard isTaken else {
      throw IOMMUError(.noMemory, "the host has no thread left for the controller")
    }
  }
}

extension NVMeEngine {
  /// Stands still until the controller goes on.
  /// - Returns: False where the thread is to end.
  func park() -> Bool {
    finishFlushes()
    isParked = true
    closeDoorbells()
    // Whoever goes on with the files finds what was written.
    for store in stores {
      do throws(NVMeStatus) { try store.flush() } catch { health.mediaErrors &+= 1 }
    }
    core.monitor.change { $0.isParked = true }
    while true {
      enum Wish {
        case reset
        case load(NVMeState)
        case snapshot, resume
      }
      let wish = core.monitor.wait { state -> Wish? in
        if state.isResetting || state.isStopping { return .reset }
        if let loading = state.loading { return .load(loading) }
        if state.wantsSnapshot { return .snapshot }
        return state.isQuiesced ? nil : .resume
      }
      switch wish {
      case .reset: if !reset() { return false }
      case .load(let state): restore(state)
      case .snapshot: giveSnapshot()
      case .resume:
        isParked = false
        core.monitor.change { $0.isParked = false }
        goOn()
        return true
      }
    }
  }

  private func goOn() {
    core.attention.store(true, ordering: .releasing)
    guard isRunning else { return }
    reopen()
    for case let queue? in completions { followLine(queue) }
    deliverEvents()
  }

  /// Puts the state where `saveState` waits for it.
  func giveSnapshot() {
    if isRunning { readDoorbells(all: true) }
    var snapshot = NVMeState(
      registers: core.monitor.withLock { $0.registers }, configuration: configuration)
    snapshot.isRunning = isRunning
    snapshot.completions = completions.compactMap { $0?.state }
    snapshot.submissions = active.map(\.state)
    snapshot.features = features
    snapshot.events = events
    snapshot.health = health
    core.monitor.change { state in
      state.wantsSnapshot = false
      state.snapshot = snapshot
    }
  }

  private func restore(_ state: NVMeState) {
    stopQueues()
    core.line.reset()
    features = state.features
    events = state.events
    health = state.health
    pageShift = state.registers.configuration.pageShift
    words = function.doorbells ?? OwnDoorbells(byteCount: 4096)
    for index in 0..<Int(words.byteCount / 4) { words.store(0, at: UInt64(index) * 4) }
    for queue in state.completions {
      add(CompletionQueue(queue))
      words.store(queue.rung, at: UInt64(DoorbellState.head(of: queue.number)) * 4)
    }
    for queue in state.submissions {
      guard let target = completions[Int(queue.completions)] else { continue }
      add(SubmissionQueue(queue, completions: target))
      words.store(queue.rung, at: UInt64(DoorbellState.tail(of: queue.number)) * 4)
    }
    isRunning = state.isRunning
    hasAdminStarted =
      submissions[0].map { $0.rung != 0 || $0.head != 0 || $0.completions.tail != 0 } ?? false
    core.line.setMask(state.registers.interruptMask)
    let words = isRunning ? words : nil
    core.monitor.change { core in
      core.registers = state.registers
      core.doorbells.words = words
      core.loading = nil
    }
  }
}

extension SubmissionQueue {
  var state: NVMeState.Submissions {
    NVMeState.Submissions(
      number: number, address: address, size: size, completions: completions.number, head: head,
      tail: tail, rung: rung)
  }

  convenience init(_ state: NVMeState.Submissions, completions: CompletionQueue) {
    self.init(
      number: state.number, address: state.address, size: state.size, completions: completions)
    head = state.head
    tail = state.tail
    rung = state.rung
  }
}
