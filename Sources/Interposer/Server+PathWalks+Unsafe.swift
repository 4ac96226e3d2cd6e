// SPDX-License-Identifier: Apache-2.0
//
// Where a caller's path leads, in a view by paths: from its own root and directories, and not into the
// shadow by the names that it has on the host.

import CSyscalls
import IOMMU
import SystemPackage

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

extension Server {
  /// Follows a path.
  /// - Returns: Nil where only the kernel can, or says the same.
  /// - Throws: What the program shall get.
  func walk(
    _ text: PathBytes, _ argument: PathCall.Path, from directory: Int32, _ rules: WalkRules,
    _ shadow: ShadowTree, _ caller: ClientCaller
  ) throws(IOMMUError) -> WalkedPath? {
    switch try tryWalk(text, argument, from: directory, rules, shadow, caller) {
    case .path(let path): return path
    case .failure(let error) where error.usedView: throw Self.plain(error.errno)
    case .failure, .unknown: return nil
    }
  }

  enum Walked {
    case path(WalkedPath)
    /// It leads nowhere.
    case failure(WalkError)
    /// Only the kernel can follow it.
    case unknown
  }

  func tryWalk(
    _ text: PathBytes, _ argument: PathCall.Path, from directory: Int32, _ rules: WalkRules,
    _ shadow: ShadowTree, _ caller: ClientCaller
  ) throws(IOMMUError) -> Walked {
    var files = CallerFiles(
      shadow: shadow, thread: caller.thread, process: caller.processID)
    guard let root = root(of: caller, &files) else { return .unknown }
    var walk = PathWalk(
      host: files, view: ShadowFiles(shadow: shadow), root: root, rules: rules)
    let result: WalkResult
    do throws(WalkError) {
      result = try walk.follow(text) { () throws(WalkError) in
        guard
          case .place(let path, let entry, let fromShadow)? = files.magic(
            link(to: directory, of: caller))
        else { throw WalkError(errno: .badFileDescriptor, usedView: false) }
        guard entry == .directory else {
          throw WalkError(errno: .notDirectory, usedView: false)
        }
        let isInView = ShadowFiles(shadow: shadow).contains(path)
        return (WalkPosition(path: path, isInView: isInView), fromShadow)
      }
    } catch {
      return .failure(error)
    }
    return .path(
      try outside(shadow, WalkedPath(argument: argument, text: text, result: result)))
  }

  /// Keeps programs out of the shadow where they come to it by its own name: who walks through all of
  /// /dev would find /dev in itself, and what is deleted there is gone from the view.
  private func outside(
    _ shadow: ShadowTree, _ path: WalkedPath
  ) throws(IOMMUError) -> WalkedPath {
    let (result, home) = (path.result, shadow.path.utf8)
    guard !path.isView, result.path.starts(with: home) else { return path }
    if result.path.count == home.count {
      let result = WalkResult(
        place: result.place, path: result.path, usedView: true,
        hasTrailingSlash: result.hasTrailingSlash)
      return WalkedPath(argument: path.argument, text: path.text, result: result, isHome: true)
    }
    guard result.path[home.count] == PathBytes.slash, result.place != .opaque else {
      return path
    }
    throw Self.closed(result)
  }

  /// Why something cannot be mounted on a directory that the shadow lies in: nobody would find the view.
  /// Who has mounts of its own hides it from itself.
  func hidesHome(
    _ call: SystemCall, _ gate: PathGate, _ shadow: ShadowTree, _ caller: ClientCaller
  ) -> IOMMUError? {
    let (target, changesFlags) = (1, UInt64(MS_REMOUNT | MS_SHARED | MS_PRIVATE | MS_SLAVE))
    guard call[3] & changesFlags == 0, gate.hasOurRoot(caller.thread),
      let text = unsafe text(at: call[target], of: call, caller.lane)
    else { return nil }
    let path = unsafe text.bytes
    let whole =
      path.isAbsolute
      ? path : link(to: PathCall.Path.current, of: caller) + [PathBytes.slash] + path
    var there = csys_place()
    guard CallerFiles.look(whole, follows: true, &there) == 0 else { return nil }
    var home = PathBytes(text: shadow.path).parent
    while !home.isEmpty {
      var place = csys_place()
      if CallerFiles.look(home, follows: true, &place) == 0, CallerFiles.isSame(place, there) {
        return IOMMUError(
          .resourceBusy,
          "\(home.shown): the files of the machine's /dev and /sys lie there, which nobody would "
            + "find: unshare the mounts first, or start with another TMPDIR")
      }
      home = home.parent
    }
    return nil
  }

  /// What a program gets that would enter the shadow by its own name, or change it.
  static func closed(_ result: WalkResult) -> IOMMUError {
    IOMMUError(
      .permissionDenied,
      "\(result.path.shown): the files of the machine's /dev and /sys lie there, which are found in "
        + "/dev and /sys")
  }

  /// Where a caller's paths begin; nil where we cannot know what they mean to it.
  private func root(of caller: ClientCaller, _ files: inout CallerFiles) -> WalkPosition? {
    guard let gate, !gate.hasOurRoot(caller.thread) else {
      return WalkPosition(path: [], isInView: false)
    }
    let link = PathBytes(text: "/proc/\(caller.thread)/root")
    var theirs = csys_place()
    var ours = csys_place()
    guard CallerFiles.look(link, follows: true, &theirs) == 0,
      CallerFiles.look(PathBytes(text: "/"), follows: false, &ours) == 0
    else { return nil }
    if CallerFiles.isSame(theirs, ours) {
      // The same directory in a copy of the mounts.
      files.prefix = link
      return WalkPosition(path: [], isInView: false)
    }
    guard case .place(let path, .directory, false)? = files.magic(link) else { return nil }
    return WalkPosition(path: path, isInView: false)
  }

  /// What any file system says of a path that leads nowhere.
  static func plain(_ errno: Errno) -> IOMMUError { IOMMUError(errno, "") }
}
