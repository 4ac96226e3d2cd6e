// SPDX-License-Identifier: Apache-2.0
//
// The thread of a controller: it does what the registers ask for, fetches commands from the queues
// that were rung, round robin, and carries them out one after the other. With nothing to do it
// polls the doorbells for a short while, then sleeps until one traps.

import IOMMU
import PageTables
import SoftwareIOMMU
import Synchronization
import VFIO

/// The controller's own half. Of its thread.
final class NVMeEngine {
  let core: NVMeCore
  let function: FunctionPort
  let port: any BusPort
  let data: NVMeTransfer
  var configuration: NVMeConfiguration { core.configuration }
  var stores: [BlockStore] { core.stores }

  // Queues, by number; 0 are the admin queues.
  var submissions: [SubmissionQueue?]
  var completions: [CompletionQueue?]
  /// The submission queues that there are, by number.
  var active: [SubmissionQueue] = []
  /// What was written to CC when the controller was enabled.
  var pageShift = 12
  /// Ready, and with no fatal error.
  var isRunning = false
  /// The admin queue has been rung since the controller was enabled.
  var hasAdminStarted = false
  var words: any DoorbellPages
  private var isOpen = false
  /// Stands still: nothing is written, not even what there is to tell.
  var isParked = false
  private var seenRings: UInt64 = 0
  private let batch = CommandBatch()
  /// Commands that complete when their blocks are on the medium.
  var flushing = NVMeFlushing()

  var features: NVMeFeatures
  var events = NVMeEvents()
  var health: NVMeHealth

  /// Looks at the doorbells between two looks at the clock, when others may have the processor.
  private static let looks = 64

  init(core: NVMeCore, function: FunctionPort) {
    self.core = core
    self.function = function
    port = function.makePort()
    data = NVMeTransfer(port: port, limit: core.configuration.maximumTransfer)
    let count = core.configuration.queues + 1
    submissions = Array(repeating: nil, count: count)
    completions = Array(repeating: nil, count: count)
    words = OwnDoorbells(byteCount: 4096)
    features = NVMeFeatures(vectors: count)
    health = NVMeHealth()
  }

  // MARK: The loop

  /// Runs until the controller is taken out.
  func run() {
    defer { flushing.stop() }
    var idleSince: Duration?
    var looks = 0
    while true {
      if core.attention.load(ordering: .acquiring), !attend() { return }
      if isRunning, turn() {
        idleSince = nil
        looks = 0
        continue
      }
      // With nobody to carry pages each ring wakes the thread; it need not look out for them.
      looks += 1
      guard !isRunning || looks % Self.looks == 0 else { continue }
      if isRunning {
        let now = threadTime()
        guard let start = idleSince else {
          idleSince = now
          continue
        }
        if now - start < configuration.idlePolling {
          yieldProcessor()
          continue
        }
      }
      rest()
      idleSince = nil
      looks = 0
    }
  }

  /// Sleeps until there is something to do. A ring that raced the closing of the page is in the
  /// page, and found before that.
  private func rest() {
    let rings = core.rings.load(ordering: .acquiring)
    if isOpen {
      words.close()
      isOpen = false
      reportStrayRings()
      if hasUnseenRings || rings != seenRings {
        reopen()
        return
      }
    }
    core.monitor.wait { state -> Void? in
      state.hasRequests || state.doorbells.rings != seenRings ? () : nil
    }
    // Whatever ended the rest: a flush that is done may bring the next ring.
    if isRunning { reopen() }
  }

  func reopen() {
    words.open()
    isOpen = true
  }

  // MARK: Doorbells

  private var hasUnseenRings: Bool {
    active.contains { queue in
      words.load(UInt64(DoorbellState.tail(of: queue.number)) * 4) != queue.rung
    }
      || completions.contains { queue in
        queue.map { words.load(UInt64(DoorbellState.head(of: $0.number)) * 4) != $0.rung }
          ?? false
      }
  }

  /// Takes what the doorbells say over.
  /// - Parameter all: Whether anybody rang or not.
  func readDoorbells(all: Bool = false) {
    if !isOpen, !all {
      let rings = core.rings.load(ordering: .acquiring)
      guard rings != seenRings else { return }
      seenRings = rings
    } else {
      seenRings = core.rings.load(ordering: .acquiring)
    }
    for queue in active {
      let value = words.load(UInt64(DoorbellState.tail(of: queue.number)) * 4)
      guard value != queue.rung else { continue }
      queue.rung = value
      if queue.number == 0, !hasAdminStarted { startAdmin(queue) }
      if value < queue.size { queue.tail = value } else { report(.invalidValue) }
    }
    for case let queue? in completions {
      let value = words.load(UInt64(DoorbellState.head(of: queue.number)) * 4)
      guard value != queue.rung else { continue }
      queue.rung = value
      let taken = value >= queue.head ? value - queue.head : value + queue.size - queue.head
      if value < queue.size, taken <= queue.used {
        queue.head = value
        followLine(queue)
        // What found no room among the admin completions has some now.
        if queue.number == 0 { deliverEvents() }
      } else {
        report(.invalidValue)
      }
    }
  }

  /// The first ring of the admin queue since the controller was enabled. ASQ and ACQ have to be set
  /// before CC.EN; of drivers whose compiler has moved their stores past it, a controller that takes
  /// its time to start notices nothing.
  private func startAdmin(_ queue: SubmissionQueue) {
    hasAdminStarted = true
    let (submissions, completions) = core.monitor.withLock {
      ($0.registers.adminSubmission, $0.registers.adminCompletion)
    }
    queue.place(submissions: submissions, completions: completions)
  }

  /// Rings in the page for queues that are not there.
  private func reportStrayRings() {
    for index in 0..<Int(words.byteCount / 4) {
      let number = index / 2
      let exists =
        number < submissions.count
        && (index % 2 == 0 ? submissions[number] != nil : completions[number] != nil)
      guard !exists, words.load(UInt64(index) * 4) != 0 else { continue }
      words.store(0, at: UInt64(index) * 4)
      report(.noSuchQueue)
    }
  }

  func report(_ error: DoorbellError) {
    events.add(NVMeEvents.Event(error))
    deliverEvents()
  }

  // MARK: Commands

  /// Serves each queue once.
  /// - Returns: Whether there was anything to do.
  private func turn() -> Bool {
    readDoorbells()
    var worked = false
    // A command may make or delete queues.
    var index = 0
    while index < active.count, isRunning {
      let queue = active[index]
      if queue.head != queue.tail, serve(queue) { worked = true }
      index += 1
    }
    return worked
  }

  /// Carries out some commands of a queue.
  /// - Returns: False where there is no room for their completions.
  private func serve(_ queue: SubmissionQueue) -> Bool {
    let completions = queue.completions
    let count = min(
      queue.waiting, completions.room, UInt32(CommandBatch.size), queue.size - queue.head)
    guard count > 0 else { return false }
    do throws(BusError) {
      try batch.fetch(
        queue.address &+ UInt64(queue.head) * UInt64(NVMeCommand.size), count: Int(count), port)
      for index in 0..<Int(count) {
        // A reset drops what is left; what a command has set free to be told takes room too.
        guard isRunning, !core.attention.load(ordering: .relaxed), completions.room > 0 else {
          break
        }
        queue.head += 1
        if queue.head == queue.size { queue.head = 0 }
        execute(batch.command(index), of: queue)
        if completions.isFull { try post(completions) }
        if queue.number == 0 { deliverEvents() }
      }
      try post(completions)
    } catch {
      fail()
    }
    return true
  }

  /// Carries a command out, and readies its completion, or leaves both to the thread that flushes.
  private func execute(_ command: NVMeCommand, of queue: SubmissionQueue) {
    let isAdmin = queue.number == 0
    var status = NVMeStatus.success
    var result: UInt32 = 0
    do throws(NVMeStatus) {
      if isAdmin {
        guard let answer = try administer(command) else { return }
        result = answer
      } else {
        let stores = try transfer(command)
        if try flush(stores, for: command, of: queue) { return }
      }
    } catch {
      status = error
      health.record(error, command, queue: queue.number)
    }
    queue.completions.stage(
      identifier: command.identifier, queue: queue.number, head: queue.head, status: status,
      result: result)
  }

  /// Writes what is staged, and says so.
  func post(_ queue: CompletionQueue) throws(BusError) {
    guard queue.stagedCount > 0 else { return }
    try queue.flush(port)
    guard let vector = queue.vector else { return }
    core.line.setWaiting(vector, true)
    function.raise(vector: Int(vector))
  }

  /// The line follows what of a vector's queues was not taken.
  func followLine(_ queue: CompletionQueue) {
    guard let vector = queue.vector else { return }
    let waits = completions.contains { other in
      other.map { $0.vector == vector && $0.used > 0 } ?? false
    }
    core.line.setWaiting(vector, waits)
  }

  /// A queue's memory cannot be reached: nothing goes on before a reset (CSTS.CFS).
  func fail() {
    isRunning = false
    core.monitor.change { state in
      state.registers.status.insert(.fatal)
      state.doorbells.words = nil
    }
    closeDoorbells()
  }

  func closeDoorbells() {
    words.close()
    isOpen = false
  }

  /// From now on the doorbells are `pages`, all zero.
  func take(_ pages: any DoorbellPages) {
    words = pages
    for index in 0..<Int(pages.byteCount / 4) { pages.store(0, at: UInt64(index) * 4) }
    reopen()
  }
}
