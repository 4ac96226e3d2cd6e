// SPDX-License-Identifier: Apache-2.0
//
// Runs the built programs as a user does, for tests of the command line.

import Foundation

/// What a finished program left.
struct Finished {
  /// 128 and the signal's number where a signal ended it, as shells have it.
  var status: Int32
  var output: String
  var errors: String

  /// What `--explain` said, but for the line that says of a view by paths that it is one.
  var explanations: String {
    errors.split(separator: "\n").filter { !$0.hasPrefix("iommu: /dev and /sys are shown by") }
      .map { $0 + "\n" }.joined()
  }
}

/// Runs the built `iommu`.
func iommu(_ arguments: String..., input: String = "") throws -> Finished {
  try iommu(arguments, input: input)
}

/// Runs the built `iommu`.
/// - Parameter meanwhile: Called while it runs, with its number and where its output goes; what runs
///   without an end, it has to end.
func iommu(
  _ arguments: [String], input: String = "",
  meanwhile: (pid_t, URL) throws -> Void = { _, _ in }
) throws -> Finished {
  var arguments = arguments
  // So that all tests can be run with either view.
  if let view = ProcessInfo.processInfo.environment["INTERPOSER_TEST_VIEW"],
    arguments.first == "run", !arguments.contains("--view")
  {
    arguments.insert(contentsOf: ["--view", view], at: 1)
  }
  return try finished([built("iommu").path] + arguments, input: input, meanwhile: meanwhile)
}

/// Runs a script of the shell.
/// - Parameter arguments: Its `$0`, `$1` and so on.
func shell(_ script: String, _ arguments: String...) throws -> Finished {
  try finished(["/bin/sh", "-c", script] + arguments)
}

/// Runs a program by its path.
func run(_ arguments: [String]) throws -> Finished { try finished(arguments) }

private func finished(
  _ arguments: [String], input: String = "",
  meanwhile: (pid_t, URL) throws -> Void = { _, _ in }
) throws -> Finished {
  let place = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
  try FileManager.default.createDirectory(at: place, withIntermediateDirectories: true)
  defer { try? FileManager.default.removeItem(at: place) }
  func file(_ name: String, _ contents: String = "") throws -> URL {
    let url = place.appendingPathComponent(name)
    try Data(contents.utf8).write(to: url)
    return url
  }
  let (output, errors) = (try file("out"), try file("err"))
  let status = try spawn(
    arguments, input: try file("in", input), output: output,
    errors: errors
  ) { try meanwhile($0, output) }
  return Finished(
    status: status & 0x7f == 0 ? status >> 8 & 0xff : 128 + status & 0x7f,
    output: String(decoding: try Data(contentsOf: output), as: UTF8.self),
    errors: String(decoding: try Data(contentsOf: errors), as: UTF8.self))
}

/// Kills `iommu` so many microseconds after its program has said something, within a minute; where it
/// has ended by then, it is as it is.
func iommu(
  _ arguments: [String], killedAfter microseconds: UInt32
) throws -> Finished {
  try iommu(arguments) { process, output in
    var end = siginfo_t()
    for _ in 0..<60_000 where try Data(contentsOf: output).isEmpty {
      waitid(P_PID, id_t(process), &end, WEXITED | WNOHANG | WNOWAIT)
      guard end.si_signo == 0 else { return }
      usleep(1000)
    }
    usleep(microseconds)
    kill(process, SIGKILL)
  }
}

/// Runs a program to its end, with no signal blocked: test threads have most of them blocked,
/// which Foundation's `Process` would pass on.
/// - Returns: What `waitpid` says.
private func spawn(
  _ arguments: [String], input: URL, output: URL, errors: URL,
  meanwhile: (pid_t) throws -> Void = { _ in }
) throws -> Int32 {
  var actions = posix_spawn_file_actions_t()
  posix_spawn_file_actions_init(&actions)
  defer { posix_spawn_file_actions_destroy(&actions) }
  posix_spawn_file_actions_addopen(&actions, 0, input.path, O_RDONLY, 0)
  posix_spawn_file_actions_addopen(&actions, 1, output.path, O_WRONLY | O_APPEND, 0)
  posix_spawn_file_actions_addopen(&actions, 2, errors.path, O_WRONLY | O_APPEND, 0)
  var attributes = posix_spawnattr_t()
  posix_spawnattr_init(&attributes)
  defer { posix_spawnattr_destroy(&attributes) }
  var signals = sigset_t()
  sigemptyset(&signals)
  posix_spawnattr_setsigmask(&attributes, &signals)
  posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
  var strings = arguments.map { strdup($0) } + [nil]
  defer { for string in strings { free(string) } }
  var process: pid_t = 0
  let result = posix_spawn(&process, arguments[0], &actions, &attributes, &strings, environ)
  guard result == 0 else { throw POSIXError(POSIXErrorCode(rawValue: result) ?? .EINVAL) }
  let outcome = Result { try meanwhile(process) }
  var status: Int32 = 0
  while waitpid(process, &status, 0) < 0 && errno == EINTR {}
  try outcome.get()
  return status
}

/// A program of this build: it lies beside the tests.
func built(_ name: String) -> URL {
  let tests = CommandLine.arguments.first.map { URL(fileURLWithPath: $0) }
  let candidates = [
    tests?.deletingLastPathComponent(), Bundle.main.bundleURL,
    Bundle.main.bundleURL.deletingLastPathComponent(),
  ]
  for directory in candidates.compactMap({ $0 }) {
    let program = directory.appendingPathComponent(name)
    if FileManager.default.isExecutableFile(atPath: program.path) { return program }
  }
  return URL(fileURLWithPath: "/nonexistent/\(name)")
}
