// SPDX-License-Identifier: Apache-2.0
//
// Programs whose descriptors nobody may copy, as in most containers: pidfd_getfd is refused.

import Testing

@Suite("Without pidfd_getfd", .serialized)
struct HandOverTests {
  /// Runs a client test under the host, which gets no copies of descriptors.
  private func client(
    _ arguments: [String], as user: User = .current, refused: [String] = [],
    options: [String] = []
  ) -> Outcome {
    Programs.run(
      [Programs.refused, "pidfd_getfd"] + refused + ["--", Programs.host] + options
        + ["--", Programs.client] + arguments, as: user)
  }

  @Test(
    "A2: what a descriptor is, is known without a copy of it",
    arguments: [
      "hello", "paths", "status", "plain-calls", "crowded", "regions", "closes", "duplicates",
      "mappings", "forks", "killed", "in-flight", "installs", "threads", "leader-ends",
      "vforks", "executes", "interrupted", "memories", "memory-errors", "file-memory",
      "waiting-memory", "queue-polls", "queue-reads", "queue-writes", "queue-closes",
      "queue-waits", "page-maps", "page-busy",
    ], User.allCases)
  func identity(_ name: String, _ user: User) {
    let outcome = client([name], as: user)
    #expect(outcome.status == 0, "\(outcome)")
    #expect(outcome.error == "")
  }

  #if arch(x86_64)
    @Test(
      "J1: eventfds are handed over by who names them, whatever happens meanwhile",
      arguments: [
        "events", "hand-over-many", "hand-over-renumbered", "hand-over-interrupted",
        "hand-over-killed", "hand-over-threads", "hand-over-debugged", "hand-over-crowded",
        "hand-over-raced", "queue-copies",
      ], User.allCases)
    func handOver(_ name: String, _ user: User) {
      let outcome = client([name], as: user)
      #expect(outcome.status == 0, "\(outcome)")
      #expect(outcome.error == "")
    }

    @Test("J1: the same programs where copies can be had")
    func copies() {
      for arguments in [
        ["hand-over-many"], ["hand-over-renumbered"], ["hand-over-interrupted"],
        ["hand-over-killed"], ["hand-over-threads"], ["hand-over-raced"],
        ["hand-over-debugged"] + (Programs.hasCopies ? ["copies"] : []),
      ] {
        let outcome = Programs.client(arguments)
        #expect(outcome.status == 0, "\(arguments): \(outcome)")
      }
    }

    @Test("Under a debugger, or without ptrace, a sentence says why an eventfd cannot be had")
    func refusals() {
      let debugged = client(["hand-over-debugged"], options: ["--explain"])
      #expect(debugged.status == 0, "\(debugged)")
      #expect(
        debugged.error.contains("is under a debugger")
          && debugged.error.contains("pidfd_getfd"), "\(debugged)")
      let untraced = client(["events"], refused: ["ptrace"], options: ["--explain"])
      #expect(untraced.status == 1, "\(untraced)")
      #expect(untraced.error.contains("cannot be traced"), "\(untraced)")
    }
  #endif

  @Test(
    "Attributes are read and written where they are, and the file position goes on",
    arguments: User.allCases)
  func attributes(_ user: User) {
    let script = """
      import os
      file = os.open("/sys/devices/test/value", os.O_RDWR)
      print(os.read(file, 100), os.lseek(file, 0, os.SEEK_CUR))
      os.lseek(file, 0, os.SEEK_SET)
      print(os.write(file, b"second"), os.lseek(file, 0, os.SEEK_CUR))
      print(os.pread(file, 100, 0), os.read(file, 100))
      try: os.write(os.open("/sys/devices/test/value", os.O_RDONLY), b"x")
      except OSError as error: print(error.errno)
      """
    let words = ["python3", "-c", script]
    let expected = Programs.hosted(words, as: user)
    #expect(expected.output.contains("6 6\n"), "\(expected)")
    let outcome = Programs.run(
      [Programs.refused, "pidfd_getfd", "--", Programs.host, "--"] + words, as: user)
    #expect(outcome.status == 0 && outcome.error == "", "\(outcome)")
    #expect(outcome.output == expected.output, "\(outcome)")
  }
}
