// SPDX-License-Identifier: Apache-2.0
//
// Calls that would change what is there, and those that do something to the caller: nobody changes the
// view, and what only the caller itself can do it is made to do, with the path that leads there.

import CSyscalls
import IOMMU
import LinuxABI
import SystemPackage

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

extension Server {
  /// Answers a call that changes something. The view is as a file system that is mounted read-only.
  func change(
    _ call: SystemCall, _ row: PathCall, _ paths: [WalkedPath], _ shadow: ShadowTree,
    _ caller: ClientCaller
  ) throws(IOMMUError) -> Answer {
    var closed: WalkedPath?
    for path in paths {
      switch path.result.place {
      case .view where path.argument.isMade:
        throw Self.plain(.fileExists)
      case .view(let mode):
        if call.number == CSYS_NR_truncate, mode & S_IFMT == S_IFDIR {
          throw Self.plain(.isDirectory)
        }
        closed = path
      case .absent(_, let directory):
        if case .name = path.argument.following {
          if directory.isInView, isClosed(directory, shadow) { closed = path }
        } else if path.result.usedView, mayMiss(path, caller) {
          throw Self.plain(.noSuchFileOrDirectory)
        }
      case .host, .opaque: break
      }
    }
    if let closed {
      // Both lie in one file system, or that is the first that is wrong.
      if row.paths.count == 2,
        paths.count < 2 || !paths.allSatisfy({ isInView($0, like: closed) })
      {
        throw IOMMUError(
          .improperLink,
          "\(closed.result.path.shown) and the other path are not in one file system")
      }
      throw IOMMUError(
        .readOnlyFileSystem,
        "\(closed.result.path.shown): programs cannot change the machine's view")
    }
    guard paths.contains(where: { $0.result.usedView }) else { return .goOn }
    return try byOwnHand(call, paths, shadow, caller)
  }

  /// Whether a path lies in the file system of the view that another one is in.
  private func isInView(_ path: WalkedPath, like other: WalkedPath) -> Bool {
    guard path.isView else { return false }
    // `/dev`, `/sys`.
    return path.result.path.starts(with: other.result.path.prefix(4))
  }

  /// Answers a call that does something to its caller.
  func act(
    _ call: SystemCall, _ row: PathCall, _ paths: [WalkedPath], _ gate: PathGate,
    _ shadow: ShadowTree, _ caller: ClientCaller
  ) throws(IOMMUError) -> Answer {
    for path in paths {
      let shown = path.result.path.shown
      switch path.result.place {
      case .absent where path.result.usedView && mayMiss(path, caller):
        throw Self.plain(.noSuchFileOrDirectory)
      case .view(let mode):
        try check(call, shown, mode)
        if mode & S_IFMT == S_IFDIR { shadow.refresh(shown) }
      default: break
      }
    }
    guard paths.contains(where: { !$0.isKernels }) else { return .goOn }
    if call.number == CSYS_NR_chdir { gate.noteShadowHeld() }
    return try byOwnHand(call, paths, shadow, caller)
  }

  /// - Throws: Where a call cannot be done with what is the view's.
  private func check(
    _ call: SystemCall, _ shown: String, _ mode: UInt32
  ) throws(IOMMUError) {
    let isDirectory = mode & S_IFMT == S_IFDIR
    switch call.number {
    case CSYS_NR_chdir:
      if !isDirectory { throw Self.plain(.notDirectory) }
    case CSYS_NR_execve, CSYS_NR_execveat:
      throw IOMMUError(.permissionDenied, "\(shown) is no program")
    case CSYS_NR_name_to_handle_at:
      throw IOMMUError(.operationNotSupported, "\(shown) has no file handle")
    case CSYS_NR_file_getattr: throw Self.plain(.operationNotSupported)
    case CSYS_NR_chroot, CSYS_NR_pivot_root, CSYS_NR_mount, CSYS_NR_umount2, CSYS_NR_open_tree,
      CSYS_NR_move_mount, CSYS_NR_mount_setattr:
      throw IOMMUError(
        .notPermitted,
        "\(shown) is in the machine's view, which is not mounted: where mounts are allowed, run "
          + "with --view namespace")
    default: break
    }
  }

  /// Has the caller make its call with the paths that lead where it means.
  func byOwnHand(
    _ call: SystemCall, _ paths: [WalkedPath], _ shadow: ShadowTree, _ caller: ClientCaller
  ) throws(IOMMUError) -> Answer {
    var arguments: [ErrandArgument] = (0..<6).map { .value(call[$0]) }
    for path in paths where !path.isKernels {
      arguments[path.argument.path] = .path(real(path, shadow))
      if let directory = path.argument.directory {
        arguments[directory] = .value(UInt64(bitPattern: Int64(PathCall.Path.current)))
      }
    }
    try tracer.replace(
      caller.waiting,
      by: ReplacementCall(number: call.number, arguments: arguments))
    return .result(0)
  }
}
