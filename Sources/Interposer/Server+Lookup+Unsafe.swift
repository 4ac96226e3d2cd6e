// SPDX-License-Identifier: Apache-2.0
//
// Looking up what a path leads to. A lookup waits as the caller's own would, where a file system's
// server is slow; it harms that caller only, since others have lanes of their own.

import CSyscalls
import IOMMU
import SystemPackage

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

extension Server {
  /// `RESOLVE_IN_ROOT`; `RESOLVE_BENEATH` is 8.
  static let inRoot: UInt64 = 0x10
  /// How long renames anywhere on the host may cross a lookup again and again, in nanoseconds.
  private static let mostPatience: UInt64 = 1_000_000_000

  /// Opens a place as it is, following links unless `flags` has `O_NOFOLLOW`; a negative errno
  /// where there is none.
  /// - Throws: Where that cannot be known: `EINTR` where renames crossed each attempt (`EAGAIN`
  ///   to a caller that asked for a confined lookup), `ENFILE` where we have no descriptors.
  func lookUp(
    from base: Int32, _ path: String, flags: UInt64, _ resolve: UInt64
  ) throws(IOMMUError) -> Int32 {
    let flags = UInt64(O_CLOEXEC | System.pathOnly) | flags & UInt64(O_NOFOLLOW)
    var end: UInt64?
    var pause: UInt32 = 0
    while true {
      // The kernel does not go up (`..`) from where a rename or a mount anywhere may have changed
      // what is above: EAGAIN. So it does where the caller wants what is cached (0x20) only.
      let found = unsafe csys_openat2(base, path, flags, resolve)
      guard found == -EAGAIN || found == -EINTR else { return try known(found, path) }
      let now = Reporter.now()
      guard resolve & 0x20 == 0, now < end ?? .max else {
        throw IOMMUError(
          resolve & 0x28 != 0 ? .resourceTemporarilyUnavailable : .interrupted,
          "\(path) cannot be looked up while directories are renamed all the time: try again")
      }
      if end == nil { end = now + Self.mostPatience }
      // At once some times: a lookup takes microseconds.
      pause += 1
      if pause > 16 { usleep(min((pause - 16) * 5, 1000)) }
    }
  }

  /// Opens a place in `/proc`; a negative errno where there is none.
  func openPlace(_ path: String) throws(IOMMUError) -> Int32 {
    try known(System.open(path, System.pathOnly), path)
  }

  /// - Throws: Where a result says that we have no descriptors, or no memory.
  func known(_ found: Int32, _ path: String) throws(IOMMUError) -> Int32 {
    guard found == -EMFILE || found == -ENFILE || found == -ENOMEM else { return found }
    throw IOMMUError(
      .tooManyOpenFilesInSystem,
      "the supervisor can open no more files: close some, or raise ulimit -n where iommu starts"
    )
  }
}

/// What `openat2` is told: `struct open_how`.
struct OpenHow {
  let flags: UInt64
  let mode: UInt64
  let resolve: UInt64
  /// Whether what follows the structure is zeros.
  private let isPlain: Bool

  /// Nil where it cannot be read, or has no size that a kernel takes.
  init?(at address: UInt64, size: UInt64, _ caller: ClientCaller) {
    guard size >= 24, size <= 4096 else { return nil }
    var words = [UInt8](repeating: 0, count: Int(size))
    do throws(IOMMUError) {
      try unsafe words.withUnsafeMutableBufferPointer { (words) throws(IOMMUError) in
        try unsafe caller.copyIn(from: address, into: UnsafeMutableRawBufferPointer(words))
      }
    } catch {
      return nil
    }
    func word(_ index: Int) -> UInt64 {
      words[8 * index..<8 * index + 8].reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }
    (flags, mode, resolve) = (word(0), word(1), word(2))
    isPlain = words[24...].allSatisfy { $0 == 0 }
  }

  /// Whether a kernel would look at the path at all: what it refuses before is left to it.
  /// openat2(2): unknown bits, a mode of what is not made, two roots.
  var isValid: Bool {
    let makes = flags & UInt64(O_CREAT) != 0 || flags & Self.temporaryFile != 0
    return isPlain && flags & ~Self.knownFlags == 0 && resolve & ~0x3F == 0
      && resolve & 0x18 != 0x18 && (makes ? mode & ~0o7777 == 0 : mode == 0)
      && (flags & UInt64(System.pathOnly) == 0 || flags & ~Self.pathFlags == 0)
  }

  /// All flags of `open(2)`: the same bits on every architecture of ours.
  private static let knownFlags: UInt64 = 0o37777703
  /// `__O_TMPFILE`.
  private static let temporaryFile: UInt64 = 0o20000000
  private static let pathFlags = UInt64(
    System.pathOnly | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
}
