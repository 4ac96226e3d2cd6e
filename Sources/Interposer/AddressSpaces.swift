// SPDX-License-Identifier: Apache-2.0
//
// The address spaces of a run: of every process that is under a filter, as those of the run are. A child
// that has never called us may be one. Processes that we may not look at (`OtherUser`) do not count.

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

enum AddressSpaces {
  /// Whether one of them is wanted.
  /// - Parameter isWanted: Gets the directory in /proc of a process or a thread, until it is.
  @discardableResult
  static func contains(where isWanted: (_ path: String) -> Bool) -> Bool {
    let own = "\(getpid())"
    for (process, _) in System.entries("/proc") ?? [] {
      guard process != own, process.utf8.allSatisfy({ (48...57).contains($0) }),
        let status = Status(process), status.hasFilter
      else { continue }
      let path = "/proc/\(process)"
      if isWanted(path) { return true }
      guard status.isZombie else { continue }
      // Other threads may go on after the first one has ended.
      for (thread, _) in System.entries("\(path)/task") ?? [] {
        if isWanted("\(path)/task/\(thread)") { return true }
      }
    }
    return false
  }

  private struct Status {
    var hasFilter = false
    var isZombie = false

    init?(_ process: String) {
      guard let status = System.contents("/proc/\(process)/status") else { return nil }
      for line in String(decoding: status, as: UTF8.self).split(separator: "\n") {
        if line.hasPrefix("Seccomp:") { hasFilter = line.hasSuffix("2") }
        if line.hasPrefix("State:") { isZombie = line.contains("Z") }
      }
    }
  }
}
