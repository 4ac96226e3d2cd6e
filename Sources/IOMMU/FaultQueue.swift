// SPDX-License-Identifier: Apache-2.0
//
// Page requests on their way to a user and the answers on their way back (MODEL H1, H3; Linux:
// `struct iommufd_fault`). A request waits for its group, a group for its reader, and then for
// its answer; detach, replace and close answer what is in between.

import SystemPackage

/// A queue of page-request groups, an object of a context. Thread-safe.
///
/// However a group ends, its device is answered exactly once. Nobody waits for a reader.
public final class FaultQueue: Sendable {
  /// Names the queue in its context. Linux: `fault_id`.
  public let id: ObjectID
  /// Whether a group waits to be read.
  public let readiness = Readiness()

  fileprivate struct Group: Sendable {
    /// In order of arrival; the last one has the `isLast` flag.
    let requests: [PageRequest]
    let port: PageRequestPort
    /// The place in line, and what tells the group from a later one with its cookie.
    let turn: Int

    func answer(_ code: PageResponse.Code) {
      if let last = requests.last { port.answer(last, with: code) }
    }
  }

  fileprivate struct State: Sendable {
    /// Attachments that report here, each with the requests of groups that are not complete.
    var ports: [ObjectIdentifier: [PageRequest]] = [:]
    /// Groups that nobody has read, by turn: from `first` up to, not including, `next`.
    var waiting: [Int: Group] = [:]
    var first = 0
    var next = 0
    /// Groups that were read, or are being read, by the cookie that answers them.
    var delivered: [UInt32: Group] = [:]
    /// No free cookie lies below.
    var lowestCookie: UInt32 = 1
    /// Nobody can read or answer any more.
    var isClosed = false
  }

  private let state = RankedMutex(.faultQueue, State())

  init(id: ObjectID) { self.id = id }

  // MARK: The device's side

  /// Lets an attachment report.
  func open(_ port: PageRequestPort) {
    state.withLock { $0.ports[ObjectIdentifier(port)] = [] }
  }

  func take(_ request: PageRequest, through port: PageRequestPort) -> PageResponse.Code? {
    state.withLock { state in
      let key = ObjectIdentifier(port)
      guard var partial = state.ports[key], !state.isClosed else {
        return request.isLast ? .invalid : nil
      }
      guard request.isLast else {
        state.ports[key]?.append(request)
        return nil
      }
      var requests = partial.filter { $0.group == request.group }
      if !requests.isEmpty {
        partial.removeAll { $0.group == request.group }
        state.ports[key] = partial
      }
      requests.append(request)
      state.waiting[state.next] = Group(requests: requests, port: port, turn: state.next)
      state.next += 1
      readiness.recordAdded()
      return nil
    }
  }

  /// Ends an attachment: what came through it is answered `.invalid`, and so is what still comes.
  ///
  /// Linux: `iommufd_auto_response_faults`. MODEL H3.
  func close(_ port: PageRequestPort) {
    state.withLock { state in
      state.ports[ObjectIdentifier(port)] = nil
      end(&state) { $0.port === port }
    }
  }

  /// The last descriptor is gone: nobody can read or answer any more.
  func close() {
    state.withLock { state in
      state.isClosed = true
      end(&state) { _ in true }
    }
  }

  /// Answers groups that the user has not, oldest first. Answers under the lock: who has seen
  /// an attachment end has seen its devices answered.
  private func end(_ state: inout State, _ isEnding: (Group) -> Bool) {
    let waiting = state.waiting.values.filter(isEnding)
    for group in waiting { state.waiting[group.turn] = nil }
    if !waiting.isEmpty, state.waiting.isEmpty { readiness.emptied() }
    let delivered = state.delivered.filter { isEnding($0.value) }
    for cookie in delivered.keys { state.free(cookie) }
    for group in (waiting + delivered.values).sorted(by: { $0.turn < $1.turn }) {
      group.answer(.invalid)
    }
  }

  // MARK: The user's side

  /// A group as its reader gets it.
  public struct Delivery: Sendable {
    /// What an answer names the group by; never 0. The lowest number that is free.
    public let cookie: UInt32
    /// The page table that the device is attached to.
    public let table: ObjectID
    /// The space that it is attached to, as `Context.attachedAddressSpace` says it.
    public let space: ObjectID
    /// The bound device, and its user's own name for it.
    public let device: ObjectID
    public let deviceCookie: UInt64
    /// In order of arrival; the last one has the `isLast` flag.
    public let requests: [PageRequest]
  }

  /// What came of one attempt to read.
  public enum Reading: Hashable, Sendable {
    case empty
    /// The oldest group has more requests than were asked for; it stays.
    case tooLarge
    /// A group of so many requests was delivered.
    case delivered(Int)
  }

  /// Delivers the oldest group whole. Never blocks.
  ///
  /// - Parameters:
  ///   - limit: The most requests that the reader has room for.
  ///   - deliver: Gets the group, without locks held. Where it throws, the group is the oldest
  ///     one again.
  public func read(
    atMost limit: Int, _ deliver: (Delivery) throws(IOMMUError) -> Void
  ) throws(IOMMUError) -> Reading {
    enum Found {
      case nothing, tooLarge
      case group(Group, cookie: UInt32)
    }
    let found = state.withLock { state -> Found in
      guard let group = state.oldest() else { return .nothing }
      guard group.requests.count <= limit else { return .tooLarge }
      state.waiting[group.turn] = nil
      if state.waiting.isEmpty { readiness.emptied() }
      return .group(group, cookie: state.assignCookie(to: group))
    }
    guard case .group(let group, let cookie) = found else {
      return if case .tooLarge = found { .tooLarge } else { .empty }
    }
    do throws(IOMMUError) {
      try deliver(
        Delivery(
          cookie: cookie, table: group.port.table, space: group.port.space,
          device: group.port.device,
          deviceCookie: group.port.cookie, requests: group.requests))
    } catch {
      putBack(group, cookie)
      throw error
    }
    return .delivered(group.requests.count)
  }

  /// Nothing where the group has been answered meanwhile.
  private func putBack(_ group: Group, _ cookie: UInt32) {
    state.withLock { state in
      guard state.delivered[cookie]?.turn == group.turn else { return }
      state.free(cookie)
      state.waiting[group.turn] = group
      state.first = min(state.first, group.turn)
      readiness.recordAdded()
    }
  }

  /// Answers a group that was read.
  /// - Throws: `EINVAL` for a cookie that names none, because it was answered or has ended.
  public func respond(to cookie: UInt32, with code: PageResponse.Code) throws(IOMMUError) {
    let isKnown = state.withLock { state in
      guard let group = state.delivered[cookie] else { return false }
      state.free(cookie)
      group.answer(code)
      return true
    }
    guard isKnown else {
      throw IOMMUError(
        .invalidArgument,
        "fault queue \(id) has no page requests with cookie \(cookie) to answer: they were "
          + "answered already, by a detach perhaps, or never read")
    }
  }

  /// Groups that were neither read nor answered, and those that were read and not answered.
  public var counts: (waiting: Int, delivered: Int) {
    state.withLock { ($0.waiting.count, $0.delivered.count) }
  }
}

extension FaultQueue.State {
  /// Detaching leaves gaps between the turns.
  mutating func oldest() -> FaultQueue.Group? {
    while first < next {
      if let group = waiting[first] { return group }
      first += 1
    }
    return nil
  }

  mutating func assignCookie(to group: FaultQueue.Group) -> UInt32 {
    var cookie = lowestCookie
    while delivered[cookie] != nil { cookie += 1 }
    delivered[cookie] = group
    lowestCookie = cookie
    return cookie
  }

  mutating func free(_ cookie: UInt32) {
    delivered[cookie] = nil
    lowestCookie = min(lowestCookie, cookie)
  }
}
