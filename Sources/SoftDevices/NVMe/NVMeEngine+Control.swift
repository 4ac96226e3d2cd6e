// SPDX-License-Identifier: Apache-2.0
//
// What the registers ask of a controller's thread: enable, disable, shut down, reset, end
// (NVM Express 1.4, 7.3 and 7.6).

import IOMMU
import SoftwareIOMMU
import VFIO

extension NVMeEngine {
  /// Does what was asked for.
  /// - Returns: False where the thread is to end.
  func attend() -> Bool {
    let (isResetting, isQuiesced, wantsSnapshot) = core.monitor.withLock { state in
      core.attention.store(false, ordering: .releasing)
      return (state.isResetting || state.isStopping, state.isQuiesced, state.wantsSnapshot)
    }
    if isResetting { return reset() }
    if isQuiesced { return park() }
    completeFlushed()
    if wantsSnapshot { giveSnapshot() }
    let (requests, errors) = core.monitor.withLock { state in
      defer {
        state.registers.requests = []
        state.doorbells.errors = []
      }
      return (state.registers.requests, state.doorbells.errors)
    }
    if !errors.isEmpty, isRunning {
      for error in errors { report(error) }
    }
    if requests.contains(.subsystemReset) {
      stopQueues()
      core.line.reset()
      core.monitor.change { $0.registers.status = .subsystemReset }
    }
    if requests.contains(.disable) {
      stopQueues()
      core.monitor.change { $0.registers.disable() }
      core.line.reset()
    }
    if requests.contains(.enable) { enable() }
    if requests.contains(.shutdown) { shutDown() }
    return true
  }

  /// Function-level reset, or the end.
  /// - Returns: False where it is the end.
  func reset() -> Bool {
    stopQueues()
    powerOn()
    core.line.reset()
    return core.monitor.change { state in
      state.registers.powerOn()
      state.isResetting = false
      state.loading = nil
      guard state.isStopping else { return true }
      state.hasThread = false
      state.isParked = false
      return false
    }
  }

  private func enable() {
    let registers = core.monitor.withLock { $0.registers }
    let asked = registers.configuration
    let sizes = (
      submission: registers.adminQueueSizes & 0xFFF, completion: registers.adminQueueSizes >> 16
    )
    let inPage: UInt64 = 1 << UInt64(asked.pageShift) - 1
    guard asked.commandSet == 0, asked.arbitration == 0,
      asked.pageShift <= 12 + Int(NVMeRegisters.largestPage),
      sizes.submission > 0, sizes.completion > 0,
      (registers.adminSubmission | registers.adminCompletion) & inPage == 0
    else {
      core.monitor.change { _ = $0.registers.status.insert(.fatal) }
      return
    }
    pageShift = asked.pageShift
    features.reset()
    events.reset()
    let admin = CompletionQueue(
      number: 0, address: registers.adminCompletion, size: sizes.completion + 1, vector: 0)
    add(admin)
    add(
      SubmissionQueue(
        number: 0, address: registers.adminSubmission, size: sizes.submission + 1,
        completions: admin))
    take(function.doorbells ?? OwnDoorbells(byteCount: 4096))
    isRunning = true
    hasAdminStarted = false
    core.monitor.change { state in
      state.doorbells.words = words
      state.registers.status.insert(.ready)
    }
  }

  /// Forgets all queues and what was in them.
  func stopQueues() {
    isRunning = false
    core.monitor.change { state in
      state.doorbells.words = nil
      state.doorbells.sizes = []
      state.doorbells.errors = []
      state.flushed = []
    }
    closeDoorbells()
    for index in 0..<Int(words.byteCount / 4) { words.store(0, at: UInt64(index) * 4) }
    // The pages are the present user's.
    words = OwnDoorbells(byteCount: 4096)
    for number in submissions.indices {
      submissions[number] = nil
      completions[number] = nil
    }
    active = []
    flushing.forget()
    events.reset()
    data.clear()
  }

  private func powerOn() {
    features = NVMeFeatures(vectors: configuration.queues + 1)
    health = NVMeHealth()
  }

  /// What was written is on the medium when CSTS says so. What is in the queues stays there.
  private func shutDown() {
    finishFlushes()
    isRunning = false
    core.monitor.change { $0.doorbells.words = nil }
    closeDoorbells()
    for store in stores {
      do throws(NVMeStatus) { try store.flush() } catch { health.mediaErrors &+= 1 }
    }
    core.monitor.change { state in
      // A reset came meanwhile.
      guard state.registers.status.contains(.shutdownOccurring) else { return }
      state.registers.status.remove(.shutdownOccurring)
      state.registers.status.insert(.shutdownComplete)
    }
  }

  // MARK: Queues

  func add(_ queue: CompletionQueue) {
    completions[Int(queue.number)] = queue
    setDoorbell(DoorbellState.head(of: queue.number), size: queue.size)
  }

  func add(_ queue: SubmissionQueue) {
    queue.completions.users += 1
    submissions[Int(queue.number)] = queue
    active = submissions.compactMap { $0 }
    setDoorbell(DoorbellState.tail(of: queue.number), size: queue.size)
  }

  /// What was rung for and not fetched is dropped, and what is being flushed completes nowhere.
  func remove(_ queue: SubmissionQueue) {
    queue.completions.reserved -= flushing.forget(of: queue)
    queue.completions.users -= 1
    submissions[Int(queue.number)] = nil
    active = submissions.compactMap { $0 }
    setDoorbell(DoorbellState.tail(of: queue.number), size: 0)
  }

  func remove(_ queue: CompletionQueue) {
    completions[Int(queue.number)] = nil
    setDoorbell(DoorbellState.head(of: queue.number), size: 0)
    followLine(queue)
  }

  private func setDoorbell(_ index: Int, size: UInt32) {
    words.store(0, at: UInt64(index) * 4)
    core.monitor.change { state in
      let missing = index + 1 - state.doorbells.sizes.count
      if missing > 0 {
        state.doorbells.sizes += Array(repeating: 0, count: missing)
      }
      state.doorbells.sizes[index] = size
    }
  }
}
