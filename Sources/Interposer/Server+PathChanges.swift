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
    for path in paths where path.isHome { throw Self.closed(path.result) }
    let isLink = call.number == CSYS_NR_link || call.number == CSYS_NR_linkat
    let areApart = row.paths.count == 2 && !areInOneView(paths, shadow)
    if !isLink { try checkApart(areApart, paths) }
    var closed: WalkedPath?
    for path in paths {
      try checkName(call, path, caller)
      switch path.result.place {
      case .view where path.argument.isMade:
        throw Self.plain(.fileExists)
      case .view(let mode):
        if call.number == CSYS_NR_truncate {
          if mode & S_IFMT == S_IFDIR { throw Self.plain(.isDirectory) }
          if case .node? = try node(path, real(path, shadow)) {
            throw Self.plain(.invalidArgument)
          }
        }
        closed = path
      case .absent(_, let directory):
        let isDirectory = call.number == CSYS_NR_mkdir || call.number == CSYS_NR_mkdirat
        if path.argument.isMade, path.result.hasTrailingSlash, !isDirectory,
          path.isView || isLink
        {
          throw Self.plain(.noSuchFileOrDirectory)
        }
        if case .name = path.argument.following {
          // Its directory is none of the view's, so that this is what is wrong with it.
          if row.paths.count > 1, !path.argument.isMade,
            path.argument.path == row.paths[0].path,
            !path.isView, mayMiss(path, caller)
          {
            throw Self.plain(.noSuchFileOrDirectory)
          }
          if directory.isInView, isClosed(directory, shadow) { closed = path }
        } else if path.result.usedView || isLink, mayMiss(path, caller) {
          throw Self.plain(.noSuchFileOrDirectory)
        }
      case .host, .opaque: break
      }
    }
    if let closed {
      if isLink {
        if case .host? = paths.last?.result.place { throw Self.plain(.fileExists) }
        // A new name in a file system that cannot be written is the first that is wrong.
        if !(paths.last?.isView ?? false) { try checkApart(areApart, paths) }
      }
      throw IOMMUError(
        .readOnlyFileSystem,
        "\(closed.result.path.shown): programs cannot change the machine's view")
    }
    guard paths.contains(where: { $0.result.usedView }) else { return .goOn }
    return try byOwnHand(call, paths, shadow, caller)
  }

  /// - Throws: What is said of a path that has no name to remove or to move, or whose name is where a
  ///   file system begins, before it matters whether that can be written.
  private func checkName(
    _ call: SystemCall, _ path: WalkedPath, _ caller: ClientCaller
  ) throws(IOMMUError) {
    // By the path that it leads to, a name that is none would be one.
    guard case .name = path.argument.following, !path.argument.isMade,
      path.isView || path.endsInDots && path.result.usedView
    else { return }
    let isUp = path.lastName.elementsEqual("..".utf8)
    let isDot = path.endsInDots && !isUp
    let isTop = path.result.path.parent.isEmpty
    guard path.endsInDots || isTop else { return }
    let isUnlink =
      call.number == CSYS_NR_unlink
      || call.number == CSYS_NR_unlinkat && call[2] & UInt64(AT_REMOVEDIR) == 0
    if isUnlink, isTop, path.result.hasTrailingSlash { throw Self.plain(.isDirectory) }
    // The root directory is root's.
    if !path.endsInDots, caller.userID != 0 { throw Self.plain(.permissionDenied) }
    switch call.number {
    case _ where isUnlink: throw Self.plain(.isDirectory)
    case CSYS_NR_unlinkat, CSYS_NR_rmdir:
      throw Self.plain(isDot ? .invalidArgument : isUp ? .directoryNotEmpty : .resourceBusy)
    default: throw Self.plain(.resourceBusy)
    }
  }

  private func checkApart(
    _ areApart: Bool, _ paths: [WalkedPath]
  ) throws(IOMMUError) {
    guard areApart else { return }
    let names = paths.map { $0.result.path.shown }.joined(separator: " and ")
    throw IOMMUError(.improperLink, "\(names) are not in one file system")
  }

  /// Whether two paths lie in the same file system of the view, or in none.
  private func areInOneView(_ paths: [WalkedPath], _ shadow: ShadowTree) -> Bool {
    let tops = paths.map { path in
      let (place, top) = (path.result.path, path.result.path.top)
      // A name is in the file system of its directory, of the view's or the host's.
      guard case .name = path.argument.following, !path.endsInDots else {
        return path.isView ? top : ""
      }
      return shadow.contains(place.parent.text) ? top : ""
    }
    // Of a path that only the kernel can follow nothing is known.
    return tops.count == 2 ? tops[0] == tops[1] : tops.allSatisfy { $0.isEmpty }
  }

  /// Answers a call that does something to its caller.
  func act(
    _ call: SystemCall, _ row: PathCall, _ paths: [WalkedPath], _ gate: PathGate,
    _ shadow: ShadowTree, _ caller: ClientCaller
  ) throws(IOMMUError) -> Answer {
    for path in paths {
      if path.isHome { throw Self.closed(path.result) }
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
}
