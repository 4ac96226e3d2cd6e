// SPDX-License-Identifier: Apache-2.0
//
// Runs the test programs under the test host, as root or as nobody.

import CSyscalls
import Glibc
import Testing

/// Who runs the interposer.
enum User: String, CaseIterable, CustomTestStringConvertible {
  /// Whoever runs the tests.
  case current
  /// An unprivileged user; the same as `current` where the tests do not run as root.
  case nobody

  var testDescription: String { rawValue }

  #if SANITIZER_thread
    /// The thread sanitizer runs a thread of its own in each process, and the kernel gives a
    /// process of several threads no user namespace.
    static let allCases: [User] = [.current]
  #endif
}

struct Outcome {
  var status: Int32?
  var signal: Int32?
  var output: String
  var error: String
}

enum Programs {
  /// The built programs, copied to where everybody can execute them.
  static let directory: String = {
    var template = Array("/tmp/iommu-tests-XXXXXX".utf8CString)
    let made = mkdtemp(&template)!
    let place = String(cString: made)
    chmod(place, 0o755)
    for name in names {
      copy(built(name), to: "\(place)/\(name)")
    }
    atexit {
      for name in Programs.names {
        unlink("\(Programs.directory)/\(name)")
      }
      rmdir(Programs.directory)
    }
    return place
  }()

  /// The words that give a program namespaces of its own, in which it is root; none where the host
  /// gives nobody any, as a container.
  static let unshare: [String] = {
    let words = ["unshare", "--user", "--map-root-user", "--mount"]
    return run(words + ["true"]).status == 0 ? words : []
  }()

  /// A program as it was built: beside the tests.
  static func built(_ name: String) -> String {
    var buffer = [CChar](repeating: 0, count: 4096)
    readlink("/proc/self/exe", &buffer, 4095)
    let here = buffer.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
    return here.prefix(upTo: here.lastIndex(of: "/")!) + "/" + name
  }

  /// Whether the host lets a program have a mount namespace; a container as a rule does not.
  static let hasMounts = hosted(["true"], options: ["--view", "namespace"]).status == 0
  /// Whether descriptors of programs can be copied; a container as a rule forbids it.
  static let hasCopies = run([host, "--doctor"]).output.contains("ok pidfd_getfd")
  /// The view that programs get that are not told which one.
  static var view: String {
    let asked = getenv("INTERPOSER_TEST_VIEW").map { String(cString: $0) }
    return asked ?? (hasMounts ? "namespace" : "paths")
  }
  /// What is said where it does not.
  static let refusal = "the kernel refused a user namespace (Operation not permitted)"

  static var host: String { directory + "/interposer-host" }
  static var client: String { directory + "/interposer-client" }
  /// What runs a program to which calls are refused.
  static var refused: String { directory + "/refused" }

  #if SANITIZER
    private static let names = ["interposer-host", "interposer-client", "refused"]
  #else
    private static let names = [
      "interposer-host", "interposer-client", "refused", "interposer-client-static",
    ]
  #endif

  private static func copy(_ source: String, to target: String) {
    let from = open(source, O_RDONLY)
    let to = open(target, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o755)
    #expect(from >= 0 && to >= 0, "\(source) is not built")
    var bytes = [UInt8](repeating: 0, count: 1 << 20)
    while case let count = read(from, &bytes, bytes.count), count > 0 {
      write(to, bytes, count)
    }
    close(from)
    close(to)
  }

  /// Runs a client test under the host.
  static func client(
    _ arguments: [String], as user: User = .current, options: [String] = []
  ) -> Outcome {
    run([host] + options + ["--", client] + arguments, as: user)
  }

  /// Runs any program under the host.
  static func hosted(
    _ arguments: [String], as user: User = .current, options: [String] = []
  ) -> Outcome {
    run([host] + options + ["--"] + arguments, as: user)
  }

  /// Runs a command line to its end, at most five minutes: a loaded machine is no failure.
  static func run(_ arguments: [String], as user: User = .current, input: String = "")
    -> Outcome
  {
    var arguments = arguments
    if user == .nobody, getuid() == 0 {
      arguments =
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] + arguments
    }
    let output = scratch("")
    let error = scratch("")
    let inputFile = scratch(input)
    defer { for file in [output, error, inputFile] { close(file) } }
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_adddup2(&actions, inputFile, 0)
    posix_spawn_file_actions_adddup2(&actions, output, 1)
    posix_spawn_file_actions_adddup2(&actions, error, 2)
    var child: pid_t = 0
    // Starts with no descriptors but the three, in /.
    arguments = [client, "clean"] + arguments
    var words = arguments.map { strdup($0) }
    words.append(nil)
    defer { for word in words { free(word) } }
    let result = posix_spawnp(&child, arguments[0], &actions, nil, words, environ)
    guard result == 0 else {
      return Outcome(status: nil, signal: nil, output: "", error: "cannot spawn: \(result)")
    }
    var end = csys_wait()
    var waited = 0
    while csys_wait_change(child, &end) == 0 || end.stopped != 0 || end.continued != 0 {
      usleep(2000)
      waited += 1
      if waited == 150_000 { kill(child, SIGKILL) }
    }
    return Outcome(
      status: end.exited != 0 ? end.code : nil, signal: end.signaled != 0 ? end.code : nil,
      output: text(output), error: text(error))
  }

  private static func scratch(_ text: String) -> Int32 {
    let file = csys_memfd_create("test", 1)
    let bytes = Array(text.utf8)
    write(file, bytes, bytes.count)
    lseek(file, 0, SEEK_SET)
    return file
  }

  private static func text(_ file: Int32) -> String {
    var bytes = [UInt8](repeating: 0, count: 1 << 20)
    let count = pread(file, &bytes, bytes.count, 0)
    return String(decoding: bytes.prefix(max(count, 0)), as: UTF8.self)
  }
}
