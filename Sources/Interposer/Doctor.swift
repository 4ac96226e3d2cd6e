// SPDX-License-Identifier: Apache-2.0
//
// What this host allows: each mechanism that `iommu run` uses, tried on a child of our own.

import CSyscalls

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// Tries what `iommu run` needs.
public enum Doctor {
  /// One mechanism, tried.
  public struct Finding: Sendable {
    /// What the user gets by it.
    public let feature: String
    /// How it is done.
    public let mechanism: String
    public let works: Bool
    /// Whether nothing runs without it. Of the views one is enough.
    public let isRequired: Bool
    /// First Linux version that has it, as `uname -r` spells it.
    public let kernelSince: String
    /// What is lost without it.
    public let lostWithout: String
    /// What to do where it does not work.
    public let remedy: String
    /// What the host said; empty where there is nothing to add.
    public let detail: String
    /// The way to a /dev and a /sys of the program's own that it is; nil for everything else.
    public var view: ViewMode?
  }

  /// Tries everything. Call it from a process that has one thread: it forks.
  /// - Returns: What was found; where there are too few files to try anything with, that alone.
  public static func probe() -> [Finding] {
    let limit = csys_open_limit(0, 0)
    if limit < fewestFiles { return [tooFewFiles(limit)] }
    let namespace = ProbeSession.run(.namespace)
    let paths = ProbeSession.run(.paths)
    // All else is tried on what `run` would take.
    let session = namespace.viewError.isEmpty ? namespace : paths
    // Where no call comes, nothing more can be tried on it.
    let isServed = session.filterError == 0
    return setUp(session).filter { isServed || $0.isRequired } + views(namespace, paths)
      + (isServed ? service(session) : []) + [lastClose(), yama(session)]
  }

  /// With how many descriptors every try finds what it would find with more.
  private static let fewestFiles: UInt64 = 128

  private static func tooFewFiles(_ limit: UInt64) -> Finding {
    Finding(
      feature: "tries of what this host allows", mechanism: "open files", works: false,
      isRequired: true, kernelSince: "",
      lostWithout:
        "nothing can be said of this host; programs need as many as they open and some more",
      remedy: "raise the limit (ulimit -n \(fewestFiles))",
      detail: "no more than \(limit) open files")
  }

  /// The view that `run` takes where it is not told; nil where none works.
  public static func view(of findings: [Finding]) -> ViewMode? {
    ViewMode.allCases.first { view in findings.contains { $0.view == view && $0.works } }
  }

  /// Whether a program can be run.
  public static func canRun(_ findings: [Finding]) -> Bool {
    view(of: findings) != nil && findings.allSatisfy { $0.works || !$0.isRequired }
  }

  private static func views(_ namespace: ProbeSession, _ paths: ProbeSession) -> [Finding] {
    let (hasMounts, hasShadow) = (namespace.viewError.isEmpty, paths.viewError.isEmpty)
    let feature = "/dev and /sys of the program's own"
    return [
      Finding(
        feature: feature,
        mechanism: namespace.isPrivileged
          ? "mount namespace, as root" : "mount namespace in a user namespace",
        works: hasMounts, isRequired: !hasShadow, kernelSince: "5.8",
        lostWithout: hasShadow
          ? "speed: calls that take a path come by iommu; `run` shows the files by paths"
          : "everything: the program cannot see the devices",
        remedy: "allow unprivileged user namespaces, or run as root with CAP_SYS_ADMIN",
        detail: namespace.viewError, view: .namespace),
      Finding(
        feature: feature, mechanism: "paths, looked up by the supervisor",
        works: hasShadow, isRequired: !hasMounts, kernelSince: "5.9",
        lostWithout: hasMounts
          ? "nothing here: `run` takes the mount namespace"
          : "everything: the program cannot see the devices",
        remedy:
          "let /dev/shm, TMPDIR or /tmp be a local file system that this user can write",
        detail: paths.viewError, view: .paths),
    ]
  }

  private static func setUp(_ session: ProbeSession) -> [Finding] {
    let nested = session.filterError == -EBUSY
    return [
      Finding(
        feature: "calls reach the devices", mechanism: "seccomp user notification",
        works: session.filterError == 0, isRequired: true, kernelSince: "5.9",
        lostWithout: "everything: no program can be run",
        remedy: nested
          ? "run it outside of the `iommu run` (or container runtime) that supervises this shell"
          : "allow seccomp(2) in the container's profile, on Linux 5.19 or later",
        detail: session.filterError == 0 ? "" : System.message(session.filterError)),
      Finding(
        feature: "signals interrupt no call that is being answered",
        mechanism: "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", works: session.killableWaits,
        isRequired: false, kernelSince: "5.19",
        lostWithout: "a signal may make a call arrive twice",
        remedy: "use Linux 5.19 or later", detail: ""),
    ]
  }

  private static func service(_ session: ProbeSession) -> [Finding] {
    [
      Finding(
        feature: "fast answers", mechanism: "SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP",
        works: session.syncWakeUp, isRequired: false, kernelSince: "6.6",
        lostWithout: "speed: each call costs about 50 µs more",
        remedy: "use Linux 6.6 or later", detail: ""),
      Finding(
        feature: "descriptors for the program", mechanism: "SECCOMP_IOCTL_NOTIF_ADDFD",
        works: session.addDescriptor == 0, isRequired: true, kernelSince: "5.9",
        lostWithout: "everything: no node can be opened", remedy: "use Linux 5.19 or later",
        detail: message(session.addDescriptor)),
      copies(session),
      Finding(
        feature: "threads with descriptor tables of their own",
        mechanism: "pidfd_open with PIDFD_THREAD", works: session.threadDescriptor >= 0,
        isRequired: false, kernelSince: "6.9",
        lostWithout: "threads that do not share their process's descriptors",
        remedy: "use Linux 6.9 or later", detail: ""),
      Finding(
        feature: "arguments of calls", mechanism: "process_vm_readv",
        works: session.readMemory > 0, isRequired: true, kernelSince: "3.2",
        lostWithout: "everything: no call's arguments can be read",
        remedy: "allow process_vm_readv(2) in the container's profile",
        detail: message(session.readMemory)),
      Finding(
        feature: "DMA to private memory", mechanism: "/proc/PID/mem",
        works: session.openMemory >= 0, isRequired: true, kernelSince: "2.6.39",
        lostWithout: "mapping memory for DMA",
        remedy: "mount /proc, and allow ptrace access to children",
        detail: message(session.openMemory)),
      Finding(
        feature: "fast look-up of mappings", mechanism: "PROCMAP_QUERY",
        works: session.queryMaps == 0, isRequired: false, kernelSince: "6.11",
        lostWithout: "speed: /proc/PID/maps is read as text for each map",
        remedy: "use Linux 6.11 or later", detail: ""),
      mappedRegisters(session),
    ] + otherUsers(session)
  }

  /// Of who cannot become another user, neither can a program.
  private static func otherUsers(_ session: ProbeSession) -> [Finding] {
    guard let result = ProbeSession.lookAtOtherUser() else { return [] }
    // One that executes nothing afterwards has to be traced.
    let works = result == 0 && (!OtherUser.isNeeded || canTrace(session))
    return [
      Finding(
        feature: "programs that become another user",
        mechanism: "CAP_SYS_PTRACE, or CAP_SETUID, CAP_SETGID and ptrace", works: works,
        isRequired: false, kernelSince: "3.4",
        lostWithout: "devices for programs that become another user (su, setpriv, daemons)",
        remedy:
          "give iommu CAP_SYS_PTRACE (docker run --cap-add SYS_PTRACE), or run it as that user",
        detail: message(result))
    ]
  }

  private static func canTrace(_ session: ProbeSession) -> Bool {
    Tracer.impediment == nil && session.trace == 0
  }

  private static func copies(_ session: ProbeSession) -> Finding {
    let lost =
      if session.nameDescriptor != 0 {
        "everything: no call can be told whose file it is on"
      } else if canTrace(session) {
        "speed: files are known by /proc/PID/fd; the program hands eventfds over, by ptrace"
      } else {
        "interrupts: eventfds cannot be had, as ptrace, by which a program hands them over, "
          + "does not work either"
      }
    return Finding(
      feature: "files are known by what they are", mechanism: "pidfd_getfd",
      works: session.copyDescriptor >= 0, isRequired: session.nameDescriptor != 0,
      kernelSince: "5.6", lostWithout: lost,
      remedy: "allow pidfd_getfd(2) and ptrace access to children (no seccomp or LSM rule "
        + "against them)", detail: message(session.copyDescriptor))
  }

  private static func mappedRegisters(_ session: ProbeSession) -> Finding {
    let impediment = Tracer.impediment
    return Finding(
      feature: session.copyDescriptor >= 0 ? "mapped registers" : "mapped registers, eventfds",
      mechanism: "ptrace, and SIGBUS past the end of a file",
      works: canTrace(session), isRequired: false, kernelSince: "3.4",
      lostWithout: (session.copyDescriptor >= 0 ? "" : "eventfds, as pidfd_getfd is refused; ")
        + "mmap of registers: drivers that read and write them by pread and pwrite run",
      remedy:
        "allow ptrace(2) in the container's profile, set kernel.yama.ptrace_scope to 2 or "
        + "less; on x86-64",
      detail: impediment ?? message(session.trace))
  }

  private static func message(_ result: Int32) -> String {
    result < 0 ? System.message(result) : ""
  }

  private static func lastClose() -> Finding {
    var detail = ""
    var works = false
    do throws(InterposerError) {
      works = try HandleTable.canSeeLastClose()
    } catch {
      detail = error.description
    }
    return Finding(
      feature: "a file is freed at its last close anywhere",
      mechanism: "inotify and file leases",
      works: works, isRequired: true, kernelSince: "5.8",
      lostWithout: "freeing: what a program opened stays until it ends",
      remedy: "set fs.leases-enable=1 and raise fs.inotify.max_user_instances", detail: detail)
  }

  private static func yama(_ session: ProbeSession) -> Finding {
    let scope = System.contents("/proc/sys/kernel/yama/ptrace_scope").map {
      String(decoding: $0.prefix { $0 >= 0x30 }, as: UTF8.self)
    }
    // 1 allows ancestors, which the supervisor of all is; 2 asks for CAP_SYS_PTRACE, which a
    // parent has in the child's user namespace, and else root; 3 forbids all.
    let works = scope != "3" && (scope != "2" || session.readMemory > 0)
    return Finding(
      feature: "access to the program, as far as Yama has a say",
      mechanism: "kernel.yama.ptrace_scope", works: works, isRequired: true,
      kernelSince: "3.4", lostWithout: "everything: the program's memory cannot be read",
      remedy: session.view == .paths && scope == "2"
        ? "set kernel.yama.ptrace_scope to 1 or less, or run as root with CAP_SYS_PTRACE"
        : "set kernel.yama.ptrace_scope to 2 or less, which takes a reboot",
      detail: scope.map { "it is \($0)" } ?? "not in this kernel: nothing is restricted")
  }
}
