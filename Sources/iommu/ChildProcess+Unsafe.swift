// SPDX-License-Identifier: Apache-2.0
//
// A child process whose standard output is read line by line, for the demo.

import Glibc
import SystemPackage

enum ChildProcess {
  /// Runs a program to its end.
  /// - Parameters:
  ///   - arguments: The first is the program's path.
  ///   - line: Called for each line that it prints, without the newline.
  /// - Returns: Its exit status, or 128 and the signal's number as shells have it.
  /// - Throws: `Errno` where it could not be started.
  static func run(_ arguments: [String], line: (String) -> Void) throws -> Int32 {
    let (reading, writing) = try FileDescriptor.pipe()
    var actions = unsafe posix_spawn_file_actions_t()
    // SAFETY: initialized here, destroyed below, used by one posix_spawn in between.
    unsafe posix_spawn_file_actions_init(&actions)
    unsafe posix_spawn_file_actions_adddup2(&actions, writing.rawValue, STDOUT_FILENO)
    unsafe posix_spawn_file_actions_addclose(&actions, writing.rawValue)
    unsafe posix_spawn_file_actions_addclose(&actions, reading.rawValue)
    // SAFETY: each string is a copy that lives until it is freed below; the array ends in nil.
    let strings = unsafe arguments.map { unsafe strdup($0) }
    var process: pid_t = 0
    let result = unsafe posix_spawn(
      &process, arguments[0], &actions, nil, strings + [nil], environ)
    for index in unsafe strings.indices { unsafe free(strings[index]) }
    unsafe posix_spawn_file_actions_destroy(&actions)
    try writing.close()
    guard result == 0 else {
      try reading.close()
      throw Errno(rawValue: result)
    }
    try reading.closeAfter { try read(reading, line: line) }
    var status: Int32 = 0
    while unsafe waitpid(process, &status, 0) < 0 && errno == EINTR {}
    return status & 0x7f == 0 ? status >> 8 & 0xff : 128 + status & 0x7f
  }

  private static func read(_ file: FileDescriptor, line: (String) -> Void) throws {
    var rest: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 4096)
    while true {
      // SAFETY: the buffer is `piece`'s own and is used within the call only.
      let count = try unsafe piece.withUnsafeMutableBytes { buffer in
        try unsafe file.read(into: buffer)
      }
      if count == 0 { break }
      rest += piece[..<count]
      while let end = rest.firstIndex(of: UInt8(ascii: "\n")) {
        line(String(decoding: rest[..<end], as: UTF8.self))
        rest.removeSubrange(...end)
      }
    }
    if !rest.isEmpty { line(String(decoding: rest, as: UTF8.self)) }
  }
}
