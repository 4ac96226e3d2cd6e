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

  /// Writes to standard output, now: not through a buffer that a child would repeat.
  static func print(_ text: String) { write(text, to: .standardOutput) }

  /// Writes a line to standard error.
  static func complain(_ text: String) { write(text + "\n", to: .standardError) }

  private static func write(_ text: String, to file: FileDescriptor) {
    // Where nobody reads any more there is nobody to tell.
    _ = try? file.writeAll(text.utf8)
  }
}
