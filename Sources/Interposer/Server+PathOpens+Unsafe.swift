// SPDX-License-Identifier: Apache-2.0
//
// open, openat, openat2 and creat in a view by paths. Nodes and attributes open as in any view; the
// view's directories, links and plain files are given as they lie in the shadow.

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
  func open(
    _ call: SystemCall, _ row: PathCall, _ first: FirstLook, _ gate: PathGate,
    _ shadow: ShadowTree, _ caller: ClientCaller
  ) -> (file: (any OpenFile)?, Answer) {
    guard let request = request(call, caller),
      let text = unsafe text(at: request.path, of: call, caller.lane), unsafe text.count > 0
    else { return (nil, .goOn) }
    let flags = Int32(truncatingIfNeeded: request.flags)
    if unsafe text[0] == PathBytes.slash,
      let special = unsafe special(text, flags, call, caller)
    {
      return special
    }
    let makesNew = flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL
    var rules = WalkRules()
    rules.followsLast = flags & O_NOFOLLOW == 0 && !makesNew
    rules.resolve = request.resolve
    // A file that is made has no slash at its end, whatever is there.
    rules.wantsName =
      unsafe flags & (O_CREAT | System.pathOnly) == O_CREAT
      && text[text.count - 1] == PathBytes.slash
    let isConfined = request.resolve & (WalkRules.beneath | WalkRules.inRoot) != 0
    if !isConfined, first != .walk {
      let decision = unsafe gate.decide(
        text, thread: call.thread, directory: request.directory, follows: rules.followsLast)
      guard decision == .walk else { return (nil, .goOn) }
    }
    guard isPossible(request, call) else { return (nil, .goOn) }
    do throws(IOMMUError) {
      guard
        let path = try walk(
          unsafe text.bytes, row.paths[0], from: request.directory, rules, shadow, caller),
        isValid(call.id)
      else { return (nil, .goOn) }
      return try open(call, path, flags, gate, shadow, caller)
    } catch {
      return (nil, .failure(error))
    }
  }

  /// Whether this kernel takes such flags together, which it says before it looks at a path.
  private func isPossible(_ request: Request, _ call: SystemCall) -> Bool {
    let result =
      unsafe call.number == CSYS_NR_openat2
      ? csys_openat2(AT_FDCWD, "", request.flags, request.resolve)
      : csys_open("", Int32(truncatingIfNeeded: request.flags), 0)
    return result != -EINVAL
  }

  /// Files of /proc that we answer wherever the view is, and what an open tells us besides.
  private func special(
    _ text: PathGate.Text, _ flags: Int32, _ call: SystemCall, _ caller: ClientCaller
  ) -> (file: (any OpenFile)?, Answer)? {
    // `/proc/` or `/dev/us…`.
    guard unsafe text.count > 6 else { return nil }
    if unsafe text[1] == UInt8(ascii: "d"), unsafe text[5] == UInt8(ascii: "u") {
      if unsafe text.bytes.starts(with: "/dev/userfaultfd".utf8) { tasks.memoryMayBlock() }
      return nil
    }
    guard unsafe text[1] == UInt8(ascii: "p"), unsafe text[5] == PathBytes.slash else {
      return nil
    }
    let path = unsafe text.bytes
    if let (node, thread) = nodes.threadNode(path, of: caller), isValid(call.id) {
      return open(node.name, flags: flags, caller) { () throws(IOMMUError) in
        try node.open(thread: thread, by: caller)
      }
    }
    return openStatus(path, flags: flags, call: call.id, caller).map { (nil, $0) }
  }

  private func open(
    _ call: SystemCall, _ path: WalkedPath, _ flags: Int32, _ gate: PathGate,
    _ shadow: ShadowTree, _ caller: ClientCaller
  ) throws(IOMMUError) -> (file: (any OpenFile)?, Answer) {
    if path.isHome { throw Self.closed(path.result) }
    switch path.result.place {
    case .view(let mode):
      return try openShown(call, path, mode, flags, gate, shadow, caller)
    case .absent(_, let directory):
      return (nil, try openAbsent(call, path, in: directory, flags, shadow, caller))
    case .host(let entry):
      guard path.result.usedView else { return (nil, .goOn) }
      if let answer = try openHosts(call, path, entry, flags, shadow, caller) {
        return (nil, answer)
      }
      return (nil, try openByOwnHand(call, path, flags, shadow, caller))
    case .opaque:
      // What a descriptor is of which the place has gone.
      if flags & (System.pathOnly | O_DIRECTORY) == 0,
        let place = try node(opened: path.result.path.text)
      {
        return open(place, flags: flags, caller)
      }
      guard path.result.usedView else { return (nil, .goOn) }
      return (nil, try openByOwnHand(call, path, flags, shadow, caller))
    }
  }

  // MARK: The view's

  private func openShown(
    _ call: SystemCall, _ path: WalkedPath, _ mode: UInt32, _ flags: Int32, _ gate: PathGate,
    _ shadow: ShadowTree, _ caller: ClientCaller
  ) throws(IOMMUError) -> (file: (any OpenFile)?, Answer) {
    let shown = path.result.path.shown
    let real = real(path, shadow)
    func refuse(_ errno: Errno, _ reason: String) -> IOMMUError {
      IOMMUError(errno, "\(shown): \(reason)")
    }
    if flags & O_CREAT != 0, flags & System.pathOnly == 0, path.result.hasTrailingSlash {
      throw Self.plain(.isDirectory)
    }
    if flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL, flags & System.pathOnly == 0 {
      throw Self.plain(.fileExists)
    }
    let isPathOnly = flags & System.pathOnly != 0
    let writes = !isPathOnly && flags & (O_ACCMODE | O_TRUNC) != 0
    if isPathOnly {
      if flags & O_DIRECTORY != 0, mode & S_IFMT != S_IFDIR { throw Self.plain(.notDirectory) }
      gate.noteShadowHeld()
      return (nil, try openByOwnHand(call, path, flags, shadow, caller))
    }
    switch mode & S_IFMT {
    case S_IFDIR:
      if Self.makesTemporary(flags) {
        throw refuse(.readOnlyFileSystem, "programs cannot make files there")
      }
      if writes || flags & O_CREAT != 0 { throw Self.plain(.isDirectory) }
      shadow.refresh(shown)
      return (nil, try give(call, real, flags, caller))
    case S_IFLNK:
      throw Self.plain(flags & O_DIRECTORY != 0 ? .notDirectory : .tooManySymbolicLinkLevels)
    default:
      if flags & O_DIRECTORY != 0 { throw Self.plain(.notDirectory) }
      guard let place = try node(path, real) else {
        if writes {
          throw refuse(.permissionDenied, "it shows something and takes no commands")
        }
        guard mode & (caller.userID == geteuid() ? 0o400 : 0o004) != 0 || caller.userID == 0
        else {
          throw refuse(
            .permissionDenied, "its mode is \(String(mode & 0o7777, radix: 8))")
        }
        return (nil, try give(call, real, flags, caller))
      }
      return open(place, flags: flags, caller)
    }
  }

  /// Has the caller open what is there: what is only looked up (O_PATH) nobody can give it.
  private func openByOwnHand(
    _ call: SystemCall, _ path: WalkedPath, _ flags: Int32, _ shadow: ShadowTree,
    _ caller: ClientCaller
  ) throws(IOMMUError) -> Answer {
    let mode: UInt64 =
      switch call.number {
      case CSYS_NR_creat: call[1]
      case CSYS_NR_open: call[2]
      case CSYS_NR_openat: call[3]
      default: OpenHow(at: call[2], size: call[3], caller)?.mode ?? 0
      }
    let isRelative = call.number == CSYS_NR_openat || call.number == CSYS_NR_openat2
    let (directory, text) = try reach(
      real(path, shadow),
      from: isRelative ? path.argument.directory(call) : PathCall.Path.current, caller)
    try tracer.replace(
      caller.waiting,
      by: ReplacementCall(
        number: CSYS_NR_openat,
        arguments: [
          .value(UInt64(bitPattern: Int64(directory))), .path(text),
          .value(UInt64(UInt32(bitPattern: flags))), .value(mode),
        ]))
    return .result(0)
  }

  /// Gives the caller a file, as it would open it.
  func give(
    _ call: SystemCall, _ real: PathBytes, _ flags: Int32, _ caller: ClientCaller
  ) throws(IOMMUError) -> Answer {
    // The caller's descriptor is closed with its next exec where it asks for that, ours always.
    let kept = flags & ~(O_CREAT | O_EXCL) | O_NOCTTY
    let file = unsafe CallerFiles.withTerminator(real) { path in
      unsafe csys_open(
        path, kept | O_CLOEXEC, 0)
    }
    guard file >= 0 else {
      _ = try known(file, real.text)
      throw Self.plain(Errno(rawValue: -file))
    }
    defer { close(file) }
    // It may have been one of ours.
    gate?.noteShadowHeld()
    let given = csys_notif_add_fd(
      listener, call.id, file, -1, flags & O_CLOEXEC != 0 ? UInt32(O_CLOEXEC) : 0)
    guard given >= 0 else {
      throw IOMMUError(
        given == -ENOENT ? .noSuchProcess : Errno(rawValue: -given),
        "the program cannot take another descriptor")
    }
    return .result(Int(given))
  }

  /// O_TMPFILE.
  private static func makesTemporary(_ flags: Int32) -> Bool { flags & 0o20000000 != 0 }

  // MARK: What is not there

  private func openAbsent(
    _ call: SystemCall, _ path: WalkedPath, in directory: WalkPosition, _ flags: Int32,
    _ shadow: ShadowTree, _ caller: ClientCaller
  ) throws(IOMMUError) -> Answer {
    let shown = path.result.path.shown
    if shown.hasPrefix("/dev/vfio/noiommu-") {
      reporter.say(
        "no-IOMMU mode is not offered: \(shown) does not exist; "
          + "use /dev/vfio/devices/vfioN or /dev/vfio/N, whose DMA is translated")
    }
    guard flags & O_CREAT != 0, flags & System.pathOnly == 0 else {
      guard path.result.usedView else { return .goOn }
      guard mayMiss(path, caller) else {
        return try openByOwnHand(call, path, flags, shadow, caller)
      }
      throw Self.plain(.noSuchFileOrDirectory)
    }
    if path.result.hasTrailingSlash {
      throw IOMMUError(.isDirectory, "\(shown): a file has no slash at its end")
    }
    if directory.isInView, isClosed(directory, shadow) {
      throw IOMMUError(
        .permissionDenied,
        "\(shown): /\(directory.path.top) has no such file, and programs cannot make one")
    }
    guard path.result.usedView else { return .goOn }
    return try openByOwnHand(call, path, flags, shadow, caller)
  }

  /// Whether nothing can be made in a directory of the view: nobody can in /sys, and in /dev root can
  /// where the host has that directory too.
  func isClosed(_ directory: WalkPosition, _ shadow: ShadowTree) -> Bool {
    let shown = directory.path.shown
    var place = csys_place()
    return MountView.isReadOnly(directory.path.top) || shadow.isExclusive(shown)
      || CallerFiles.look(directory.path, follows: false, &place) != 0
  }

  // MARK: The host's

  /// Opens what the caller would, where it makes no difference who opens it.
  /// - Returns: Nil where it does.
  private func openHosts(
    _ call: SystemCall, _ path: WalkedPath, _ entry: WalkedEntry, _ flags: Int32,
    _ shadow: ShadowTree, _ caller: ClientCaller
  ) throws(IOMMUError) -> Answer? {
    guard flags & (O_CREAT | System.pathOnly) == 0, !Self.makesTemporary(flags),
      maySee(path, caller)
    else {
      return nil
    }
    let real = real(path, shadow)
    var place = csys_place()
    guard CallerFiles.look(real, follows: false, &place) == 0 else { return nil }
    guard place.mode & S_IFMT == S_IFREG || place.mode & S_IFMT == S_IFDIR else { return nil }
    return try give(call, real, flags, caller)
  }
}
