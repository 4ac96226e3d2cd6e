// SPDX-License-Identifier: Apache-2.0
//
// What the terminal can do, and the two ways of writing to the user.

import Glibc
import SystemPackage

enum Terminal {
  /// Whether to use colour on standard output: on a terminal that has it, unless NO_COLOR is
  /// set (https://no-color.org).
  static var colour: Bool {
    isatty(STDOUT_FILENO) == 1 && environment("NO_COLOR").isEmpty
      && environment("TERM") != "dumb"
  }

  /// An environment variable; empty where it is not set.
  static func environment(_ name: String) -> String {
    // SAFETY: nothing in this process changes the environment; the text is copied at once.
    guard let value = unsafe getenv(name) else { return "" }
    return unsafe String(cString: value)
  }

  /// Writes to standard output, now: not through a buffer that a child would repeat. What cannot be
  /// written is a failure, and ends the process: a file of half a machine is worse than none.
  static func print(_ text: String) {
    do {
      try FileDescriptor.standardOutput.writeAll(text.utf8)
    } catch {
      // Where nobody reads any more there is nobody to tell.
      if let error = error as? Errno, error != .brokenPipe {
        complain("iommu: cannot write to standard output: \(error)")
      }
      exit(EXIT_FAILURE)
    }
  }

  /// Writes a line to standard error.
  static func complain(_ text: String) {
    _ = try? FileDescriptor.standardError.writeAll((text + "\n").utf8)
  }
}
