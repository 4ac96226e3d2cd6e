// SPDX-License-Identifier: Apache-2.0
//
// What a program shall see in the file system beside the device nodes: the machine's part of
// /sys. Plain data; the carrier of system calls shows it.

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
    /// A file with fixed contents, not writable unless `mode` says so.
    case file(contents: [UInt8], mode: UInt16)
    /// A symbolic link, with its target as written.
    case link(target: String)
  }
}
