// SPDX-License-Identifier: Apache-2.0
//
// Programs that become another user, where the supervisor has no right to look at everybody's: as root
// without CAP_SYS_PTRACE, as in a container.

import CSyscalls
import Glibc
import Testing

@testable import Interposer

@Suite("Programs that become another user", .enabled(if: getuid() == 0))
struct OtherUserTests {
  /// Runs a program of Python under the host, with the rights of a container's root.
  private func python(_ program: String, options: [String] = []) -> Outcome {
    #if SANITIZER
      let confined: [String] = []
    #else
      let confined = [Programs.built("confined")]
    #endif
    return Programs.run(
      confined + [Programs.host] + options + ["--", "python3", "-c", program])
  }

  private static let reports = """
    import errno, os, sys, threading
    def opens(name="/dev/iommu", **options):
        try: os.close(os.open(name, os.O_RDWR, **options)); return "opens"
        except OSError as error: return errno.errorcode[error.errno]

    """

  @Test(
    "J1: one that executes nothing afterwards finds its devices, whichever call made it another user",
    arguments: [
      "os.setgid(65534); os.setuid(65534)",
      "os.setregid(65534, 65534); os.setreuid(65534, 65534)",
      "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)",
    ])
  func setsIds(_ calls: String) {
    let outcome = python(
      Self.reports + """
        home = os.open("/dev", os.O_RDONLY)
        \(calls)
        print(os.getresuid(), os.getresgid(), opens(), opens("iommu", dir_fd=home))
        os.chdir("/sys/devices/test"); print(os.getcwd(), open("vendor").read().strip())
        try: os.setuid(0)
        except OSError as error: print(errno.errorcode[error.errno])
        if os.fork() == 0:
            print(opens(), flush=True)
            os.execvp("cat", ["cat", "/sys/devices/test/vendor"])
        os.wait()
        """)
    #expect(
      outcome.output == """
        (65534, 65534, 65534) (65534, 65534, 65534) opens opens
        /sys/devices/test 0x8086
        EPERM
        opens
        0x8086

        """, "\(outcome)")
    #expect(outcome.error == "", "\(outcome)")
  }

  @Test(
    "J1: a user that is changed in all threads, by the C library, is changed in each of them")
  func threads() {
    let outcome = python(
      Self.reports + """
        import queue
        found, asked = queue.Queue(), [queue.Queue() for _ in range(6)]
        def ids(kind):
            lines = open("/proc/thread-self/status").readlines()
            return next(line.split()[1:] for line in lines if line.startswith(kind))
        def work(asks):
            while asks.get(): found.put((opens(), ids("Uid:"), ids("Gid:")))
        all = [threading.Thread(target=work, args=(asks,)) for asks in asked]
        for thread in all: thread.start()
        for turn in range(2):
            for asks in asked: asks.put(True)
            if turn == 0:
                os.setgid(65534); os.setuid(65534)
            for asks in asked: seen = found.get()
        for asks in asked: asks.put(True)
        print({str(found.get()) for asks in asked})
        for asks in asked: asks.put(False)
        for thread in all: thread.join()
        """)
    let ids = "['65534', '65534', '65534', '65534']"
    #expect(outcome.output == "{\"('opens', \(ids), \(ids))\"}\n", "\(outcome)")
    #expect(outcome.error == "", "\(outcome)")
  }

  @Test(
    "J1: many threads change their own users at once, beside signals, and none is left waiting")
  func manyThreads() {
    // The plain system call: of this thread alone.
    let outcome = python(
      Self.reports + """
        import ctypes, signal
        call = ctypes.CDLL(None, use_errno=True).syscall
        signal.signal(signal.SIGALRM, lambda *_: None)
        # SA_RESTART
        signal.siginterrupt(signal.SIGALRM, False)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        found = set()
        def ids():
            return open("/proc/thread-self/status").read().split("Uid:")[1].split("\\n")[0].split()
        def work(user):
            for turn in range(8):
                stays = call(\(CSYS_NR_setresuid), *[ctypes.c_long(-1)] * 3)
                becomes = call(\(CSYS_NR_setresuid), *[ctypes.c_long(user)] * 3)
                found.add((stays, becomes, opens(), ids() == [str(user)] * 4))
        all = [threading.Thread(target=work, args=(user,)) for user in [65534, 0, 65533] * 10]
        for thread in all: thread.start()
        for thread in all: thread.join()
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(found, os.getresuid(), opens())
        """)
    #expect(outcome.output == "{(0, 0, 'opens', True)} (0, 0, 0) opens\n", "\(outcome)")
    #expect(outcome.error == "", "\(outcome)")
  }

  @Test(
    "J1: one that executes another program as another user, in a root of that user's, finds devices"
  )
  func executes() {
    let outcome = python(
      Self.reports + """
        os.chroot("/"); os.setgid(65534); os.setuid(65534)
        os.execvp("sh", ["sh", "-c", "cd /sys/devices; cat test/vendor; test -c /dev/iommu && echo there"])
        """)
    #expect(outcome.output == "0x8086\nthere\n", "\(outcome)")
  }

  @Test(
    "What has several users at once is said by name to be nobody's to look at, once, in all modes",
    arguments: zip(["os.seteuid(65534)", "pass"], ["user", "group"])
  )
  func severalUsers(_ calls: String, _ other: String) {
    let outcome = python(
      Self.reports + """
        os.setegid(65534); \(calls)
        print(opens(), opens())
        """, options: ["--view", "paths"])
    #if SANITIZER
      #expect(outcome.output == "opens opens\n", "\(outcome)")
    #else
      #expect(outcome.output == "ENOENT ENOENT\n", "\(outcome)")
      #expect(
        outcome.error == """
          iommu: python3: has become \(other) 65534, whose processes iommu may not look at: it gets no \
          devices; give iommu CAP_SYS_PTRACE (docker run --cap-add SYS_PTRACE), or run iommu as that \(other)

          """, "\(outcome)")
    #endif
  }

  @Test("What does not allow to be looked at is said by name, once, in all modes")
  func notDumpable() {
    let outcome = python(
      Self.reports + """
        import ctypes
        print(opens(), ctypes.CDLL(None).prctl(4, 0, 0, 0, 0), opens())
        """, options: ["--view", "paths"])
    #if !SANITIZER
      #expect(outcome.output == "opens 0 ENOENT\n", "\(outcome)")
      #expect(
        outcome.error == """
          iommu: python3: does not allow to be looked at (PR_SET_DUMPABLE in prctl(2), or a file that \
          cannot be read): it gets no devices; allow that, or give iommu CAP_SYS_PTRACE (docker run \
          --cap-add SYS_PTRACE)

          """, "\(outcome)")
    #endif
  }

  @Test(
    "J1: what is the host's, by a path through the view, opens to nobody to whom it is closed",
    arguments: [
      "setpriv --inh-caps=-all --bounding-set=-all cat",
      "python3 -c 'import ctypes, sys; ctypes.CDLL(None).setfsuid(1234); open(sys.argv[1])'",
    ])
  func hostsFiles(_ reads: String) {
    let outcome = Programs.run([
      Programs.host, "--view", "paths", "--", "bash", "-c",
      """
      file=$(mktemp) && trap 'rm -f "$file"' EXIT && chown 65534 "$file" && chmod 600 "$file"
      for path in "$file" "/sys/devices/test/../../..$file"; do
        cat "$path" && echo open to root
        \(reads) "$path" 2>&1 | grep -o 'Permission denied'
      done
      """,
    ])
    let each = "open to root\nPermission denied\n"
    #expect(outcome.output == each + each, "\(outcome)")
  }
}
