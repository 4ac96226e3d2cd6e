// SPDX-License-Identifier: Apache-2.0
//
// Walks against the kernel (MODEL J1): random trees with links, random paths. Without a view a walk
// finds what the kernel finds; with one, what it finds where the same trees lie in one directory.

import Glibc
import SystemPackage
import Testing

@testable import Interposer

@Suite("Following random paths")
struct PathWalkRandomTests {
  /// Reproducible: a failure says its seed.
  private struct Random: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return (state ^ state >> 29) &* 0xBF58_476D_1CE4_E5B9
    }
  }

  /// The host's files in a directory that stands for the root.
  private struct DirectoryHost: WalkedHost {
    let root: String

    func entry(_ path: PathBytes) -> WalkedEntry {
      let place = PathBytes(text: root) + path
      var status = stat()
      let result = CallerFiles.withTerminator(place) { lstat($0, &status) == 0 ? 0 : errno }
      guard result == 0 else { return .failure(Errno(rawValue: result)) }
      switch status.st_mode & S_IFMT {
      case S_IFDIR: return .directory
      case S_IFLNK: return .link(CallerFiles.link(place) ?? [])
      default: return .other
      }
    }

    func magic(_ link: PathBytes) -> MagicTarget? { nil }
    func mount(of path: PathBytes) -> UInt64 { 1 }
  }

  private static let names = ["a", "b", "c", "dev", "sys"]

  private func text(_ random: inout Random, absolute: Bool) -> String {
    var text = absolute ? "/" : ""
    let count = Int.random(in: 1...5, using: &random)
    for index in 0..<count {
      switch Int.random(in: 0..<10, using: &random) {
      case 0: text += "."
      case 1, 2: text += ".."
      case 3 where absolute && index == 0: text += "dev"
      default: text += Self.names.randomElement(using: &random) ?? "a"
      }
      if index + 1 < count { text += Int.random(in: 0..<8, using: &random) == 0 ? "//" : "/" }
    }
    if Int.random(in: 0..<6, using: &random) == 0 { text += "/" }
    return text
  }

  private func tree(
    _ random: inout Random, depth: Int, exclusive: Bool? = nil
  ) -> Tree {
    var children: [String: Tree] = [:]
    for name in Self.names where Int.random(in: 0..<3, using: &random) > 0 {
      let kind = Int.random(in: 0..<10, using: &random)
      if depth > 0, kind < 5 {
        // What lies in an exclusive directory is exclusive.
        let isExclusive = exclusive.map { $0 || Int.random(in: 0..<4, using: &random) == 0 }
        children[name] = tree(&random, depth: depth - 1, exclusive: isExclusive)
      } else if kind < 8 {
        children[name] = .link(text(&random, absolute: Bool.random(using: &random)))
      } else {
        children[name] = .file
      }
    }
    return .directory(children, exclusive: exclusive ?? false)
  }

  /// A view has a directory where the host has one or nothing.
  private func fit(_ host: Tree, to view: Tree) -> Tree {
    guard case .directory(var mine, _) = host, case .directory(let others, _) = view else {
      return host
    }
    for (name, other) in others {
      guard case .directory = other, let old = mine[name] else { continue }
      if case .directory = old { mine[name] = fit(old, to: other) } else { mine[name] = nil }
    }
    return .directory(mine)
  }

  private func directories(_ tree: Tree, at path: String = "") -> [String] {
    guard case .directory(let children, _) = tree else { return [] }
    return [path]
      + children.keys.sorted().flatMap { directories(children[$0]!, at: path + "/" + $0) }
  }

  private func compare(
    host: Tree, view: Tree, _ random: inout Random, count: Int, seed: UInt64
  ) {
    let scratch = ScratchDirectory()
    let (hostRoot, mergedRoot) = (scratch.path + "/host", scratch.path + "/merged")
    host.make(at: hostRoot)
    let merged = host.merged(with: view)
    merged.make(at: mergedRoot)
    let places = directories(merged)
    let treeView = TreeView(tree: view)
    for _ in 0..<count {
      let base =
        Int.random(in: 0..<3, using: &random) == 0 ? places.randomElement(using: &random)! : ""
      let path = text(&random, absolute: Bool.random(using: &random))
      var rules = WalkRules(followsLast: Bool.random(using: &random))
      let scope = Int.random(in: 0..<6, using: &random)
      rules.resolve = scope == 0 ? WalkRules.beneath : scope == 1 ? WalkRules.inRoot : 0
      if Int.random(in: 0..<6, using: &random) == 0 { rules.resolve |= WalkRules.noLinks }
      let start = WalkPosition(
        path: PathBytes(text: base), isInView: treeView.contains(PathBytes(text: base)))
      let fromShadow = treeView.contains(start.path)
      var walk = PathWalk(
        host: DirectoryHost(root: hostRoot), view: treeView,
        root: WalkPosition(path: [], isInView: false), rules: rules)
      let result = Result { () throws(WalkError) in
        try walk.follow(PathBytes(text: path)) { () throws(WalkError) in (start, fromShadow) }
      }
      // The kernel is confined to the tree; an absolute path then begins where that does.
      let isScoped = rules.resolve & (WalkRules.beneath | WalkRules.inRoot) != 0
      let (kernelBase, kernelPath, resolve) =
        isScoped
        ? (base, path, rules.resolve)
        : ("", path.hasPrefix("/") ? path : base + "/" + path, rules.resolve | WalkRules.inRoot)
      func kernel(_ root: String) -> WalkEnd {
        WalkEnd(
          kernel: root, base: kernelBase, PathBytes(text: kernelPath),
          follows: rules.followsLast, resolve: resolve)
      }
      var expected = kernel(mergedRoot)
      if isScoped, case .found(let place) = expected { expected = .found(place) }
      #expect(
        WalkEnd(result) == expected,
        "\(path) from \(base), \(rules), seed \(seed)")
      // What goes on to the kernel as it is.
      let isKernels =
        switch result {
        case .failure(let error): !error.usedView
        case .success(let result):
          if case .view = result.place { false } else { !result.usedView }
        }
      if isKernels {
        #expect(kernel(hostRoot) == expected, "\(path) from \(base) goes on, seed \(seed)")
      }
    }
  }

  @Test(
    "J1: without a view a walk ends where the kernel ends",
    arguments: 1...20 as ClosedRange<UInt64>)
  func kernel(_ seed: UInt64) {
    var random = Random(state: seed)
    let host = tree(&random, depth: 3)
    compare(host: host, view: .directory([:]), &random, count: 400, seed: seed)
  }

  @Test(
    "J1: with a view a walk ends where the kernel ends in the two trees merged, and what goes on unchanged does too",
    arguments: 100...140 as ClosedRange<UInt64>)
  func merged(_ seed: UInt64) {
    var random = Random(state: seed)
    let view = Tree.directory([
      "dev": tree(&random, depth: 2, exclusive: false),
      "sys": tree(&random, depth: 2, exclusive: false),
    ])
    let host = fit(tree(&random, depth: 3), to: view)
    compare(host: host, view: view, &random, count: 400, seed: seed)
  }
}
