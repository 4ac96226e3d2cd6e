// SPDX-License-Identifier: Apache-2.0
//
// What the program sees under /dev and /sys: a new tmpfs over each, ours and the host's entries
// merged, the host's bound into place. Runs in the program's own mount namespace.

import CSyscalls
import LinuxABI

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// A view that is being mounted.
struct MountView {
  private indirect enum Tree {
    case directory([String: Tree], exclusive: Bool)
    case file([UInt8], mode: UInt16)
    case link(String)
    case device(DeviceNumber)
  }

  private let mode: Namespaces.Mode
  private var roots: [String: Tree] = [:]

  /// - Throws: Where the view has a path outside of /dev and /sys.
  init(_ wire: WireView, mode: Namespaces.Mode) throws(InterposerError) {
    self.mode = mode
    var root = Tree.directory([:], exclusive: false)
    for entry in wire.view.entries {
      let tree: Tree =
        switch entry.kind {
        case .directory: .directory([:], exclusive: false)
        case .exclusiveDirectory: .directory([:], exclusive: true)
        case .file(let contents, let mode): .file(contents, mode: mode)
        case .link(let target): .link(target)
        }
      Self.insert(tree, at: entry.path.split(separator: "/")[...], in: &root)
    }
    for node in wire.nodes {
      Self.insert(.device(node.number), at: node.path.split(separator: "/")[...], in: &root)
    }
    guard case .directory(let children, _) = root else { return }
    for name in children.keys where name != "dev" && name != "sys" {
      throw InterposerError("the machine's view has /\(name): only /dev and /sys can be shown")
    }
    roots = children
  }

  private static func insert(
    _ tree: Tree, at path: ArraySlice<Substring>, in parent: inout Tree
  ) {
    guard let first = path.first, case .directory(var children, let exclusive) = parent else {
      return
    }
    let name = String(first)
    if path.count > 1 {
      // A directory of nodes is ours alone: what the host has in it are real devices.
      var child = children[name] ?? .directory([:], exclusive: name == "vfio")
      insert(tree, at: path.dropFirst(), in: &child)
      children[name] = child
    } else if case .directory(let old, _)? = children[name], case .directory(_, let only) = tree
    {
      children[name] = .directory(old, exclusive: only)
    } else {
      children[name] = tree
    }
    parent = .directory(children, exclusive: exclusive)
  }

  /// Mounts all of it.
  func build() throws(InterposerError) {
    for (name, tree) in roots { try mountRoot("/" + name, tree) }
  }

  private func mountRoot(_ path: String, _ tree: Tree) throws(InterposerError) {
    let host = System.open(path, System.pathOnly | O_DIRECTORY)
    guard host >= 0 else {
      throw InterposerError("cannot open \(path) (\(System.message(host)))")
    }
    defer { close(host) }
    let isDev = path == "/dev"
    var flags = UInt(MS_NOSUID | MS_NOEXEC)
    if !isDev { flags |= UInt(MS_NODEV) }
    let result = unsafe csys_mount("iommu", path, "tmpfs", flags, "mode=755,size=64m")
    guard result == 0 else {
      throw InterposerError(
        "cannot mount a \(path) of the program's own (\(System.message(result))): the container "
          + "forbids mounts in user namespaces; allow them or run with CAP_SYS_ADMIN")
    }
    umask(0)
    try fill(path, host: "/proc/self/fd/\(host)", tree)
    umask(oldMask)
    if !isDev, !Self.hasWritableFile(tree) {
      _ = unsafe csys_mount(
        nil, path, nil, flags | UInt(MS_REMOUNT | MS_BIND | MS_RDONLY), nil)
    }
  }

  private let oldMask: mode_t = {
    let mask = umask(0)
    umask(mask)
    return mask
  }()

  private static func hasWritableFile(_ tree: Tree) -> Bool {
    switch tree {
    case .directory(let children, _): children.values.contains { hasWritableFile($0) }
    case .file(_, let mode): mode & 0o222 != 0
    default: false
    }
  }

  /// Fills a directory that exists in our tmpfs. `host` is the same directory of the host, or
  /// nil where it has none.
  private func fill(_ path: String, host: String?, _ tree: Tree) throws(InterposerError) {
    guard case .directory(let children, let exclusive) = tree else { return }
    if let host, !exclusive {
      for entry in System.entries(host) ?? [] where children[entry.name] == nil {
        bind(host + "/" + entry.name, to: path + "/" + entry.name, type: entry.type)
      }
    }
    for (name, child) in children {
      let place = path + "/" + name
      switch child {
      case .directory:
        unsafe mkdir(place, 0o755)
        try fill(place, host: host.map { $0 + "/" + name }, child)
      case .file(let contents, let mode):
        let file = unsafe csys_open(
          place, O_WRONLY | O_CREAT | O_CLOEXEC, UInt32(mode & 0o7777))
        guard file >= 0 else {
          throw InterposerError("cannot make \(place) (\(System.message(file)))")
        }
        System.writeAll(file, contents)
        close(file)
      case .link(let target): unsafe symlink(target, place)
      case .device(let number): try makeNode(place, number)
      }
    }
  }

  /// A node that `stat` takes for the device and that fails loudly where it is opened behind
  /// our back: as real root with Linux's numbers, else the one character device that a user
  /// namespace allows (0, 0).
  private func makeNode(_ path: String, _ number: DeviceNumber) throws(InterposerError) {
    let real = mode == .privileged
    var result = unsafe csys_mknod_character(
      path, 0o666, real ? number.major : 0, real ? number.minor : 0)
    if result == -EPERM { result = unsafe csys_mknod_character(path, 0o666, 0, 0) }
    guard result == 0 else {
      throw InterposerError(
        "cannot make the node \(path) (\(System.message(result))): Linux 5.8 or later is needed"
      )
    }
  }

  /// Shows an entry of the host. One that cannot be bound is left out: it is as if it had gone
  /// between two looks.
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
    case UInt8(DT_DIR): unsafe mkdir(target, 0o755)
    default:
      let file = unsafe csys_open(target, O_WRONLY | O_CREAT | O_CLOEXEC, 0o644)
      if file >= 0 { close(file) }
    }
    // Recursive: what is mounted below is locked to it in a user namespace.
    _ = unsafe csys_mount(source, target, nil, UInt(MS_BIND | MS_REC), nil)
  }
}
