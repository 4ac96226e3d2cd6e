// SPDX-License-Identifier: Apache-2.0
//
// The interposer from outside: programs under it, as root and as nobody.

import Glibc
import Testing

@Suite("The interposer", .serialized)
struct InterposerTests {
  @Test(
    "A2: a program under the interposer behaves as on a machine that has the devices",
    arguments: [
      "hello", "paths", "path-errors", "status", "plain-calls", "crowded", "regions", "view",
      "inherited",
      "closes", "duplicates", "mappings", "forks", "killed", "in-flight", "installs", "threads",
      "leader-ends", "vforks", "executes", "interrupted", "interrupted-opens", "memories",
      "memory-errors", "file-memory", "waiting-memory", "events",
    ], User.allCases)
  func client(_ name: String, _ user: User) {
    let outcome = Programs.client([name], as: user)
    #expect(outcome.status == 0, "\(outcome)")
    #expect(outcome.error == "")
  }

  @Test(
    "A2: an open finds our files while directories are renamed, and a wrong one fails as Linux's",
    arguments: ["renames", "wrong-opens"], User.allCases)
  func opens(_ name: String, _ user: User) {
    let outcome = Programs.client([name], as: user)
    #expect(outcome.status == 0, "\(outcome)")
  }

  @Test("A program with hundreds of calls that wait harms nobody else")
  func crowds() {
    let outcome = Programs.client(["crowds"])
    #expect(outcome.status == 0, "\(outcome)")
  }

  @Test("Where the supervisor's descriptors run out an open says so; other files open as ever")
  func descriptorsRunOut() {
    // Each process has fewer than its own limit: together they have more than the supervisor can.
    let script = """
      import os, errno, signal
      children = []
      for _ in range(4):
        reader, writer = os.pipe()
        children.append(os.fork())
        if children[-1] == 0:
          try:
            for _ in range(150): os.open("/dev/iommu", os.O_RDWR)
            name = "none"
          except OSError as error: name = errno.errorcode[error.errno]
          os.write(writer, name.encode())
          while True: signal.pause()
        print(os.read(reader, 20).decode())
      print(len(open("/etc/passwd").read()) > 0)
      for child in children: os.kill(child, signal.SIGKILL)
      """
    let outcome = Programs.run([
      "bash", "-c", "ulimit -n 200; exec \"$@\"", "bash", Programs.host, "--", "python3", "-c",
      script,
    ])
    let lines = outcome.output.split(separator: "\n")
    #expect(lines.count == 5 && lines.last == "True", "\(outcome)")
    #expect(
      lines.dropLast().allSatisfy { ["none", "EMFILE", "ENFILE"].contains($0) }, "\(outcome)")
    #expect(lines.dropLast().last != "none", "\(outcome)")
  }

  @Test(
    "H1: a queue's descriptor polls, reads and writes as Linux's, whoever has it",
    arguments: [
      "queue-polls", "queue-reads", "queue-writes", "queue-copies", "queue-closes",
      "queue-waits",
    ], User.allCases)
  func queues(_ name: String, _ user: User) {
    let outcome = Programs.client([name], as: user)
    #expect(outcome.status == 0, "\(outcome)")
    #expect(outcome.error == "")
  }

  @Test(
    "A2: shared memory without a name is reached for as long as any process maps it, and no other",
    arguments: ["survivors", "readers", "private-copies", "segments"], User.allCases)
  func sharedMemory(_ name: String, _ user: User) {
    let outcome = Programs.client([name], as: user)
    #expect(outcome.status == 0, "\(outcome)")
    #expect(outcome.error == "")
  }

  @Test(
    "L: a program and a driver share pages; they cannot be freed while they are mapped",
    arguments: ["page-maps", "page-busy"], User.allCases)
  func pages(_ name: String, _ user: User) {
    let outcome = Programs.client([name], as: user)
    #expect(outcome.status == 0, "\(outcome)")
    #expect(outcome.error == "")
  }

  #if arch(x86_64)
    @Test(
      "J1: a ring that races the re-arming of a doorbell page is never lost",
      arguments: ["doorbell-rings", "doorbell-shares"], User.allCases)
    func doorbells(_ name: String, _ user: User) {
      let outcome = Programs.client([name], as: user)
      #expect(outcome.status == 0, "\(outcome)")
      #expect(outcome.error == "")
    }
  #endif

  @Test(
    "Any pointer, command or offset gets an errno, and the next call works", arguments: 1...4)
  func fuzz(_ seed: Int) {
    let outcome = Programs.client(["fuzz", "\(seed)"])
    #expect(outcome.status == 0, "\(outcome)")
  }

  #if !SANITIZER
    @Test("A static program opens the node and makes a call", arguments: User.allCases)
    func staticProgram(_ user: User) {
      let outcome = Programs.hosted(
        [Programs.directory + "/interposer-client-static"], as: user)
      #expect(outcome.status == 0, "\(outcome)")
    }
  #endif

  @Test("The exit status is the program's", arguments: [0, 1, 7, 255])
  func exitStatus(_ status: Int32) {
    #expect(Programs.hosted(["sh", "-c", "exit \(status)"]).status == status)
  }

  @Test(
    "A program that ends by a signal ends us by the same", arguments: [1, 2, 9, 11, 15, 34])
  func signals(_ number: Int32) {
    #expect(Programs.hosted(["sh", "-c", "kill -\(number) $$"]).signal == number)
  }

  @Test("A program that cannot be executed ends with 127 or 126 and a sentence")
  func cannotExecute() {
    let missing = Programs.hosted(["no-such-program"])
    #expect(missing.status == 127)
    #expect(missing.error == "iommu: no-such-program: No such file or directory\n")
    let directory = Programs.hosted(["/etc"])
    #expect(directory.status == 126)
    #expect(directory.error == "iommu: /etc: Permission denied\n")
  }

  @Test("Standard input, output and the environment pass through")
  func standardStreams() {
    let outcome = Programs.run(
      [Programs.host, "--", "sh", "-c", "cat; echo $0 $1 >&2", "a b", "c"], input: "one\ntwo\n")
    #expect(outcome.output == "one\ntwo\n")
    #expect(outcome.error == "a b c\n")
  }

  @Test("A reader sees the end of output when the program and its children are gone")
  func endOfOutput() {
    let outcome = Programs.run(
      ["sh", "-c", "\(Programs.host) -- sh -c 'echo hi; sleep 0.1 & exit 3' | cat; echo end"])
    #expect(outcome.output == "hi\nend\n")
  }

  @Test("Descriptors of the caller reach the program, ours do not")
  func inheritedDescriptors() {
    let outcome = Programs.run(
      [
        "sh", "-c",
        "exec \(Programs.host) -- \(Programs.client) inherited 5 7 5</dev/null 7</dev/null",
      ])
    #expect(outcome.status == 0, "\(outcome)")
  }

  @Test("What the program leaves behind is served on, and its end is not waited for")
  func daemon() {
    let file = Programs.directory + "/daemon"
    let outcome = Programs.client(["daemonizes", file])
    #expect(outcome.status == 0)
    var text = [UInt8](repeating: 0, count: 4)
    for _ in 0..<10_000 {
      let descriptor = open(file, O_RDONLY)
      let count = descriptor < 0 ? 0 : read(descriptor, &text, 4)
      close(descriptor)
      if count == 4 { break }
      usleep(10_000)
    }
    unlink(file)
    #expect(String(decoding: text, as: UTF8.self) == "good")
  }

  @Test("Signals that are sent to us reach the program; its answer is ours")
  func forwardedSignals() {
    let outcome = Programs.run(
      [
        "sh", "-c",
        """
        out=$(mktemp)
        \(Programs.host) -- sh -c 'trap "echo caught; exit 9" USR1; echo up; while :; do sleep 0.05; done' > $out &
        until grep -q up $out; do sleep 0.05; done
        kill -USR1 $!; wait $!; status=$?; cat $out; rm $out; echo $status
        """,
      ])
    #expect(outcome.output == "up\ncaught\n9\n")
  }

  @Test("When the front is killed, so is the program")
  func killedFront() {
    let outcome = Programs.run(
      [
        "sh", "-c",
        """
        out=$(mktemp)
        \(Programs.host) -- sh -c 'echo $$; exec sleep 1000' > $out &
        until grep -q . $out; do sleep 0.05; done
        kill -KILL $!
        while kill -0 $(cat $out) 2> /dev/null; do sleep 0.05; done
        rm $out; echo gone
        """,
      ])
    #expect(outcome.output == "gone\n")
  }

  @Test("When the supervisor is killed, the program is too, and the user is told")
  func killedSupervisor() {
    let outcome = Programs.hosted(["sh", "-c", "kill -KILL $PPID; while :; do :; done"])
    #expect(outcome.status == 125)
    #expect(
      outcome.error
        == "iommu: the supervisor ended unexpectedly; the program was killed\n")
  }

  @Test("Few descriptors are enough, whenever the limit was lowered", arguments: [16, 64, 256])
  func limits(_ limit: Int) {
    let before = Programs.run(
      [
        "sh", "-c",
        "ulimit -n \(limit); exec \(Programs.host) -- \(Programs.client) plain-calls",
      ])
    #expect(before.status == 0, "\(before)")
    let after = Programs.hosted(
      ["sh", "-c", "ulimit -n \(limit); exec \(Programs.client) closes"])
    #expect(after.status == 0, "\(after)")
  }

  @Test("Programs that are gone take none of the supervisor's descriptors")
  func manyPrograms() {
    let outcome = Programs.run(
      [
        "sh", "-c",
        """
        ulimit -n 64
        exec \(Programs.host) -- sh -c '
          for i in $(seq 70); do \(Programs.client) hello || exit 1; done
          for i in $(seq 20); do \(Programs.client) memories || exit 2; done'
        """,
      ])
    #expect(outcome.status == 0, "\(outcome)")
  }

  @Test("Memory of programs that are gone, which is pinned still, takes no descriptors")
  func heirs() {
    // 60 files take one each; what 60 address spaces would take is three each.
    let outcome = Programs.run([
      "sh", "-c", "ulimit -n 200; exec \(Programs.host) -- \(Programs.client) heirs",
    ])
    #expect(outcome.status == 0, "\(outcome)")
  }

  @Test(
    "Programs that are gone keep few of the supervisor's descriptors, however many it may have",
    arguments: ["hello", "memories"])
  func manyProgramsAtLargeLimit(_ call: String) throws {
    let count = 150
    let outcome = Programs.run([
      "sh", "-c",
      """
      ulimit -n $(ulimit -H -n)
      exec \(Programs.host) -- sh -c '
        \(Programs.client) hello > /dev/null || exit 1
        ls /proc/$PPID/fd | wc -l
        for i in $(seq \(count)); do \(Programs.client) \(call) > /dev/null || exit 2; done
        ls /proc/$PPID/fd | wc -l'
      """,
    ])
    #expect(outcome.status == 0, "\(outcome)")
    let counts = outcome.output.split(separator: "\n").compactMap { Int($0) }
    try #require(counts.count == 2, "\(outcome)")
    // Of 16 tasks one each, of 8 address spaces three.
    #expect(counts[1] < counts[0] + 16 + 3 * 8)
  }

  @Test("A program that has become another user opens files", .enabled(if: getuid() == 0))
  func otherUser() {
    let outcome = Programs.hosted(
      [
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", Programs.client,
        "closes",
      ])
    #expect(outcome.status == 0, "\(outcome)")
  }

  @Test("Too few descriptors are said to be too few", arguments: [8, 15])
  func tooFewDescriptors(_ limit: Int) {
    let outcome = Programs.run([
      "sh", "-c", "ulimit -n \(limit); exec \(Programs.host) -- true",
    ])
    #expect(outcome.status == 125, "\(outcome)")
    #expect(
      outcome.error
        == "iommu: \(limit) open files are too few for `iommu run`, which needs 16: raise the limit "
        + "(ulimit -n)\n")
  }

  @Test("Where the caller ignores its children's ends, the program does and its end is seen")
  func ignoredChildren() {
    let outcome = Programs.run(
      [
        Programs.client, "ignores-children", Programs.host, "--", Programs.client,
        "is-ignoring",
      ])
    #expect(outcome.status == 7, "\(outcome)")
  }

  @Test("Standard streams that are closed stay closed for the program, and harm nobody")
  func closedStreams() {
    let outcome = Programs.run(
      [
        "sh", "-c",
        "exec \(Programs.host) -- sh -c '[ -e /proc/self/fd/0 ] || exit 7' <&- >&-",
      ])
    #expect(outcome.status == 7, "\(outcome)")
  }

  @Test(
    "Ctrl-Z, fg and Ctrl-C act on the program as on a job of its own", arguments: User.allCases)
  func terminal(_ user: User) {
    let outcome = Programs.run(
      [Programs.client, "terminal", Programs.host, "--", Programs.client, "job"], as: user)
    #expect(outcome.status == 0, "\(outcome)")
  }
}
