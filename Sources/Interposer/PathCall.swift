// SPDX-License-Identifier: Apache-2.0
//
// The calls that take paths: which argument is what. The filter's rows in a view by paths, and how
// each call is answered, come from this table.

import CSyscalls

/// A call that takes paths, or that changes what paths mean.
struct PathCall: Sendable {
  enum Kind: Sendable {
    /// Gives a descriptor.
    case open
    /// Tells something of what is there, or whether it is.
    case look
    /// Makes, moves, removes or changes something.
    case change
    /// Does something to the caller, with what is there.
    case process
    /// Has no path: afterwards the caller's root may be another.
    case roots
    /// `getcwd`.
    case directory
    /// Has the address of a socket, which may be a path.
    case socket
  }

  /// Whether a link at a path's end is followed.
  enum Following: Sendable {
    case always
    case never
    /// Not where an argument has a bit.
    case unless(Int, UInt64)
    /// Where an argument has a bit.
    case when(Int, UInt64)
    /// The name itself is meant: slashes after it do not make the link be followed.
    case name
    /// There is no path: the descriptor is meant itself.
    case descriptor
  }

  /// Arguments, by index.
  struct Path: Sendable {
    /// The descriptor of the directory; nil is the current one.
    var directory: Int?
    var path: Int
    var following: Following
    /// Whether it is made where it is not there.
    var isMade = false
  }

  /// When the filter tells us.
  enum Trap: Sendable {
    case always
    /// Not of a descriptor itself: an argument has AT_EMPTY_PATH, the first is a descriptor that is
    /// not one of ours.
    case unlessEmptyPath(flags: Int)
    /// An argument has one of these bits.
    case flags(Int, UInt32)
    /// Never: it is a call that this kernel has not (ENOSYS). Its flags lie in memory, where the filter
    /// cannot look; libraries make another call then, whose flags it can see.
    case unknown
  }

  /// As strace writes it.
  let name: String
  let number: Int32
  let kind: Kind
  var paths: [Path] = []
  var trap = Trap.always

  /// The row of a call; nil where it is of another kind.
  static func row(_ number: Int32) -> PathCall? {
    guard number >= 0, number < Int32(places.count), places[Int(number)] >= 0 else {
      return nil
    }
    return all[Int(places[Int(number)])]
  }

  /// By number, where in `all` it is.
  private static let places: [Int16] = {
    var places = [Int16](repeating: -1, count: 1 + Int(all.map(\.number).max() ?? 0))
    for (index, row) in all.enumerated() { places[Int(row.number)] = Int16(index) }
    return places
  }()

  /// Of this architecture; those that are called most come first.
  static let all: [PathCall] = (looks + opens + processes + changes + roots).filter {
    $0.number >= 0
  }

  private static let noFollow: UInt64 = 0x100
  private static let follow: UInt64 = 0x400

  private static func at(
    _ directory: Int, _ path: Int, _ following: Following = .always, isMade: Bool = false
  ) -> Path { Path(directory: directory, path: path, following: following, isMade: isMade) }

  private static func plain(
    _ path: Int, _ following: Following = .always, isMade: Bool = false
  ) -> Path { Path(directory: nil, path: path, following: following, isMade: isMade) }

  private static func look(
    _ name: String, _ number: Int32, _ path: Path, _ trap: Trap = .always
  ) -> PathCall {
    PathCall(name: name, number: number, kind: .look, paths: [path], trap: trap)
  }

  private static func change(
    _ name: String, _ number: Int32, _ paths: Path...
  ) -> PathCall {
    PathCall(name: name, number: number, kind: .change, paths: paths)
  }

  private static func process(
    _ name: String, _ number: Int32, _ paths: Path...
  ) -> PathCall {
    PathCall(name: name, number: number, kind: .process, paths: paths)
  }

  private static let looks: [PathCall] = [
    look(
      "newfstatat", CSYS_NR_newfstatat, at(0, 1, .unless(3, noFollow)),
      .unlessEmptyPath(flags: 3)),
    look("stat", CSYS_NR_stat, plain(0)),
    look("lstat", CSYS_NR_lstat, plain(0, .never)),
    look("access", CSYS_NR_access, plain(0)),
    look("readlink", CSYS_NR_readlink, plain(0, .never)),
    look("statx", CSYS_NR_statx, at(0, 1, .unless(2, noFollow)), .unlessEmptyPath(flags: 2)),
    look("readlinkat", CSYS_NR_readlinkat, at(0, 1, .never)),
    look("faccessat", CSYS_NR_faccessat, at(0, 1)),
    look("faccessat2", CSYS_NR_faccessat2, at(0, 1, .unless(3, noFollow))),
    look("getxattr", CSYS_NR_getxattr, plain(0)),
    look("lgetxattr", CSYS_NR_lgetxattr, plain(0, .never)),
    look("listxattr", CSYS_NR_listxattr, plain(0)),
    look("llistxattr", CSYS_NR_llistxattr, plain(0, .never)),
    look("getxattrat", CSYS_NR_getxattrat, at(0, 1, .unless(2, noFollow))),
    look("listxattrat", CSYS_NR_listxattrat, at(0, 1, .unless(2, noFollow))),
    look("statfs", CSYS_NR_statfs, plain(0)),
  ]

  /// How a link at the end is taken depends on more than one flag.
  private static let opens: [PathCall] = [
    PathCall(name: "openat", number: CSYS_NR_openat, kind: .open, paths: [at(0, 1)]),
    PathCall(name: "open", number: CSYS_NR_open, kind: .open, paths: [plain(0)]),
    PathCall(name: "openat2", number: CSYS_NR_openat2, kind: .open, paths: [at(0, 1)]),
    PathCall(name: "creat", number: CSYS_NR_creat, kind: .open, paths: [plain(0)]),
  ]

  private static let processes: [PathCall] = [
    process("execve", CSYS_NR_execve, plain(0)),
    process("execveat", CSYS_NR_execveat, at(0, 1, .unless(4, noFollow))),
    process("chdir", CSYS_NR_chdir, plain(0)),
    PathCall(name: "getcwd", number: CSYS_NR_getcwd, kind: .directory),
    PathCall(name: "bind", number: CSYS_NR_bind, kind: .socket),
    PathCall(name: "connect", number: CSYS_NR_connect, kind: .socket),
    process("inotify_add_watch", CSYS_NR_inotify_add_watch, plain(1, .unless(2, 0x0200_0000))),
    process("fanotify_mark", CSYS_NR_fanotify_mark, at(3, 4, .unless(1, 4))),
    process("name_to_handle_at", CSYS_NR_name_to_handle_at, at(0, 1, .when(4, follow))),
    process("file_getattr", CSYS_NR_file_getattr, at(0, 1, .unless(4, noFollow))),
    process("chroot", CSYS_NR_chroot, plain(0)),
    process("mount", CSYS_NR_mount, plain(0), plain(1)),
    process("umount2", CSYS_NR_umount2, plain(0, .unless(1, 8))),
    process("pivot_root", CSYS_NR_pivot_root, plain(0), plain(1)),
    process("open_tree", CSYS_NR_open_tree, at(0, 1, .unless(2, noFollow))),
    process("move_mount", CSYS_NR_move_mount, at(0, 1, .when(4, 1)), at(2, 3, .when(4, 0x10))),
    process("mount_setattr", CSYS_NR_mount_setattr, at(0, 1, .unless(2, noFollow))),
  ]

  private static let changes: [PathCall] = [
    change("unlink", CSYS_NR_unlink, plain(0, .name)),
    change("unlinkat", CSYS_NR_unlinkat, at(0, 1, .name)),
    change("rmdir", CSYS_NR_rmdir, plain(0, .name)),
    change("mkdir", CSYS_NR_mkdir, plain(0, .name, isMade: true)),
    change("mkdirat", CSYS_NR_mkdirat, at(0, 1, .name, isMade: true)),
    change("rename", CSYS_NR_rename, plain(0, .name), plain(1, .name)),
    change("renameat", CSYS_NR_renameat, at(0, 1, .name), at(2, 3, .name)),
    change("renameat2", CSYS_NR_renameat2, at(0, 1, .name), at(2, 3, .name)),
    change("link", CSYS_NR_link, plain(0, .never), plain(1, .name, isMade: true)),
    change("linkat", CSYS_NR_linkat, at(0, 1, .when(4, follow)), at(2, 3, .name, isMade: true)),
    change("symlink", CSYS_NR_symlink, plain(1, .name, isMade: true)),
    change("symlinkat", CSYS_NR_symlinkat, at(1, 2, .name, isMade: true)),
    change("mknod", CSYS_NR_mknod, plain(0, .name, isMade: true)),
    change("mknodat", CSYS_NR_mknodat, at(0, 1, .name, isMade: true)),
    change("chmod", CSYS_NR_chmod, plain(0)),
    change("fchmodat", CSYS_NR_fchmodat, at(0, 1)),
    change("fchmodat2", CSYS_NR_fchmodat2, at(0, 1, .unless(3, noFollow))),
    change("chown", CSYS_NR_chown, plain(0)),
    change("lchown", CSYS_NR_lchown, plain(0, .never)),
    change("fchownat", CSYS_NR_fchownat, at(0, 1, .unless(4, noFollow))),
    change("utimensat", CSYS_NR_utimensat, at(0, 1, .unless(3, noFollow))),
    change("utime", CSYS_NR_utime, plain(0)),
    change("utimes", CSYS_NR_utimes, plain(0)),
    change("futimesat", CSYS_NR_futimesat, at(0, 1)),
    change("truncate", CSYS_NR_truncate, plain(0)),
    change("fchmod", CSYS_NR_fchmod, at(0, 0, .descriptor)),
    change("fchown", CSYS_NR_fchown, at(0, 0, .descriptor)),
    change("fsetxattr", CSYS_NR_fsetxattr, at(0, 0, .descriptor)),
    change("fremovexattr", CSYS_NR_fremovexattr, at(0, 0, .descriptor)),
    change("setxattrat", CSYS_NR_setxattrat, at(0, 1, .unless(2, noFollow))),
    change("removexattrat", CSYS_NR_removexattrat, at(0, 1, .unless(2, noFollow))),
    change("file_setattr", CSYS_NR_file_setattr, at(0, 1, .unless(4, noFollow))),
    change("setxattr", CSYS_NR_setxattr, plain(0)),
    change("lsetxattr", CSYS_NR_lsetxattr, plain(0, .never)),
    change("removexattr", CSYS_NR_removexattr, plain(0)),
    change("lremovexattr", CSYS_NR_lremovexattr, plain(0, .never)),
  ]

  /// CLONE_NEWNS and CLONE_NEWUSER.
  static let newRoots: UInt32 = 0x1002_0000

  private static let roots: [PathCall] = [
    PathCall(name: "clone", number: CSYS_NR_clone, kind: .roots, trap: .flags(0, newRoots)),
    PathCall(name: "clone3", number: CSYS_NR_clone3, kind: .roots, trap: .unknown),
    PathCall(name: "unshare", number: CSYS_NR_unshare, kind: .roots, trap: .flags(0, newRoots)),
    PathCall(name: "setns", number: CSYS_NR_setns, kind: .roots),
  ]
}

extension PathCall.Path {
  /// Whether a link at the end is followed by a call.
  func rules(_ call: SystemCall) -> WalkRules {
    var rules = WalkRules()
    switch following {
    case .always, .descriptor: break
    case .never: rules.followsLast = false
    case .unless(let argument, let bit): rules.followsLast = call[argument] & bit == 0
    case .when(let argument, let bit): rules.followsLast = call[argument] & bit != 0
    case .name:
      rules.followsLast = false
      rules.wantsName = true
    }
    return rules
  }

  /// The descriptor of the directory, as the call gives it.
  func directory(_ call: SystemCall) -> Int32 {
    directory.map { Int32(truncatingIfNeeded: call[$0]) } ?? Self.current
  }

  /// AT_FDCWD.
  static let current: Int32 = -100
}
