// SPDX-License-Identifier: Apache-2.0
//
// Who answers for pinned memory (MODEL B6): the users and processes of a run, and their
// RLIMIT_MEMLOCK. Users' sums hold over all contexts of the run; what the same user has locked
// otherwise on this host is not known here.

import CSyscalls
import IOMMU
import LinuxABI
import Synchronization

/// The sums of all users. A value; guarded by its owner.
struct MemoryOwners: Sendable {
  private var users: [UInt32: PinnedMemory] = [:]

  /// The owner of what a process maps.
  mutating func owner(of memory: ClientMemory, user: UInt32) -> MemoryOwner {
    if let owner = memory.owner(for: user) { return owner }
    let sum = users[user] ?? PinnedMemory()
    users[user] = sum
    return memory.makeOwner(for: user, sum: sum)
  }
}

/// A process's RLIMIT_MEMLOCK. Of a process that is gone, what it was when last asked, as Linux
/// keeps it with the memory. Thread-safe.
final class ProcessLimit: MemoryLimit {
  private let process: RevocableDescriptor
  private let number: Int32
  private let last = Atomic<UInt64>(0)

  init(process: RevocableDescriptor, number: Int32) {
    self.process = process
    self.number = number
    _ = bytes
  }

  var bytes: UInt64 {
    var limit: UInt64 = 0
    var result = unsafe csys_memory_lock_limit(number, &limit)
    // Of a program with other user ids it takes a privilege to ask, but not to read.
    if result == -1, let line = System.limit("Max locked memory", of: number) {
      (result, limit) = (0, line)
    }
    // The number may be another process's by now; what was read counts only if it is not.
    guard result == 0, process.use({ csys_pidfd_send_signal($0, 0) }) == 0 else {
      return last.load(ordering: .relaxed)
    }
    last.store(limit, ordering: .relaxed)
    return limit
  }
}

extension ClientCaller {
  func memoryOwner() throws(IOMMUError) -> (owner: MemoryOwner, right: LockingRight) {
    let memory = try clientMemory()
    let right = server.limitsMemory ? lockingRight : .unlimited
    return (server.owners.withLock { $0.owner(of: memory, user: realUserID) }, right)
  }

  /// By CAP_IPC_LOCK, which lifts the limit for who has it on the host.
  private var lockingRight: LockingRight {
    var effective: UInt64 = 0
    var permitted: UInt64 = 0
    _ = unsafe csys_capabilities(thread, &effective, &permitted)
    let bit: UInt64 = 1 << Capabilities.Name.lockMemory.rawValue
    if effective & bit != 0 { return isInHostUserNamespace ? .unlimited : .limited }
    return permitted & bit != 0 ? .relinquished : .limited
  }

  /// Linux charges the real user.
  private var realUserID: UInt32 {
    var user: UInt32 = 0
    if let task = server.tasks.task(thread),
      unsafe csys_pidfd_real_user(task.descriptor.number, &user) == 0
    {
      return user
    }
    guard let status = System.contents("/proc/\(thread)/status") else { return userID }
    for line in String(decoding: status, as: UTF8.self).split(separator: "\n")
    where line.hasPrefix("Uid:\t") {
      return line.dropFirst(5).split(separator: "\t").first.flatMap { UInt32($0) } ?? userID
    }
    return userID
  }
}
