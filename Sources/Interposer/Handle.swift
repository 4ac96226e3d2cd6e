// SPDX-License-Identifier: Apache-2.0
//
// One of our files, open in some program: what stands for it on the host, and how to know that
// nobody has it any more.

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

  /// The file that is mapped in an area.
  init(_ area: MemoryArea) {
    let (major, minor) = (UInt64(area.major), UInt64(area.minor))
    // As `makedev` puts them together.
    device =
      (major & 0xffff_f000) << 32 | (major & 0xfff) << 8 | (minor & 0xffff_ff00) << 12
      | minor & 0xff
    inode = area.inode
  }
}

/// One of our files, open in some program.
final class Handle: Sendable {
  /// What stands for it.
  enum Stand: Sendable {
    /// A memfd: contexts, containers, groups, devices.
    case memory(StandInMemory)
    /// A pipe: queues of records, which are polled.
    case pipe(StandInPipe)
  }

  let file: any OpenFile
  /// The file, where it is a queue of records.
  let queue: (any EventFile)?
  /// The file, where it is an attribute of /sys.
  let attribute: AttributeFile?
  /// The file, where programs map registers of it.
  let registers: (any RegisterFile)?
  let key: FileKey
  let stand: Stand
  /// The device's doorbells, in a file of their own, once it is bound.
  let doorbells = Guarded<Doorbells?>(nil)

  /// Doorbells, and the watch for closes of their file.
  struct Doorbells: Sendable {
    let pages: SharedDoorbells
    let watch: Int32
  }

  init(file: any OpenFile, key: FileKey, stand: Stand) {
    self.file = file
    queue = file as? any EventFile
    attribute = file as? AttributeFile
    registers = file as? any RegisterFile
    self.key = key
    self.stand = stand
  }

  /// Whether nobody has it open any more, nor its doorbells mapped.
  var isAbandoned: Bool {
    guard case .memory(let memory) = stand, memory.isAbandoned else { return false }
    return doorbells.withLock { $0.map { StandInMemory.isAbandoned($0.pages.probe) } ?? true }
  }

  /// A new description, as a program shall get it. Of a queue there is one.
  /// - Parameter flags: The access mode and status flags of `open(2)`.
  func describe(flags: Int32) -> OwnedDescriptor? {
    switch stand {
    case .memory(let memory): memory.describe(flags: flags)
    case .pipe(let pipe): pipe.takeDescription()
    }
  }
}

/// A sealed memfd, and a description of it that is never given away.
///
/// The program gets a description of its own; an inotify watch says when one was closed. Equal
/// events coalesce and come before the description is quite gone, so an event only makes a
/// handle suspect: a write lease, which the kernel grants on a file that nobody else has open,
/// decides.
final class StandInMemory: Sendable {
  let probe: OwnedDescriptor
  let watch: Int32

  init(probe: OwnedDescriptor, watch: Int32) {
    self.probe = probe
    self.watch = watch
  }

  func describe(flags: Int32) -> OwnedDescriptor? {
    let kept = flags & (O_ACCMODE | O_NONBLOCK)
    let number = System.open("/proc/self/fd/\(probe.number)", kept)
    return number < 0 ? nil : OwnedDescriptor(number)
  }

  /// `F_SETLEASE`; its arguments are `F_WRLCK`, 1, and `F_UNLCK`, 2.
  private static let setLease: Int32 = 1024

  /// Whether nobody but us has it open.
  var isAbandoned: Bool { Self.isAbandoned(probe) }

  /// Whether nobody has a file open otherwise.
  static func isAbandoned(_ probe: OwnedDescriptor) -> Bool {
    guard csys_fcntl(probe.number, setLease, 1) == 0 else {
      return false
    }
    _ = csys_fcntl(probe.number, setLease, 2)
    return true
  }
}
