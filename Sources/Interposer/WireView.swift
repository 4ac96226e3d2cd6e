// SPDX-License-Identifier: Apache-2.0
//
// The view on its way from the supervisor, which makes the machine, to the program's process,
// which mounts it: length-prefixed fields over a socket.

import LinuxABI

/// What the other process knows of an attribute: opens of it are the supervisor's.
private final class SilentAttribute: Attribute {
  let mode: UInt16

  init(mode: UInt16) { self.mode = mode }
}

/// A view and the device nodes in it, as plain data.
struct WireView: Sendable {
  struct Node: Sendable {
    var path: String
    var number: DeviceNumber
  }

  var nodes: [Node] = []
  var view = View()

  init(nodes: [any DeviceNode], view: View) {
    self.nodes = nodes.map { Node(path: $0.path, number: $0.number) }
    self.view = view
  }

  /// Reads what `bytes` wrote; stops at the first thing that it cannot read.
  init(_ bytes: [UInt8]) {
    var reader = Reader(bytes: bytes[...])
    while let tag = reader.byte(), let path = reader.text() {
      switch tag {
      case 0:
        guard let major = reader.number(), let minor = reader.number() else { return }
        nodes.append(Node(path: path, number: DeviceNumber(major: major, minor: minor)))
      case 1: view.entries.append(View.Entry(path, .directory))
      case 2: view.entries.append(View.Entry(path, .exclusiveDirectory))
      case 3:
        guard let mode = reader.number(), let contents = reader.blob() else { return }
        view.entries.append(
          View.Entry(
            path, .file(contents: Array(contents), mode: UInt16(truncatingIfNeeded: mode))))
      case 4:
        guard let target = reader.text() else { return }
        view.entries.append(View.Entry(path, .link(target: target)))
      case 5:
        guard let mode = reader.number() else { return }
        let attribute = SilentAttribute(mode: UInt16(truncatingIfNeeded: mode))
        view.entries.append(View.Entry(path, .attribute(attribute)))
      default: return
      }
    }
  }

  var bytes: [UInt8] {
    var out: [UInt8] = []
    func number(_ value: UInt32) {
      for shift in stride(from: 0, to: 32, by: 8) {
        out.append(UInt8(truncatingIfNeeded: value >> UInt32(shift)))
      }
    }
    func blob(_ bytes: some Collection<UInt8>) {
      number(UInt32(bytes.count))
      out += bytes
    }
    func head(_ tag: UInt8, _ path: String) {
      out.append(tag)
      blob(path.utf8)
    }
    for node in nodes {
      head(0, node.path)
      number(node.number.major)
      number(node.number.minor)
    }
    for entry in view.entries {
      switch entry.kind {
      case .directory: head(1, entry.path)
      case .exclusiveDirectory: head(2, entry.path)
      case .file(let contents, let mode):
        head(3, entry.path)
        number(UInt32(mode))
        blob(contents)
      case .link(let target):
        head(4, entry.path)
        blob(target.utf8)
      case .attribute(let attribute):
        head(5, entry.path)
        number(UInt32(attribute.mode))
      }
    }
    return out
  }

  private struct Reader {
    var bytes: ArraySlice<UInt8>

    mutating func byte() -> UInt8? { bytes.popFirst() }

    mutating func number() -> UInt32? {
      guard bytes.count >= 4 else { return nil }
      defer { bytes = bytes.dropFirst(4) }
      return bytes.prefix(4).reversed().reduce(0) { $0 << 8 | UInt32($1) }
    }

    mutating func blob() -> ArraySlice<UInt8>? {
      guard let count = number(), bytes.count >= Int(count) else { return nil }
      defer { bytes = bytes.dropFirst(Int(count)) }
      return bytes.prefix(Int(count))
    }

    mutating func text() -> String? { blob().map { String(decoding: $0, as: UTF8.self) } }
  }
}
