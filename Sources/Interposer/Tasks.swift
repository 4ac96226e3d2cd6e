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
    /// `/proc/TID/fd`, where its descriptors cannot be copied and we may have enough of our own.
    let files: OwnedDescriptor?
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
  /// Whether a task may take two.
  private let keepsDirectories: Bool
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
  /// Whether descriptors of programs can be copied (pidfd_getfd).
  let copiesDescriptors: Bool

  /// - Parameters:
  ///   - files: How many descriptors this process may have.
  ///   - handles: Our files.
  ///   - copiesDescriptors: Whether descriptors of programs can be copied.
  init(files: UInt64, handles: HandleTable, copiesDescriptors: Bool) {
    self.handles = handles
    self.copiesDescriptors = copiesDescriptors
    mostTasks = Int(min(512, max(2, files / (copiesDescriptors ? 8 : 16))))
    keepsDirectories = files >= 64
    mostMemories = Int(min(256, max(1, files / 16)))
  }

  /// The thread's pidfd and group. `renew` where the cached one turned out stale.
  mutating func task(_ thread: Int32, renew: Bool = false) -> Task? {
    if !renew, let task = tasks[thread] { return task }
    guard let group = Self.group(of: thread) else { return nil }
    // First, so that as few descriptors are open at any time.
    tasks[thread] = nil
    if tasks.count >= min(mostTasks, tasksToLook) { forgetTasks() }
    var number = csys_pidfd_open(thread, Self.threadFlag)
    if number == -EINVAL { number = csys_pidfd_open(group, 0) }
    guard number >= 0 else { return nil }
    let descriptor = OwnedDescriptor(number)
    var files: OwnedDescriptor?
    if !copiesDescriptors, keepsDirectories {
      guard let directory = Self.directory(of: thread) else { return nil }
      files = directory
    }
    let task = Task(descriptor: descriptor, group: group, files: files)
    tasks[thread] = task
    return task
  }

  private static func directory(of thread: Int32) -> OwnedDescriptor? {
    let directory = System.open("/proc/\(thread)/fd", System.pathOnly | O_DIRECTORY)
    return directory < 0 ? nil : OwnedDescriptor(directory)
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

  /// Whether pidfd_getfd is allowed on a process of ours.
  static func canCopy(from process: Int32) -> Bool {
    let descriptor = csys_pidfd_open(process, 0)
    guard descriptor >= 0 else { return false }
    defer { close(descriptor) }
    let copy = csys_pidfd_getfd(descriptor, 0)
    if copy >= 0 { close(copy) }
    return copy >= 0 || copy == -EBADF
  }

  /// What a thread's descriptor is; nil where it is not open.
  mutating func descriptor(_ number: Int32, of thread: Int32) -> ClientDescriptor? {
    guard copiesDescriptors else { return descriptorByName(number, of: thread) }
    guard let copy = copy(descriptor: number, of: thread),
      let identity = System.identity(copy.number)
    else { return nil }
    return ClientDescriptor(number: number, thread: thread, copy: copy, identity: identity)
  }

  private mutating func descriptorByName(
    _ number: Int32, of thread: Int32
  ) -> ClientDescriptor? {
    var identity = csys_identity()
    guard let task = task(thread), var files = task.files ?? Self.directory(of: thread) else {
      return nil
    }
    func look(_ files: OwnedDescriptor) -> Bool {
      OtherUser.reach(thread) { unsafe csys_identity_at(files.number, number, &identity) } == 0
    }
    if !look(files) {
      // Not open, or a task that had this number is gone.
      guard csys_pidfd_send_signal(task.descriptor.number, 0) == -ESRCH,
        let new = self.task(thread, renew: true),
        let another = new.files ?? Self.directory(of: thread), look(another)
      else { return nil }
      files = another
    }
    return ClientDescriptor(number: number, thread: thread, in: files, identity: identity)
  }

  /// A copy of a thread's descriptor; nil where it is not open.
  private mutating func copy(descriptor: Int32, of thread: Int32) -> OwnedDescriptor? {
    guard let task = task(thread) else { return nil }
    var number = OtherUser.reach(thread) {
      csys_pidfd_getfd(task.descriptor.number, descriptor)
    }
    if number == -ESRCH, let task = self.task(thread, renew: true) {
      number = OtherUser.reach(thread) {
        csys_pidfd_getfd(task.descriptor.number, descriptor)
      }
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
        isSettled: mayCache && mayReachDirectly, handles: handles,
        copiesDescriptors: copiesDescriptors)
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
  let copiesDescriptors: Bool

  init(_ tasks: consuming sending Tasks) {
    copiesDescriptors = tasks.copiesDescriptors
    self.tasks = Guarded(tasks)
  }

  /// As the methods of `Tasks`.
  func task(_ thread: Int32) -> Tasks.Task? { tasks.withLock { $0.task(thread) } }
  func descriptor(_ number: Int32, of thread: Int32) -> ClientDescriptor? {
    tasks.withLock { $0.descriptor(number, of: thread) }
  }
  func memory(of thread: Int32) -> ClientMemory? { tasks.withLock { $0.memory(of: thread) } }
  func pinnedMemory(of process: Int32) -> ProcessMemory? {
    tasks.withLock { $0.pinnedMemory(of: process) }
  }
  func memoryMayBlock() { tasks.withLock { $0.memoryMayBlock() } }
  func willExecute(_ thread: Int32) { tasks.withLock { $0.willExecute(thread) } }
}
