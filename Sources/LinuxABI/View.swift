// SPDX-License-Identifier: Apache-2.0
//
// What a program shall see in the file system beside the device nodes: the machine's part of
// /sys. The carrier of system calls shows it.

/// Files, directories and links under absolute paths, in an order in which parents come first.
public struct View: Sendable {
  public var entries: [Entry]

  public init(entries: [Entry] = []) { self.entries = entries }

  public struct Entry: Sendable {
    /// Absolute, without `..` or a trailing slash: `/sys/bus/pci/devices`.
    public var path: String
    public var kind: Kind

    public init(_ path: String, _ kind: Kind) {
      self.path = path
      self.kind = kind
    }
  }

  public enum Kind: Sendable {
    /// A directory. Where the host has one too, the host's other entries stay visible.
    case directory
    /// A directory whose host entries are hidden.
    case exclusiveDirectory
    /// A file with fixed contents. Nobody can write it, root neither: `mode` is what `stat(2)`
    /// shows.
    case file(contents: [UInt8], mode: UInt16)
    /// A symbolic link, with its target as written.
    case link(target: String)
    /// A file that shows what is so when it is read, and takes what is written as a command.
    case attribute(any Attribute)
  }
}

extension View {
  /// The place that a path means: every link on the way is followed.
  /// - Parameter path: Absolute.
  /// - Returns: A path without links; nil where nothing is there. In nanoseconds times the
  ///   entries: for tests and tools, not for hot paths.
  public func place(of path: String) -> String? {
    var kinds: [String: Kind] = [:]
    for entry in entries { kinds[entry.path] = entry.kind }
    var left = Array(path.split(separator: "/").reversed())
    var place: [Substring] = []
    var links = 0
    while let name = left.popLast() {
      if name == "." { continue }
      if name == ".." {
        _ = place.popLast()
        continue
      }
      let here = "/" + (place + [name]).joined(separator: "/")
      guard case .link(let target)? = kinds[here] else {
        guard kinds[here] != nil || !left.isEmpty else { return nil }
        place.append(name)
        continue
      }
      links += 1
      // As Linux: `ELOOP`.
      guard links <= 40 else { return nil }
      if target.hasPrefix("/") { place = [] }
      left += target.split(separator: "/").reversed()
    }
    return "/" + place.joined(separator: "/")
  }

  /// What a path means; every link on the way is followed.
  public subscript(path: String) -> Kind? {
    guard let place = place(of: path) else { return nil }
    return entries.last { $0.path == place }?.kind
  }

  /// The attribute that a path means; nil where there is none.
  public func attribute(at path: String) -> (any Attribute)? {
    guard case .attribute(let attribute)? = self[path] else { return nil }
    return attribute
  }
}
