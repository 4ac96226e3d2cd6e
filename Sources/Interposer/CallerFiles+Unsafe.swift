// SPDX-License-Identifier: Apache-2.0
//
// The host's files as a caller sees them, and the shadow's, for a walk. In /proc a caller finds
// itself, and its own links.

import CSyscalls
import SystemPackage

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// The host's files for one thread.
struct CallerFiles: WalkedHost {
  let shadow: ShadowTree
  let thread: Int32
  let process: Int32
  /// How we reach the caller's root where its mounts are others than ours: `/proc/12/root`.
  var prefix: PathBytes = []

  func entry(_ path: PathBytes) -> WalkedEntry {
    if path.starts(with: Self.processes) {
      if path.elementsEqual(Self.ownProcess) { return .link(PathBytes(text: "\(process)")) }
      if path.elementsEqual(Self.ownThread) {
        return .link(PathBytes(text: "\(process)/task/\(thread)"))
      }
    }
    var place = csys_place()
    let result = look(path, follows: false, &place)
    guard result == 0 else { return .failure(Errno(rawValue: -result)) }
    switch place.mode & S_IFMT {
    case S_IFDIR: return .directory
    case S_IFLNK:
      guard let text = Self.link(prefix + path) else { return .failure(.noSuchFileOrDirectory) }
      return .link(text)
    default: return .other
    }
  }

  /// - Returns: 0 or a negative errno.
  func look(_ path: PathBytes, follows: Bool, _ place: inout csys_place) -> Int32 {
    let whole = prefix + (path.isEmpty ? [PathBytes.slash] : path)
    return Self.look(whole, follows: follows, &place)
  }

  func magic(_ link: PathBytes) -> MagicTarget? {
    guard Self.isMagic(link) else { return nil }
    // The link itself is as good for us: it names the process, not `self`.
    guard let text = Self.link(link), text.isAbsolute else { return .opaque }
    var there = csys_place()
    guard Self.look(link, follows: true, &there) == 0 else { return .opaque }
    if there.device == shadow.device, let shown = shadow.shown(text.text) {
      var real = csys_place()
      guard Self.look(PathBytes(text: shadow.real(shown)), follows: false, &real) == 0,
        Self.isSame(real, there)
      else { return .opaque }
      return .place(
        PathBytes(text: shown), there.mode & S_IFMT == S_IFDIR ? .directory : .other,
        fromShadow: true)
    }
    let path = text.elementsEqual([PathBytes.slash]) ? [] : text
    var host = csys_place()
    guard look(path, follows: false, &host) == 0, Self.isSame(host, there) else {
      return .opaque
    }
    return .place(
      path, there.mode & S_IFMT == S_IFDIR ? .directory : .other, fromShadow: false)
  }

  /// All of a file system that the view shows in part is one mount, as a real one is.
  func mount(of path: PathBytes) -> UInt64 {
    var place = csys_place()
    let result = look(path, follows: false, &place)
    if result == 0, !shadow.mounts.contains(place.mount) { return place.mount }
    // No mount has such a number.
    let parts = path.split(separator: PathBytes.slash, maxSplits: 1)
    return .max - UInt64(parts.first?.first ?? 0)
  }

  // MARK: procfs

  private static let processes = PathBytes(text: "/proc/")
  private static let ownProcess = PathBytes(text: "/proc/self")
  private static let ownThread = PathBytes(text: "/proc/thread-self")
  private static let magicNames: Set<PathBytes> = [
    PathBytes(text: "cwd"), PathBytes(text: "root"), PathBytes(text: "exe"),
  ]
  private static let magicDirectories: Set<PathBytes> = [
    PathBytes(text: "fd"), PathBytes(text: "map_files"), PathBytes(text: "ns"),
  ]

  /// Whether a link in /proc is one of a process's own, which leads to no text.
  static func isMagic(_ path: PathBytes) -> Bool {
    guard path.starts(with: processes) else { return false }
    var parts = path.split(separator: PathBytes.slash).dropFirst()
    guard let owner = parts.popFirst(), owner.allSatisfy({ (48...57).contains($0) }) else {
      return false
    }
    if parts.count > 2, parts.first?.elementsEqual("task".utf8) == true {
      parts = parts.dropFirst(2)
    }
    guard let first = parts.first, let last = parts.last else { return false }
    return parts.count == 1 && magicNames.contains(Array(last))
      || parts.count == 2 && magicDirectories.contains(Array(first))
  }

  // MARK: Calls

  static func isSame(_ one: csys_place, _ other: csys_place) -> Bool {
    one.inode == other.inode && one.device == other.device
  }

  static func look(_ path: PathBytes, follows: Bool, _ place: inout csys_place) -> Int32 {
    unsafe withTerminator(path) { text in
      OtherUser.reach(path) {
        unsafe csys_place(AT_FDCWD, text, follows ? 0 : AT_SYMLINK_NOFOLLOW, &place)
      }
    }
  }

  static func withTerminator<Result>(
    _ path: PathBytes, _ body: (UnsafePointer<CChar>) -> Result
  ) -> Result {
    let terminated = path + [0]
    return unsafe terminated.withUnsafeBytes { bytes in
      // SAFETY: at least the terminator is there.
      unsafe body(bytes.baseAddress!.assumingMemoryBound(to: CChar.self))
    }
  }

  /// A link's text, as it is.
  static func link(_ bytes: PathBytes) -> PathBytes? {
    var text = PathBytes(repeating: 0, count: 4096)
    let count = unsafe withTerminator(bytes) { path in
      unsafe text.withUnsafeMutableBytes { out in
        OtherUser.reach(bytes) {
          // SAFETY: at most the buffer's size is written; readlink adds no terminator.
          let count = unsafe readlink(
            path, out.baseAddress!.assumingMemoryBound(to: CChar.self), out.count)
          return count < 0 ? -errno : Int32(count)
        }
      }
    }
    return count < 0 ? nil : Array(text[..<Int(count)])
  }
}

/// The view's files, in the shadow.
struct ShadowFiles: WalkedView {
  let shadow: ShadowTree

  func contains(_ shown: PathBytes) -> Bool {
    Self.mayBeShown(shown) && shadow.contains(shown.text)
  }

  func isExclusive(_ shown: PathBytes) -> Bool { shadow.isExclusive(shown.text) }

  func entry(_ shown: PathBytes) -> ViewEntry {
    switch shadow.entry(shown.text) {
    case .hosts: return .hosts
    case .absent: return .absent
    case .ours(let mode):
      switch mode & S_IFMT {
      case S_IFDIR: return .ours(.directory, mode: mode)
      case S_IFLNK:
        guard let text = CallerFiles.link(PathBytes(text: shadow.real(shown.text))) else {
          return .absent
        }
        return .ours(.link(text), mode: mode)
      default: return .ours(.other, mode: mode)
      }
    }
  }

  private static let tops = [PathBytes(text: "/dev"), PathBytes(text: "/sys")]

  private static func mayBeShown(_ path: PathBytes) -> Bool {
    tops.contains { path.starts(with: $0) }
  }
}
