// SPDX-License-Identifier: Apache-2.0
//
// Changes of the view on their way into the program's /dev and /sys: what comes is made aside, in
// the same file system, and renamed into place; what goes is renamed away and then deleted. So
// nobody sees half of a directory.
//
// A program that is root may do with /dev what it likes. What it took away is passed over, and
// links that it made are not followed.

import CSyscalls
import IOMMU
import LinuxABI
import Synchronization
import SystemPackage

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// The program's /dev and /sys, mounted or in a shadow. Thread-safe.
final class LiveMount: ViewCarrier {
  /// Our file systems' roots, by name: `dev`, `sys`.
  private let roots: [String: OwnedDescriptor]
  let nodes: NodeTable
  /// Whose placeholders of the host's entries come and go too; nil where all is mounted.
  let shadow: ShadowTree?
  private let lastNumber = Atomic<UInt64>(0)

  init(
    _ roots: [String: OwnedDescriptor], _ nodes: NodeTable, shadow: ShadowTree? = nil
  ) {
    self.roots = roots
    self.nodes = nodes
    self.shadow = shadow
  }

  func carry(_ change: View.Change) throws(IOMMUError) {
    var additions: [Addition] = []
    for node in change.addedNodes {
      try plan(node.path, .device(node.number), change, &additions)
    }
    for entry in change.added {
      try plan(entry.path, ViewTree(entry.kind), change, &additions)
    }
    defer { for addition in additions { delete(addition.staged) } }
    for addition in additions {
      do throws(InterposerError) {
        let nodes: ViewTree.Nodes =
          shadow != nil ? .any : geteuid() == 0 ? .numbered : .null
        try addition.tree.make(at: addition.staged, nodes: nodes)
      } catch {
        throw IOMMUError(.noSpace, "\(addition.place.path): \(error.description)")
      }
    }
    // An open finds out what a file stands for as soon as it is there.
    let replaced = Set(change.addedNodes.map(\.path) + change.added.map(\.path))
    let old = nodes.keys { change.removes($0) || replaced.contains($0) }
    try register(change, additions)
    alone {
      for path in change.removed {
        guard !additions.contains(where: { $0.replaces(path) }), let place = place(path) else {
          continue
        }
        takeAway(place)
      }
      nodes.remove(old)
      for addition in additions { show(addition) }
    }
  }

  /// Renames while nobody else does.
  private func alone(_ body: () -> Void) {
    guard let shadow else { return body() }
    shadow.change(body)
  }

  // MARK: What comes

  /// Something that is made aside, and where it will be.
  private struct Addition {
    let place: Place
    var tree: ViewTree
    let staged: String

    /// Where a path that is part of it is while it is aside; nil where it is not.
    func staged(_ path: String) -> String? {
      guard path != place.path else { return staged }
      return path.hasPrefix(place.path + "/") ? staged + path.dropFirst(place.path.count) : nil
    }

    /// Whether it takes the place of something in one step.
    func replaces(_ path: String) -> Bool {
      guard path == place.path else { return false }
      if case .directory = tree { return false }
      return true
    }
  }

  /// Adds an entry to what is to be made: to the tree that it is in, or as the root of another
  /// one, with the parents that are missing.
  private func plan(
    _ path: String, _ tree: ViewTree, _ change: View.Change, _ additions: inout [Addition]
  ) throws(IOMMUError) {
    guard let place = place(path) else {
      throw IOMMUError(.invalidArgument, "\(path) is not in /dev or /sys")
    }
    if let index = additions.firstIndex(where: { $0.staged(path) != nil }) {
      let rest = place.components.dropFirst(additions[index].place.components.count)
      if !rest.isEmpty {
        additions[index].tree.insert(tree, at: rest)
      } else if additions[index].replaces(path) {
        additions[index].tree = tree
      }
      return
    }
    if case .directory = tree, exists(place, change) { return }
    var top = place
    while top.components.count > 1, !exists(top.parent, change) { top = top.parent }
    guard !isHosts(top.parent) else {
      throw IOMMUError(
        .ioError,
        "\(top.parent.path) is the host's own: the view must have it from the start where "
          + "something in it, such as \(path), can come later")
    }
    var addition = Addition(
      place: top, tree: .directory([:], exclusive: true), staged: stagingName(place.root))
    let rest = place.components.dropFirst(top.components.count)
    if rest.isEmpty {
      addition.tree = tree
    } else {
      addition.tree.insert(tree, at: rest)
    }
    additions.append(addition)
  }

  private func register(
    _ change: View.Change, _ additions: [Addition]
  ) throws(IOMMUError) {
    var places = change.addedNodes.map { NodeTable.Place.node($0) }
    for entry in change.added {
      switch entry.kind {
      case .attribute(let attribute):
        places.append(.attribute(AttributePlace(entry.path, attribute)))
      case .link where entry.path.hasPrefix("/dev/"): nodes.addName(entry.path)
      default: break
      }
    }
    for place in places {
      guard let staged = additions.compactMap({ $0.staged(place.path) }).first else { continue }
      let file = OwnedDescriptor(System.open(staged, System.pathOnly | O_NOFOLLOW))
      guard file.number >= 0, nodes.add(place, at: file.number) else {
        throw IOMMUError(.ioError, "the new \(place.path) cannot be looked at")
      }
    }
  }

  /// Renames what was made aside into its place, over what is there.
  private func show(_ addition: Addition) {
    for _ in 0..<2 {
      let parent = addition.place.openParent()
      guard parent >= 0 else { return }
      defer { close(parent) }
      if unsafe renameat(AT_FDCWD, addition.staged, parent, addition.place.name) == 0 { return }
      // A directory where none shall be, or the other way round.
      takeAway(addition.place)
    }
  }

  // MARK: What goes

  private func takeAway(_ place: Place) {
    let parent = place.openParent()
    guard parent >= 0 else { return }
    defer { close(parent) }
    let staged = stagingName(place.root)
    if unsafe renameat(parent, place.name, AT_FDCWD, staged) == 0 { delete(staged) }
  }

  /// Deletes what is aside, if it is there.
  private func delete(_ staged: String) {
    if unsafe unlink(staged) == 0 || errno == ENOENT { return }
    for entry in System.entries(staged) ?? [] { delete(staged + "/" + entry.name) }
    unsafe rmdir(staged)
  }

  // MARK: Places

  /// A place in one of our file systems.
  private struct Place {
    let path: String
    let root: OwnedDescriptor
    /// Below the root.
    let components: ArraySlice<Substring>

    var name: String { String(components.last ?? "") }

    var parent: Place {
      Place(
        path: String(path[..<(path.lastIndex(of: "/") ?? path.startIndex)]), root: root,
        components: components.dropLast())
    }

    /// The directory that it is in; a negative errno where that cannot be had.
    func openParent() -> Int32 { parent.open() }

    func open() -> Int32 {
      let path = ([Substring(MountView.shown)] + components).joined(separator: "/")
      // RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS.
      return unsafe csys_openat2(
        root.number, path, UInt64(System.pathOnly | O_NOFOLLOW | O_CLOEXEC), 0x8 | 0x4)
    }
  }

  private func place(_ path: String) -> Place? {
    let parts = path.split(separator: "/")
    guard let first = parts.first, let root = roots[String(first)] else { return nil }
    return Place(
      path: "/" + parts.joined(separator: "/"), root: root, components: parts.dropFirst())
  }

  /// Whether something will be at a place once what goes has gone.
  private func exists(_ place: Place, _ change: View.Change) -> Bool {
    mode(place) != nil && !change.removes(place.path)
  }

  /// Whether what programs see there is the host's: it is bound over a file without permissions.
  private func isHosts(_ place: Place) -> Bool {
    mode(place).map { $0 & 0o777 == 0 } ?? false
  }

  private func mode(_ place: Place) -> UInt32? {
    let parent = place.openParent()
    defer { if parent >= 0 { close(parent) } }
    var status = stat()
    if parent >= 0 {
      if place.components.isEmpty { return System.identity(parent)?.mode }
      if unsafe fstatat(parent, place.name, &status, AT_SYMLINK_NOFOLLOW) == 0 {
        return status.st_mode
      }
    }
    // What is bound in a mount has in a shadow a placeholder or none.
    return shadow?.hostsType(place.path)
  }

  private func stagingName(_ root: OwnedDescriptor) -> String {
    let number = lastNumber.add(1, ordering: .relaxed).newValue
    return "/proc/self/fd/\(root.number)/\(MountView.staging)/\(number)"
  }
}
