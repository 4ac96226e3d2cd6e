// SPDX-License-Identifier: Apache-2.0
//
// /proc/PID/status of a process that has memory pinned: a kernel would count it there, as VmPin
// and as VmLck. Of every other process the file is the host's own.

import CSyscalls
import IOMMU

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// The text of a `/proc/PID/status`.
struct ProcessStatus {
  private(set) var text: String

  init(_ text: String) { self.text = text }

  /// Adds bytes to a line such as `VmPin:	       0 kB`. Nothing where there is no such line, as
  /// a process without memory has none.
  mutating func add(_ byteCount: UInt64, to name: String) {
    let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
    text = lines.map { line -> String in
      guard line.hasPrefix(name + ":"),
        let count = line.split(whereSeparator: { " \t".contains($0) }).dropFirst().first,
        let old = UInt64(count)
      else { return String(line) }
      let new = String(old &+ byteCount >> 10)
      return "\(name):\t" + String(repeating: " ", count: max(0, 8 - new.count)) + new + " kB"
    }.joined(separator: "\n")
  }

  /// The process whose status a path names; nil where it names another file. Every open of a
  /// program comes by here: the group, which may have to be looked up, is asked for `self` only.
  static func process(
    _ path: [UInt8], thread: Int32, group: @autoclosure () -> Int32
  ) -> Int32? {
    guard path.starts(with: "/proc/".utf8), path.count < 64,
      path.last != UInt8(ascii: "/")
    else { return nil }
    let parts = String(decoding: path, as: UTF8.self).split(separator: "/")
    guard parts.count == 3, parts[2] == "status" else { return nil }
    return switch parts[1] {
    case "self": group()
    case "thread-self": thread
    default: number(parts[1])
    }
  }

  /// A process or thread as `/proc` spells it: digits, of which the first is not 0.
  static func number(_ name: Substring) -> Int32? {
    guard name.first != "0", name.utf8.allSatisfy({ (48...57).contains($0) }) else {
      return nil
    }
    return Int32(name)
  }
}

extension Server {
  /// Answers an open of a process's status where the process has memory pinned.
  /// - Parameter call: The call that waits.
  /// - Returns: Nil where the kernel's own file is right.
  func openStatus(
    _ path: [UInt8], flags: Int32, call: UInt64, _ caller: ClientCaller
  ) -> Answer? {
    guard
      let process = ProcessStatus.process(
        path, thread: caller.thread, group: caller.processID),
      let sums = tasks.pinnedMemory(of: process),
      sums.pinned.byteCount > 0 || sums.locked.byteCount > 0,
      flags & (O_ACCMODE | System.pathOnly | O_DIRECTORY) == O_RDONLY,
      flags & (O_CREAT | O_EXCL) != O_CREAT | O_EXCL,
      let contents = System.contents("/proc/\(process)/status")
    else { return nil }
    var status = ProcessStatus(String(decoding: contents, as: UTF8.self))
    status.add(sums.pinned.byteCount, to: "VmPin")
    status.add(sums.locked.byteCount, to: "VmLck")
    let number = unsafe csys_memfd_create("status", 0)
    guard number >= 0 else { return nil }
    let file = OwnedDescriptor(number)
    guard System.writeAll(file.number, Array(status.text.utf8)), isValid(call) else {
      return nil
    }
    // Opened anew: read-only, and at its beginning.
    let reader = System.open("/proc/self/fd/\(file.number)", O_RDONLY)
    guard reader >= 0 else { return nil }
    let readable = OwnedDescriptor(reader)
    let given = csys_notif_add_fd(
      listener, call, readable.number, -1,
      flags & O_CLOEXEC != 0 ? UInt32(O_CLOEXEC) : 0)
    return given >= 0 ? .result(Int(given)) : nil
  }
}
