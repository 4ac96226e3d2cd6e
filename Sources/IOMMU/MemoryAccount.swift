// SPDX-License-Identifier: Apache-2.0
//
// Who answers for pinned memory (MODEL B6; Linux: `account_mode`, `source_user`, `source_mm`
// and `source_task` of `iopt_pages`): sums of a user and of a process, and the limit.

import Synchronization
import SystemPackage

/// A sum of pinned bytes: a user's, or a process's. Thread-safe.
public final class PinnedMemory: Sendable {
  private let bytes = Atomic<UInt64>(0)

  public init() {}

  /// Bytes that are pinned now, in whole host pages.
  public var byteCount: UInt64 { bytes.load(ordering: .relaxed) }

  /// Adds where the sum stays within `limit`.
  fileprivate func add(_ count: UInt64, limit: UInt64) -> Bool {
    var current = bytes.load(ordering: .relaxed)
    while true {
      let (sum, overflow) = current.addingReportingOverflow(count)
      guard !overflow, sum <= limit else { return false }
      let result = bytes.weakCompareExchange(
        expected: current, desired: sum, ordering: .relaxed)
      if result.exchanged { return true }
      current = result.original
    }
  }

  fileprivate func add(_ count: UInt64) { bytes.wrappingAdd(count, ordering: .relaxed) }

  fileprivate func subtract(_ count: UInt64) {
    bytes.wrappingSubtract(count, ordering: .relaxed)
  }
}

/// The sums of one process, or more exactly of one address space. Thread-safe.
public final class ProcessMemory: Sendable {
  /// Counted in every mode but a container's. Linux: `mm->pinned_vm`, `VmPin` of
  /// `/proc/PID/status`.
  public let pinned = PinnedMemory()
  /// What mode `.process` and containers have charged. Linux: its share of `mm->locked_vm`,
  /// `VmLck`.
  public let locked = PinnedMemory()

  public init() {}
}

/// How much memory a process may have pinned (Linux: its `RLIMIT_MEMLOCK`). Thread-safe.
public protocol MemoryLimit: AnyObject, Sendable {
  /// In bytes; `UInt64.max` is no limit. Asked at each pin, not when memory is mapped: the
  /// process may change it meanwhile. Called with locks held: it must not call the engine.
  var bytes: UInt64 { get }
}

/// A process that maps memory, as accounting sees it. Thread-safe.
///
/// Linux remembers the mapping process with the memory: what it pinned later, and whoever
/// attached a device to have it pinned, counts for that process.
public final class MemoryOwner: Sendable {
  public let user: PinnedMemory
  public let process: ProcessMemory
  /// For each mode one, made once: a map then allocates nothing for it.
  private let accounts: [MemoryAccount]

  /// - Parameters:
  ///   - user: Shared by all processes of the user.
  ///   - process: Shared by all calls of the process.
  ///   - limit: Of the process, also where the user's sum is what it limits.
  public init(user: PinnedMemory, process: ProcessMemory, limit: any MemoryLimit) {
    self.user = user
    self.process = process
    accounts = MemoryAccount.Mode.allCases.map { mode in
      MemoryAccount(mode: mode, user: user, process: process, limit: limit)
    }
  }

  /// The account that its memory is charged to.
  public func account(_ mode: MemoryAccount.Mode) -> MemoryAccount {
    accounts[mode.rawValue]
  }
}

/// What a pin charges. Thread-safe.
public final class MemoryAccount: Sendable {
  /// Which sum the limit is held against.
  public enum Mode: Int, CaseIterable, Hashable, Sendable {
    /// None: the process may lock what it likes. Linux: `CAP_IPC_LOCK`.
    case none
    /// The user's. The default.
    case user
    /// The process's. `IOMMU_OPTION_RLIMIT_MODE` 1.
    case process
    /// The process's, as VFIO's type1 counts: as locked memory, and not as pinned.
    case container
    /// The same of a process that may lock what it likes: it counts all the same.
    case unlimitedContainer
  }

  public let mode: Mode
  private let user: PinnedMemory
  private let process: ProcessMemory
  private let limit: any MemoryLimit
  /// What the limit is held against. Kept, so that a charge counts no references.
  private let counted: PinnedMemory?
  private let hasLimit: Bool
  private let countsAsPinned: Bool

  fileprivate init(
    mode: Mode, user: PinnedMemory, process: ProcessMemory, limit: any MemoryLimit
  ) {
    self.mode = mode
    self.user = user
    self.process = process
    self.limit = limit
    counted =
      switch mode {
      case .none: nil
      case .user: user
      case .process, .container, .unlimitedContainer: process.locked
      }
    hasLimit = mode != .unlimitedContainer
    countsAsPinned = mode != .container && mode != .unlimitedContainer
  }

  /// An account of its own with a fixed limit, for users of the library.
  /// - Parameter limit: In bytes.
  public convenience init(limit: UInt64) {
    self.init(
      mode: .user, user: PinnedMemory(), process: ProcessMemory(),
      limit: FixedLimit(bytes: limit))
  }

  private final class FixedLimit: MemoryLimit {
    let bytes: UInt64
    init(bytes: UInt64) { self.bytes = bytes }
  }

  /// What the limit is held against, in bytes: 0 where there is none.
  public var chargedBytes: UInt64 { counted?.byteCount ?? 0 }

  /// Whether pins of the same memory charge the same sums there as here.
  func isSame(as other: MemoryAccount) -> Bool {
    self === other || process === other.process && (mode != .user || user === other.user)
  }

  /// - Parameter byteCount: In whole host pages.
  /// - Throws: `ENOMEM` where the limit would be passed: then nothing was charged.
  func charge(_ byteCount: UInt64) throws(IOMMUError) {
    try FailurePoint.pass(.account)
    if let counted {
      // Linux counts pages: a limit within a page counts down to it.
      let most = hasLimit ? limit.bytes : .max
      guard counted.add(byteCount, limit: most == .max ? .max : most & ~(Pages.hostPage - 1))
      else {
        throw IOMMUError(
          .noMemory,
          mode == .user
            ? "pinning \(kibibytes(byteCount)) more passes RLIMIT_MEMLOCK, \(kibibytes(most)): the "
              + "user has \(kibibytes(counted.byteCount)) pinned; \(remedy)"
            : "locking \(kibibytes(byteCount)) more passes RLIMIT_MEMLOCK, \(kibibytes(most)): the "
              + "process has \(kibibytes(counted.byteCount)) locked; \(remedy)")
      }
    }
    if countsAsPinned { process.pinned.add(byteCount) }
  }

  private var remedy: String {
    "raise the limit (ulimit -l; iommu run --no-memlock-limit), unmap memory, or give the program "
      + "CAP_IPC_LOCK"
  }

  /// As `ulimit -l` counts.
  private func kibibytes(_ byteCount: UInt64) -> String { "\(byteCount >> 10) KiB" }

  /// Takes back what `charge` added.
  func uncharge(_ byteCount: UInt64) {
    counted?.subtract(byteCount)
    if countsAsPinned { process.pinned.subtract(byteCount) }
  }

  /// As `charge`, past any limit: for memory that is pinned already.
  func chargeAnyway(_ byteCount: UInt64) {
    counted?.add(byteCount)
    if countsAsPinned { process.pinned.add(byteCount) }
  }
}
