// SPDX-License-Identifier: Apache-2.0
//
// Flushes take as long as the medium does. A thread of their own does them, so that the queues go on
// meanwhile; the commands that wait for one are in the controller's thread.

import IOMMU
import SoftwareIOMMU
import VFIO

/// A thread that flushes stores. Thread-safe.
final class NVMeFlusher: Sendable {
  /// What one command waits for.
  struct Job: Sendable {
    var number: UInt64
    /// Of the controller's.
    var stores: Range<Int>
  }

  struct Result: Sendable {
    var number: UInt64
    var status: NVMeStatus
  }

  private struct State: Sendable {
    var jobs: [Job] = []
    var isBusy = false
    var isStopping = false
  }

  private let monitor = Monitor(State())
  private let thread = Guarded<DeviceThread?>(nil)

  /// - Parameter done: Called on the thread; when `drain` returns, it was called for all.
  /// - Returns: Nil where the system has no thread left.
  init?(stores: [BlockStore], done: @escaping @Sendable ([Result]) -> Void) {
    let monitor = monitor
    guard let thread = DeviceThread({ Self.run(monitor, stores, done) }) else { return nil }
    self.thread.withLock { $0 = thread }
  }

  func add(_ job: Job) { monitor.change { $0.jobs.append(job) } }

  /// Waits until nothing is left to do.
  func drain() {
    monitor.wait { state in state.jobs.isEmpty && !state.isBusy ? () : nil as Void? }
  }

  /// Ends the thread. What it has not begun is not done.
  func stop() {
    monitor.change { $0.isStopping = true }
    thread.withLock { thread in
      defer { thread = nil }
      return thread
    }?.join()
  }

  private static func run(
    _ monitor: Monitor<State>, _ stores: [BlockStore], _ done: @Sendable ([Result]) -> Void
  ) {
    while true {
      let jobs = monitor.wait { state -> [Job]? in
        if state.isStopping { return [] }
        guard !state.jobs.isEmpty else { return nil }
        defer { state.jobs = [] }
        state.isBusy = true
        return state.jobs
      }
      guard !jobs.isEmpty else { return }
      // Each store once for all of them: what they are to make last was written before.
      var statuses = [NVMeStatus?](repeating: nil, count: stores.count)
      var results: [Result] = []
      for job in jobs {
        var status = NVMeStatus.success
        for index in job.stores {
          let one = statuses[index] ?? stores[index].flushStatus
          statuses[index] = one
          if status == .success { status = one }
        }
        results.append(Result(number: job.number, status: status))
      }
      done(results)
      monitor.change { $0.isBusy = false }
    }
  }
}

extension BlockStore {
  /// Flushes, and says how it went.
  fileprivate var flushStatus: NVMeStatus {
    do throws(NVMeStatus) {
      try flush()
      return .success
    } catch {
      return error
    }
  }
}

/// The commands that wait for a flush. Of the controller's thread.
struct NVMeFlushing {
  struct Waiting {
    var command: NVMeCommand
    var queue: SubmissionQueue
  }

  /// By the number of the job; of those that nobody waits for any more none is here.
  private var waiting: [UInt64: Waiting] = [:]
  private var last: UInt64 = 0
  private var flusher: NVMeFlusher?

  /// Has stores flushed for a command.
  /// - Returns: False where there is no thread for it.
  mutating func add(
    _ stores: Range<Int>, for command: NVMeCommand, of queue: SubmissionQueue, _ core: NVMeCore
  ) -> Bool {
    if flusher == nil {
      flusher = NVMeFlusher(stores: core.stores) { core.complete($0) }
    }
    guard let flusher else { return false }
    last &+= 1
    waiting[last] = Waiting(command: command, queue: queue)
    flusher.add(NVMeFlusher.Job(number: last, stores: stores))
    return true
  }

  mutating func take(_ number: UInt64) -> Waiting? { waiting.removeValue(forKey: number) }

  /// Nobody waits for what is being done.
  mutating func forget() { waiting = [:] }

  /// - Returns: How many commands of the queue waited.
  mutating func forget(of queue: SubmissionQueue) -> UInt32 {
    let count = waiting.count
    waiting = waiting.filter { $0.value.queue !== queue }
    return UInt32(count - waiting.count)
  }

  func drain() { flusher?.drain() }

  func stop() { flusher?.stop() }
}

extension NVMeEngine {
  /// Flushes for a command: at once where that takes no time.
  /// - Returns: Whether it completes later.
  func flush(
    _ stores: Range<Int>, for command: NVMeCommand, of queue: SubmissionQueue
  ) throws(NVMeStatus) -> Bool {
    guard stores.contains(where: { self.stores[$0].canFlush }) else { return false }
    if flushing.add(stores, for: command, of: queue, core) {
      queue.completions.reserved += 1
      return true
    }
    for index in stores { try self.stores[index].flush() }
    return false
  }

  /// Completes the commands whose flush is done.
  func completeFlushed() {
    let results = core.monitor.withLock { state in
      defer { state.flushed = [] }
      return state.flushed
    }
    do throws(BusError) {
      for result in results {
        guard let one = flushing.take(result.number) else { continue }
        let completions = one.queue.completions
        completions.reserved -= 1
        guard isRunning else { continue }
        if result.status != .success {
          health.record(result.status, one.command, queue: one.queue.number)
        }
        if completions.isFull { try post(completions) }
        completions.stage(
          identifier: one.command.identifier, queue: one.queue.number, head: one.queue.head,
          status: result.status, result: 0)
        try post(completions)
      }
    } catch {
      fail()
    }
  }

  /// Waits for all flushes, and completes their commands.
  func finishFlushes() {
    flushing.drain()
    completeFlushed()
  }
}
