// SPDX-License-Identifier: Apache-2.0
//
// The threads that call: how to reach their descriptors and their address spaces.

import CSyscalls
import IOMMU

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// Cached handles of threads and processes. A value; guarded by `TaskTable`.
///
/// A cached pidfd is right while its task lives, and a task that waits for an answer lives: a
/// stale entry answers ESRCH and is made anew. Of tasks that are gone few are kept: whenever there
/// are twice as many as were found alive, and some, those that are gone are looked for.
struct Tasks: Sendable {
  struct Task: Sendable {
    let descriptor: OwnedDescriptor
    let group: Int32
  }

  /// An exec that was let go ahead; until its outcome is known nothing may be cached.
  private struct PendingExec: Sendable {
    let thread: Int32
  }

  /// An address space that is not cached any more; what is pinned of it keeps it.
  private struct Retired {
    weak var memory: ClientMemory?
  }

  private var tasks: [Int32: Task] = [:]
  private var memories: [Int32: ClientMemory] = [:]
  private var retired: [Retired] = []
  private var pending: [Int32: PendingExec] = [:]
  private var nextNumber: UInt64 = 1
  /// How many of each are kept: a task takes one descriptor, an address space three.
  private let mostTasks: Int
  private let mostMemories: Int
  /// How many there are of each when it is worth looking for those that are gone.
  private var tasksToLook = Tasks.spareTasks
  private var memoriesToLook = Tasks.spareMemories
  private var retiredToLook = Tasks.spareMemories
  private var pendingToLook = Tasks.sparePending
  static let spareTasks = 16
  static let spareMemories = 8
  private static let sparePending = 64
  private var mayReachDirectly = true
  private static let threadFlag: UInt32 = 0x80  // PIDFD_THREAD (O_EXCL)

  private let handles: HandleTable

  /// - Parameters:
  ///   - files: How many descriptors this process may have.
  ///   - handles: Our files.
  init(files: UInt64, handles: HandleTable) {
    self.handles = handles
    mostTasks = Int(min(512, max(2, files / 8)))
    mostMemories = Int(min(256, max(1, files / 16)))
  }

  /// The thread's pidfd and group. `renew` where the cached one turned out stale.
  mutating func task(_ thread: Int32, renew: Bool = false) -> Task? {
    if !renew, let task = tasks[thread] { return task }
    guard let group = Self.group(of: thread) else { return nil }
    var number = csys_pidfd_open(thread, Self.threadFlag)
    if number == -EINVAL { number = csys_pidfd_open(group, 0) }
    guard number >= 0 else { return nil }
    if tasks.count >= min(mostTasks, tasksToLook) { forgetTasks() }
    let task = Task(descriptor: OwnedDescriptor(number), group: group)
    tasks[thread] = task
    return task
  }

  /// The process of a thread; nil where it is gone.
  static func group(of thread: Int32) -> Int32? {
    guard let status = System.contents("/proc/\(thread)/status") else { return nil }
    let text = String(decoding: status, as: UTF8.self)
    for line in text.split(separator: "\n") where line.hasPrefix("Tgid:") {
      return Int32(line.dropFirst(5).drop { $0 == "\t" || $0 == " " })
    }
    return nil
  }

  /// A copy of a thread's descriptor; nil where it is not open.
  mutating func copy(descriptor: Int32, of thread: Int32) -> OwnedDescriptor? {
    guard let task = task(thread) else { return nil }
    var number = csys_pidfd_getfd(task.descriptor.number, descriptor)
    if number == -ESRCH, let task = self.task(thread, renew: true) {
      number = csys_pidfd_getfd(task.descriptor.number, descriptor)
    }
    return number < 0 ? nil : OwnedDescriptor(number)
  }

  /// The address space of a thread that waits for an answer.
  mutating func memory(of thread: Int32) -> ClientMemory? {
    guard let group = task(thread)?.group else { return nil }
    var mayCache = true
    if let exec = pending[group] {
      let isGone = unsafe access("/proc/\(group)/task/\(exec.thread)", F_OK) != 0
      if exec.thread == thread || thread == group && isGone {
        pending[group] = nil
      } else {
        mayCache = false
      }
    }
    if let memory = memories[group], mayCache, memory.isOwnerAlive { return memory }
    retire(group)
    guard
      let memory = ClientMemory(
        thread: thread, group: group, number: nextNumber,
        isSettled: mayCache && mayReachDirectly, handles: handles)
    else { return nil }
    nextNumber += 1
    if mayCache {
      if memories.count >= min(mostMemories, memoriesToLook) { forgetMemories() }
      memories[group] = memory
    }
    return memory
  }

  /// What a process has pinned; nil where it has never mapped anything.
  func pinnedMemory(of process: Int32) -> ProcessMemory? {
    guard let memory = memories[process], memory.isOwnerAlive else { return nil }
    return memory.sums
  }

  /// Makes room: drops those that are gone, or all where the most are kept and that is too few.
  private mutating func forgetTasks() {
    let isFull = tasks.count >= mostTasks
    for thread in Self.gone(tasks.mapValues(\.descriptor)) { tasks[thread] = nil }
    if isFull, tasks.count > mostTasks / 2 { tasks.removeAll(keepingCapacity: true) }
    tasksToLook = 2 * tasks.count + Self.spareTasks
  }

  /// Makes room: drops those whose process is gone, or all as `forgetTasks`.
  private mutating func forgetMemories() {
    let isFull = memories.count >= mostMemories
    for (group, memory) in memories where memory.hasEnded { retire(group) }
    if isFull, memories.count > mostMemories / 2 {
      for group in Array(memories.keys) { retire(group) }
    }
    memoriesToLook = 2 * memories.count + Self.spareMemories
  }

  /// Forgets an address space. Descriptors of one that is gone are closed, now or later, although
  /// something may be pinned of it.
  private mutating func retire(_ group: Int32) {
    guard let memory = memories.removeValue(forKey: group) else { return }
    memory.willExecute()
    guard !memory.closeIfGone() else { return }
    retired.append(Retired(memory: memory))
    guard retired.count >= retiredToLook else { return }
    retired.removeAll { $0.memory?.closeIfGone() ?? true }
    retiredToLook = 2 * retired.count + Self.spareMemories
  }

  /// Drops execs of processes that are gone and that never called.
  private mutating func forgetPending() {
    pending = pending.filter { group, _ in unsafe access("/proc/\(group)", F_OK) == 0 }
    pendingToLook = 2 * pending.count + Self.sparePending
  }

  /// Those whose pidfd says that they have ended.
  private static func gone(_ descriptors: [Int32: OwnedDescriptor]) -> [Int32] {
    let entries = Array(descriptors)
    var states = entries.map {
      pollfd(fd: $0.value.number, events: Int16(POLLIN), revents: 0)
    }
    // SAFETY: the array's own count; nothing is waited for.
    guard unsafe poll(&states, nfds_t(states.count), 0) > 0 else { return [] }
    return zip(entries, states).compactMap { entry, state in
      state.revents != 0 ? entry.key : nil
    }
  }

  /// From here on a program may let an access to its memory wait (`userfaultfd(2)`): accesses
  /// by process number would wait with it, those by descriptor fail.
  mutating func memoryMayBlock() {
    guard mayReachDirectly else { return }
    mayReachDirectly = false
    for memory in memories.values { memory.willExecute() }
  }

  /// The thread is about to execute another program.
  mutating func willExecute(_ thread: Int32) {
    guard let group = Self.group(of: thread) else { return }
    tasks[thread] = nil
    retire(group)
    if pending.count >= pendingToLook { forgetPending() }
    pending[group] = PendingExec(thread: thread)
  }
}

/// The tasks of a run. Thread-safe.
final class TaskTable: Sendable {
  private let tasks: Guarded<Tasks>

  init(_ tasks: consuming sending Tasks) { self.tasks = Guarded(tasks) }

  /// As the methods of `Tasks`.
  func task(_ thread: Int32) -> Tasks.Task? { tasks.withLock { $0.task(thread) } }
  func copy(descriptor: Int32, of thread: Int32) -> OwnedDescriptor? {
    tasks.withLock { $0.copy(descriptor: descriptor, of: thread) }
  }
  func memory(of thread: Int32) -> ClientMemory? { tasks.withLock { $0.memory(of: thread) } }
  func pinnedMemory(of process: Int32) -> ProcessMemory? {
    tasks.withLock { $0.pinnedMemory(of: process) }
  }
  func memoryMayBlock() { tasks.withLock { $0.memoryMayBlock() } }
  func willExecute(_ thread: Int32) { tasks.withLock { $0.willExecute(thread) } }
}
