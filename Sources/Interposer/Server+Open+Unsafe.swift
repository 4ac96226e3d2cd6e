// SPDX-License-Identifier: Apache-2.0
//
// open, openat, openat2 and creat: a path that leads to one of our nodes opens it, every other
// call goes on. Only a path whose last name could be one of ours costs more than reading it.

import CSyscalls
import IOMMU
import LinuxABI
import SystemPackage

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// Our nodes, by what stands for them in the program's /dev.
struct NodeTable: Sendable {
  private var byKey: [FileKey: any DeviceNode] = [:]
  private var names: Set<[UInt8]> = []

  /// - Parameters:
  ///   - view: Its links under /dev are other names of nodes: `/dev/char/10:127`.
  ///   - root: The program's root directory, as we reach it.
  init(_ nodes: [any DeviceNode], view: View, root: String) throws(InterposerError) {
    for entry in view.entries where entry.path.hasPrefix("/dev/") {
      guard case .link = entry.kind else { continue }
      names.insert(Array(entry.path.utf8.split(separator: UInt8(ascii: "/")).last ?? []))
    }
    for node in nodes {
      let descriptor = System.open(root + node.path, System.pathOnly)
      guard descriptor >= 0, let identity = System.identity(descriptor) else {
        throw InterposerError(
          "the program's \(node.path) cannot be looked at; see `iommu doctor`")
      }
      close(descriptor)
      byKey[FileKey(identity)] = node
      names.insert(Array(node.path.utf8.split(separator: UInt8(ascii: "/")).last ?? []))
    }
  }

  func isCandidate(_ path: [UInt8]) -> Bool {
    guard let last = path.split(separator: UInt8(ascii: "/")).last else { return false }
    return names.contains(Array(last))
  }

  func node(_ descriptor: Int32) -> (any DeviceNode)? {
    System.identity(descriptor).flatMap { byKey[FileKey($0)] }
  }
}

extension Server {
  private struct Request {
    var directory: Int32
    var path: UInt64
    var flags: UInt64
    var resolve: UInt64 = 0
  }

  func open(
    _ call: SystemCall, _ caller: ClientCaller
  ) -> (file: (any OpenFile)?, Answer) {
    guard let request = request(call, caller), let path = string(at: request.path, of: call)
    else {
      return (nil, .goOn)
    }
    if path.starts(with: Array("/dev/userfaultfd".utf8)) { tasks.memoryMayBlock() }
    guard nodes.isCandidate(path) else {
      if path.starts(with: Array("/dev/vfio/noiommu-".utf8)) {
        reporter.say(
          "no-IOMMU mode is not offered: \(String(decoding: path, as: UTF8.self)) does not exist; "
            + "use /dev/vfio/devices/vfioN or /dev/vfio/N, whose DMA is translated")
      }
      return (nil, .goOn)
    }
    let flags = Int32(truncatingIfNeeded: request.flags)
    // The kernel gives the right answers to these, on the placeholder.
    guard isValid(call.id), flags & (System.pathOnly | O_DIRECTORY) == 0,
      flags & (O_CREAT | O_EXCL) != O_CREAT | O_EXCL,
      let node = resolve(request, path, of: call.thread)
    else { return (nil, .goOn) }
    do throws(IOMMUError) {
      let file = try node.open(flags: flags, by: caller)
      do throws(IOMMUError) {
        let number = try caller.install(
          file, flags: flags, closeOnExec: flags & O_CLOEXEC != 0)
        return (file, .result(Int(number)))
      } catch {
        if caller.promises.isEmpty { file.close() }
        throw error
      }
    } catch {
      return (nil, .failure(IOMMUError(error.errno, "\(node.path): \(error.reason)")))
    }
  }

  private func request(_ call: SystemCall, _ caller: ClientCaller) -> Request? {
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
      guard call[3] >= 24 else { return nil }
      var how = [UInt64](repeating: 0, count: 3)
      do throws(IOMMUError) {
        try unsafe how.withUnsafeMutableBufferPointer { (how) throws(IOMMUError) in
          try unsafe caller.copyIn(from: call[2], into: UnsafeMutableRawBufferPointer(how))
        }
      } catch {
        return nil
      }
      return Request(
        directory: Int32(truncatingIfNeeded: call[0]), path: call[1], flags: how[0],
        resolve: how[2])
    }
  }

  /// A path in the caller's memory, without its terminator; nil where it cannot be read.
  private func string(at address: UInt64, of call: SystemCall) -> [UInt8]? {
    var path: [UInt8] = []
    var cursor = address
    while path.count < 4096 {
      // Up to the page's end: the next page may not be there.
      let count = min(4096 - Int(cursor & 4095), 256)
      // SAFETY: `count` is at most the buffer's size.
      let got = unsafe csys_process_vm_readv(call.thread, buffer.baseAddress, cursor, count)
      guard got > 0 else { return nil }
      let part = unsafe UnsafeRawBufferPointer(rebasing: buffer[..<got])
      if let end = unsafe part.firstIndex(of: 0) { return unsafe path + part[..<end] }
      unsafe path += part
      cursor &+= UInt64(got)
    }
    return nil
  }

  /// The node that a path leads to, as the caller's own file system has it.
  private func resolve(
    _ request: Request, _ path: [UInt8], of thread: Int32
  ) -> (any DeviceNode)? {
    let text = String(decoding: path, as: UTF8.self)
    let flags = UInt64(O_CLOEXEC | System.pathOnly) | request.flags & UInt64(O_NOFOLLOW)
    let inRoot: UInt64 = 0x10
    func look(_ directory: String, _ path: String, _ resolve: UInt64) -> (any DeviceNode)? {
      let base = System.open(directory, System.pathOnly)
      guard base >= 0 else { return nil }
      defer { close(base) }
      let found = unsafe csys_openat2(base, path, flags, resolve)
      guard found >= 0 else { return nil }
      defer { close(found) }
      return nodes.node(found)
    }
    let root = "/proc/\(thread)/root"
    if path.first == UInt8(ascii: "/"), request.resolve & 0x18 == 0 {
      return look(root, text, request.resolve | inRoot)
    }
    let base =
      request.directory == AT_FDCWD
      ? "/proc/\(thread)/cwd" : "/proc/\(thread)/fd/\(request.directory)"
    if let node = look(base, text, request.resolve) { return node }
    // A symbolic link on the way may be absolute.
    guard request.resolve & 0x18 == 0, let place = System.readLink(base), place.hasPrefix("/")
    else { return nil }
    return look(root, place + "/" + text, request.resolve | inRoot)
  }
}
