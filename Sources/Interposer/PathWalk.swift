// SPDX-License-Identifier: Apache-2.0
//
// Following a path name by name, as the kernel does it (path_resolution(7), openat2(2)), through the
// view's directories and the host's. Knows no system calls.

import SystemPackage

/// One walk. A value, used once.
struct PathWalk<Host: WalkedHost, View: WalkedView> {
  private let host: Host
  private let view: View
  private let rules: WalkRules
  /// The caller's root directory; where the walk is confined, the directory that it is confined to.
  private var root: WalkPosition
  private var position: WalkPosition
  private var links = 0
  private var usedView = false
  /// Where the walk began, for one that crosses no mounts.
  private var mount: UInt64?

  /// As Linux's.
  private static var mostLinks: Int { 40 }
  private static var longestPath: Int { 4096 }
  private static var longestName: Int { 255 }

  /// - Parameters:
  ///   - root: The caller's root directory.
  init(host: Host, view: View, root: WalkPosition, rules: WalkRules) {
    self.host = host
    self.view = view
    self.rules = rules
    self.root = root
    position = root
  }

  /// - Parameters:
  ///   - text: As the caller gave it.
  ///   - base: The directory where a relative path begins, and whether the kernel has it in the
  ///     shadow; asked for where it matters.
  mutating func follow(
    _ text: PathBytes, from base: () throws(WalkError) -> (WalkPosition, fromShadow: Bool)
  ) throws(WalkError) -> WalkResult {
    guard !text.isEmpty else { throw failure(.noSuchFileOrDirectory) }
    guard text.count < Self.longestPath else { throw failure(.fileNameTooLong) }
    let isConfined = rules.resolve & (WalkRules.beneath | WalkRules.inRoot) != 0
    if !text.isAbsolute || isConfined {
      if text.isAbsolute, rules.resolve & WalkRules.beneath != 0 {
        throw failure(.improperLink)
      }
      let (start, fromShadow) = try base()
      position = start
      usedView = fromShadow
      if isConfined { root = start }
    }
    if rules.resolve & WalkRules.noCrossing != 0 { mount = host.mount(of: position.path) }
    return try go(along: text)
  }

  private mutating func go(along text: PathBytes) throws(WalkError) -> WalkResult {
    var rest = text[...]
    while true {
      rest = rest.drop { $0 == PathBytes.slash }
      guard !rest.isEmpty else { return end(.directory, hasTrailingSlash: true) }
      let name = rest.prefix { $0 != PathBytes.slash }
      rest = rest.dropFirst(name.count)
      let hasTrailingSlash = !rest.isEmpty && rest.allSatisfy { $0 == PathBytes.slash }
      let isLast = rest.isEmpty || hasTrailingSlash
      if name.elementsEqual([UInt8(ascii: ".")]) {
        if isLast { return end(.directory, hasTrailingSlash: hasTrailingSlash) }
        continue
      }
      if name.elementsEqual([UInt8(ascii: "."), UInt8(ascii: ".")]) {
        try goUp()
        if isLast { return end(.directory, hasTrailingSlash: hasTrailingSlash) }
        continue
      }
      let child = try look(for: name)
      switch child.entry {
      case .directory:
        position = WalkPosition(path: child.path, isInView: child.isInView)
        try checkMount(child.path)
        if isLast {
          return end(.directory, hasTrailingSlash: hasTrailingSlash, mode: child.mode)
        }
      case .link(let target):
        let isMeant =
          rules.wantsName ? isLast : isLast && !hasTrailingSlash && !rules.followsLast
        if isMeant {
          try checkMount(child.path)
          return end(child, hasTrailingSlash: hasTrailingSlash)
        }
        if let result = try follow(target, at: child, rest: &rest) { return result }
      case .other:
        guard isLast, !hasTrailingSlash || rules.wantsName else {
          throw failure(.notDirectory)
        }
        try checkMount(child.path)
        return end(child, hasTrailingSlash: hasTrailingSlash)
      case .failure(let errno):
        guard errno == .noSuchFileOrDirectory, isLast else { throw failure(errno) }
        return WalkResult(
          place: .absent(name: Array(name), in: position), path: child.path,
          usedView: usedView, hasTrailingSlash: hasTrailingSlash)
      }
    }
  }

  /// Goes on where a link leads.
  /// - Parameter rest: What follows its name; gets the link's text before it.
  /// - Returns: What is found, where that ends the walk.
  private mutating func follow(
    _ target: PathBytes, at child: Child, rest: inout ArraySlice<UInt8>
  ) throws(WalkError) -> WalkResult? {
    links += 1
    guard links <= Self.mostLinks, rules.resolve & WalkRules.noLinks == 0 else {
      throw failure(.tooManySymbolicLinkLevels)
    }
    if child.mode == nil, let magic = host.magic(child.path) {
      return try jump(magic, at: child, rest: rest)
    }
    guard !target.isEmpty else { throw failure(.noSuchFileOrDirectory) }
    if target.isAbsolute {
      guard rules.resolve & WalkRules.beneath == 0 else { throw failure(.improperLink) }
      position = root
      try checkMount(root.path)
    }
    rest = (target + rest)[...]
    return nil
  }

  private mutating func jump(
    _ magic: MagicTarget, at child: Child, rest: ArraySlice<UInt8>
  ) throws(WalkError) -> WalkResult? {
    if rules.resolve & WalkRules.noMagicLinks != 0 {
      throw failure(.tooManySymbolicLinkLevels)
    }
    if rules.resolve & (WalkRules.beneath | WalkRules.inRoot) != 0 {
      throw failure(.improperLink)
    }
    guard case .place(let path, let entry, let fromShadow) = magic else {
      return WalkResult(place: .opaque, path: child.path + rest, usedView: usedView)
    }
    usedView = usedView || fromShadow
    guard entry == .directory else {
      guard rest.isEmpty else { throw failure(.notDirectory) }
      try checkMount(path)
      var place = WalkResult.Place.host(entry)
      if fromShadow, case .ours(_, let mode) = view.entry(path) { place = .view(mode: mode) }
      return WalkResult(place: place, path: path, usedView: usedView)
    }
    position = WalkPosition(path: path, isInView: view.contains(path))
    try checkMount(path)
    if rest.isEmpty { return end(.directory, hasTrailingSlash: false) }
    return nil
  }

  private mutating func goUp() throws(WalkError) {
    guard position != root else {
      if rules.resolve & WalkRules.beneath != 0 { throw failure(.improperLink) }
      return
    }
    guard !position.path.isEmpty else { return }
    // The kernel alone would not have come as far.
    if position.isInView, host.entry(position.path) != .directory { usedView = true }
    let path = position.path.parent
    position = WalkPosition(path: path, isInView: view.contains(path))
    try checkMount(path)
  }

  // MARK: Names

  private struct Child {
    let path: PathBytes
    let entry: WalkedEntry
    var isInView = false
    /// Where it is the view's.
    var mode: UInt32?
  }

  /// What a name in the directory stands for where the walk is.
  private mutating func look(for name: ArraySlice<UInt8>) throws(WalkError) -> Child {
    let path = position.path.appending(name)
    guard position.isInView else {
      // A directory of the view is in another, or is /dev or /sys.
      if position.path.isEmpty, view.contains(path) {
        return Child(path: path, entry: .directory, isInView: true)
      }
      return Child(path: path, entry: host.entry(path))
    }
    guard name.count <= Self.longestName else { throw failure(.fileNameTooLong) }
    switch view.entry(path) {
    case .ours(.directory, let mode):
      return Child(path: path, entry: .directory, isInView: true, mode: mode)
    case .ours(let entry, let mode):
      usedView = true
      return Child(path: path, entry: entry, mode: mode)
    case .absent where view.isExclusive(position.path):
      usedView = true
      return Child(path: path, entry: .failure(.noSuchFileOrDirectory))
    case .hosts, .absent:
      let entry = host.entry(path)
      // The host has no such directory, or no directory there.
      if entry == .failure(.notDirectory) {
        return Child(path: path, entry: .failure(.noSuchFileOrDirectory))
      }
      return Child(path: path, entry: entry)
    }
  }

  // MARK: The end

  private func end(
    _ entry: WalkedEntry, hasTrailingSlash: Bool, mode: UInt32? = nil
  ) -> WalkResult {
    // Where it came from above, its mode is not known.
    let place: WalkResult.Place =
      position.isInView ? .view(mode: mode ?? Self.directoryMode) : .host(entry)
    return WalkResult(
      place: place, path: position.path, usedView: usedView, hasTrailingSlash: hasTrailingSlash)
  }

  private func end(_ child: Child, hasTrailingSlash: Bool) -> WalkResult {
    WalkResult(
      place: child.mode.map { .view(mode: $0) } ?? .host(child.entry), path: child.path,
      usedView: usedView, hasTrailingSlash: hasTrailingSlash)
  }

  /// `S_IFDIR` and what all directories of a view have.
  private static var directoryMode: UInt32 { 0o40755 }

  /// - Throws: `EXDEV` where the walk has come into another mount and may not.
  private func checkMount(_ path: PathBytes) throws(WalkError) {
    guard let mount, host.mount(of: path) != mount else { return }
    throw failure(.improperLink)
  }

  private func failure(_ errno: Errno) -> WalkError {
    WalkError(errno: errno, usedView: usedView)
  }
}
