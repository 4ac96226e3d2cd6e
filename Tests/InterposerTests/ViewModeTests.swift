// SPDX-License-Identifier: Apache-2.0
//
// Which way a program gets to its /dev and /sys: as asked for, or as the host allows.

import Glibc
import Testing

@Suite("The choice of a view", .serialized)
struct ViewModeTests {
  private static let namespaces = ["sh", "-c", "readlink /proc/self/ns/mnt /proc/self/ns/user"]

  /// What a program finds that is in no namespace of its own.
  private func outside(_ user: User) -> String {
    Programs.run(Self.namespaces, as: user).output
  }

  /// Why a program that may not mount has no namespace; who may not unshare does not come so far.
  private static let reason =
    Programs.hasMounts
    ? "cannot make the mounts private (Permission denied)" : Programs.refusal

  /// Runs a program under the host, which may unshare but not mount: as Ubuntu's AppArmor has it, and
  /// containers whose profile allows one of the two.
  private func unmounted(
    _ arguments: [String], as user: User, options: [String] = ["--view", "any"]
  ) -> Outcome {
    Programs.run(
      [
        // By env: who has taken on another user looks for the python that it can execute.
        "env", "python3", "-c",
        """
        import ctypes, os, struct, sys
        number = {"x86_64": 165, "aarch64": 40}[os.uname().machine]
        code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50000 | 13), (0x06, 0, 0, 0x7FFF0000)]
        text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
        class Program(ctypes.Structure):
          _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
        program = Program(len(code), ctypes.addressof(text))
        call = ctypes.CDLL(None, use_errno=True).prctl
        if call(38, 1, 0, 0, 0) or call(22, 2, ctypes.byref(program), 0, 0): sys.exit(99)
        os.execvp(sys.argv[1], sys.argv[1:])
        """, Programs.host,
      ] + options + ["--"] + arguments, as: user)
  }

  @Test("A view that is asked for is taken", arguments: User.allCases)
  func asked(_ user: User) {
    let paths = Programs.hosted(Self.namespaces, as: user, options: ["--view", "paths"])
    #expect(paths.output == outside(user), "\(paths)")
    #expect(paths.status == 0 && paths.error == "", "\(paths)")
    let namespace = Programs.hosted(
      Self.namespaces, as: user, options: ["--view", "namespace"])
    if Programs.hasMounts {
      #expect(namespace.status == 0 && namespace.output != outside(user), "\(namespace)")
    } else {
      #expect(namespace.status == 125 && namespace.output == "", "\(namespace)")
      #expect(namespace.error.hasPrefix("iommu: \(Programs.refusal)"), "\(namespace)")
    }
  }

  @Test(
    "Where nothing can be mounted the program is in no half of a namespace",
    arguments: User.allCases)
  func refusedMount(_ user: User) {
    let outcome = unmounted(Self.namespaces, as: user)
    #expect(outcome.output == outside(user), "\(outcome)")
    #expect(outcome.status == 0 && outcome.error == "", "\(outcome)")
    let forced = unmounted(["true"], as: user, options: ["--view", "namespace"])
    #expect(forced.status == 125)
    #expect(forced.error.contains("iommu: \(Self.reason)"), "\(forced)")
  }

  @Test("--explain and --trace say that the view is by paths, and why")
  func reasons() {
    for options in [["--explain"], ["--trace", "-"]] {
      let outcome = unmounted(
        ["true"], as: .current, options: ["--view", "any"] + options)
      #expect(
        outcome.error.contains("iommu: /dev and /sys are shown by paths, without a mount"),
        "\(outcome)")
      #expect(outcome.error.contains("for \(Self.reason)"), "\(outcome)")
    }
    let asked = Programs.hosted(["true"], options: ["--view", "paths", "--explain"])
    #expect(asked.error.contains("by paths, without a mount namespace, as was asked for\n"))
    let file = Programs.directory + "/view.json"
    defer { unlink(file) }
    let traced = Programs.hosted(
      ["true"], options: ["--view", "paths", "--trace", file])
    #expect(traced.status == 0 && traced.error == "", "\(traced)")
    #expect(Programs.run(["cat", file]).output.contains("\"name\":\"view\""))
  }

  @Test("What the program leaves behind is the supervisor's child, and is served and reaped")
  func orphans() {
    let outcome = Programs.hosted(
      [
        "python3", "-c",
        """
        import os, time
        supervisor = os.getppid()
        reader, writer = os.pipe()
        if os.fork() == 0:
          middle = os.getpid()
          if os.fork() == 0:
            while os.getppid() == middle: time.sleep(0.001)
            os.write(writer, b"adopted" if os.getppid() == supervisor else b"lost")
            os._exit(0)
          os._exit(0)
        os.wait()
        os.close(writer)
        print(os.read(reader, 9).decode())
        while os.read(reader, 1): pass
        """,
      ], options: ["--view", "paths"])
    #expect(outcome.output == "adopted\n", "\(outcome)")
    #expect(outcome.status == 0 && outcome.error == "")
  }

  /// Finds where the shadow of its run is, by the supervisor's descriptors.
  private static let findShadow =
    "readlink /proc/$PPID/fd/* | sed -n 's,/dev$,,; /iommu-view-[^/]*$/p' | head -1"

  @Test("The shadow is there while the program runs, and gone when it has ended")
  func lifetime() {
    let outcome = Programs.hosted(
      ["sh", "-c", Self.findShadow], options: ["--view", "paths"])
    let place = outcome.output.split(separator: "\n").first.map(String.init) ?? ""
    #expect(place.contains("/iommu-view-"), "\(outcome)")
    #expect(access(place, F_OK) != 0)
  }

  @Test("The shadow of a killed supervisor is gone after the next run")
  func killed() {
    let outcome = Programs.hosted(
      ["sh", "-c", "\(Self.findShadow); kill -KILL $PPID; while :; do :; done"],
      options: ["--view", "paths"])
    #expect(outcome.status == 125, "\(outcome)")
    let place = outcome.output.split(separator: "\n").first.map(String.init) ?? ""
    #expect(place.contains("/iommu-view-"), "\(outcome)")
    _ = Programs.hosted(["true"], options: ["--view", "paths"])
    #expect(access(place, F_OK) != 0)
  }
}
