// SPDX-License-Identifier: Apache-2.0
//
// The plain system calls of this module: descriptors that close themselves, reads and writes
// that go on after EINTR, small files. Results are the kernel's: a negative errno on failure.

import CSyscalls
import Synchronization
import SystemPackage

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// A descriptor of this process that is closed with its last reference.
final class OwnedDescriptor: Sendable {
  let number: Int32

  init(_ number: Int32) { self.number = number }

  deinit { _ = close(number) }
}

/// A descriptor that can be closed while others use it: to them it is bad from then on.
final class RevocableDescriptor: Sendable {
  private let number: Atomic<Int32>
  private let inside = Atomic(0)

  init(_ number: Int32) { self.number = Atomic(number) }

  deinit { close() }

  /// - Parameter body: Gets the number, -1 where it is closed, and does not keep it. It waits for
  ///   nobody: who closes waits for it.
  func use<Result>(_ body: (Int32) -> Result) -> Result {
    inside.add(1, ordering: .sequentiallyConsistent)
    defer { inside.subtract(1, ordering: .sequentiallyConsistent) }
    return body(number.load(ordering: .sequentiallyConsistent))
  }

  /// Nothing where it is closed.
  func close() {
    let old = number.exchange(-1, ordering: .sequentiallyConsistent)
    guard old >= 0 else { return }
    while inside.load(ordering: .sequentiallyConsistent) != 0 { sched_yield() }
    _ = OwnedDescriptor(old)
  }
}

/// System calls in Swift types.
enum System {
  /// `O_PATH`, which the C library shows to C alone.
  static let pathOnly: Int32 = 0o10000000

  /// Opens a file of this process; the descriptor is close-on-exec.
  static func open(_ path: String, _ flags: Int32) -> Int32 {
    OtherUser.reach(path) { unsafe csys_open(path, flags | O_CLOEXEC, 0o644) }
  }

  static func fork() -> Int32 { csys_fork() }

  /// A soft limit by its name in `/proc/PID/limits`; `UInt64.max` is none. Nil where it cannot
  /// be read.
  static func limit(_ name: String, of process: Int32) -> UInt64? {
    guard let text = contents("/proc/\(process)/limits") else { return nil }
    let line = String(decoding: text, as: UTF8.self).split(separator: "\n").first {
      $0.hasPrefix(name)
    }
    guard let word = line?.dropFirst(name.count).split(separator: " ").first else { return nil }
    return UInt64(word) ?? .max
  }

  /// Reads once, again after EINTR.
  static func read(_ descriptor: Int32, into buffer: UnsafeMutableRawBufferPointer) -> Int {
    while true {
      // SAFETY: the buffer's own address and size.
      let count = unsafe Self.plainRead(descriptor, buffer.baseAddress, buffer.count)
      if count >= 0 { return count }
      if errno != EINTR { return Int(-errno) }
    }
  }

  private static func plainRead(
    _ descriptor: Int32, _ base: UnsafeMutableRawPointer?, _ count: Int
  ) -> Int {
    #if canImport(Glibc)
      unsafe Glibc.read(descriptor, base, count)
    #else
      unsafe Musl.read(descriptor, base, count)
    #endif
  }

  /// Writes all of `bytes`; false where the other side is gone.
  @discardableResult
  static func writeAll(_ descriptor: Int32, _ bytes: [UInt8]) -> Bool {
    unsafe bytes.withUnsafeBytes { bytes in
      var done = 0
      while done < bytes.count {
        // SAFETY: `done` is below the buffer's count.
        let count = unsafe write(descriptor, bytes.baseAddress! + done, bytes.count - done)
        if count < 0 {
          if errno == EINTR { continue }
          return false
        }
        done += count
      }
      return true
    }
  }

  /// Reads exactly `count` bytes; nil at an earlier end.
  static func readExactly(_ descriptor: Int32, _ count: Int) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: count)
    let whole = unsafe bytes.withUnsafeMutableBytes { buffer in
      var done = 0
      while done < count {
        let got = unsafe read(descriptor, into: .init(rebasing: buffer[done...]))
        if got <= 0 { return false }
        done += got
      }
      return true
    }
    return whole ? bytes : nil
  }

  /// One message or whatever is there, at most `limit` bytes; nil on an error.
  static func readSome(_ descriptor: Int32, limit: Int = 65_536) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: limit)
    let count = unsafe bytes.withUnsafeMutableBytes { unsafe read(descriptor, into: $0) }
    guard count >= 0 else { return nil }
    bytes.removeSubrange(count...)
    return bytes
  }

  /// Up to 64 KiB of a file from an offset on; empty at its end, nil where it cannot be read.
  static func readSome(_ descriptor: Int32, from offset: UInt64) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: 65_536)
    // SAFETY: the count is the array's.
    let count = unsafe bytes.withUnsafeMutableBytes { bytes in
      unsafe csys_pread(descriptor, bytes.baseAddress!, bytes.count, offset)
    }
    guard count >= 0 else { return nil }
    bytes.removeSubrange(count...)
    return bytes
  }

  /// A small file's contents; nil where it cannot be read.
  static func contents(_ path: String) -> [UInt8]? {
    let descriptor = open(path, O_RDONLY)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    var all: [UInt8] = []
    while let some = readSome(descriptor) {
      if some.isEmpty { return all }
      all += some
    }
    return nil
  }

  /// Writes an existing file; 0 or a negative errno.
  static func writeFile(_ path: String, _ text: String) -> Int32 {
    let descriptor = open(path, O_WRONLY)
    guard descriptor >= 0 else { return descriptor }
    defer { close(descriptor) }
    return writeAll(descriptor, Array(text.utf8)) ? 0 : -errno
  }

  /// The target of a symbolic link.
  static func readLink(_ path: String) -> String? {
    var bytes = [UInt8](repeating: 0, count: 4096)
    let count = OtherUser.reach(path) {
      unsafe bytes.withUnsafeMutableBytes { buffer in
        // SAFETY: at most the buffer's size is written; readlink adds no terminator.
        let count = unsafe readlink(
          path, buffer.baseAddress!.assumingMemoryBound(to: CChar.self), buffer.count)
        return count < 0 ? -errno : Int32(count)
      }
    }
    return count < 0 ? nil : String(decoding: bytes[..<Int(count)], as: UTF8.self)
  }

  /// Names in a directory with their `d_type`, without `.` and `..`; nil where it cannot be read.
  static func entries(_ path: String) -> [(name: String, type: UInt8)]? {
    guard let directory = unsafe opendir(path) else { return nil }
    defer { unsafe closedir(directory) }
    var all: [(String, UInt8)] = []
    while let entry = unsafe readdir(directory) {
      let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) { name in
        // SAFETY: d_name is terminated by the C library.
        unsafe String(cString: UnsafeRawPointer(name).assumingMemoryBound(to: CChar.self))
      }
      if name != "." && name != ".." { all.append((name, unsafe entry.pointee.d_type)) }
    }
    return all
  }

  /// What an open file is.
  static func identity(_ descriptor: Int32) -> csys_identity? {
    var identity = csys_identity()
    return unsafe csys_identity(descriptor, &identity) < 0 ? nil : identity
  }

  /// Starts a detached thread; false where the system has none to give.
  /// - Parameter stack: Its size in bytes; 0 is the system's.
  static func startThread(
    stack: Int = 0, _ body: @escaping @Sendable () -> Void
  ) -> Bool {
    final class Box: Sendable {
      let body: @Sendable () -> Void
      init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }
    let box = unsafe Unmanaged.passRetained(Box(body))
    let result = unsafe csys_thread_start(
      { argument in
        // SAFETY: the argument is the box that was retained for this thread.
        unsafe Unmanaged<Box>.fromOpaque(argument!).takeRetainedValue().body()
      }, box.toOpaque(), stack)
    if result < 0 { unsafe box.release() }
    return result == 0
  }

  /// `strerror`, for sentences.
  static func message(_ negative: Int32) -> String { "\(Errno(rawValue: -negative))" }

  static func printError(_ line: String) { writeAll(2, Array((line + "\n").utf8)) }
}
