// SPDX-License-Identifier: Apache-2.0
//
// Collects the entries of a view with sysfs's manners: parents come first, attributes end in
// a newline, links are relative.

import LinuxABI

/// Builds a `View` of /sys.
struct SysfsBuilder {
  private(set) var view = View()
  private var seen: Set<String> = []

  /// A directory, and its parents where they are not there yet.
  /// - Parameter exclusive: Whether the host's own entries are hidden.
  mutating func directory(_ path: String, exclusive: Bool = false) {
    guard seen.insert(path).inserted else { return }
    addParent(of: path)
    view.entries.append(View.Entry(path, exclusive ? .exclusiveDirectory : .directory))
  }

  /// A read-only attribute; the newline is added.
  mutating func attribute(_ path: String, _ value: String) {
    bytes(path, Array((value + "\n").utf8))
  }

  /// An attribute that is asked and told.
  mutating func attribute(_ path: String, _ attribute: any Attribute) {
    guard seen.insert(path).inserted else { return }
    addParent(of: path)
    view.entries.append(View.Entry(path, .attribute(attribute)))
  }

  mutating func bytes(_ path: String, _ contents: [UInt8]) {
    guard seen.insert(path).inserted else { return }
    addParent(of: path)
    view.entries.append(View.Entry(path, .file(contents: contents, mode: 0o444)))
  }

  /// A symbolic link to another path of the view, written relative to where it stands as
  /// sysfs does.
  mutating func link(_ path: String, to target: String) {
    guard seen.insert(path).inserted else { return }
    addParent(of: path)
    let place = path.split(separator: "/").dropLast()
    let goal = target.split(separator: "/")
    let shared = zip(place, goal).prefix { $0 == $1 }.count
    let steps =
      Array(repeating: "..", count: place.count - shared) + goal[shared...].map(String.init)
    view.entries.append(View.Entry(path, .link(target: steps.joined(separator: "/"))))
  }

  /// What a device's last event said. It takes no commands: nobody would get the event.
  mutating func uevent(of path: String, _ lines: [String]) {
    bytes("\(path)/uevent", Array(lines.map { $0 + "\n" }.joined().utf8))
  }

  /// What every device has: uevent, power and the link to its subsystem.
  /// - Parameter uevent: Nil where it comes later.
  mutating func device(_ path: String, subsystem: String, uevent: [String]?) {
    directory(path)
    if let uevent { self.uevent(of: path, uevent) }
    link("\(path)/subsystem", to: subsystem)
    attribute("\(path)/power/control", SettingAttribute.choice("auto", of: ["auto", "on"]))
    attribute("\(path)/power/runtime_status", "unsupported")
    attribute("\(path)/power/runtime_suspended_time", "0")
    attribute("\(path)/power/runtime_active_time", "0")
  }

  /// What a device with a node in /dev has besides: its number, and the link by number.
  mutating func node(_ path: String, subsystem: String, number: DeviceNumber, name: String) {
    device(
      path, subsystem: subsystem,
      uevent: ["MAJOR=\(number.major)", "MINOR=\(number.minor)", "DEVNAME=\(name)"])
    attribute("\(path)/dev", "\(number.major):\(number.minor)")
    link("/sys/dev/char/\(number.major):\(number.minor)", to: path)
  }

  private mutating func addParent(of path: String) {
    guard let slash = path.lastIndex(of: "/"), slash > path.startIndex else { return }
    directory(String(path[..<slash]))
  }
}

/// A number in hexadecimal with leading zeros, without `0x`.
func padded(_ value: some BinaryInteger, _ digits: Int, uppercase: Bool = false) -> String {
  let text = String(value, radix: 16, uppercase: uppercase)
  return String(repeating: "0", count: max(0, digits - text.count)) + text
}
