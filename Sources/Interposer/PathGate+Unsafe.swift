// SPDX-License-Identifier: Apache-2.0
//
// The first look at a path, in a view by paths. It comes by for every path that any program names, so
// it is one system call as a rule and allocates nothing: the kernel says where the path leads on the
// host, and in which mount that is. What leads near the view, or may, is for the walk.

import CSyscalls
import Synchronization

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// Tells paths that have nothing to do with the view from those that may. Thread-safe.
final class PathGate: Sendable {
  enum Decision {
    /// The kernel finds what the program shall find.
    case kernel
    /// Only a walk can say.
    case walk
  }

  /// A path where it can be put behind another: a lane's buffer, with room before the text.
  @unsafe
  struct Text {
    /// What comes before the text may be overwritten, so many bytes.
    static let room = 64
    /// Where the text begins; a terminator follows it.
    let start: UnsafeMutablePointer<CChar>
    let count: Int

    subscript(index: Int) -> UInt8 { unsafe UInt8(bitPattern: start[index]) }

    var isAbsolute: Bool { unsafe self[0] == PathBytes.slash }

    var bytes: PathBytes {
      unsafe Array(UnsafeRawBufferPointer(start: start, count: count))
    }
  }

  /// Where calls have their paths, by number.
  let forms = PathForm.all
  /// A mount with a directory that the view shows too.
  private let mounts: [UInt64]
  /// The host's procfs mount: what is in there depends on who looks.
  private let processes: UInt64
  private let root: csys_place
  /// Where the view's own directories are.
  private let shadow: UInt64
  /// The name of the directory that they lie in.
  private let home: [CChar]
  /// Whether a program may have a directory of the view as its own current directory, or open.
  private let shadowIsHeld = Atomic(false)
  /// Whether a program may have another root directory, or other mounts, than we.
  private let rootsDiffer = Atomic(false)

  /// - Parameters:
  ///   - mounts: Those of the host's directories that the view shows too, as STATX_MNT_ID has them.
  ///   - shadow: A path to the view's own directories.
  init(mounts: Set<UInt64>, shadow: String) {
    self.mounts = Array(mounts)
    root = Self.place("/") ?? csys_place()
    processes = Self.place("/proc/self")?.mount ?? 0
    self.shadow = Self.place(shadow)?.mount ?? 0
    home = Array((shadow.split(separator: "/").last ?? "/").description.utf8CString)
  }

  private static func place(_ path: String) -> csys_place? {
    var place = csys_place()
    let result = OtherUser.reach(path) { unsafe csys_place(AT_FDCWD, path, 0, &place) }
    return result == 0 ? place : nil
  }

  /// A program has got a directory of the view.
  func noteShadowHeld() { shadowIsHeld.store(true, ordering: .sequentiallyConsistent) }
  var isShadowHeld: Bool { shadowIsHeld.load(ordering: .sequentiallyConsistent) }

  /// A program may have other roots from here on.
  func noteOtherRoots() { rootsDiffer.store(true, ordering: .sequentiallyConsistent) }

  /// Whether a thread's root directory is ours, with the same mounts.
  func hasOurRoot(_ thread: Int32) -> Bool {
    guard rootsDiffer.load(ordering: .sequentiallyConsistent) else { return true }
    guard let theirs = Self.place("/proc/\(thread)/root") else { return true }
    return theirs.inode == root.inode && theirs.device == root.device
      && theirs.mount == root.mount
  }

  // MARK: The decision

  /// - Parameters:
  ///   - directory: The descriptor where a relative path begins; AT_FDCWD.
  ///   - text: Not empty.
  func decide(_ text: Text, thread: Int32, directory: Int32, follows: Bool) -> Decision {
    guard hasOurRoot(thread), unsafe !namesHome(text) else { return .walk }
    return unsafe text.isAbsolute
      ? decideAbsolute(text, follows: follows)
      : decideRelative(text, thread: thread, directory: directory, follows: follows)
  }

  private func decideAbsolute(_ text: Text, follows: Bool) -> Decision {
    switch unsafe Self.top(text) {
    case .view: return .walk
    case .processes: return unsafe Self.hasMagicLink(text) ? .walk : .kernel
    case .other: break
    }
    var place = csys_place()
    let result = unsafe csys_place(AT_FDCWD, text.start, Self.flags(follows), &place)
    switch -result {
    case 0 where !isNear(place): return .kernel
    // Without a mount of its own /dev cannot be told from what is beside it so.
    case 0 where place.mount == root.mount: break
    case ENOENT: break
    default: return .walk
    }
    if unsafe Self.hasDots(text, upOnly: false) { return .walk }
    // No name of it is a link: then it leads there, or nowhere, for everybody.
    let found = unsafe csys_openat2(AT_FDCWD, text.start, Self.noFile, WalkRules.noLinks)
    if found >= 0 { close(found) }
    if found == -ENOENT || found >= 0 && result == 0 { return .kernel }
    guard found == -ELOOP, result == -ENOENT else { return .walk }
    return unsafe isMissing(text, from: AT_FDCWD)
  }

  /// Whether the last name of a path, which leads nowhere through links, is not there in a
  /// directory that is none of the view's.
  private func isMissing(_ text: Text, from base: Int32) -> Decision {
    var slash = unsafe text.count - 1
    while slash > 0, unsafe text[slash] != PathBytes.slash { slash -= 1 }
    guard slash > 0, unsafe slash < text.count - 1 else { return .walk }
    unsafe text.start[slash] = 0
    var parent = csys_place()
    let result = unsafe csys_place(base, text.start, 0, &parent)
    unsafe text.start[slash] = CChar(bitPattern: PathBytes.slash)
    guard result == 0, !isNear(parent), !isRoot(parent), parent.mount != shadow || !isShadowHeld
    else { return .walk }
    var last = csys_place()
    return unsafe csys_place(base, text.start, Self.flags(false), &last) == -ENOENT
      ? .kernel : .walk
  }

  private func decideRelative(
    _ text: Text, thread: Int32, directory: Int32, follows: Bool
  ) -> Decision {
    // In the text's own buffer: `/proc/12/cwd/text`.
    let whole = unsafe Self.prepend(thread, directory, to: text)
    let mayBeOurs = isShadowHeld
    var place = csys_place()
    let result = unsafe csys_place(AT_FDCWD, whole, Self.flags(follows), &place)
    if result == 0 {
      if isNear(place) { return .walk }
      // What lies elsewhere than the view is what was meant, but for a way up from a directory of ours.
      if !mayBeOurs { return .kernel }
      if place.mount != shadow, unsafe !Self.hasDots(text, upOnly: true) {
        return .kernel
      }
    } else if result != -ENOENT {
      // The directory, or what leads to it, is not to be seen.
      return .walk
    }
    unsafe text.start[-1] = 0
    let base = unsafe csys_open(whole, System.pathOnly | O_CLOEXEC, 0)
    // For want of descriptors it cannot be said so; else the kernel will say what is wrong with it.
    let isWant = base == -EMFILE || base == -ENFILE || base == -ENOMEM
    guard base >= 0 else { return isWant ? .walk : .kernel }
    defer { close(base) }
    guard unsafe csys_place(base, "", Self.emptyPath, &place) == 0 else { return .walk }
    if isNear(place) || mayBeOurs && place.mount == shadow { return .walk }
    if isRoot(place) {
      if unsafe Self.top(text) != .other || Self.hasDots(text, upOnly: false) { return .walk }
    }
    if result == 0 { return .kernel }
    if unsafe Self.hasDots(text, upOnly: true) { return .walk }
    let found = unsafe csys_openat2(base, text.start, Self.noFile, WalkRules.noLinks)
    if found >= 0 { close(found) }
    if found == -ENOENT { return .kernel }
    return found == -ELOOP ? unsafe isMissing(text, from: base) : .walk
  }

  /// Whether a path goes into the shadow by its own name.
  private func namesHome(_ text: Text) -> Bool {
    // SAFETY: both have a terminator.
    unsafe strstr(text.start, home) != nil
  }

  private func isNear(_ place: csys_place) -> Bool {
    let mount = place.mount
    if mount == processes { return true }
    for near in mounts where near == mount { return true }
    return false
  }

  private func isRoot(_ place: csys_place) -> Bool {
    place.inode == root.inode && place.device == root.device
  }

  // MARK: The text

  private static let emptyPath: Int32 = 0x1000
  private static let noFile = UInt64(System.pathOnly | O_NOFOLLOW | O_CLOEXEC)

  /// AT_SYMLINK_NOFOLLOW or nothing.
  private static func flags(_ follows: Bool) -> Int32 { follows ? 0 : 0x100 }

  enum Top {
    case view, processes, other
  }

  /// Which tree an absolute path begins in, by its first name.
  static func top(_ text: Text) -> Top {
    var start = 0
    while unsafe start < text.count && text[start] == PathBytes.slash { start += 1 }
    if unsafe isName(text, start, "dev") || isName(text, start, "sys") { return .view }
    return unsafe isName(text, start, "proc") ? .processes : .other
  }

  private static func isName(_ text: Text, _ start: Int, _ name: StaticString) -> Bool {
    let end = start + name.utf8CodeUnitCount
    guard unsafe end <= text.count else { return false }
    for index in start..<end
    where unsafe text[index] != name.utf8Start[index - start] { return false }
    return unsafe end == text.count || text[end] == PathBytes.slash
  }

  /// Whether a path in /proc has a name that leads away from there, or up.
  private static func hasMagicLink(_ text: Text) -> Bool {
    unsafe hasName(text) { text, start in
      unsafe isName(text, start, "fd") || isName(text, start, "cwd")
        || isName(text, start, "root") || isName(text, start, "exe")
        || isName(text, start, "map_files") || isName(text, start, "..")
    }
  }

  /// Whether a path has a name `..` or, where that matters, `.`.
  private static func hasDots(_ text: Text, upOnly: Bool) -> Bool {
    unsafe hasName(text) { text, start in
      guard unsafe text[start] == UInt8(ascii: ".") else { return false }
      return unsafe isName(text, start, "..") || !upOnly && isName(text, start, ".")
    }
  }

  private static func hasName(_ text: Text, _ isMeant: (Text, Int) -> Bool) -> Bool {
    var wasSlash = true
    for index in 0..<(unsafe text.count) {
      let isSlash = unsafe text[index] == PathBytes.slash
      if wasSlash, !isSlash, unsafe isMeant(text, index) { return true }
      wasSlash = isSlash
    }
    return false
  }

  /// Writes `/proc/THREAD/cwd/` or `/proc/THREAD/fd/N/` before the text.
  /// - Returns: Where that begins.
  private static func prepend(
    _ thread: Int32, _ directory: Int32, to text: Text
  ) -> UnsafeMutablePointer<CChar> {
    var place = unsafe text.start
    func put(_ name: StaticString) {
      for index in stride(from: name.utf8CodeUnitCount - 1, through: 0, by: -1) {
        unsafe place -= 1
        unsafe place.pointee = CChar(bitPattern: name.utf8Start[index])
      }
    }
    func put(_ number: Int32) {
      var rest = number.magnitude
      repeat {
        unsafe place -= 1
        unsafe place.pointee = CChar(bitPattern: UInt8(ascii: "0") + UInt8(rest % 10))
        rest /= 10
      } while rest > 0
      if number < 0 { put("-") }
    }
    if directory == PathCall.Path.current {
      put("/cwd/")
    } else {
      put("/")
      put(directory)
      put("/fd/")
    }
    put(thread)
    put("/proc/")
    return unsafe place
  }
}
