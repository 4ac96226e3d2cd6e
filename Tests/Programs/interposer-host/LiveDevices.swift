// SPDX-License-Identifier: Apache-2.0
//
// Attributes of the test machine, as a machine's own are made: a value that is read and written,
// and devices that come and go by command.

import Glibc
import IOMMU
import LinuxABI

/// `/sys/devices/test/value`, `log`, `create` and `remove`. Thread-safe.
final class LiveDevices: Sendable {
  private let files: LiveView
  private let counts: Counts
  private let value = Guarded("first")
  private let log = Guarded<[String]>([])
  private let names = Guarded<Set<String>>([])

  init(_ files: LiveView, _ counts: Counts) {
    self.files = files
    self.counts = counts
  }

  func add() {
    let home = "/sys/devices/test"
    let entries: [View.Entry] = [
      .init("\(home)/value", .attribute(valueAttribute)),
      .init("\(home)/log", .attribute(logAttribute)),
      .init("\(home)/create", .attribute(CommandAttribute(store: create))),
      .init("\(home)/remove", .attribute(CommandAttribute(store: remove))),
      .init("/sys/class", .directory),
      .init("/sys/class/test", .exclusiveDirectory),
    ]
    do throws(IOMMUError) {
      try files.change(View.Change(added: entries))
    } catch {
      complain(error.reason)
    }
  }

  /// Takes anything but `bad`, which is `EINVAL`.
  private var valueAttribute: CommandAttribute {
    CommandAttribute(
      show: { [self] () throws(IOMMUError) in value.withLock { $0 } },
      store: { [self] (text, _) throws(IOMMUError) in
        guard text != "bad" else { throw IOMMUError(.invalidArgument, "the value is bad") }
        value.withLock { $0 = text }
      })
  }

  /// What was written, each write in brackets.
  private var logAttribute: CommandAttribute {
    CommandAttribute(
      show: { [self] () throws(IOMMUError) in
        log.withLock { $0.map { "[\($0)]" }.joined() }
      },
      store: { [self] (text, caller) throws(IOMMUError) in
        log.withLock { $0.append(text) }
      })
  }

  /// A device with a node, an attribute and a directory of a hundred files; a link to it in a
  /// class.
  private func create(_ name: String, by caller: any Caller) throws(IOMMUError) {
    guard !name.isEmpty, !name.contains("/") else {
      throw IOMMUError(.invalidArgument, "'\(name)' is no name")
    }
    guard names.withLock({ $0.insert(name).inserted }) else {
      throw IOMMUError(.fileExists, "\(name) is there already")
    }
    let home = "/sys/devices/test/\(name)"
    // With the parents, which are there.
    var entries: [View.Entry] = [
      .init("/sys", .directory), .init("/sys/devices", .directory),
      .init(home, .directory), .init("\(home)/files", .directory),
      .init(
        "\(home)/name",
        .attribute(CommandAttribute(show: { () throws(IOMMUError) in name }))),
    ]
    for index in 0..<100 {
      entries.append(.init("\(home)/files/\(index)", .file(contents: [10], mode: 0o444)))
    }
    entries.append(
      .init("/sys/class/test/\(name)", .link(target: "../../devices/test/\(name)")))
    do throws(IOMMUError) {
      try files.change(
        View.Change(
          added: entries,
          addedNodes: [
            TestNode("/dev/test/\(name)", DeviceNumber(major: 250, minor: 1), counts)
          ]))
    } catch {
      names.withLock { _ = $0.remove(name) }
      throw error
    }
  }

  private func remove(_ name: String, by caller: any Caller) throws(IOMMUError) {
    guard names.withLock({ $0.remove(name) }) != nil else {
      throw IOMMUError(.noSuchDevice, "there is no \(name)")
    }
    try files.change(
      View.Change(removed: [
        "/sys/class/test/\(name)", "/sys/devices/test/\(name)", "/dev/test/\(name)",
      ]))
  }
}
