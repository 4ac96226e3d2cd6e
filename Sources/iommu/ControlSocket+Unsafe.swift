// SPDX-License-Identifier: Apache-2.0
//
// The socket by which a running machine is told what to do: where it lies, who may use it, and its
// lines. One for each `iommu run`, in a directory that is its user's alone.

import Glibc
import IOMMU

enum ControlSocket {
  /// `$XDG_RUNTIME_DIR/swift-iommu`, or one in /tmp with the user's number.
  static var directories: [String] {
    let runtime = Terminal.environment("XDG_RUNTIME_DIR")
    let own = "/tmp/swift-iommu-\(geteuid())"
    return runtime.isEmpty || runtime.utf8.count > 60 ? [own] : ["\(runtime)/swift-iommu", own]
  }

  /// Whether a directory is there, the user's, and nobody else's to enter.
  static func isPrivate(_ directory: String) -> Bool {
    var status = stat()
    // SAFETY: the structure is ours; a link in the directory's place is no directory.
    guard unsafe lstat(directory, &status) == 0 else { return false }
    return status.st_mode & S_IFMT == S_IFDIR && status.st_uid == geteuid()
      && status.st_mode & 0o077 == 0
  }

  /// Runs that have a socket, by process id, in order.
  static var runs: [(pid: Int32, path: String)] {
    var found: [Int32: String] = [:]
    for directory in directories where isPrivate(directory) {
      guard let entries = unsafe opendir(directory) else { continue }
      // SAFETY: the stream is closed once, after its last entry was copied.
      defer { _ = unsafe closedir(entries) }
      while let entry = unsafe readdir(entries) {
        let name = unsafe withUnsafePointer(to: entry.pointee.d_name) { pointer in
          unsafe String(cString: UnsafeRawPointer(pointer).assumingMemoryBound(to: CChar.self))
        }
        guard name.hasSuffix(".sock"), let pid = Int32(name.dropLast(5)) else { continue }
        found[pid] = "\(directory)/\(name)"
      }
    }
    return found.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
  }

  /// Takes the socket of a run away that has ended.
  static func forget(pid: Int32) {
    for run in runs where run.pid == pid { unsafe unlink(run.path) }
  }

  // MARK: Sockets

  private static func withAddress<Result>(
    _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Result
  ) -> Result? {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let bytes = Array(path.utf8)
    guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { return nil }
    // SAFETY: the path with its zero fits, as was checked.
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: bytes) }
    // SAFETY: a sockaddr_un is a sockaddr to the calls that take its length.
    return unsafe withUnsafePointer(to: &address) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
        unsafe body(address, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
  }

  private static func make() -> Int32 {
    socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
  }

  /// Listens for commands to a run.
  /// - Returns: Nil where the host has no place for the socket.
  static func listen(pid: Int32) -> (descriptor: Int32, path: String)? {
    for directory in directories {
      unsafe mkdir(directory, 0o700)
      guard isPrivate(directory) else { continue }
      let path = "\(directory)/\(pid).sock"
      unsafe unlink(path)
      let descriptor = make()
      guard descriptor >= 0 else { return nil }
      let result = unsafe withAddress(path) { address, size in
        unsafe bind(descriptor, address, size)
      }
      guard result == 0, unsafe chmod(path, 0o600) == 0, Glibc.listen(descriptor, 8) == 0 else {
        close(descriptor)
        continue
      }
      return (descriptor, path)
    }
    return nil
  }

  /// - Returns: Nil where nobody listens.
  static func connect(_ path: String) -> Int32? {
    let descriptor = make()
    guard descriptor >= 0 else { return nil }
    let result = unsafe withAddress(path) { address, size in
      unsafe Glibc.connect(descriptor, address, size)
    }
    guard result == 0 else {
      close(descriptor)
      return nil
    }
    return descriptor
  }

  /// Connects to a run. The socket of one that was killed is taken away: nobody listens, and its
  /// process is gone. (One that has just begun may not listen yet.)
  /// - Returns: Nil where nobody listens.
  static func connect(to run: (pid: Int32, path: String)) -> Int32? {
    if let descriptor = connect(run.path) { return descriptor }
    if kill(run.pid, 0) != 0, errno == ESRCH { unsafe unlink(run.path) }
    return nil
  }

  /// The next caller; nil where nobody listens any more. Others than the user are sent away.
  static func accept(_ listener: Int32) -> Int32? {
    while true {
      let descriptor = Glibc.accept(listener, nil, nil)
      guard descriptor >= 0 else {
        if errno == EINTR || errno == ECONNABORTED { continue }
        return nil
      }
      _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
      // struct ucred: process, user, group.
      var peer: (pid: Int32, user: UInt32, group: UInt32) = (0, .max, .max)
      var size = socklen_t(MemoryLayout.size(ofValue: peer))
      // SAFETY: three 32-bit numbers of ours, and their size is told.
      let result = unsafe getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, &peer, &size)
      if result == 0, peer.user == geteuid() { return descriptor }
      close(descriptor)
    }
  }

  /// Sends a line; what would end it early, or upset a terminal, becomes a space.
  /// - Returns: Whether somebody took it.
  @discardableResult
  static func send(_ line: String, to descriptor: Int32) -> Bool {
    var rest = (line.utf8.map { $0 < 0x20 || $0 == 0x7F ? 0x20 : $0 } + [0x0A])[...]
    while !rest.isEmpty {
      // SAFETY: the buffer is the slice's own, for the length of the call.
      let count = unsafe rest.withUnsafeBytes {
        unsafe Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
      }
      if count < 0, errno == EINTR { continue }
      guard count > 0 else { return false }
      rest = rest.dropFirst(count)
    }
    return true
  }

  /// POLLRDHUP.
  private static let readingEnded: Int16 = 0x2000

  /// Whether the other side has gone.
  static func isClosed(_ descriptor: Int32) -> Bool {
    var poll = pollfd(fd: descriptor, events: readingEnded, revents: 0)
    // SAFETY: one structure of ours.
    return unsafe Glibc.poll(&poll, 1, 0) > 0
      && poll.revents & (readingEnded | Int16(POLLHUP | POLLERR)) != 0
  }

  /// Waits until there is something to read.
  /// - Parameter milliseconds: -1 for as long as it takes.
  /// - Returns: False where nothing came.
  static func wait(_ descriptor: Int32, milliseconds: Int32) -> Bool {
    var poll = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    // SAFETY: one structure of ours.
    return unsafe Glibc.poll(&poll, 1, milliseconds) != 0
  }

  /// Runs a function in a thread of its own.
  static func startThread(_ body: @escaping @Sendable () -> Void) -> Bool {
    final class Box {
      let body: @Sendable () -> Void
      init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }
    let box = unsafe Unmanaged.passRetained(Box(body))
    var thread = pthread_t()
    // SAFETY: the thread takes the reference that is passed; where there is none it is released.
    let result = unsafe pthread_create(
      &thread, nil,
      { argument in
        guard let argument = unsafe argument else { return nil }
        unsafe Unmanaged<Box>.fromOpaque(argument).takeRetainedValue().body()
        return nil
      }, box.toOpaque())
    guard result == 0 else {
      unsafe box.release()
      return false
    }
    pthread_detach(thread)
    return true
  }
}

/// Takes a stream of bytes apart into lines.
struct LineReader {
  private let descriptor: Int32
  private var rest: [UInt8] = []
  /// Longest line, in bytes: more is no command.
  private static let longest = 4096

  init(_ descriptor: Int32) { self.descriptor = descriptor }

  /// The next line; nil at the end, and where it is too long.
  mutating func next() -> String? {
    while true {
      if let end = rest.firstIndex(of: UInt8(ascii: "\n")) {
        defer { rest.removeSubrange(...end) }
        return String(decoding: rest[..<end], as: UTF8.self)
      }
      guard rest.count < Self.longest else { return nil }
      var piece = [UInt8](repeating: 0, count: 1024)
      // SAFETY: the buffer is the array's own, for the length of the call.
      let count = unsafe piece.withUnsafeMutableBytes {
        unsafe recv(descriptor, $0.baseAddress, $0.count, 0)
      }
      if count < 0, errno == EINTR { continue }
      guard count > 0 else { return nil }
      rest += piece[..<count]
    }
  }
}
