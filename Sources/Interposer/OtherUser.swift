// SPDX-License-Identifier: Apache-2.0
//
// Programs that become another user. Without CAP_SYS_PTRACE, which containers do not give, not even root
// may look at them (ptrace(2), "ptrace access mode checking"): who looks has to be that user, by the real
// ids of its thread or, for files in /proc, by those for files. With CAP_SETUID and CAP_SETGID a thread
// takes these for one access and puts them back.

import CSyscalls
import IOMMU
import Synchronization

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// The way to processes of other users.
///
/// While a thread has another user's real ids that user can send it signals, as every user can to an
/// `iommu run` of its own: who ends it ends with it. Nobody can trace it then, for its effective ids stay.
enum OtherUser {
  /// Does something with a thread that waits for an answer. Where that is refused, it is done as the
  /// thread's user; where that is, too, it is remembered for who tells the user.
  /// - Parameter access: Gives a negative errno where it fails.
  static func reach<Result: SignedInteger>(_ thread: Int32, _ access: () -> Result) -> Result {
    while true {
      let before = changes.load(ordering: .sequentiallyConsistent)
      var result = access()
      guard isRefusal(result) else { return result }
      result = attempt(thread, result, access)
      guard isRefusal(result) else { return result }
      guard hasChanged(since: before) else {
        refused.withLock { threads in
          threads.insert(thread)
          isRefused.store(true, ordering: .sequentiallyConsistent)
        }
        return result
      }
    }
  }

  /// As the other one, with a file in `/proc/THREAD`. Nothing is remembered: the file may be what its user
  /// may not have.
  static func reach(_ path: String, _ access: () -> Int32) -> Int32 {
    reach(in: { thread(in: path) }, access)
  }

  /// As the other one.
  static func reach(_ path: PathBytes, _ access: () -> Int32) -> Int32 {
    reach(in: { thread(in: path.text) }, access)
  }

  private static func reach(in thread: () -> Int32?, _ access: () -> Int32) -> Int32 {
    while true {
      let before = changes.load(ordering: .sequentiallyConsistent)
      let result = access()
      guard isRefusal(result), let thread = thread() else { return result }
      let another = attempt(thread, result, access)
      guard isRefusal(another), hasChanged(since: before) else { return another }
    }
  }

  // MARK: The ids

  private struct Identity: Equatable {
    let user: UInt32
    let group: UInt32
  }

  private static let own = (
    identity: Identity(user: getuid(), group: getgid()), dumpable: csys_dumpable()
  )

  /// Whether there is anything to gain: who has CAP_SYS_PTRACE is refused by others than the kernel's own
  /// rules.
  static let isNeeded: Bool = {
    var effective: UInt64 = 0
    var permitted: UInt64 = 0
    guard unsafe csys_capabilities(0, &effective, &permitted) == 0 else { return false }
    func has(_ name: Capabilities.Name) -> Bool { effective >> name.rawValue & 1 != 0 }
    return has(.setUser) && has(.setGroup) && !has(.systemPtrace)
  }()

  private static func attempt<Result: SignedInteger>(
    _ thread: Int32, _ refusal: Result, _ access: () -> Result
  ) -> Result {
    let own = own
    guard isNeeded, let identity = identity(of: thread), identity != own.identity else {
      return refusal
    }
    var before = csys_own_user()
    guard
      unsafe csys_take_user(identity.user, identity.group, &before, own.dumpable) == 0
    else { return refusal }
    defer { unsafe csys_leave_user(&before, own.dumpable) }
    return access()
  }

  /// The user of a thread; nil where its ids are several users': nobody's processes may look at it then.
  private static func identity(of thread: Int32) -> Identity? {
    guard let users = ids("Uid:", of: thread), let groups = ids("Gid:", of: thread),
      Set(users.prefix(3)).count == 1, Set(groups.prefix(3)).count == 1
    else { return nil }
    return Identity(user: users[0], group: groups[0])
  }

  /// The real, the effective, the saved id and the one for files.
  private static func ids(_ name: String, of thread: Int32) -> [UInt32]? {
    guard let line = ClientDescriptor.information("/proc/\(thread)/status", name) else {
      return nil
    }
    let ids = line.split(separator: "\t").compactMap { UInt32($0) }
    return ids.count == 4 ? ids : nil
  }

  private static func isRefusal(_ result: some SignedInteger) -> Bool {
    result == -EPERM || result == -EACCES
  }

  /// The number in `/proc/12/…`.
  private static func thread(in path: String) -> Int32? {
    guard isNeeded, path.hasPrefix("/proc/") else { return nil }
    return Int32(path.dropFirst(6).prefix { $0 != "/" })
  }

  // MARK: Changes that are under way

  /// How often a thread's user was about to be changed, or has been: odd in between, when the process may
  /// not be looked at (`Errand.changeUser`).
  private static let changes = Atomic<UInt64>(0)
  private static let changer = Atomic<Int32>(0)

  /// - Parameter body: Changes a thread's user, and has it allow to be looked at then. One thread does all.
  static func change<Result>(_ body: () -> Result) -> Result {
    changer.store(csys_thread(), ordering: .sequentiallyConsistent)
    changes.add(1, ordering: .sequentiallyConsistent)
    defer { changes.add(1, ordering: .sequentiallyConsistent) }
    return body()
  }

  /// Whether a user was changed meanwhile. Waits until none is.
  private static func hasChanged(since before: UInt64) -> Bool {
    guard changer.load(ordering: .sequentiallyConsistent) != csys_thread() else { return false }
    // Who changes one waits for the thread alone (`Server.letInjectedGoOn`).
    while changes.load(ordering: .sequentiallyConsistent) & 1 != 0 { usleep(20) }
    return changes.load(ordering: .sequentiallyConsistent) != before
  }

  // MARK: Who cannot be reached

  private static let refused = Guarded<Set<Int32>>([])
  private static let isRefused = Atomic(false)

  /// Tells of a thread whose call has been looked at, if it could not be reached: of each program once.
  /// - Parameter isWaiting: Whether it waits still. Nobody may look at one that has ended, either.
  static func report(_ thread: Int32, to reporter: Reporter, isWaiting: () -> Bool) {
    guard isRefused.load(ordering: .relaxed) else { return }
    let isOurs = refused.withLock { threads in
      defer { isRefused.store(!threads.isEmpty, ordering: .sequentiallyConsistent) }
      return threads.remove(thread) != nil
    }
    guard isOurs, let sentence = sentence(of: thread), isWaiting() else { return }
    reporter.say(sentence)
  }

  /// nil where it is gone.
  private static func sentence(of thread: Int32) -> String? {
    guard let name = System.contents("/proc/\(thread)/comm"),
      let users = ids("Uid:", of: thread), let groups = ids("Gid:", of: thread)
    else { return nil }
    let program = String(decoding: name.prefix { $0 != 10 }, as: UTF8.self)
    let other =
      users.first { $0 != own.identity.user }.map { "user \($0)" }
      ?? groups.first { $0 != own.identity.group }.map { "group \($0)" }
    let capability = "give iommu CAP_SYS_PTRACE (docker run --cap-add SYS_PTRACE)"
    guard let other else {
      return
        "\(program): does not allow to be looked at (PR_SET_DUMPABLE in prctl(2), or a file that "
        + "cannot be read): it gets no devices; allow that, or \(capability)"
    }
    return "\(program): has become \(other), whose processes iommu may not look at: it gets no "
      + "devices; \(capability), or run iommu as that \(other.prefix { $0 != " " })"
  }
}
