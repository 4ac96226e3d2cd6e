// SPDX-License-Identifier: Apache-2.0
//
// Our open files: which file of the host stands for each, and when the last reference to it
// anywhere is gone.
//
// A handle is a sealed memfd. The program gets a description of its own; an inotify watch says
// when one was closed. Equal events coalesce and come before the description is quite gone, so
// an event only makes a handle suspect: a write lease, which the kernel grants on a file that
// nobody else has open, decides.

import CSyscalls
import IOMMU
import LinuxABI
import Synchronization

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// What an open file is, whoever has it.
struct FileKey: Hashable, Sendable {
  let device: UInt64
  let inode: UInt64

  init(_ identity: csys_identity) {
    device = identity.device
    inode = identity.inode
  }
}

/// One of our files, open in some program.
final class Handle: Sendable {
  let file: any OpenFile
  let key: FileKey
  /// Read-only and never given away: the lease is asked for on it.
  fileprivate let probe: OwnedDescriptor
  fileprivate let watch: Int32

  fileprivate init(file: any OpenFile, key: FileKey, probe: OwnedDescriptor, watch: Int32) {
    self.file = file
    self.key = key
    self.probe = probe
    self.watch = watch
  }

  /// A new description, as a program shall get it.
  /// - Parameter flags: The access mode and status flags of `open(2)`.
  func describe(flags: Int32) -> OwnedDescriptor? {
    let kept = flags & (O_ACCMODE | O_NONBLOCK)
    let number = System.open("/proc/self/fd/\(probe.number)", kept)
    return number < 0 ? nil : OwnedDescriptor(number)
  }

  /// `F_SETLEASE`; its arguments are `F_WRLCK`, 1, and `F_UNLCK`, 2.
  private static let setLease: Int32 = 1024

  /// Whether nobody but us has it open.
  fileprivate var isAbandoned: Bool {
    guard csys_fcntl(probe.number, Self.setLease, 1) == 0 else {
      return false
    }
    _ = csys_fcntl(probe.number, Self.setLease, 2)
    return true
  }
}

/// All handles. Thread-safe.
final class HandleTable: Sendable {
  private struct State {
    var byKey: [FileKey: Handle] = [:]
    var byWatch: [Int32: Handle] = [:]
    /// Closed somewhere, but not yet known to be abandoned.
    var suspects: [FileKey: Handle] = [:]
  }

  private let state = Mutex(State())
  /// Held while closed files are found and closed, so that who comes second sees the effect.
  private let draining = Mutex(())
  private let inotify: OwnedDescriptor
  private let hasSuspects = Atomic(false)
  private static let inClose: UInt32 = 0x18
  private static let inOverflow: UInt32 = 0x4000

  init() throws(InterposerError) {
    let number = inotify_init1(O_CLOEXEC | O_NONBLOCK)
    guard number >= 0 else {
      throw InterposerError(
        "cannot watch for closed files (\(System.message(-errno))): raise "
          + "fs.inotify.max_user_instances")
    }
    inotify = OwnedDescriptor(number)
  }

  /// Readable when something was closed.
  var descriptor: Int32 { inotify.number }

  /// Makes the host's file for one of ours.
  func add(_ file: any OpenFile) throws(IOMMUError) -> Handle {
    func failed(_ what: String, _ result: Int32) -> IOMMUError {
      IOMMUError(
        .init(rawValue: -result), "the supervisor cannot \(what) for \(file.name)")
    }
    let memory = unsafe csys_memfd_create("iommu:" + file.name.prefix(200), 3)
    guard memory >= 0 else { throw failed("make a file", memory) }
    defer { close(memory) }
    // F_ADD_SEALS: no shrinking, no growing, no writing, no further seals. The file stays
    // empty: nothing backs a register, and a descriptor that the filter cannot tell (below the
    // window) reads as at its end and takes no data.
    _ = csys_fcntl(memory, 1033, 0x2 | 0x4 | 0x8 | 0x1)
    let probe = System.open("/proc/self/fd/\(memory)", O_RDONLY)
    guard probe >= 0 else { throw failed("open a file", probe) }
    let owned = OwnedDescriptor(probe)
    guard let identity = System.identity(probe) else { throw failed("open a file", -EIO) }
    let watch = unsafe inotify_add_watch(
      inotify.number, "/proc/self/fd/\(probe)", Self.inClose)
    guard watch >= 0 else { throw failed("watch a file", -errno) }
    let handle = Handle(file: file, key: FileKey(identity), probe: owned, watch: watch)
    state.withLock {
      $0.byKey[handle.key] = handle
      $0.byWatch[watch] = handle
    }
    return handle
  }

  func handle(_ key: FileKey) -> Handle? { state.withLock { $0.byKey[key] } }

  /// Whether a close is still to be confirmed: call `drain` again soon.
  var needsAttention: Bool { hasSuspects.load(ordering: .relaxed) }

  /// Frees what has been closed for the last time by now.
  func drain() {
    // One cheap call where nothing happened. The files are closed under `draining`: another
    // thread's next call must find them closed.
    draining.withLock { _ in
      let events = takeEvents()
      guard events || needsAttention else { return }
      let suspects = state.withLock { Array($0.suspects.values) }
      let gone = suspects.filter(\.isAbandoned)
      for handle in gone { remove(handle) }
      hasSuspects.store(state.withLock { !$0.suspects.isEmpty }, ordering: .relaxed)
    }
  }

  /// Takes a handle out and leaves its file open.
  func discard(_ handle: Handle) { draining.withLock { _ in _ = take(handle) } }

  /// A file that was made but never reached a program.
  func forget(_ handle: Handle) { draining.withLock { _ in remove(handle) } }

  /// Closes everything: no program is left.
  func closeAll() {
    draining.withLock { _ in
      for handle in state.withLock({ Array($0.byKey.values) }) { remove(handle) }
    }
  }

  var count: Int { state.withLock { $0.byKey.count } }

  private func remove(_ handle: Handle) { if take(handle) { handle.file.close() } }

  private func take(_ handle: Handle) -> Bool {
    let present = state.withLock { state in
      state.byWatch[handle.watch] = nil
      state.suspects[handle.key] = nil
      return state.byKey.removeValue(forKey: handle.key) != nil
    }
    if present { _ = inotify_rm_watch(inotify.number, handle.watch) }
    return present
  }

  /// Reads all events; true where there were any of interest.
  private func takeEvents() -> Bool {
    var some = false
    unsafe withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 8) { buffer in
      while true {
        let count = unsafe System.read(inotify.number, into: buffer)
        guard count > 0 else { return }
        var offset = 0
        state.withLock { state in
          while offset + 16 <= count {
            // SAFETY: `struct inotify_event` is 16 bytes and a name of `length` bytes.
            let watch = unsafe buffer.loadUnaligned(fromByteOffset: offset, as: Int32.self)
            let mask = unsafe buffer.loadUnaligned(fromByteOffset: offset + 4, as: UInt32.self)
            let length = unsafe buffer.loadUnaligned(
              fromByteOffset: offset + 12, as: UInt32.self)
            offset += 16 + Int(length)
            if mask & Self.inOverflow != 0 {
              state.suspects = state.byKey
              some = true
            } else if mask & Self.inClose != 0, let handle = state.byWatch[watch] {
              state.suspects[handle.key] = handle
              some = true
            }
          }
        }
      }
    }
    return some
  }
}
