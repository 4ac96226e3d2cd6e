// SPDX-License-Identifier: Apache-2.0
//
// The program's own mount namespace, so that it can have a /dev and a /sys of its own; inside a
// user namespace where it is not root.

import CSyscalls

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

enum Namespaces {
  enum Mode: Sendable {
    /// A mount namespace made with the host's own privilege: real device nodes can be made.
    case privileged
    /// Inside a user namespace: placeholders only.
    case user
  }

  private static let newMounts: Int32 = 0x20000
  private static let newUser: Int32 = 0x1000_0000

  /// Moves this process, which has one thread, into namespaces of its own where it can mount.
  /// - Throws: Where the host does not allow that; the process may then be in namespaces all the
  ///   same.
  static func enter() throws(InterposerError) -> Mode {
    let user = geteuid()
    let group = getegid()
    let mode: Mode
    if user == 0, csys_unshare(newMounts) == 0 {
      mode = .privileged
    } else {
      let result = csys_unshare(newUser | newMounts)
      guard result == 0 else {
        throw InterposerError(
          "the kernel refused a user namespace (\(System.message(result))): a host needs "
            + "unprivileged user namespaces (sysctl user.max_user_namespaces, "
            + "kernel.unprivileged_userns_clone=1), a container a seccomp profile that allows "
            + "unshare(2) or CAP_SYS_ADMIN (docker run --security-opt seccomp=unconfined), and "
            + "neither may be in a chroot")
      }
      _ = System.writeFile("/proc/self/setgroups", "deny")
      let users = System.writeFile("/proc/self/uid_map", "\(user) \(user) 1\n")
      let groups = System.writeFile("/proc/self/gid_map", "\(group) \(group) 1\n")
      guard users == 0, groups == 0 else {
        throw InterposerError(
          "cannot map user \(user) and group \(group) into a user namespace "
            + "(\(System.message(min(users, groups)))): run as root")
      }
      mode = .user
    }
    let result = unsafe csys_mount(nil, "/", nil, UInt(MS_REC | MS_PRIVATE), nil)
    guard result == 0 else {
      throw InterposerError(
        result == -EINVAL
          ? "cannot make the mounts private: the root directory is no mount point, as in a "
            + "chroot; bind it over itself first (mount --bind DIR DIR)"
          : "cannot make the mounts private (\(System.message(result))): on Ubuntu set "
            + "kernel.apparmor_restrict_unprivileged_userns=0, or run as root")
    }
    try mount("/dev", flags: UInt(MS_NOSUID | MS_NOEXEC))
    unsafe umount2("/dev", Int32(MNT_DETACH))
    return mode
  }

  /// Mounts a file system of our own.
  static func mount(_ path: String, flags: UInt) throws(InterposerError) {
    let result = unsafe csys_mount("iommu", path, "tmpfs", flags, "mode=755,size=64m")
    guard result == 0 else {
      throw InterposerError(
        "cannot mount a \(path) of the program's own (\(System.message(result))): the container "
          + "forbids mounts in user namespaces; allow them or run with CAP_SYS_ADMIN")
    }
  }
}
