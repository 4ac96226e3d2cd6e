// SPDX-License-Identifier: Apache-2.0
//
// Where a shadow of /dev and /sys lies: a directory of our own in a local file system. It is locked
// as long as its supervisor lives; what a killed one left is found by that and deleted.

import CSyscalls
import IOMMU

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// A directory of our own, for as long as this object lives.
final class ShadowPlace: Sendable {
  private static let prefix = "iommu-view-"

  /// Absolute and without links.
  let path: String
  /// Where it was made, as that was given.
  let candidate: String
  /// The directory; its lock says that it is in use.
  private let directory: OwnedDescriptor
  private let isThere = Guarded(true)

  /// In memory where that can be had.
  static var candidates: [String] {
    var all = ["/dev/shm"]
    // SAFETY: the C library's string is copied at once.
    if let given = unsafe getenv("TMPDIR") { all.append(unsafe String(cString: given)) }
    return all + ["/tmp"]
  }

  /// Makes it in the first directory that allows what is needed, and deletes what supervisors
  /// left there that are no more.
  init(in candidates: [String] = candidates) throws(InterposerError) {
    var refusals: [String] = []
    // Beside the host's /dev and /sys if possible: what lies on their mounts is looked at closely.
    let hosts = ["/dev", "/sys"].map { System.mount(of: $0) }
    let ordered =
      candidates.filter { !hosts.contains(System.mount(of: $0)) }
      + candidates.filter { hosts.contains(System.mount(of: $0)) }
    for candidate in ordered {
      do throws(InterposerError) {
        (path, directory) = try Self.make(in: candidate)
        self.candidate = candidate
        return
      } catch {
        refusals.append("\(candidate): \(error.description)")
      }
    }
    throw InterposerError(
      "no directory can hold the program's /dev and /sys (\(refusals.joined(separator: "; "))): "
        + "let /dev/shm, TMPDIR or /tmp be a local file system that this user can write")
  }

  deinit { remove() }

  /// Deletes it with all that is in it. Nothing where it has been.
  func remove() {
    let isFirst = isThere.withLock { isThere in
      defer { isThere = false }
      return isThere
    }
    if isFirst { Self.delete(path) }
  }

  // MARK: Making

  private static func make(
    in candidate: String
  ) throws(InterposerError) -> (String, OwnedDescriptor) {
    // SAFETY: realpath returns memory that is copied and freed here.
    guard candidate.hasPrefix("/"), let real = unsafe realpath(candidate, nil) else {
      throw InterposerError(
        candidate.hasPrefix("/") ? System.message(-errno) : "it is no absolute path")
    }
    let home = unsafe String(cString: real)
    unsafe free(real)
    if let name = foreignFileSystem(home) {
      throw InterposerError("\(name) is no local file system")
    }
    sweep(home)
    // Who sweeps may take one for deserted that is not locked yet.
    for _ in 0..<16 {
      var template = Array("\(home)/\(prefix)XXXXXX".utf8CString)
      guard unsafe mkdtemp(&template) != nil else { throw failed }
      let path = unsafe template.withUnsafeBufferPointer {
        unsafe String(cString: $0.baseAddress!)
      }
      let directory = OwnedDescriptor(System.open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW))
      guard lock(directory), isAt(path, directory) else { continue }
      do throws(InterposerError) {
        try tryOut(path, directory)
      } catch {
        delete(path)
        throw error
      }
      return (path, directory)
    }
    throw InterposerError("others delete what is made there")
  }

  private static var failed: InterposerError { InterposerError(System.message(-errno)) }

  private static func lock(_ directory: OwnedDescriptor) -> Bool {
    directory.number >= 0 && flock(directory.number, LOCK_EX | LOCK_NB) == 0
  }

  private static func isAt(_ path: String, _ directory: OwnedDescriptor) -> Bool {
    var status = stat()
    guard unsafe lstat(path, &status) == 0, let identity = System.identity(directory.number)
    else { return false }
    return status.st_ino == identity.inode && status.st_dev == identity.device
  }

  /// What a shadow is made of: files that are known by number, permissions, times of links, renames.
  private static func tryOut(
    _ path: String, _ directory: OwnedDescriptor
  ) throws(InterposerError) {
    // Root's programs may take on other users, who see it as they see /dev and /sys.
    guard geteuid() != 0 || (unsafe chmod(path, 0o711)) == 0 else { throw failed }
    let (first, second) = (path + "/first", path + "/second")
    let file = unsafe csys_open(first, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0)
    guard file >= 0 else { throw InterposerError(System.message(file)) }
    defer { close(file) }
    guard let identity = System.identity(file), let home = System.identity(directory.number)
    else { throw failed }
    guard identity.device == home.device, identity.mode & 0o777 == 0 else {
      throw InterposerError("it does not keep numbers and permissions as Linux's own")
    }
    guard unsafe symlink("..", second) == 0, ShadowTree.mark(second) else { throw failed }
    guard unsafe rename(first, second) == 0, unsafe unlink(second) == 0 else { throw failed }
  }

  /// The name of a file system whose server is elsewhere: nil for any other.
  private static func foreignFileSystem(_ path: String) -> String? {
    let names: [UInt32: String] = [
      0x6969: "NFS", 0xFF53_4D42: "CIFS", 0xFE53_4D42: "SMB", 0x517B: "SMB",
      0x6573_5546: "FUSE", 0x0102_1997: "9P", 0x00C3_6400: "Ceph", 0x5346_414F: "AFS",
    ]
    return unsafe names[csys_file_system(path)]
  }

  // MARK: Deleting

  /// Deletes what supervisors of this user left in a directory that are no more.
  private static func sweep(_ home: String) {
    for entry in System.entries(home) ?? [] where entry.name.hasPrefix(prefix) {
      let path = home + "/" + entry.name
      let directory = OwnedDescriptor(System.open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW))
      var status = stat()
      guard unsafe fstat(directory.number, &status) == 0, status.st_uid == geteuid(),
        lock(directory)
      else { continue }
      delete(path)
    }
  }

  /// Deletes a directory with all that is in it. Links are not followed.
  private static func delete(_ path: String) {
    if unsafe rmdir(path) == 0 || errno != ENOTEMPTY { return }
    let directory = OwnedDescriptor(System.open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW))
    guard directory.number >= 0 else { return }
    let here = "/proc/self/fd/\(directory.number)"
    for entry in System.entries(here) ?? [] {
      let place = here + "/" + entry.name
      if unsafe unlink(place) != 0, errno == EISDIR { delete(place) }
    }
    unsafe rmdir(path)
  }
}
