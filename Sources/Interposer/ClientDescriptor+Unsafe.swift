// SPDX-License-Identifier: Apache-2.0
//
// What a descriptor of a caller is. Where the host lets us we have a copy (pidfd_getfd) and ask that. Where
// it does not, as in most containers, /proc/TID/fd says what the file is, which is all that most calls
// need; what can be opened anew through it is, and of the rest the caller hands copies over (HandOver).

import CSyscalls
import IOMMU

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// A descriptor of a thread that waits for an answer.
struct ClientDescriptor: Sendable {
  let number: Int32
  let thread: Int32
  let identity: csys_identity
  /// Of the same description; nil where the host lets nobody have one.
  let copy: OwnedDescriptor?
  /// `/proc/TID/fd`, where there is no copy.
  private let directory: OwnedDescriptor?

  init(number: Int32, thread: Int32, copy: OwnedDescriptor, identity: csys_identity) {
    (self.number, self.thread, self.copy, self.identity) = (number, thread, copy, identity)
    directory = nil
  }

  init(number: Int32, thread: Int32, in directory: OwnedDescriptor, identity: csys_identity) {
    (self.number, self.thread, self.identity) = (number, thread, identity)
    self.directory = directory
    copy = nil
  }

  var key: FileKey { FileKey(identity) }

  /// `O_RDONLY`, `O_WRONLY` or `O_RDWR`.
  var accessMode: Int32 {
    if let copy { return csys_fcntl(copy.number, F_GETFL, 0) & O_ACCMODE }
    return directory.map { csys_access_mode_at($0.number, number) } ?? O_RDONLY
  }

  /// The flags that `fcntl(2)` tells; nil where it is not open any more.
  var flags: Int32? {
    if let copy {
      let flags = csys_fcntl(copy.number, F_GETFL, 0)
      return flags < 0 ? nil : flags
    }
    // That file tells of the descriptor's own flag too.
    return information("flags:").flatMap { Int32($0, radix: 8) }.map { $0 & ~O_CLOEXEC }
  }

  /// The file position.
  var position: UInt64 {
    if let copy { return UInt64(bitPattern: Int64(lseek(copy.number, 0, SEEK_CUR))) }
    return information("pos:").flatMap { UInt64($0) } ?? 0
  }

  /// Whether it is an eventfd.
  var isEvent: Bool {
    System.readLink(copy.map { "/proc/self/fd/\($0.number)" } ?? path) == "anon_inode:[eventfd]"
  }

  /// What tells one eventfd from all others, since Linux 5.2.
  var eventNumber: UInt64? { information("eventfd-id:").flatMap { UInt64($0) } }

  /// The same of a descriptor of ours.
  static func eventNumber(_ own: OwnedDescriptor) -> UInt64? {
    information("/proc/self/fdinfo/\(own.number)", "eventfd-id:").flatMap { UInt64($0) }
  }

  private var path: String { "/proc/\(thread)/fd/\(number)" }

  private func information(_ name: String) -> Substring? {
    Self.information(
      copy.map { "/proc/self/fdinfo/\($0.number)" } ?? "/proc/\(thread)/fdinfo/\(number)", name)
  }

  /// A line of a file in `/proc/PID/fdinfo`.
  static func information(_ path: String, _ name: String) -> Substring? {
    guard let text = System.contents(path) else { return nil }
    let line = String(decoding: text, as: UTF8.self).split(separator: "\n").first {
      $0.hasPrefix(name)
    }
    return line?.dropFirst(name.count).drop { $0 == " " || $0 == "\t" }
  }

  /// The file, for its memory: a copy, or a description of our own. Other files than regular ones, which
  /// have none, are not opened: that may do something.
  /// - Throws: `ENFILE` where we have no descriptor; nil where it cannot be opened anew.
  func file() throws(IOMMUError) -> OwnedDescriptor? {
    if let copy { return copy }
    let flags =
      identity.mode & S_IFMT == S_IFREG
      ? accessMode | O_NONBLOCK | O_NOCTTY : System.pathOnly
    let opened = System.open(path, flags)
    guard opened != -EMFILE, opened != -ENFILE else {
      throw IOMMUError(
        .tooManyOpenFilesInSystem,
        "the supervisor can open no more files: close some, or raise ulimit -n where iommu starts"
      )
    }
    return opened < 0 ? nil : OwnedDescriptor(opened)
  }
}
