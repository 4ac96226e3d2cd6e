// SPDX-License-Identifier: Apache-2.0
//
// Calls that take paths, in a view by paths: what each path leads to, and who answers. Most go on as
// they are; the rooms beside this one answer the others.

import CProcessMemory
import CSyscalls
import IOMMU
import LinuxABI
import SystemPackage

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// A path of a call with what it leads to.
struct WalkedPath {
  let argument: PathCall.Path
  /// As the caller gave it.
  let text: PathBytes
  let result: WalkResult
  /// Whether it is the directory that holds the shadow, by its own name: what is in there is shown
  /// elsewhere.
  var isHome = false

  /// Whether the kernel finds what the program shall find.
  var isKernels: Bool {
    if case .view = result.place { return false }
    return !result.usedView
  }

  var lastName: ArraySlice<UInt8> { text.split(separator: PathBytes.slash).last ?? [] }
  /// Whether its last name is `.` or `..`.
  var endsInDots: Bool {
    lastName.elementsEqual(".".utf8) || lastName.elementsEqual("..".utf8)
  }

  /// Whether it is not there, and has to be for a call that does not name it to make or to move it.
  var isMissing: Bool {
    if case .name = argument.following { return false }
    if case .absent = result.place { return true }
    return false
  }

  /// Whether it is the view's, or would be if it were there.
  var isView: Bool {
    switch result.place {
    case .view: true
    case .absent(_, let directory): directory.isInView
    case .host, .opaque: false
    }
  }
}

extension Server {
  /// Answers a call of the table.
  /// - Returns: Nil where it names no path, but a descriptor.
  func servePaths(
    _ call: SystemCall, _ row: PathCall, _ first: FirstLook, _ gate: PathGate,
    _ shadow: ShadowTree, _ caller: ClientCaller
  ) -> (file: (any OpenFile)?, Answer)? {
    switch row.kind {
    case .open: return open(call, row, first, gate, shadow, caller)
    case .roots:
      // unshare, setns and clone: afterwards somebody may have other mounts than we.
      gate.noteOtherRoots()
      return (nil, .goOn)
    case .directory: return (nil, currentDirectory(call, gate, shadow, caller))
    case .socket: return (nil, address(call, gate, shadow, caller))
    case .look where row.paths.count == 1: break
    default: return serveSeveral(call, row, first, gate, shadow, caller)
    }
    let argument = row.paths[0]
    guard let text = unsafe text(at: call[argument.path], of: call, caller.lane) else {
      return (nil, .goOn)
    }
    guard unsafe text.count > 0 else {
      return access(toDescriptor: call, argument, gate, shadow, caller)
    }
    let rules = argument.rules(call)
    let directory = argument.directory(call)
    let decision: PathGate.Decision =
      first == .walk
      ? .walk
      : unsafe gate.decide(
        text, thread: call.thread, directory: directory, follows: rules.followsLast)
    guard decision == .walk else { return (nil, .goOn) }
    do throws(IOMMUError) {
      guard
        let path = try walk(
          unsafe text.bytes, argument, from: directory, rules, shadow, caller),
        !path.isKernels || isShadowLink(path, shadow), isValid(call.id)
      else { return (nil, .goOn) }
      return (nil, try look(call, row, path, shadow, caller))
    } catch {
      return (nil, .failure(error))
    }
  }

  /// Answers a call that changes something, or that does something to the caller.
  private func serveSeveral(
    _ call: SystemCall, _ row: PathCall, _ first: FirstLook, _ gate: PathGate,
    _ shadow: ShadowTree, _ caller: ClientCaller
  ) -> (file: (any OpenFile)?, Answer)? {
    let isExec = call.number == CSYS_NR_execve || call.number == CSYS_NR_execveat
    // Whatever becomes of it: what was known of the address space is not known any more.
    if isExec { tasks.willExecute(call.thread) }
    if call.number == CSYS_NR_mount, let error = hidesHome(call, gate, shadow, caller) {
      return (nil, .failure(error))
    }
    guard
      first == .walk
        || row.paths.contains(where: { isNear($0, of: call, gate, shadow, caller) })
    else {
      noteRoots(call, gate)
      return (nil, .goOn)
    }
    do throws(IOMMUError) {
      var paths: [WalkedPath] = []
      var isOurs = false
      for argument in row.paths where isLookedUp(argument, of: call) {
        if let path = descriptor(argument, of: call, gate, shadow, caller) {
          isOurs = true
          paths.append(path)
          continue
        }
        guard let text = unsafe text(at: call[argument.path], of: call, caller.lane),
          unsafe text.count > 0
        else { continue }
        let walked = try tryWalk(
          unsafe text.bytes, argument, from: argument.directory(call), argument.rules(call),
          shadow, caller)
        switch walked {
        case .path(let path):
          if row.paths.count > 1, path.isMissing, mayMiss(path, caller) {
            guard isOurs || path.result.usedView else { return (nil, .goOn) }
            throw Self.plain(.noSuchFileOrDirectory)
          }
          isOurs = isOurs || !path.isKernels || path.isView
          paths.append(path)
        case .failure(let error):
          // The first that leads nowhere is what the call fails of.
          guard isOurs || error.usedView else { return (nil, .goOn) }
          throw Self.plain(error.errno)
        case .unknown: break
        }
      }
      noteRoots(call, gate)
      guard isOurs, isValid(call.id) else { return (nil, .goOn) }
      let answer =
        row.kind == .change
        ? try change(call, row, paths, shadow, caller)
        : try act(call, row, paths, gate, shadow, caller)
      return (nil, answer)
    } catch {
      return (nil, .failure(error))
    }
  }

  private func noteRoots(_ call: SystemCall, _ gate: PathGate) {
    if call.number == CSYS_NR_chroot || call.number == CSYS_NR_pivot_root {
      gate.noteOtherRoots()
    }
  }

  /// Whether an argument may have to do with the view.
  private func isNear(
    _ argument: PathCall.Path, of call: SystemCall, _ gate: PathGate, _ shadow: ShadowTree,
    _ caller: ClientCaller
  ) -> Bool {
    guard isLookedUp(argument, of: call) else { return false }
    if descriptor(argument, of: call, gate, shadow, caller) != nil { return true }
    guard let text = unsafe text(at: call[argument.path], of: call, caller.lane),
      unsafe text.count > 0
    else { return false }
    return unsafe gate.decide(
      text, thread: call.thread, directory: argument.directory(call),
      follows: argument.rules(call).followsLast) == .walk
  }

  /// Whether an argument is a path: the source of a mount is one where it is bound or moved.
  private func isLookedUp(_ argument: PathCall.Path, of call: SystemCall) -> Bool {
    call.number != CSYS_NR_mount || argument.path != 0
      || call[3] & UInt64(MS_BIND | MS_MOVE) != 0
  }

  /// Whether a path leads to a link of /proc that leads into the shadow: programs are to read another
  /// text.
  private func isShadowLink(_ path: WalkedPath, _ shadow: ShadowTree) -> Bool {
    guard case .host(.link(let text)) = path.result.place else { return false }
    return text.starts(with: shadow.path.utf8)
  }

  // MARK: Paths

  /// Where a place lies, as the kernel has it.
  func real(_ path: WalkedPath, _ shadow: ShadowTree) -> PathBytes {
    let slash: PathBytes = path.result.hasTrailingSlash ? [PathBytes.slash] : []
    switch path.result.place {
    case .view: return PathBytes(text: shadow.real(path.result.path.text))
    case .absent(let name, let directory) where directory.isInView:
      // What comes there is the host's.
      return directory.path.appending(name) + slash
    default: return path.result.path.isEmpty ? [PathBytes.slash] : path.result.path + slash
    }
  }

  // MARK: Descriptors

  /// What of the view a call means by a descriptor, where it names no path; nil where it is none of the
  /// view's.
  private func descriptor(
    _ argument: PathCall.Path, of call: SystemCall, _ gate: PathGate, _ shadow: ShadowTree,
    _ caller: ClientCaller
  ) -> WalkedPath? {
    let isDescriptor = if case .descriptor = argument.following { true } else { false }
    guard gate.isShadowHeld, argument.directory != nil else { return nil }
    // An empty path, or none, as utimensat has it.
    if !isDescriptor, call[argument.path] != 0 {
      guard let text = unsafe text(at: call[argument.path], of: call, caller.lane),
        unsafe text.count == 0
      else { return nil }
    }
    return place(of: argument.directory(call), argument, shadow, caller)
  }

  /// What of the view a descriptor is; nil where it is nothing of it.
  private func place(
    of descriptor: Int32, _ argument: PathCall.Path, _ shadow: ShadowTree,
    _ caller: ClientCaller
  ) -> WalkedPath? {
    let files = CallerFiles(
      shadow: shadow, thread: caller.thread, process: caller.processID)
    guard
      case .place(let path, _, fromShadow: true)? = files.magic(
        link(to: descriptor, of: caller)),
      case .ours(_, let mode) = ShadowFiles(shadow: shadow).entry(path)
    else { return nil }
    return WalkedPath(
      argument: argument, text: [],
      result: WalkResult(place: .view(mode: mode), path: path, usedView: true))
  }

  /// faccessat2 of a descriptor itself; the others that look are right as the kernel does them.
  private func access(
    toDescriptor call: SystemCall, _ argument: PathCall.Path, _ gate: PathGate,
    _ shadow: ShadowTree, _ caller: ClientCaller
  ) -> (file: (any OpenFile)?, Answer)? {
    // These ask a descriptor, which may be of one of our files.
    let asksFile = [CSYS_NR_newfstatat, CSYS_NR_statx, CSYS_NR_faccessat2].contains(call.number)
    guard asksFile else { return (nil, .goOn) }
    // AT_EMPTY_PATH.
    guard call.number == CSYS_NR_faccessat2, call[3] & 0x1000 != 0, gate.isShadowHeld,
      let path = place(of: argument.directory(call), argument, shadow, caller),
      isValid(call.id)
    else { return nil }
    do throws(IOMMUError) {
      return (nil, try access(call, path, caller, shadow))
    } catch {
      return (nil, .failure(error))
    }
  }

  // MARK: The caller itself

  /// getcwd: a directory of the view is told by the path that programs know.
  private func currentDirectory(
    _ call: SystemCall, _ gate: PathGate, _ shadow: ShadowTree, _ caller: ClientCaller
  ) -> Answer {
    guard gate.isShadowHeld, let link = System.readLink("/proc/\(call.thread)/cwd"),
      let shown = shadow.shown(link), isValid(call.id)
    else { return .goOn }
    // As the kernel says it of a directory that does not lie below the caller's root.
    let isOutside = otherRoot(of: caller) != nil
    let text = PathBytes(text: (isOutside ? "(unreachable)" : "") + shown) + [0]
    do throws(IOMMUError) {
      guard UInt64(text.count) <= call[1] else {
        throw IOMMUError(
          .outOfRange, "the current directory is \(shown), which takes \(text.count) bytes")
      }
      try copyOut(text, to: call[0], caller)
      return .result(text.count)
    } catch {
      return .failure(error)
    }
  }

  func copyOut(
    _ bytes: PathBytes, to address: UInt64, _ caller: ClientCaller
  ) throws(IOMMUError) {
    var bytes = bytes
    try unsafe bytes.withUnsafeMutableBufferPointer { (bytes) throws(IOMMUError) in
      try unsafe caller.copyOut(UnsafeRawBufferPointer(bytes), to: address)
    }
  }
}
