// SPDX-License-Identifier: Apache-2.0
//
// A view as a tree, and how its files, links and nodes are made in a file system of ours.

import CSyscalls
import LinuxABI

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// A directory of a view with what is in it, or something else that is there.
indirect enum ViewTree {
  case directory([String: ViewTree], exclusive: Bool)
  case file([UInt8], mode: UInt16)
  case link(String)
  case device(DeviceNumber)
  /// What stands for an attribute: opens of it are ours.
  case attribute(mode: UInt16)

  init(_ kind: View.Kind) {
    self =
      switch kind {
      case .directory: .directory([:], exclusive: false)
      case .exclusiveDirectory: .directory([:], exclusive: true)
      case .file(let contents, let mode): .file(contents, mode: mode)
      case .link(let target): .link(target)
      case .attribute(let attribute): .attribute(mode: attribute.mode)
      }
  }

  /// The trees of a view, by name: `dev`, `sys`.
  /// - Throws: Where the view has a path outside of /dev and /sys.
  static func roots(of wire: WireView) throws(InterposerError) -> [String: ViewTree] {
    var root = ViewTree.directory([:], exclusive: false)
    for entry in wire.view.entries {
      root.insert(ViewTree(entry.kind), at: entry.path.split(separator: "/"))
    }
    for node in wire.nodes {
      root.insert(.device(node.number), at: node.path.split(separator: "/"))
    }
    guard case .directory(let children, _) = root else { return [:] }
    for name in children.keys where name != "dev" && name != "sys" {
      throw InterposerError("the machine's view has /\(name): only /dev and /sys can be shown")
    }
    return children
  }

  /// Puts something at a path below this directory.
  mutating func insert(_ tree: ViewTree, at path: some Collection<Substring>) {
    guard let first = path.first, case .directory(var children, let exclusive) = self else {
      return
    }
    let name = String(first)
    if path.count > 1 {
      // A directory of nodes is ours alone, with all below it: what the host has there are real
      // devices.
      var child = children[name] ?? .directory([:], exclusive: exclusive || name == "vfio")
      child.insert(tree, at: path.dropFirst())
      children[name] = child
    } else if case .directory(let old, _)? = children[name], case .directory(_, let only) = tree
    {
      children[name] = .directory(old, exclusive: only)
    } else {
      children[name] = tree
    }
    self = .directory(children, exclusive: exclusive)
  }

  /// What stands for device nodes.
  enum Nodes: Sendable {
    /// Nodes with Linux's numbers, where they can be made: real root.
    case numbered
    /// The one character device that everybody can make since Linux 5.8: 0, 0.
    case null
    /// That, or a file where even that is refused.
    case any
  }

  /// Makes it, with all that is in it. The process's umask is 0.
  func make(at place: String, nodes: Nodes) throws(InterposerError) {
    switch self {
    case .directory(let children, _):
      guard unsafe mkdir(place, 0o755) == 0 else { throw Self.failed(place, -errno) }
      for (name, child) in children { try child.make(at: place + "/" + name, nodes: nodes) }
    case .file(let contents, let mode):
      let file = unsafe csys_open(place, O_WRONLY | O_CREAT | O_CLOEXEC, UInt32(mode & 0o7777))
      guard file >= 0 else { throw Self.failed(place, file) }
      defer { close(file) }
      guard System.writeAll(file, contents) else { throw Self.failed(place, -errno) }
    case .attribute(let mode):
      let file = unsafe csys_open(place, O_WRONLY | O_CREAT | O_CLOEXEC, UInt32(mode & 0o7777))
      guard file >= 0 else { throw Self.failed(place, file) }
      defer { close(file) }
      // As `stat(2)` tells of a file in sysfs.
      guard ftruncate(file, 4096) == 0 else { throw Self.failed(place, -errno) }
    case .link(let target):
      guard unsafe symlink(target, place) == 0 else { throw Self.failed(place, -errno) }
    case .device(let number):
      try Self.makeNode(place, number, nodes)
    }
  }

  /// A node that `stat` takes for the device and that fails loudly where it is opened behind
  /// our back.
  private static func makeNode(
    _ path: String, _ number: DeviceNumber, _ nodes: Nodes
  ) throws(InterposerError) {
    var result = -EPERM
    if case .numbered = nodes {
      result = unsafe csys_mknod_character(path, 0o666, number.major, number.minor)
    }
    if result == -EPERM { result = unsafe csys_mknod_character(path, 0o666, 0, 0) }
    if result < 0, case .any = nodes {
      result = unsafe csys_open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o666)
      if result >= 0 { close(result) }
    }
    guard result >= 0 else {
      throw InterposerError(
        "cannot make the node \(path) (\(System.message(result))): Linux 5.8 or later is needed"
      )
    }
  }

  private static func failed(_ place: String, _ result: Int32) -> InterposerError {
    InterposerError("cannot make \(place) (\(System.message(result)))")
  }
}
