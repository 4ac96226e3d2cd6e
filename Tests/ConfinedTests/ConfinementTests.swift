// SPDX-License-Identifier: Apache-2.0
//
// That `confined` confines as a container does: what Docker's default refuses fails with Docker's
// errno, what it allows works. What runs under `iommu run` runs there too, in CI's second lane.

import Foundation
import Testing

@Suite("A container's confinement") struct ConfinementTests {
  /// Makes calls by number and prints a line for each: what it is, and its errno.
  private static let probe = """
    import ctypes, errno
    libc = ctypes.CDLL(None, use_errno=True)
    def call(number, *arguments):
      ctypes.set_errno(0)
      result = libc.syscall(number, *(ctypes.c_long(value) for value in arguments))
      return errno.errorcode[ctypes.get_errno()] if result < 0 else "0"
    def tell(name, *arguments): print(name, call(*arguments))

    """

  private func lines(_ text: String) -> [String] {
    text.split(separator: "\n").map(String.init)
  }

  @Test("What Docker's profile does not name is refused", arguments: User.allCases)
  func refused(_ user: User) throws {
    // Arguments by which each call would fail otherwise, or do no harm.
    let calls = [
      ("unshare", "272, 0x20000"), ("unshare-user", "272, 0x10000000"), ("mount", "165"),
      ("umount2", "166"), ("setns", "308, -1"), ("pivot_root", "155"), ("fsopen", "430"),
      ("open_tree", "428, -1"), ("move_mount", "429, -1"), ("mount_setattr", "442, -1"),
      ("pidfd_getfd", "438, -1"), ("kcmp", "312"), ("process_madvise", "440, -1"),
      ("keyctl", "250, 99"), ("add_key", "248"), ("request_key", "249"), ("bpf", "321, 99"),
      ("perf_event_open", "298"), ("userfaultfd", "323, -1"), ("io_uring_setup", "425"),
      ("fanotify_init", "300, -1"), ("open_by_handle_at", "304, -1"), ("init_module", "175"),
      ("iopl", "172, 9"), ("quotactl", "179"), ("swapon", "167"), ("syslog", "103, 99"),
      ("mbind", "237"), ("move_pages", "279, -1"), ("vhangup", "153"), ("reboot", "169"),
      ("sethostname", "170"), ("settimeofday", "164"), ("acct", "163"), ("kexec_load", "246"),
      ("AF_VSOCK", "41, 40, 1"), ("AF_ALG", "41, 38, 5"),
      ("AF_UNIX + 2^32", "41, 1 << 32 | 1, 1"),
      ("ADDR_NO_RANDOMIZE", "135, 0x40000"), ("clone a user namespace", "56, 0x10000011"),
      ("clone a pid namespace", "56, 0x20000011"),
    ]
    let run = try confinedPython(
      Self.probe + calls.map { "tell('\($0.0)', \($0.1))" }.joined(separator: "\n"),
      as: user)
    #expect(lines(run.output) == calls.map { "\($0.0) EPERM" }, "\(run)")
  }

  @Test("clone3 and calls newer than the profile are unknown", arguments: User.allCases)
  func unknown(_ user: User) throws {
    let run = try confinedPython(
      Self.probe + "tell('clone3', 435)\ntell('467', 467)\ntell('999', 999)", as: user)
    #expect(lines(run.output) == ["clone3 ENOSYS", "467 ENOSYS", "999 ENOSYS"], "\(run)")
  }

  @Test("What Docker allows works", arguments: User.allCases)
  func allowed(_ user: User) throws {
    let run = try confinedPython(
      Self.probe + """
        import mmap, os, signal, socket, subprocess, threading
        child = os.fork()
        if not child: signal.pause()
        tell("ptrace", 101, 0x4206, child, 0, 0)
        os.close(os.open("/proc/%d/mem" % child, os.O_RDWR)); print("mem")
        os.close(os.pidfd_open(child)); print("pidfd_open")
        os.kill(child, signal.SIGKILL); os.waitpid(child, 0)
        memory = ctypes.create_string_buffer(b"there"); copy = ctypes.create_string_buffer(5)
        pieces = [(ctypes.c_uint64 * 2)(ctypes.addressof(b), 5) for b in (copy, memory)]
        count = libc.process_vm_readv(os.getpid(), pieces[0], 1, pieces[1], 1, 0)
        print("process_vm_readv", count, copy.raw.decode())
        thread = threading.Thread(target=lambda: print("thread")); thread.start(); thread.join()
        print(subprocess.run(["echo", "program"], capture_output=True).stdout.decode(), end="")
        socket.socketpair(); socket.socket(socket.AF_INET); print("sockets")
        os.close(os.memfd_create("x")); print("memfd")
        print("inotify", libc.inotify_init1(0) >= 0)
        action = ctypes.c_uint32(0x7fc00000)
        tell("seccomp", 317, 2, 0, ctypes.addressof(action))
        tell("personality", 135, 0xffffffff)
        os.mkfifo("/tmp/fifo-%d" % os.getpid()); os.unlink("/tmp/fifo-%d" % os.getpid())
        print("fifo")
        tell("chroot", 161, 0)
        """, as: user)
    #expect(
      lines(run.output) == [
        "ptrace 0", "mem", "pidfd_open", "process_vm_readv 5 there", "thread",
        "program", "sockets", "memfd", "inotify True", "seccomp 0", "personality 0", "fifo",
        "chroot EFAULT",
      ], "\(run)")
  }

  @Test("Capabilities, privileges and namespaces are a container's", arguments: User.allCases)
  func credentials(_ user: User) throws {
    let run = try confined(
      [
        "sh", "-c",
        """
        grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -d '\t'
        cat /proc/sys/user/max_user_namespaces; id -u
        """,
      ], as: user)
    let said = lines(run.output)
    #expect(said.count == 9, "\(run)")
    let fourteen = "00000000a80425fb"
    let own = said.last == "0" ? fourteen : "0000000000000000"
    #expect(
      said.prefix(7) == [
        "CapInh:0000000000000000", "CapPrm:\(own)", "CapEff:\(own)", "CapBnd:\(fourteen)",
        "CapAmb:0000000000000000", "NoNewPrivs:0", "Seccomp:2",
      ], "\(run)")
    #expect(said[7] == "0", "user.max_user_namespaces: \(run)")
  }

  @Test("/dev, /sys and /proc are a container's", arguments: User.allCases)
  func mounts(_ user: User) throws {
    let run = try confinedPython(
      """
      import errno, os, stat
      def tell(what, *arguments):
        try: print(what.__name__, arguments[0], what(*arguments))
        except OSError as error: print(what.__name__, arguments[0], errno.errorcode[error.errno])
      print(sorted(os.listdir("/dev")))
      for node in "null", "zero", "full", "random", "urandom", "tty":
        if not stat.S_ISCHR(os.stat("/dev/" + node).st_mode): print(node)
      open("/dev/null", "w").write("x"); print(len(open("/dev/zero", "rb").read(9)))
      open("/dev/shm/x", "w").close()
      for path in "/sys", "/sys/bus", "/proc/sys/kernel", "/proc/irq", "/proc/fs":
        if not os.statvfs(path).f_flag & os.ST_RDONLY: print(path)
      print(os.listdir("/sys/firmware"), len(open("/proc/interrupts").read()))
      print(os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize >> 20)
      shm = os.statvfs("/dev/shm").f_flag
      print(all(shm & flag for flag in (os.ST_NOEXEC, os.ST_NOSUID, os.ST_NODEV)))
      """, as: user)
    #expect(
      lines(run.output) == [
        "['core', 'fd', 'full', 'mqueue', 'null', 'ptmx', 'pts', 'random', 'shm', 'stderr', "
          + "'stdin', 'stdout', 'tty', 'urandom', 'zero']",
        "9", "[] 0", "64", "True",
      ], "\(run)")
  }

  @Test("A capability that is added brings its rules, as docker's --cap-add does")
  func added() throws {
    let script =
      Self.probe + "tell('pidfd_getfd', 438, -1, 0, 0)\ntell('unshare', 272, 0x20000)"
    let trace = try confinedPython(script, options: ["--cap-add", "SYS_PTRACE"])
    #expect(lines(trace.output) == ["pidfd_getfd EBADF", "unshare EPERM"], "\(trace)")
    let admin = try confinedPython(script, options: ["--cap-add", "SYS_ADMIN"])
    let works = getuid() == 0 ? "0" : "EPERM"
    #expect(lines(admin.output) == ["pidfd_getfd EPERM", "unshare \(works)"], "\(admin)")
  }

  @Test("Docker 20.10's profile refuses what today's does not")
  func older() throws {
    let run = try confinedPython(
      Self.probe + "tell('process_vm_readv', 310)\ntell('pkey_alloc', 330)\ntell('450', 450)",
      options: ["--profile", "20.10"])
    #expect(
      lines(run.output) == ["process_vm_readv EPERM", "pkey_alloc EPERM", "450 ENOSYS"],
      "\(run)")
  }

  @Test("Each part can be left out; no user namespaces remains")
  func parts() throws {
    let script = """
      import os
      print(os.path.exists("/dev/mqueue") and len(os.listdir("/dev")) == 15)
      lines = open("/proc/self/status").read()
      print("Seccomp:\\t2" in lines, "CapBnd:\\t00000000a80425fb" in lines)
      """
    func said(_ parts: String...) throws -> [String] {
      lines(try confinedPython(script, options: parts.flatMap { ["--without", $0] }).output)
    }
    #expect(try said() == ["True", "True True"])
    #expect(try said("seccomp") == ["True", "False True"])
    #expect(try said("capabilities") == ["True", "True False"])
    #expect(try said("mounts").last == "True True")
    let alone = ["seccomp", "capabilities", "mounts"].flatMap { ["--without", $0] }
    let run = try confinedPython(
      Self.probe + "tell('unshare', 272, 0x10000000)", options: alone)
    #expect(lines(run.output) == ["unshare ENOSPC"], "\(run)")
  }

  @Test("Its own failures have the statuses of `docker run`")
  func statuses() throws {
    #expect(try confined(["sh", "-c", "exit 3"]).status == 3)
    #expect(try confined(["/nonexistent"]).status == 127)
    #expect(try confined(["/etc/passwd"]).status == 126)
    #expect(try confined(["true"], options: ["--without", "walls"]).status == 2)
    #expect(try confined(["true"], options: ["--cap-add", "NOTHING"]).status == 2)
  }

  @Test(
    "What has a filter and fewer capabilities, but may make namespaces, is not taken for a container"
  )
  func lesserConfinement() throws {
    // A filter that allows everything.
    let looser = """
      import ctypes, os, sys
      libc = ctypes.CDLL(None)
      libc.prctl(38, 1, 0, 0, 0)
      rule = (ctypes.c_uint32 * 2)(6, 0x7fff0000)
      program = (ctypes.c_uint64 * 2)(1, ctypes.addressof(rule))
      assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
      os.execv(sys.argv[1], sys.argv[1:])
      """
    let lowered = [
      "setpriv", "--bounding-set=-all", "--reuid=65534", "--regid=65534", "--clear-groups",
    ]
    let outcome = try run(
      (getuid() == 0 ? lowered : [])
        + ["python3", "-c", looser, Built.confined, "--", "unshare", "--user", "true"])
    #expect(outcome.status == 1 && outcome.errors.hasPrefix("unshare: "), "\(outcome)")
  }
}
