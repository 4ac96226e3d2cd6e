// SPDX-License-Identifier: Apache-2.0
//
// An open attribute of /sys, and the file of the host that stands for it.
//
// That file, a memfd, has the attribute's text: a program reads it, at its own offset and through
// any descriptor, and a read from the start whose descriptor the filter can tell has the text made
// anew first. A write that the filter can tell is answered by us. Another one, to a low
// descriptor other than 1, lands in the file: inotify tells the serving thread before the writer
// goes on, which finds it in the file and stores it before it answers the next call. Such writes
// have no borders: each line is one. Of an attribute of bytes, what differs then is what was written.

import CSyscalls
import IOMMU
import LinuxABI
import SystemPackage

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// An open attribute. Thread-safe.
final class AttributeFile: OpenFile {
  let number = DeviceNumber(major: 0, minor: 0)
  let place: AttributePlace
  let isWritable: Bool
  private let isReadable: Bool
  private let opener: AbsentCaller
  private let reporter: Reporter
  /// What the file of the host says, as far as we have written it.
  private let text = Guarded<[UInt8]>([])
  /// sysfs's page: what is shown or stored at once is not longer.
  static let mostBytes = 4096
  /// What is looked at of writes that nobody was told of in time.
  private static let mostUnseen = 1 << 20

  /// Opens an attribute as sysfs does.
  /// - Throws: `EACCES`; `ENODEV` where it has gone.
  init(
    _ place: AttributePlace, flags: Int32, opener: ClientCaller, _ reporter: Reporter
  ) throws(IOMMUError) {
    self.place = place
    self.reporter = reporter
    self.opener = AbsentCaller(opener)
    let mode = flags & O_ACCMODE
    isReadable = mode != O_WRONLY
    isWritable = mode != O_RDONLY
    try place.check()
    let user = opener.userID
    let bits = place.permissions(of: user)
    guard !isReadable || bits & 4 != 0, !isWritable || bits & 2 != 0 else {
      throw IOMMUError(
        .permissionDenied,
        "its mode is \(String(place.attribute.mode, radix: 8)), and user \(user) asks to "
          + (isReadable ? isWritable ? "read and write" : "read" : "write"))
    }
  }

  var name: String { place.path }
  /// The attribute, where it is one of bytes.
  var binary: (any BinaryAttribute)? { place.attribute as? any BinaryAttribute }

  func close() {}

  // MARK: The host's file

  /// Makes the text anew.
  /// - Throws: What `show` throws; `ENODEV` where the attribute has gone.
  func refresh(_ file: Int32) throws(IOMMUError) {
    guard isReadable || binary != nil else { return }
    try place.check()
    let new =
      if let binary {
        try binary.read()
      } else {
        Array(try place.attribute.show().utf8.prefix(Self.mostBytes))
      }
    text.withLock { text in
      guard new != text else { return }
      Self.write(new, to: file)
      text = new
    }
  }

  private static func write(_ text: [UInt8], to file: Int32) {
    _ = unsafe text.withUnsafeBytes {
      unsafe csys_pwrite(file, $0.baseAddress, $0.count, 0)
    }
    _ = ftruncate(file, off_t(text.count))
  }

  /// Stores what was written to the file itself.
  func takeUnseen(_ file: Int32) {
    guard isWritable else { return }
    if let binary { return takeUnseen(file, binary) }
    for command in text.withLock({ unseen(file, $0) }) {
      do throws(IOMMUError) {
        try store(command, by: opener)
      } catch {
        complain(error)
      }
    }
  }

  private func takeUnseen(_ file: Int32, _ binary: any BinaryAttribute) {
    let text = self.text.withLock { $0 }
    var bytes = text
    let count = unsafe bytes.withUnsafeMutableBytes {
      unsafe csys_pread(file, $0.baseAddress, $0.count, 0)
    }
    guard count == text.count, bytes != text else { return }
    var offset = 0
    while offset < count {
      let end = (offset..<count).first { bytes[$0] == text[$0] } ?? count
      if end > offset {
        do throws(IOMMUError) {
          try place.check()
          try binary.write(Array(bytes[offset..<end]), at: offset)
        } catch {
          complain(error)
        }
      }
      offset = end + 1
    }
    Self.write(text, to: file)
    try? refresh(file)
  }

  private func complain(_ error: IOMMUError) {
    // The writer was told that all is well.
    reporter.complain(
      "write on \(name): \(error.reason) (\(error.errno.symbol)); the program was not told, "
        + "as it wrote to a descriptor that it had moved below 768")
  }

  /// Commands that lie in the file, which is as it was then.
  private func unseen(_ file: Int32, _ text: [UInt8]) -> [String] {
    guard let size = System.identity(file)?.size, size > 0 else { return [] }
    var bytes = [UInt8](repeating: 0, count: Int(min(size, UInt64(Self.mostUnseen))))
    // A program that has written for long has left a hole where the old commands were.
    let start = size - UInt64(bytes.count)
    let count = unsafe bytes.withUnsafeMutableBytes {
      unsafe csys_pread(file, $0.baseAddress, $0.count, start)
    }
    guard count > 0 else { return [] }
    bytes.removeSubrange(count...)
    guard bytes != text else { return [] }
    let isAppended = start > 0 || bytes.starts(with: text)
    let new =
      isAppended
      ? bytes.dropFirst(start > 0 ? 0 : text.count) : bytes.prefix { $0 != UInt8(ascii: "\n") }
    if text.isEmpty {
      _ = csys_punch_hole(file, 0, size)
    } else {
      Self.write(text, to: file)
    }
    return new.split { $0 == 0 || $0 == UInt8(ascii: "\n") }.map {
      String(decoding: $0.prefix(Self.mostBytes - 1), as: UTF8.self) + "\n"
    }
  }

  // MARK: The attribute

  /// One `write(2)`.
  func store(_ text: String, by caller: any Caller) throws(IOMMUError) {
    try place.check()
    try place.attribute.store(text, by: caller)
  }
}

/// Who opened a file, when it is written behind our back: a name without memory.
private final class AbsentCaller: Caller {
  let userID: UInt32
  let processID: Int32
  let threadID: Int32

  init(_ caller: ClientCaller) {
    userID = caller.userID
    processID = caller.processID
    threadID = caller.threadID
  }

  private func absent() -> IOMMUError {
    IOMMUError(.badAddress, "the caller cannot be reached: its call was over before we saw it")
  }

  func copyIn(
    from address: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) throws(IOMMUError) { throw absent() }

  func copyOut(
    _ buffer: UnsafeRawBufferPointer, to address: UInt64
  ) throws(IOMMUError) { throw absent() }

  func memory() throws(IOMMUError) -> any MemorySource { throw absent() }

  func fileMemory(
    descriptor: Int32
  ) throws(IOMMUError) -> (source: any MemorySource, size: UInt64) { throw absent() }

  func openFile(descriptor: Int32) throws(IOMMUError) -> (any OpenFile)? { throw absent() }

  func eventFD(descriptor: Int32) throws(IOMMUError) -> any EventSignal { throw absent() }

  func install(_ file: any OpenFile, closeOnExec: Bool) throws(IOMMUError) -> Int32 {
    throw absent()
  }

  var maySetResourceLimits: Bool { false }

  func memoryOwner() throws(IOMMUError) -> (owner: MemoryOwner, right: LockingRight) {
    throw absent()
  }
}
