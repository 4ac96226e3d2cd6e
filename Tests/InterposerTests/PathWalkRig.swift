// SPDX-License-Identifier: Apache-2.0
//
// Trees for walks: made up, or real ones in a directory of their own.

import CSyscalls
import Glibc
import SystemPackage

@testable import Interposer

/// A tree of directories, links and files.
indirect enum Tree {
  case directory([String: Tree], exclusive: Bool = false)
  case link(String)
  case file

  var children: [String: Tree] {
    guard case .directory(let children, _) = self else { return [:] }
    return children
  }

  /// What lies at a path without links.
  subscript(path: PathBytes) -> Tree? {
    var place = self
    for name in path.text.split(separator: "/") {
      guard let next = place.children[String(name)] else { return nil }
      place = next
    }
    return place
  }

  /// Whether a path runs through something that is no directory.
  func runsIntoFile(_ path: PathBytes) -> Bool {
    var place = self
    for name in path.text.split(separator: "/") {
      guard case .directory(let children, _) = place else { return true }
      guard let next = children[String(name)] else { return false }
      place = next
    }
    return false
  }

  var entry: WalkedEntry {
    switch self {
    case .directory: .directory
    case .link(let text): .link(PathBytes(text: text))
    case .file: .other
    }
  }

  /// This tree with what a view has over it.
  func merged(with view: Tree) -> Tree {
    guard case .directory(let mine, _) = self, case .directory(let others, let exclusive) = view
    else { return view }
    var all = exclusive ? [:] : mine
    for (name, child) in others {
      all[name] = (exclusive ? nil : mine[name])?.merged(with: child) ?? child
    }
    return .directory(all)
  }

  func make(at place: String) {
    switch self {
    case .directory(let children, _):
      mkdir(place, 0o755)
      for (name, child) in children { child.make(at: place + "/" + name) }
    case .link(let text): symlink(text, place)
    case .file: close(open(place, O_WRONLY | O_CREAT | O_CLOEXEC, 0o644))
    }
  }
}

/// A made-up host. A link in `/proc/7` is magic.
struct TreeHost: WalkedHost {
  var tree: Tree
  var magicLinks: [PathBytes: MagicTarget] = [:]
  var mounts: [String] = []

  func entry(_ path: PathBytes) -> WalkedEntry {
    if path.split(separator: PathBytes.slash).contains(where: { $0.count > 255 }) {
      return .failure(.fileNameTooLong)
    }
    return tree[path]?.entry
      ?? .failure(tree.runsIntoFile(path) ? .notDirectory : .noSuchFileOrDirectory)
  }

  func magic(_ link: PathBytes) -> MagicTarget? { magicLinks[link] }

  func mount(of path: PathBytes) -> UInt64 {
    let text = path.text
    let inside = mounts.enumerated().filter {
      text == $0.element || text.hasPrefix($0.element + "/")
    }
    return UInt64(1 + (inside.max { $0.element.count < $1.element.count }?.offset ?? -1))
  }
}

/// A view: `dev` and `sys` of a tree.
struct TreeView: WalkedView {
  var tree: Tree

  func contains(_ shown: PathBytes) -> Bool {
    guard !shown.isEmpty, case .directory? = tree[shown] else { return false }
    return true
  }

  func isExclusive(_ shown: PathBytes) -> Bool {
    guard case .directory(_, let exclusive)? = tree[shown] else { return false }
    return exclusive
  }

  func entry(_ shown: PathBytes) -> ViewEntry {
    guard let found = tree[shown] else { return .absent }
    let mode: UInt32 =
      switch found {
      case .directory: 0o40755
      case .link: 0o120777
      case .file: 0o100644
      }
    return .ours(found.entry, mode: mode)
  }
}

/// A directory of a test's own, with what is in it.
final class ScratchDirectory {
  let path: String

  init() {
    var template = Array("/tmp/iommu-walk-XXXXXX".utf8CString)
    path = String(cString: mkdtemp(&template)!)
  }

  deinit { Self.delete(path) }

  private static func delete(_ path: String) {
    if unlink(path) == 0 { return }
    for entry in System.entries(path) ?? [] { delete(path + "/" + entry.name) }
    rmdir(path)
  }
}

/// What a path leads to.
enum WalkEnd: Equatable {
  case found(String)
  case failed(Errno)

  init(_ result: Result<WalkResult, WalkError>) {
    switch result {
    case .failure(let error): self = .failed(error.errno)
    case .success(let result):
      if case .absent = result.place {
        self = .failed(.noSuchFileOrDirectory)
      } else {
        self = .found(result.path.shown)
      }
    }
  }

  /// As the kernel has it, from a directory that is the root.
  init(
    kernel root: String, base: String, _ text: PathBytes, follows: Bool, resolve: UInt64
  ) {
    let start = System.open(root + base, System.pathOnly)
    defer { close(start) }
    var found: Int32 = 0
    repeat {
      found = CallerFiles.withTerminator(text) {
        csys_openat2(
          start, $0, UInt64(System.pathOnly | O_CLOEXEC | (follows ? 0 : O_NOFOLLOW)), resolve)
      }
      // A rename anywhere on the machine crossed it.
    } while found == -EAGAIN
    guard found >= 0 else {
      self = .failed(Errno(rawValue: -found))
      return
    }
    defer { close(found) }
    let place = System.readLink("/proc/self/fd/\(found)") ?? ""
    let shown = String(place.dropFirst(root.count))
    self = .found(shown.isEmpty ? "/" : shown)
  }
}
