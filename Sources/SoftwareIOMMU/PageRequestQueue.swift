// SPDX-License-Identifier: Apache-2.0
//
// Page requests of devices on their way to whoever answers them (MODEL H1, H3; VT-d revision 4.1,
// section 7.4: page request queue; PCI Express, 10.4: page request services). A device's request
// goes into a queue of limited length, which a thread of the IOMMU empties; its answer comes back
// by group.

import IOMMU
import PageTables
import Synchronization

/// Who answers page requests.
enum PageAnswerer: Sendable {
  /// A user, through the fault queue of its page table.
  case user(PageRequestPort)
  /// The IOMMU itself: it faults the page in (MODEL B3).
  case process(ProcessTable)
}

/// Requests that are answered together, from a device's thread that waits for the answer.
final class PageGroup: Sendable {
  enum Answer: UInt8, Sendable {
    case none, success, invalid
    /// It is the IOMMU's own to fault the page in, on the thread that waits: a process that is
    /// slow to bring its memory holds up nobody else's requests.
    case faultIn
  }

  let source: SoftwareIOMMU.Source
  let answerer: PageAnswerer
  let pages: Int
  let wait: DeviceWait
  private let state = Atomic<UInt8>(0)
  private let abandoned = Atomic(false)

  init(_ source: SoftwareIOMMU.Source, _ answerer: PageAnswerer, pages: Int, wait: DeviceWait) {
    self.source = source
    self.answerer = answerer
    self.pages = pages
    self.wait = wait
  }

  var answer: Answer { Answer(rawValue: state.load(ordering: .acquiring)) ?? .none }

  /// Whether nobody waits any more. Changed under the queue's lock.
  var isAbandoned: Bool {
    get { abandoned.load(ordering: .relaxed) }
    set { abandoned.store(newValue, ordering: .relaxed) }
  }

  func end(_ answer: Answer) {
    state.store(answer.rawValue, ordering: .releasing)
    wait.wake()
  }
}

/// What became of the page requests of an IOMMU, since it was made.
public struct PageRequestCounts: Hashable, Sendable {
  /// Requests that devices made.
  public var requests: UInt64 = 0
  /// Groups that were complete, each of which has one answer.
  public var groups: UInt64 = 0
  /// Answers to them.
  public var succeeded: UInt64 = 0
  public var invalid: UInt64 = 0
  /// Groups that the queue had no room for: answered by the IOMMU, for the device to try again.
  public var overflows: UInt64 = 0

  /// Groups that nobody has answered yet.
  public var outstanding: UInt64 { groups &- succeeded &- invalid &- overflows }
}

/// The page requests of one IOMMU. Thread-safe; its lock is below a fault queue's, whose answers
/// come under that.
final class PageRequestQueue: Sendable {
  /// One request, as the queue holds it.
  private struct Record: Sendable {
    var request: PageRequest
    var group: PageGroup
  }

  private struct Device: Sendable {
    /// Pages that were asked for and not answered.
    var outstanding = 0
    /// By number: what waits for its answer. A number is taken until that has come, though
    /// nobody may wait for it any more.
    var groups: [UInt32: PageGroup] = [:]
    /// Threads that wait for room.
    var waiting: [DeviceWait] = []

    mutating func release(_ pages: Int) {
      outstanding -= pages
      for wait in waiting { wait.wake() }
    }

    /// PRI has numbers of 9 bits.
    var freeNumber: UInt32? {
      groups.count == 512 ? nil : (0..<512).first { groups[$0] == nil }
    }
  }

  private struct State: Sendable {
    var records: [Record] = []
    /// Those before it were taken.
    var first = 0
    var devices: [RequesterID: Device] = [:]
    /// Threads that the queue had no room for, until it is empty.
    var crowd: [DeviceWait] = []
    var counts = PageRequestCounts()
    /// How often a source's context was another.
    var switches: UInt64 = 0
    /// Whether the queue has been full since it was last empty: said once each time.
    var isOverflowing = false
    var isStopping = false
    var hasThread = false
    var thread: DeviceThread?

    var length: Int { records.count - first }

    /// Lets all try again.
    mutating func disperse() {
      for wait in crowd { wait.wake() }
      crowd = []
    }

    mutating func take() -> Record? {
      guard first < records.count else {
        isOverflowing = false
        disperse()
        return nil
      }
      defer {
        first += 1
        if first == records.count || first == 1024 {
          records.removeFirst(first)
          first = 0
        }
      }
      return records[first]
    }
  }

  private let iommu: String
  private let events: EventLog
  private let capacity: Int
  private let state = RankedMutex(.pageRequests, State())
  /// Where the queue's own thread sleeps.
  private let work = DeviceWait()

  /// - Parameter capacity: Requests that wait to be passed on at most.
  init(iommu: String, capacity: Int, events: EventLog) {
    self.iommu = iommu
    self.capacity = capacity
    self.events = events
  }

  var counts: PageRequestCounts { state.withLock { $0.counts } }

  // MARK: The device's side

  /// What a device does after it has asked.
  enum Outcome: Sendable {
    case tryAgain, giveUp
    /// It is not the device's access any more.
    case cancelled
  }

  private enum Entry {
    case group(PageGroup, number: UInt32)
    case full
    case overflow(isFirst: Bool, isEmpty: Bool)
    case stale, stopped
  }

  /// Counts switches of contexts. Whoever asks takes it before looking who answers.
  var switches: UInt64 { state.withLock { $0.switches } }

  /// Asks for pages and waits for the answer.
  ///
  /// Called with no lock held, outside of all transactions.
  /// - Parameters:
  ///   - addresses: Of pages, at least one; as many as `features` allow a group.
  ///   - switches: From before `answerer` was looked up: after a switch it may be another, and
  ///     nobody would end a wait that begins then.
  func request(
    _ addresses: [UInt64], access: PageRequest.Access, from source: SoftwareIOMMU.Source,
    to answerer: PageAnswerer, since switches: UInt64, features: SoftwareIOMMU.DeviceFeatures,
    wait: DeviceWait
  ) -> Outcome {
    guard !wait.isCancelled else { return .cancelled }
    let ticket = wait.ticket
    let group = PageGroup(source, answerer, pages: addresses.count, wait: wait)
    switch enter(group, addresses, access, since: switches, features) {
    case .stopped: return .giveUp
    case .stale: return .tryAgain
    case .full:
      return sleepForRoom(wait, ticket, source.requester)
    case .overflow(let isFirst, let isEmpty):
      if isFirst {
        events.append(
          .note(
            "\(iommu): the page request queue is full; it answers for its devices to try again")
        )
      }
      // Not at once, or those who try hold up the one who empties it. A group that is larger than
      // the queue waits for nobody.
      if isEmpty {
        Backoff.rest()
        return .tryAgain
      }
      return sleepForRoom(wait, ticket, source.requester)
    case .group(_, let number):
      events.append(
        .pageRequest(
          source: events.sources.source(source.requester, source.pasid),
          iova: IOVA(addresses[0]), access: access.permissions, pages: addresses.count,
          group: number))
      return sleep(for: group, ticket, addresses, access)
    }
  }

  /// Whatever came meanwhile, the access finds out what has become of its page.
  private func sleepForRoom(
    _ wait: DeviceWait, _ ticket: UInt64, _ device: RequesterID
  ) -> Outcome {
    let goesOn = wait.sleep(since: ticket)
    state.withLock { state in
      state.devices[device]?.waiting.removeAll { $0 === wait }
      state.crowd.removeAll { $0 === wait }
    }
    return goesOn ? .tryAgain : .cancelled
  }

  private func sleep(
    for group: PageGroup, _ ticket: UInt64, _ addresses: [UInt64],
    _ access: PageRequest.Access
  ) -> Outcome {
    var ticket = ticket
    while true {
      switch group.answer {
      case .success: return .tryAgain
      case .invalid: return .giveUp
      case .faultIn:
        guard case .process(let table) = group.answerer else { return .giveUp }
        let isThere = addresses.allSatisfy { table.faultIn($0, access) }
        return isThere ? .tryAgain : .giveUp
      case .none:
        // The answer still comes, and frees the number then.
        guard group.wait.sleep(since: ticket) else { return abandon(group) }
        ticket = group.wait.ticket
      }
    }
  }

  /// The device does not wait for a group any more, and may ask for as many pages as before.
  private func abandon(_ group: PageGroup) -> Outcome {
    state.withLock { state in
      guard group.answer == .none else { return }
      group.isAbandoned = true
      state.devices[group.source.requester]?.release(group.pages)
    }
    return .cancelled
  }

  private func enter(
    _ group: PageGroup, _ addresses: [UInt64], _ access: PageRequest.Access,
    since switches: UInt64, _ features: SoftwareIOMMU.DeviceFeatures
  ) -> Entry {
    let entry = state.withLock { state -> Entry in
      guard !state.isStopping else { return .stopped }
      guard state.switches == switches else { return .stale }
      let source = group.source
      var device = state.devices[source.requester] ?? Device()
      defer { state.devices[source.requester] = device }
      guard device.outstanding + addresses.count <= features.outstandingRequests,
        let number = device.freeNumber
      else {
        device.waiting.append(group.wait)
        return .full
      }
      state.counts.requests &+= UInt64(addresses.count)
      state.counts.groups &+= 1
      guard state.length + addresses.count <= capacity else {
        state.counts.overflows &+= 1
        defer { state.isOverflowing = true }
        let isEmpty = state.length == 0
        if !isEmpty { state.crowd.append(group.wait) }
        return .overflow(isFirst: !state.isOverflowing, isEmpty: isEmpty)
      }
      device.outstanding += addresses.count
      device.groups[number] = group
      for (index, address) in addresses.enumerated() {
        state.records.append(
          Record(
            request: PageRequest(
              pasid: source.pasid, group: number, access: access, address: IOVA(address),
              isLast: index == addresses.count - 1),
            group: group))
      }
      return .group(group, number: number)
    }
    if case .group(_, let number) = entry {
      if startThread(for: group) {
        work.wake()
      } else {
        // The host has no thread left.
        answer(group.source.requester, number, .invalid)
      }
    }
    return entry
  }

  /// Whether there is a thread that empties the queue.
  private func startThread(for group: PageGroup) -> Bool {
    state.withLock { state in
      if state.hasThread || state.isStopping { return true }
      state.thread = DeviceThread { [self] in run() }
      state.hasThread = state.thread != nil
      if !state.hasThread {
        state.records = state.records[state.first...].filter { $0.group !== group }
        state.first = 0
        state.disperse()
      }
      return state.hasThread
    }
  }

  // MARK: The answers

  /// Answers a group. Nothing where it has had its answer.
  func answer(_ device: RequesterID, _ number: UInt32, _ answer: PageGroup.Answer) {
    let answered = state.withLock { state -> PageGroup? in
      guard let group = state.devices[device]?.groups.removeValue(forKey: number) else {
        return nil
      }
      if answer == .invalid {
        state.counts.invalid &+= 1
      } else {
        state.counts.succeeded &+= 1
      }
      state.devices[device]?.release(group.isAbandoned ? 0 : group.pages)
      group.end(answer)
      return group
    }
    guard let answered else { return }
    events.append(
      .pageResponse(
        source: events.sources.source(device, answered.source.pasid), group: number,
        answer: answer == .invalid ? "invalid" : "success"))
  }

  /// The context of a source is another: who waits for room, or is about to ask, looks again.
  func contextChanged(of device: RequesterID) {
    state.withLock { state in
      state.switches &+= 1
      for wait in state.devices[device]?.waiting ?? [] { wait.wake() }
      state.disperse()
    }
  }

  // MARK: The queue's thread

  private func run() {
    while true {
      let ticket = work.ticket
      let (record, isStopping) = state.withLock { state in (state.take(), state.isStopping) }
      if let record {
        pass(record)
      } else if isStopping || !work.sleep(since: ticket) {
        return
      }
    }
  }

  /// Without locks: the answer may come at once.
  private func pass(_ record: Record) {
    let answer: PageGroup.Answer?
    switch record.group.answerer {
    case .user(let port):
      answer = port.report(record.request).map { $0 == .success ? .success : .invalid }
    case .process:
      answer = record.request.isLast ? .faultIn : nil
    }
    guard let answer else { return }
    self.answer(record.group.source.requester, record.request.group, answer)
  }

  /// The IOMMU is gone: its thread ends, and nobody waits any more.
  func stop() {
    let thread = state.withLock { state -> DeviceThread? in
      state.isStopping = true
      for (_, device) in state.devices {
        for group in device.groups.values { group.end(.invalid) }
        for wait in device.waiting { wait.wake() }
      }
      state.disperse()
      state.records = []
      state.first = 0
      defer { state.thread = nil }
      return state.thread
    }
    work.cancel()
    thread?.join()
  }
}
