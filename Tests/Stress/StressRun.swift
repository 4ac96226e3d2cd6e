// SPDX-License-Identifier: Apache-2.0
//
// Maps, unmaps, copies, attaches, replaces, detaches, destroys and DMA at once, from many
// threads on one context, for as long as asked. Invariants are checked all the time.

import IOMMU
import Synchronization

/// What to run.
public struct StressOptions: Sendable {
  public var seconds: Double
  /// At least 6: one of each kind of worker, or two.
  public var threads: Int
  public var seed: UInt64
  /// Seconds from one line of rates to the next; nil for none before the end.
  public var interval: Double?
  /// Goes on after that time, up to a hundred times as long, until each operation was done once.
  public var doesEverything: Bool

  public init(
    seconds: Double = 10, threads: Int = 8, seed: UInt64, interval: Double? = nil,
    doesEverything: Bool = false
  ) {
    self.seconds = seconds
    self.doesEverything = doesEverything
    self.threads = max(6, threads)
    self.seed = seed
    self.interval = interval
  }
}

/// What came of a run.
public struct StressReport: Sendable {
  public var seconds: Double
  /// How often each operation was done.
  public var counts: [Operation: Int]
  /// The first invariant that did not hold, in a sentence.
  public var failure: String?

  /// One line for each operation: how many, and how many a second.
  public var rates: [String] {
    Operation.allCases.filter { counts[$0] != nil }.map { operation in
      let count = counts[operation] ?? 0
      let name = operation.rawValue + String(repeating: " ", count: 20)
      return "\(name.prefix(20)) \(count) (\(Int(Double(count) / max(seconds, 0.001)))/s)"
    }
  }
}

/// What is counted.
public enum Operation: String, CaseIterable, Sendable {
  case map, unmap
  case strayUnmap = "unmap of others"
  case copy = "map by copy"
  case read = "DMA read"
  case write = "DMA write"
  case transfer = "DMA copy"
  case fault = "DMA fault"
  case attach, replace, detach
  case refused = "attach refused"
  case pasidAttach = "PASID attach"
  case pasidReplace = "PASID replace"
  case
    pasidDetach = "PASID detach"
  case access = "accessor read"
  case pin = "accessor pin"
  case table = "table made"
  case space = "space made"
  case bind
  case busy = "destroy refused"
  case pageRequest = "page request"
  case pageRead = "page request read"
  case
    pageAnswer = "page answer"
  case pageMove = "page table moved"
  case audit
}

/// What all workers of a run share.
final class StressState: Sendable {
  private let stopping = Atomic(false)
  private let closed = Atomic(false)
  private let parked = Atomic(0)
  private let running = Atomic(0)
  private struct Shared: Sendable {
    var counts: [Operation: Int] = [:]
    var failure: String?
  }
  private let shared = Guarded(Shared())

  var isStopping: Bool { stopping.load(ordering: .acquiring) }
  func stop() { stopping.store(true, ordering: .releasing) }

  /// Ends the run with the first invariant that did not hold.
  func fail(_ sentence: String) {
    shared.withLock { shared in
      if shared.failure == nil { shared.failure = sentence }
    }
    stop()
  }

  func add(_ counts: [Operation: Int]) {
    shared.withLock { $0.counts.merge(counts, uniquingKeysWith: +) }
  }

  func count(_ operation: Operation) { add([operation: 1]) }

  var result: (counts: [Operation: Int], failure: String?) {
    shared.withLock { ($0.counts, $0.failure) }
  }

  // MARK: Standing still

  func workerStarted() { running.add(1, ordering: .sequentiallyConsistent) }
  func workerEnded() { running.subtract(1, ordering: .sequentiallyConsistent) }

  /// A worker passes here between two steps, and stays while all stand still.
  func pass() {
    guard closed.load(ordering: .acquiring) else { return }
    parked.add(1, ordering: .sequentiallyConsistent)
    while closed.load(ordering: .acquiring) { yieldThread() }
    parked.subtract(1, ordering: .sequentiallyConsistent)
  }

  /// Calls `body` while no worker is inside a step.
  func standingStill(_ body: () -> Void) {
    closed.store(true, ordering: .sequentiallyConsistent)
    while parked.load(ordering: .sequentiallyConsistent)
      < running.load(ordering: .sequentiallyConsistent)
    { yieldThread() }
    body()
    closed.store(false, ordering: .sequentiallyConsistent)
    while parked.load(ordering: .sequentiallyConsistent) > 0 { yieldThread() }
  }
}

/// Runs the workers until the time is over or an invariant is broken, closes everything, and
/// checks that nothing is left.
/// - Parameter tell: Takes a line now and then: rates so far.
public func runStress(
  _ options: StressOptions, tell: (String) -> Void = { _ in }
) throws(IOMMUError) -> StressReport {
  let state = StressState()
  let start = ContinuousClock.now
  let deadline = start + .seconds(options.seconds)
  let world = try StressWorld(options)
  let (system, context) = (world.system, world.context)
  let threads = try world.workers(options, state).map { worker in
    state.workerStarted()
    return startThread {
      while !state.isStopping {
        state.pass()
        worker.step()
        worker.flush(to: state, every: 64)
      }
      worker.flush(to: state, every: 1)
      worker.end()
      state.workerEnded()
    }
  }
  var nextLine = options.interval.map { start + .seconds($0) }
  while !state.isStopping {
    sleepThread(milliseconds: 20)
    state.standingStill {
      world.audit(state)
      world.pageRequests.audit(state)
    }
    state.count(.audit)
    let now = ContinuousClock.now
    if now >= deadline, isEnough(options, state, since: start) { state.stop() }
    if let line = nextLine, now >= line, let interval = options.interval {
      nextLine = line + .seconds(interval)
      let total = state.result.counts.values.reduce(0, +)
      tell("after \(start.duration(to: now).components.seconds) s: \(total) operations")
    }
  }
  for thread in threads { thread.join() }
  let elapsed = start.duration(to: .now)
  world.pageRequests.close(context, state)
  context.close()
  // The devices are unbound with the last reference to the world, and the context ends.
  _ = consume world
  if let left = leftOver(system, context) { state.fail(left) }
  let (counts, failure) = state.result
  return StressReport(seconds: seconds(elapsed), counts: counts, failure: failure)
}

private func isEnough(
  _ options: StressOptions, _ state: StressState, since start: ContinuousClock.Instant
) -> Bool {
  let longest = Duration.seconds(options.seconds * 100)
  guard options.doesEverything, start.duration(to: .now) < longest else { return true }
  let counts = state.result.counts
  return Operation.allCases.allSatisfy { counts[$0] ?? 0 > 0 }
}

/// What has not returned to zero.
private func leftOver(_ system: IOMMUSystem, _ context: Context) -> String? {
  let counts = [
    ("objects of the context", context.objectCount), ("contexts", system.contextCount),
    ("slots of physical space", system.memory.usedSlots),
    ("groups that are owned", system.groups.count { $0.isOwned }),
  ].filter { $0.1 != 0 }
  if counts.isEmpty { return nil }
  return "after everything was closed there are left: "
    + counts.map { "\($0.1) \($0.0)" }.joined(separator: ", ")
}

private func seconds(_ duration: Duration) -> Double {
  Double(duration.components.seconds) + Double(duration.components.attoseconds) / 1e18
}
