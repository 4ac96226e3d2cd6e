// SPDX-License-Identifier: Apache-2.0
//
// What a walk along a path goes by and what it finds: the host's files, the view's, and places in
// them. Paths are bytes, as the kernel takes them.

import SystemPackage

/// A path as the kernel has it: bytes without a terminator.
typealias PathBytes = [UInt8]

/// What the host has at a path, or the view. A link is not followed.
enum WalkedEntry: Equatable {
  case directory
  case link(PathBytes)
  case other
  case failure(Errno)
}

/// Where a link of procfs leads that has no text to follow.
enum MagicTarget: Equatable {
  /// - fromShadow: Whether the link leads to a directory of ours, as the kernel has it.
  case place(PathBytes, WalkedEntry, fromShadow: Bool)
  /// Only the kernel knows: it is deleted, of another namespace, or has no path.
  case opaque
}

/// The host's files, as the caller of a walk sees them. Paths are absolute, the root is empty; the
/// directories on their way are no links.
protocol WalkedHost {
  func entry(_ path: PathBytes) -> WalkedEntry
  /// Where a link leads; nil for an ordinary one.
  func magic(_ link: PathBytes) -> MagicTarget?
  /// In which mount it lies. All of a merged file system is one.
  func mount(of path: PathBytes) -> UInt64
}

/// What a name in a directory of the view stands for.
enum ViewEntry: Equatable {
  /// - mode: With the type.
  case ours(WalkedEntry, mode: UInt32)
  case hosts
  case absent
}

/// The view's files, by shown path.
protocol WalkedView {
  /// Whether a directory is the view's, so that names in it are looked up there.
  func contains(_ shown: PathBytes) -> Bool
  /// Whether the view hides what the host has in one of its directories.
  func isExclusive(_ shown: PathBytes) -> Bool
  /// What a name in a directory of the view stands for.
  func entry(_ shown: PathBytes) -> ViewEntry
}

/// Where a walk is: a directory.
struct WalkPosition: Equatable {
  /// As programs say it: absolute, without links, the root empty.
  var path: PathBytes
  var isInView: Bool
}

/// What a path leads to.
struct WalkResult: Equatable {
  enum Place: Equatable {
    /// The view's: file, directory or link.
    case view(mode: UInt32)
    /// The host's.
    case host(WalkedEntry)
    /// Nothing of that name in a directory that is there.
    case absent(name: PathBytes, in: WalkPosition)
    /// Whatever the kernel finds there.
    case opaque
  }

  let place: Place
  /// Without links on its way, but for an opaque place.
  let path: PathBytes
  /// Whether the kernel alone would have come to another end.
  let usedView: Bool
  /// Whether slashes follow the last name.
  var hasTrailingSlash = false
}

/// Why a path leads nowhere.
struct WalkError: Error, Equatable {
  let errno: Errno
  /// As a result's.
  let usedView: Bool
}

/// How a path is to be followed.
struct WalkRules: Equatable {
  /// Whether a link at its end is followed.
  var followsLast = true
  /// Whether the last name itself is meant, as `unlink` and `mkdir` mean it: a slash after it changes
  /// nothing.
  var wantsName = false
  /// As `openat2(2)` has it.
  var resolve: UInt64 = 0

  static let noCrossing: UInt64 = 0x01
  static let noMagicLinks: UInt64 = 0x02
  static let noLinks: UInt64 = 0x04
  static let beneath: UInt64 = 0x08
  static let inRoot: UInt64 = 0x10
}

extension PathBytes {
  static let slash = UInt8(ascii: "/")

  init(text: some StringProtocol) { self = Array(text.utf8) }

  /// For who shows it, or looks it up by name.
  var text: String { String(decoding: self, as: UTF8.self) }

  /// As programs write it: the root is a slash.
  var shown: String { isEmpty ? "/" : text }

  func appending(_ name: some Collection<UInt8>) -> PathBytes { self + [Self.slash] + name }

  /// The directory that it lies in.
  var parent: PathBytes {
    guard let slash = lastIndex(of: Self.slash) else { return [] }
    return Array(self[..<slash])
  }

  /// The first name: `dev`, `sys`.
  var top: String {
    String(decoding: drop { $0 == Self.slash }.prefix { $0 != Self.slash }, as: UTF8.self)
  }

  /// Whether it is a directory or lies below it; neither has a slash at its end.
  func lies(in directory: PathBytes) -> Bool {
    starts(with: directory) && (count == directory.count || self[directory.count] == Self.slash)
  }

  var isAbsolute: Bool { first == Self.slash }
}
