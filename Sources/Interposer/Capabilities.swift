// SPDX-License-Identifier: Apache-2.0
//
// What the kernel lets a thread do, as its status tells it.

enum Capabilities {
  enum Name: UInt64 {
    case setGroup = 6
    case setUser = 7
    case lockMemory = 14
    case systemPtrace = 19
    case systemAdmin = 21
    case systemResource = 24
  }

  /// Whether a thread has the capability in effect.
  static func has(_ name: Name, thread: Int32) -> Bool {
    guard let status = System.contents("/proc/\(thread)/status") else { return false }
    for line in String(decoding: status, as: UTF8.self).split(separator: "\n")
    where line.hasPrefix("CapEff:\t") {
      return (UInt64(line.dropFirst(8), radix: 16) ?? 0) >> name.rawValue & 1 != 0
    }
    return false
  }
}

/// What the kernel goes by when a thread opens a file: its user and groups, and its capabilities.
struct AccessRights: Equatable {
  /// `Uid:`, `Gid:`, `Groups:` and `CapEff:`; of the first two the ids for files.
  private let lines: [Substring]
  /// In which the capabilities count.
  private let namespace: String

  /// - Parameter task: `/proc/12` or as that.
  /// - Returns: Nil where it is gone.
  init?(_ task: String) {
    guard let status = System.contents("\(task)/status"),
      let namespace = System.readLink("\(task)/ns/user")
    else { return nil }
    let lines = String(decoding: status, as: UTF8.self).split(separator: "\n")
    self.lines = ["Uid:", "Gid:", "Groups:", "CapEff:"].compactMap { name in
      guard let line = lines.first(where: { $0.hasPrefix(name) }) else { return nil }
      // The real, the effective, the saved id and the one for files.
      return name == "Uid:" || name == "Gid:" ? line.split(separator: "\t").last : line
    }
    guard self.lines.count == 4 else { return nil }
    self.namespace = namespace
  }

  /// Ours. A serving thread's ids for files stay what they are but for one access at a time.
  static let own = Self("/proc/thread-self")
}

extension ClientCaller {
  /// Whether the kernel lets the caller open what it lets us open.
  var hasOurRights: Bool {
    guard let own = AccessRights.own else { return false }
    return AccessRights("/proc/\(thread)") == own
  }
}
