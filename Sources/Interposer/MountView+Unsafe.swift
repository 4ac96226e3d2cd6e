// SPDX-License-Identifier: Apache-2.0
//
// What the program sees under /dev and /sys: a new tmpfs over each, ours and the host's entries
// merged, the host's bound into place. Runs in the program's own mount namespace.
//
// The program sees one directory of that file system, `view`, which is bound over its root. The
// supervisor has a descriptor of the root, where it makes what comes later aside, in `staging`,
// and renames it into place: a rename does not leave its mount. In a copy of the mount namespace
// that a child makes it is the same file system, and changes are seen there too. The mount that the
// program sees is read-only, where nobody but root could write a real one.

import CSyscalls
import LinuxABI

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// A view that is being mounted.
struct MountView {
  /// The directories of each file system of ours: what the program sees, and the other.
  static let shown = "view"
  static let staging = "staging"

  /// Whether programs cannot make, write, move or remove anything in one of our file systems. In
  /// /sys nobody can, as in a real one; in /dev root can.
  static func isReadOnly(_ name: String) -> Bool { name == "sys" || geteuid() != 0 }

  private let mode: Namespaces.Mode
  private let roots: [String: ViewTree]

  /// - Throws: Where the view has a path outside of /dev and /sys.
  init(_ wire: WireView, mode: Namespaces.Mode) throws(InterposerError) {
    self.mode = mode
    roots = try ViewTree.roots(of: wire)
  }

  /// Mounts all of it.
  /// - Returns: The roots of our file systems, by name: `dev`, `sys`.
  func build() throws(InterposerError) -> [String: OwnedDescriptor] {
    var made: [String: OwnedDescriptor] = [:]
    for (name, tree) in roots { made[name] = try mountRoot("/" + name, tree) }
    return made
  }

  private func mountRoot(
    _ path: String, _ tree: ViewTree
  ) throws(InterposerError) -> OwnedDescriptor {
    let host = System.open(path, System.pathOnly | O_DIRECTORY)
    guard host >= 0 else {
      throw InterposerError("cannot open \(path) (\(System.message(host)))")
    }
    defer { close(host) }
    let isDev = path == "/dev"
    var flags = UInt(MS_NOSUID | MS_NOEXEC)
    if !isDev { flags |= UInt(MS_NODEV) }
    try Namespaces.mount(path, flags: flags)
    umask(0)
    let root = try show(path)
    try fill(path, host: "/proc/self/fd/\(host)", tree)
    umask(oldMask)
    if Self.isReadOnly(isDev ? "dev" : "sys") { try protect(path, flags) }
    return root
  }

  /// Makes what the program sees read-only. The root, which the supervisor has, is another mount;
  /// so are the host's entries.
  private func protect(_ path: String, _ flags: UInt) throws(InterposerError) {
    let result = unsafe csys_mount(
      nil, path, nil, flags | UInt(MS_REMOUNT | MS_BIND | MS_RDONLY), nil)
    guard result == 0 else {
      throw InterposerError("cannot make \(path) read-only (\(System.message(result)))")
    }
  }

  /// Binds the directory that the program shall see over the root.
  private func show(_ path: String) throws(InterposerError) -> OwnedDescriptor {
    let root = System.open(path, System.pathOnly | O_DIRECTORY)
    guard root >= 0 else {
      throw InterposerError("cannot open the new \(path) (\(System.message(root)))")
    }
    let owned = OwnedDescriptor(root)
    let shown = path + "/" + Self.shown
    unsafe mkdir(shown, 0o755)
    unsafe mkdir(path + "/" + Self.staging, 0o700)
    let result = unsafe csys_mount(shown, path, nil, UInt(MS_BIND), nil)
    guard result == 0 else {
      throw InterposerError("cannot bind the new \(path) (\(System.message(result)))")
    }
    return owned
  }

  private let oldMask: mode_t = {
    let mask = umask(0)
    umask(mask)
    return mask
  }()

  /// Fills a directory that exists in our tmpfs. `host` is the same directory of the host, or
  /// nil where it has none.
  private func fill(
    _ path: String, host: String?, _ tree: ViewTree
  ) throws(InterposerError) {
    guard case .directory(let children, let exclusive) = tree else { return }
    if let host, !exclusive {
      for entry in System.entries(host) ?? [] where children[entry.name] == nil {
        bind(host + "/" + entry.name, to: path + "/" + entry.name, type: entry.type)
      }
    }
    for (name, child) in children {
      let place = path + "/" + name
      guard case .directory = child else {
        try child.make(at: place, nodes: mode == .privileged ? .numbered : .null)
        continue
      }
      unsafe mkdir(place, 0o755)
      try fill(place, host: host.map { $0 + "/" + name }, child)
    }
  }

  /// Shows an entry of the host. One that cannot be bound is empty: it is as if it had gone
  /// between two looks. What is bound over has no permissions: `LiveMount` knows it by that.
  private func bind(_ source: String, to target: String, type: UInt8) {
    var type = type
    if type == UInt8(DT_UNKNOWN) {
      var status = stat()
      guard unsafe lstat(source, &status) == 0 else { return }
      switch status.st_mode & S_IFMT {
      case S_IFLNK: type = UInt8(DT_LNK)
      case S_IFDIR: type = UInt8(DT_DIR)
      default: type = UInt8(DT_REG)
      }
    }
    switch type {
    case UInt8(DT_LNK):
      if let link = System.readLink(source) { unsafe symlink(link, target) }
      return
    case UInt8(DT_DIR): unsafe mkdir(target, 0)
    default:
      let file = unsafe csys_open(target, O_WRONLY | O_CREAT | O_CLOEXEC, 0)
      if file >= 0 { close(file) }
    }
    // Recursive: what is mounted below is locked to it in a user namespace.
    guard unsafe csys_mount(source, target, nil, UInt(MS_BIND | MS_REC), nil) == 0 else {
      unsafe chmod(target, type == UInt8(DT_DIR) ? 0o755 : 0o644)
      return
    }
  }
}
