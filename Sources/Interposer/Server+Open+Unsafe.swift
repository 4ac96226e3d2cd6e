// SPDX-License-Identifier: Apache-2.0
//
// open, openat, openat2 and creat: a path that leads to one of our nodes or attributes opens it,
// every other call goes on. Whether a path leads there is looked up as the caller's kernel will do it.

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

extension Server {
  struct Request {
    var directory: Int32
    var path: UInt64
    var flags: UInt64
    var resolve: UInt64 = 0
  }

  func open(
    _ call: SystemCall, _ caller: ClientCaller
  ) -> (file: (any OpenFile)?, Answer) {
    guard let request = request(call, caller),
      let path = string(at: request.path, of: call, caller)
    else {
      return (nil, .goOn)
    }
    if path.starts(with: Array("/dev/userfaultfd".utf8)) { tasks.memoryMayBlock() }
    let flags = Int32(truncatingIfNeeded: request.flags)
    if let (node, thread) = nodes.threadNode(path, of: caller), isValid(call.id) {
      return open(node.name, flags: flags, caller) { () throws(IOMMUError) in
        try node.open(thread: thread, by: caller)
      }
    }
    if let answer = openStatus(path, flags: flags, call: call.id, caller) {
      return (nil, answer)
    }
    if let answer = openTerminal(path, request, call, caller) { return (nil, answer) }
    // The kernel gives the right answers to these, on the placeholder.
    let isPlain =
      flags & (System.pathOnly | O_DIRECTORY) == 0
      && flags & (O_CREAT | O_EXCL) != O_CREAT | O_EXCL
    let found: NodeTable.Place?
    do throws(IOMMUError) {
      found = isPlain ? try resolve(request, path, of: caller) : nil
    } catch {
      return (nil, .failure(error))
    }
    guard let place = found, isValid(call.id) else {
      if path.starts(with: Array("/dev/vfio/noiommu-".utf8)) {
        reporter.say(
          "no-IOMMU mode is not offered: \(String(decoding: path, as: UTF8.self)) does not exist; "
            + "use /dev/vfio/devices/vfioN or /dev/vfio/N, whose DMA is translated")
      }
      do throws(IOMMUError) {
        return (nil, try refusal(request, path, of: caller).map { .failure($0) } ?? .goOn)
      } catch  where error.errno == .tooManyOpenFilesInSystem {
        // The kernel refuses what is to be refused here, with another errno.
        return (nil, .goOn)
      } catch {
        return (nil, .failure(error))
      }
    }
    return open(place, flags: flags, caller)
  }

  /// Opens the host's `/dev/ptmx` for a program that would find that and could not open it: the kernel
  /// looks for `pts` beside it, in the directory that it is bound from, and does not go out there.
  private func openTerminal(
    _ path: [UInt8], _ request: Request, _ call: SystemCall, _ caller: ClientCaller
  ) -> Answer? {
    let flags = Int32(truncatingIfNeeded: request.flags)
    guard path.elementsEqual("/dev/ptmx".utf8), request.resolve == 0,
      flags & (System.pathOnly | O_DIRECTORY | O_NOFOLLOW | O_CREAT) == 0,
      caller.userID == geteuid()
    else { return nil }
    do throws(IOMMUError) {
      let root = try openPlace("/proc/\(caller.thread)/root")
      guard root >= 0 else { return nil }
      defer { close(root) }
      let found = try lookUp(from: root, "/dev/ptmx", flags: UInt64(O_NOFOLLOW), Self.inRoot)
      guard found >= 0 else { return nil }
      defer { close(found) }
      let host = try openPlace("/dev/ptmx")
      guard host >= 0 else { return nil }
      defer { close(host) }
      // A link, as in containers, leads to one that the kernel opens.
      guard let theirs = System.identity(found), theirs.mode & S_IFMT == S_IFCHR,
        let ours = System.identity(host), FileKey(theirs) == FileKey(ours), isValid(call.id)
      else { return nil }
      return try give(call, PathBytes(text: "/dev/ptmx"), flags, caller)
    } catch {
      return .failure(error)
    }
  }

  /// Opens a place of ours.
  func open(
    _ place: NodeTable.Place, flags: Int32, _ caller: ClientCaller
  ) -> (file: (any OpenFile)?, Answer) {
    open(place.path, flags: flags, caller) { () throws(IOMMUError) in
      switch place {
      case .node(let node): return try node.open(flags: flags, by: caller)
      case .attribute(let attribute):
        return try AttributeFile(attribute, flags: flags, opener: caller, reporter)
      case .gone(let path):
        throw IOMMUError(.noSuchDevice, "what \(path) was has been removed")
      }
    }
  }

  func open(
    _ name: String, flags: Int32, _ caller: ClientCaller,
    _ make: () throws(IOMMUError) -> any OpenFile
  ) -> (file: (any OpenFile)?, Answer) {
    do throws(IOMMUError) {
      let file = try make()
      do throws(IOMMUError) {
        let number = try caller.install(
          file, flags: flags, closeOnExec: flags & O_CLOEXEC != 0)
        return (file, .result(Int(number)))
      } catch {
        if caller.promises.isEmpty { file.close() }
        throw error
      }
    } catch {
      return (nil, .failure(IOMMUError(error.errno, "\(name): \(error.reason)")))
    }
  }

  func request(_ call: SystemCall, _ caller: ClientCaller) -> Request? {
    switch call.number {
    case CSYS_NR_open:
      return Request(directory: AT_FDCWD, path: call[0], flags: call[1])
    case CSYS_NR_creat:
      return Request(
        directory: AT_FDCWD, path: call[0], flags: UInt64(O_CREAT | O_WRONLY | O_TRUNC))
    case CSYS_NR_openat:
      return Request(
        directory: Int32(truncatingIfNeeded: call[0]), path: call[1], flags: call[2])
    default:
      guard let how = OpenHow(at: call[2], size: call[3], caller), how.isValid else {
        return nil
      }
      return Request(
        directory: Int32(truncatingIfNeeded: call[0]), path: call[1], flags: how.flags,
        resolve: how.resolve)
    }
  }

  /// A path in the caller's memory, without its terminator; nil where it cannot be read.
  func string(at address: UInt64, of call: SystemCall, _ caller: ClientCaller) -> [UInt8]? {
    let buffer = unsafe caller.lane.buffer
    var path: [UInt8] = []
    var cursor = address
    while path.count < 4096 {
      // Up to the page's end: the next page may not be there.
      let count = min(4096 - Int(cursor & 4095), 256)
      // SAFETY: `count` is at most the buffer's size.
      let got = OtherUser.reach(call.thread) {
        unsafe csys_process_vm_readv(call.thread, buffer.baseAddress, cursor, count)
      }
      guard got > 0 else { return nil }
      let part = unsafe UnsafeRawBufferPointer(rebasing: buffer[..<got])
      if let end = unsafe part.firstIndex(of: 0) { return unsafe path + part[..<end] }
      unsafe path += part
      cursor &+= UInt64(got)
    }
    return nil
  }

  /// The node that a path leads to, as the caller's own file system has it.
  /// - Throws: Where that cannot be found out; on the placeholder the caller would go wrong.
  func resolve(
    _ request: Request, _ path: [UInt8], of caller: ClientCaller
  ) throws(IOMMUError) -> NodeTable.Place? {
    let text = String(decoding: path, as: UTF8.self)
    if let place = MagicPlace(text, of: caller) {
      return try node(at: place, request, of: caller.thread)
    }
    let thread = caller.thread
    // A path with a name of ours, or one that leads to a node from where the program began:
    // from the caller's own root, which may be another.
    if !nodes.isCandidate(path) {
      guard try leadsToNode(request, text, of: thread) else { return nil }
    }
    return try exactNode(request, text, of: thread)
  }

  private func look(
    from base: Int32, _ path: String, _ request: Request, _ resolve: UInt64
  ) throws(IOMMUError) -> NodeTable.Place? {
    let found = try lookUp(from: base, path, flags: request.flags, resolve)
    guard found >= 0 else { return nil }
    defer { close(found) }
    return nodes.place(found)
  }

  /// Whether a path leads to a node, through links of any name. Cheap, and blind to a caller
  /// that has changed its root.
  private func leadsToNode(
    _ request: Request, _ text: String, of thread: Int32
  ) throws(IOMMUError) -> Bool {
    // Nothing there is a link to a node.
    if text.hasPrefix("/proc/") || text.hasPrefix("/sys/") { return false }
    // Beneath or in another root: no shorter way.
    if request.resolve & 0x18 != 0 { return true }
    guard let root = nodes.root else { return false }
    var whole = text
    if !text.hasPrefix("/") {
      guard let place = System.readLink(directory(request, of: thread)), place.hasPrefix("/")
      else { return false }
      whole = place + "/" + text
    }
    do throws(IOMMUError) {
      return try look(from: root.number, whole, request, request.resolve | Self.inRoot)
        != nil
    } catch  where error.errno == .tooManyOpenFilesInSystem {
      // It would be an odd name for a node: others shall not suffer from our want.
      return false
    }
  }

  func directory(_ request: Request, of thread: Int32) -> String {
    request.directory == AT_FDCWD
      ? "/proc/\(thread)/cwd" : "/proc/\(thread)/fd/\(request.directory)"
  }

  private func exactNode(
    _ request: Request, _ text: String, of thread: Int32
  ) throws(IOMMUError) -> NodeTable.Place? {
    func look(
      _ directory: String, _ path: String, _ resolve: UInt64
    ) throws(IOMMUError) -> NodeTable.Place? {
      let base = try openPlace(directory)
      guard base >= 0 else { return nil }
      defer { close(base) }
      return try self.look(from: base, path, request, resolve)
    }
    let root = "/proc/\(thread)/root"
    if text.hasPrefix("/"), request.resolve & 0x18 == 0 {
      return try look(root, text, request.resolve | Self.inRoot)
    }
    let base = directory(request, of: thread)
    if let node = try look(base, text, request.resolve) { return node }
    // A symbolic link on the way may be absolute.
    guard request.resolve & 0x18 == 0, let place = System.readLink(base), place.hasPrefix("/")
    else { return nil }
    return try look(root, place + "/" + text, request.resolve | Self.inRoot)
  }

  private func node(
    at place: MagicPlace, _ request: Request, of thread: Int32
  ) throws(IOMMUError) -> NodeTable.Place? {
    // `RESOLVE_NO_MAGICLINKS`, `_BENEATH` and `_IN_ROOT` forbid such a path or mean another.
    guard request.resolve & 0x1A == 0 else { return nil }
    if place.rest.isEmpty {
      guard request.flags & UInt64(O_NOFOLLOW) == 0 else { return nil }
      return try node(opened: place.base)
    }
    guard let start = System.readLink(place.base), start.hasPrefix("/") else { return nil }
    // What `root` names is the caller's root: where its paths begin.
    let path = place.isRoot ? place.rest : start + "/" + place.rest
    return try exactNode(request, "/" + path, of: thread)
  }

  /// What a descriptor of the caller is.
  func node(opened link: String) throws(IOMMUError) -> NodeTable.Place? {
    let found = try openPlace(link)
    guard found >= 0 else { return nil }
    defer { close(found) }
    return nodes.place(found)
  }
}

/// A path through a caller's own `/proc/self/root`, `cwd` or `fd/N`. For us these names mean
/// other places.
private struct MagicPlace {
  /// The link, as we reach it.
  let base: String
  /// What follows it; may be empty.
  let rest: String
  let isRoot: Bool

  init?(_ text: String, of caller: ClientCaller) {
    guard text.hasPrefix("/proc/") || text.hasPrefix("/dev/fd/") else { return nil }
    var parts = text.split(separator: "/").dropFirst()
    let owner = text.hasPrefix("/dev/") ? "self" : parts.popFirst()
    let link = parts.popFirst()
    switch link {
    case "root", "cwd":
      base = "/proc/\(caller.thread)/\(link ?? "")"
    case "fd":
      guard let number = parts.popFirst().flatMap({ Int32($0) }) else { return nil }
      base = "/proc/\(caller.thread)/fd/\(number)"
    default:
      return nil
    }
    guard
      owner == "self" || owner == "thread-self" || owner == "\(caller.thread)"
        || owner == "\(caller.processID)"
    else { return nil }
    isRoot = link == "root"
    // Slashes at the end ask for a directory.
    rest = parts.joined(separator: "/") + (text.hasSuffix("/") ? "/" : "")
  }
}
