// SPDX-License-Identifier: Apache-2.0
//
// What the program sees under /dev and /sys where nothing can be mounted: a directory of ours, laid
// out as the file systems of `MountView` are, so that `LiveMount` changes both.
//
// In a directory that is the host's too, each of the host's entries gets a placeholder when somebody
// is about to list it, so that it lists both. A placeholder stands for the host's entry of that name
// and is never what a program gets: a file, node or directory without permissions, a link whose time
// is 0.

import CSyscalls
import IOMMU
import LinuxABI

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// The machine's /dev and /sys as a tree of real files. Thread-safe.
///
/// A *shown* path is what programs say: `/sys/bus/pci`. Its *real* path is where that lies:
/// `ROOT/sys/view/bus/pci`. Shown paths are absolute, without links, `.`, `..` or a trailing slash.
final class ShadowTree: Sendable {
  /// What a name of the view stands for.
  enum Entry: Equatable, Sendable {
    /// With type and permissions, as `st_mode`.
    case ours(mode: UInt32)
    /// The host's entry of that name.
    case hosts
    /// Not in the shadow. Where the directory is not exclusive the host may have it: it is in the
    /// shadow only if the directory was listed since it came.
    case absent
  }

  /// `ROOT`: absolute, without links.
  let path: String
  /// As `LiveMount` takes them, by name: `dev`, `sys`.
  let roots: [String: OwnedDescriptor]
  /// The `st_dev` of all that is in it.
  let device: UInt64
  /// The `STATX_MNT_ID` of each mount of the host that a directory of the view lies on or hides.
  let mounts: Set<UInt64>

  private let place: ShadowPlace
  /// The directories that show the host's entries too.
  private let merged: Set<FileKey>
  /// Held while entries come and go, so that nobody takes one for another.
  private let changing = Guarded(())

  /// Makes it. The process's umask is 0.
  init(_ wire: WireView) throws(InterposerError) {
    let trees = try ViewTree.roots(of: wire)
    var candidates = ShadowPlace.candidates
    var place = try ShadowPlace(in: candidates)
    var made: (Builder, [String: OwnedDescriptor])?
    while made == nil {
      do throws(InterposerError) {
        made = try Self.fill(place, trees)
      } catch {
        // It is full, say: the next one may not be.
        place.remove()
        candidates.removeAll { $0 == place.candidate }
        guard let next = try? ShadowPlace(in: candidates) else { throw error }
        place = next
      }
    }
    let (builder, roots) = made ?? (Builder(), [:])
    self.place = place
    path = place.path
    self.roots = roots
    merged = builder.merged
    mounts = builder.mounts.union(System.mounts(below: builder.hidden))
    device = roots.values.first.flatMap { System.identity($0.number)?.device } ?? 0
  }

  private static func fill(
    _ place: ShadowPlace, _ trees: [String: ViewTree]
  ) throws(InterposerError) -> (Builder, [String: OwnedDescriptor]) {
    var builder = Builder()
    var roots: [String: OwnedDescriptor] = [:]
    for (name, tree) in trees {
      let root = place.path + "/" + name
      try builder.directory(root, 0o755)
      try builder.directory(root + "/" + MountView.staging, 0o700)
      try builder.directory(root + "/" + MountView.shown, 0o755)
      try builder.fill(root + "/" + MountView.shown, host: "/" + name, tree)
      roots[name] = OwnedDescriptor(System.open(root, System.pathOnly | O_DIRECTORY))
    }
    return (builder, roots)
  }

  /// Deletes it. Nothing where it has been.
  func remove() { place.remove() }

  // MARK: Places

  /// Where a shown path lies.
  func real(_ shown: String) -> String {
    let parts = shown.split(separator: "/", maxSplits: 1)
    let top = "\(path)/\(parts.first ?? "")/\(MountView.shown)"
    return parts.count > 1 ? top + "/" + parts[1] : top
  }

  /// What a real path is shown as; nil where it is not in what programs see.
  func shown(_ real: String) -> String? {
    guard real.hasPrefix(path + "/") else { return nil }
    let parts = real.dropFirst(path.utf8.count).split(separator: "/")
    guard parts.count > 1, roots[String(parts[0])] != nil, parts[1] == MountView.shown else {
      return nil
    }
    return "/" + ([parts[0]] + parts.dropFirst(2)).joined(separator: "/")
  }

  // MARK: What is there

  /// What a shown path stands for, whose parent is a directory of the view. No link is followed.
  func entry(_ shown: String) -> Entry {
    var status = stat()
    guard unsafe lstat(real(shown), &status) == 0 else { return .absent }
    return Self.isPlaceholder(status) ? .hosts : .ours(mode: status.st_mode)
  }

  /// Whether a shown path is a directory of the view, so that names in it are looked up here.
  func contains(_ shown: String) -> Bool { directory(shown) != nil }

  /// Whether a directory of the view hides what the host has in it.
  func isExclusive(_ shown: String) -> Bool {
    directory(shown).map { !merged.contains($0) } ?? false
  }

  /// A directory's identity; nil where a path is no directory of the view.
  private func directory(_ shown: String) -> FileKey? {
    let parts = shown.split(separator: "/")
    guard let first = parts.first, let root = roots[String(first)] else { return nil }
    let below = ([Substring(MountView.shown)] + parts.dropFirst()).joined(separator: "/")
    // RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS.
    let descriptor = OwnedDescriptor(
      unsafe csys_openat2(
        root.number, below, UInt64(System.pathOnly | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC),
        0x8 | 0x4))
    if [-EMFILE, -ENFILE, -ENOMEM].contains(descriptor.number) {
      // It takes no descriptor to ask for a path that has no links, as those of who asks here.
      var status = stat()
      guard unsafe lstat(real(shown), &status) == 0, status.st_mode & S_IFMT == S_IFDIR,
        !Self.isPlaceholder(status)
      else { return nil }
      return FileKey(
        csys_identity(
          device: UInt64(status.st_dev), inode: UInt64(status.st_ino), mode: status.st_mode,
          size: 0))
    }
    guard descriptor.number >= 0, let identity = System.identity(descriptor.number),
      identity.mode & 0o777 != 0
    else { return nil }
    return FileKey(identity)
  }

  /// The type of what the host has where a shown path leads, as `st_mode` has it, without
  /// permissions; nil where the view has something of its own, hides it, or there is nothing.
  func hostsType(_ shown: String) -> UInt32? {
    guard let slash = shown.lastIndex(of: "/"), let parent = directory(String(shown[..<slash])),
      merged.contains(parent)
    else { return nil }
    if case .ours = entry(shown) { return nil }
    var status = stat()
    return unsafe lstat(shown, &status) == 0 ? status.st_mode & S_IFMT : nil
  }

  // MARK: What changes

  /// Sees to it that a directory lists what the host has in it now.
  func refresh(_ shown: String) {
    guard let key = directory(shown), merged.contains(key) else { return }
    let here = real(shown)
    changing.withLock { _ in
      // System calls under the lock: whoever waits for it wants to change this tree.
      var hosts: [String: UInt8] = [:]
      let listed = System.entries(shown)
      // Who cannot list it now, for want of descriptors, does not take it for empty.
      if listed == nil, errno == EMFILE || errno == ENFILE || errno == ENOMEM { return }
      for entry in listed ?? [] { hosts[entry.name] = entry.type }
      for entry in System.entries(here) ?? [] {
        let old = here + "/" + entry.name
        var status = stat()
        let isCurrent = hosts[entry.name].map {
          Builder.isPlaceholder(entry.type, at: old, for: $0, at: shown + "/" + entry.name)
        }
        guard isCurrent != true, unsafe lstat(old, &status) == 0, Self.isPlaceholder(status)
        else {
          hosts[entry.name] = nil
          continue
        }
        if unsafe unlink(old) != 0 { unsafe rmdir(old) }
      }
      for (name, type) in hosts {
        Builder.makePlaceholder(here + "/" + name, for: shown + "/" + name, type)
      }
    }
  }

  /// Has one of our own entries come or go while no placeholder does.
  func change(_ body: () -> Void) { changing.withLock { _ in body() } }

  // MARK: Placeholders

  /// Whether a file in the shadow stands for the host's.
  private static func isPlaceholder(_ status: stat) -> Bool {
    guard status.st_mode & S_IFMT == S_IFLNK else { return status.st_mode & 0o777 == 0 }
    return status.st_mtim.tv_sec == 0 && status.st_mtim.tv_nsec == 0
  }

  /// Makes a link one that stands for the host's: links have no permissions to tell it by.
  static func mark(_ link: String) -> Bool {
    let times = [timespec(), timespec()]
    return unsafe utimensat(AT_FDCWD, link, times, AT_SYMLINK_NOFOLLOW) == 0
  }

  /// Makes a shadow.
  private struct Builder {
    private(set) var merged: Set<FileKey> = []
    private(set) var mounts: Set<UInt64> = []
    /// The host's directories of which nothing is shown.
    private(set) var hidden: [String] = []

    func directory(_ path: String, _ mode: UInt32) throws(InterposerError) {
      guard unsafe mkdir(path, mode) == 0 else {
        throw InterposerError("cannot make \(path) (\(System.message(-errno)))")
      }
    }

    /// Fills a directory that exists in the shadow. `host` is the host's of that name, or nil
    /// where it has none.
    mutating func fill(
      _ path: String, host: String?, _ tree: ViewTree
    ) throws(InterposerError) {
      guard case .directory(let children, let isExclusive) = tree else { return }
      if let host, isExclusive {
        hide(host)
      } else if let host, let mount = System.mount(of: host) {
        mounts.insert(mount)
      }
      for (name, child) in children {
        let place = path + "/" + name
        guard case .directory = child else {
          try child.make(at: place, nodes: .any)
          if let host { hide(host + "/" + name) }
          continue
        }
        try directory(place, 0o755)
        try fill(place, host: host.map { $0 + "/" + name }, child)
      }
      // Last: its identity is known by then, and it is not read while it fills.
      guard !isExclusive else { return }
      let made = OwnedDescriptor(System.open(path, System.pathOnly | O_DIRECTORY))
      if let identity = System.identity(made.number) { merged.insert(FileKey(identity)) }
    }

    /// Takes note of what the host has and programs do not see, if it has it: what is mounted on it
    /// or below it, as devices are in some containers, is looked at closely.
    private mutating func hide(_ host: String) {
      guard let mount = System.mount(of: host) else { return }
      mounts.insert(mount)
      hidden.append(host)
    }

    /// An entry that cannot be made is not listed: it is as if it had come after the look.
    static func makePlaceholder(_ path: String, for source: String, _ type: UInt8) {
      switch placeholderType(of: type, source) {
      case UInt8(DT_LNK):
        guard let target = System.readLink(source), unsafe symlink(target, path) == 0 else {
          return
        }
        if !ShadowTree.mark(path) { unsafe unlink(path) }
      case UInt8(DT_DIR): unsafe mkdir(path, 0)
      case UInt8(DT_FIFO): unsafe mknod(path, S_IFIFO, 0)
      case UInt8(DT_SOCK): unsafe mknod(path, S_IFSOCK, 0)
      case UInt8(DT_BLK):
        // Root alone can make one; everybody can make a character device.
        if unsafe mknod(path, S_IFBLK, 0) != 0 { fallthrough }
      case UInt8(DT_CHR):
        if unsafe csys_mknod_character(path, 0, 0, 0) < 0 { fallthrough }
      default:
        let file = unsafe csys_open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0)
        if file >= 0 { close(file) }
      }
    }

    /// Whether what is in the shadow can go on standing for what the host has.
    static func isPlaceholder(
      _ type: UInt8, at path: String, for source: UInt8, at shown: String
    ) -> Bool {
      let wanted = placeholderType(of: source, shown)
      if type == UInt8(DT_LNK), wanted == type {
        return System.readLink(path) == System.readLink(shown)
      }
      // Where no node can be made a file stands for it.
      let isNode = wanted == UInt8(DT_CHR) || wanted == UInt8(DT_BLK)
      return type == wanted || isNode && type == UInt8(DT_REG)
        || wanted == UInt8(DT_BLK) && type == UInt8(DT_CHR)
    }

    /// The type of the host's entry.
    private static func placeholderType(of type: UInt8, _ path: String) -> UInt8 {
      var type = type
      if type == UInt8(DT_UNKNOWN) {
        var status = stat()
        guard unsafe lstat(path, &status) == 0 else { return UInt8(DT_REG) }
        // As the C library's IFTODT.
        type = UInt8((status.st_mode & S_IFMT) >> 12)
      }
      return type
    }
  }
}

extension System {
  /// The mount that a path leads to, as STATX_MNT_ID has it.
  static func mount(of path: String) -> UInt64? {
    var mount: UInt64 = 0
    return unsafe csys_mount_id(AT_FDCWD, path, 0, &mount) == 0 ? mount : nil
  }

  /// The mounts on directories that lie below some others.
  static func mounts(below places: [String]) -> Set<UInt64> {
    guard !places.isEmpty, let text = contents("/proc/self/mountinfo") else { return [] }
    var found: Set<UInt64> = []
    // proc(5): mount number, parent's, device, root, mount point.
    for line in String(decoding: text, as: UTF8.self).split(separator: "\n") {
      let words = line.split(separator: " ", maxSplits: 5)
      guard words.count > 4, let number = UInt64(words[0]) else { continue }
      if places.contains(where: { words[4].hasPrefix($0 + "/") }) { found.insert(number) }
    }
    return found
  }
}
