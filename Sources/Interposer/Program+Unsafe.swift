// SPDX-License-Identifier: Apache-2.0
//
// From the fork to the program's first instruction: namespaces, the view, the filter, exec.
// Runs in a process with one thread, in the front's process group and session.

import CSyscalls
import LinuxABI

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

enum Program {
  /// Sets the process up and executes the program; does not return.
  ///
  /// Speaks to the supervisor over `socket`: answers whether it has its namespaces, where the view
  /// takes some; takes the encoded view; answers whether it has view and filter, and gives the
  /// filter's listener and the roots of the view. An answer is a length and that much text (why it
  /// failed), or length 0.
  static func main(_ options: RunOptions, view: ViewMode, socket: Int32) -> Never {
    do throws(InterposerError) {
      let namespaces: Namespaces.Mode? = view == .namespace ? try Namespaces.enter() : nil
      answer("", socket)
      guard let head = System.readExactly(socket, 8), let count = Int(exactly: decode(head)),
        let bytes = System.readExactly(socket, count)
      else { _exit(125) }
      let wire = WireView(bytes)
      var roots: [String: OwnedDescriptor] = [:]
      if let namespaces { roots = try MountView(wire, mode: namespaces).build() }
      let listener = try installFilter(
        trapsKVM: wire.nodes.contains { $0.path == "/dev/kvm" },
        translatesPaths: view == .paths)
      answer("", socket)
      _ = csys_send_fd(socket, listener)
      close(listener)
      sendRoots(roots, socket)
    } catch {
      answer(error.description, socket)
      _exit(125)
    }
    execute(options)
  }

  private static func answer(_ sentence: String, _ socket: Int32) {
    let text = Array(sentence.utf8)
    System.writeAll(
      socket, (0..<4).map { UInt8(truncatingIfNeeded: text.count >> (8 * $0)) } + text)
  }

  /// Of the file systems that the view is in, which may change: for each its name's length, the
  /// name, the descriptor; length 0 at the end.
  private static func sendRoots(_ roots: [String: OwnedDescriptor], _ socket: Int32) {
    for (name, root) in roots {
      System.writeAll(socket, [UInt8(name.utf8.count)] + Array(name.utf8))
      _ = csys_send_fd(socket, root.number)
    }
    System.writeAll(socket, [0])
  }

  private static func decode(_ bytes: [UInt8]) -> UInt64 {
    bytes.enumerated().reduce(0) { $0 | UInt64($1.element) << (8 * UInt64($1.offset)) }
  }

  private static func installFilter(
    trapsKVM: Bool, translatesPaths: Bool
  ) throws(InterposerError) -> Int32 {
    guard csys_no_new_privileges() == 0 else {
      throw InterposerError("the kernel has no no_new_privs; Linux 5.19 or later is needed")
    }
    let filter = Filter(
      window: descriptorWindow(), trapsKVM: trapsKVM, translatesPaths: translatesPaths,
      // In a user namespace of its own all of its users are ours to look at.
      trapsUsers: OtherUser.isNeeded)
    let (listener, killable) = filter.install()
    if listener < 0 {
      switch -listener {
      case EBUSY:
        throw InterposerError(
          "this process is already supervised by seccomp user notification (a nested `iommu run`, "
            + "or a container runtime that uses it): run `iommu run` outside of it")
      case EINVAL, ENOSYS:
        throw InterposerError(
          "the kernel has no seccomp user notification: Linux 5.19 or later is needed, with "
            + "CONFIG_SECCOMP_FILTER")
      default:
        throw InterposerError(
          "the kernel refused the seccomp filter (\(System.message(listener))): allow "
            + "seccomp(2) in the container's own profile")
      }
    }
    if !killable {
      System.printError(
        "iommu: this kernel cannot hold signals back while a call is answered (Linux 5.19 can): "
          + "a signal may repeat a call")
    }
    return listener
  }

  /// The window for this process's limit on open files.
  static func descriptorWindow() -> DescriptorWindow {
    var limit = rlimit()
    #if canImport(Glibc)
      _ = unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    #else
      _ = unsafe getrlimit(RLIMIT_NOFILE, &limit)
    #endif
    return DescriptorWindow(softLimit: UInt64(limit.rlim_cur))
  }

  private static func execute(_ options: RunOptions) -> Never {
    csys_signals_restore()
    var arguments = unsafe ([options.program] + options.arguments).map { unsafe strdup($0) }
    unsafe arguments.append(nil)
    if let environment = options.environment {
      clearenv()
      for entry in environment { unsafe putenv(strdup(entry)) }
    }
    // libudev takes no device from a /sys that is not of type sysfs; ours is a tmpfs.
    unsafe setenv("SYSTEMD_DEVICE_VERIFY_SYSFS", "0", 0)
    unsafe execvp(options.program, arguments)
    let error = errno
    System.printError("iommu: \(options.program): \(System.message(-error))")
    _exit(error == ENOENT || error == ENOTDIR ? 127 : 126)
  }
}
