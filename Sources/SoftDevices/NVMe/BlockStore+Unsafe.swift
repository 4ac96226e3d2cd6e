// SPDX-License-Identifier: Apache-2.0
//
// Where a namespace's blocks are: a file that one controller has to itself or shares with others, or
// memory. Holes read as zeros, so a file takes the room of what was written.

import CBlockFile
import IOMMU
import SoftwareIOMMU
import SystemPackage

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// The blocks of one namespace. Thread-safe as files are: transfers that overlap in place and time
/// may mix at any block. Of a file that controllers share, those of two do not even mix there: each
/// has its part of the file to itself meanwhile.
///
/// A block is written whole: the data is at hand before the first byte is stored, and a file system
/// stores a page, if nothing else, as one.
final class BlockStore: Sendable {
  private let descriptor: Int32
  /// In bytes.
  let blockSize: Int
  let blockCount: UInt64
  let isReadOnly: Bool
  /// Whether other controllers may have the file too.
  let isShared: Bool
  /// Whether what was written lasts longer than this process.
  let isFile: Bool
  /// For tests: a medium that takes its time.
  let beforeFlush = Guarded<(@Sendable () -> Void)?>(nil)

  /// Opens the file, or makes it.
  /// - Throws: `EBUSY` where another run has it; `EINVAL` where its size is not what is asked for;
  ///   what opening it fails with.
  init(_ namespace: NVMeConfiguration.Namespace) throws(IOMMUError) {
    isFile = namespace.file != nil
    isReadOnly = namespace.isReadOnly
    isShared = namespace.isShared && namespace.file != nil
    blockSize = namespace.blockSize
    guard let path = namespace.file else {
      // SAFETY: the name is a literal.
      let memory = unsafe cblock_memory("nvme")
      let size = namespace.size ?? 0
      guard memory >= 0, size > 0, ftruncate(memory, off_t(clamping: size)) == 0 else {
        if memory >= 0 { close(memory) }
        throw IOMMUError(.noMemory, "no memory for a namespace of \(size) bytes")
      }
      descriptor = memory
      blockCount = size / UInt64(blockSize)
      return
    }
    let file = try Self.open(path, namespace)
    do throws(IOMMUError) {
      blockCount = try Self.size(of: file, path, namespace) / UInt64(namespace.blockSize)
    } catch {
      close(file)
      throw error
    }
    descriptor = file
  }

  deinit { close(descriptor) }

  /// Lets another controller have the file: this one is done with it.
  func release() {
    if isFile { _ = flock(descriptor, LOCK_UN) }
  }

  private static func open(
    _ path: String, _ namespace: NVMeConfiguration.Namespace
  ) throws(IOMMUError) -> Int32 {
    let makes = !namespace.isReadOnly && namespace.size != nil
    // A pipe is refused below, and its open does not wait for a writer.
    let flags =
      (namespace.isReadOnly ? O_RDONLY : O_RDWR) | (makes ? O_CREAT : 0) | O_CLOEXEC | O_NOCTTY
      | O_NONBLOCK
    // SAFETY: Swift hands the string over with its zero, for the length of the call.
    let file = unsafe Glibc.open(path, flags, 0o644)
    guard file >= 0 else {
      let error = Errno(rawValue: errno)
      throw IOMMUError(
        error,
        "namespace file \(path) cannot be opened: \(error)"
          + (error == .noSuchFileOrDirectory && !makes && !namespace.isReadOnly
            ? "; give its size to have it made" : "")
      )
    }
    let shares = namespace.isReadOnly || namespace.isShared
    guard lock(file, shares ? LOCK_SH : LOCK_EX) else {
      close(file)
      throw IOMMUError(
        .resourceBusy,
        "namespace file \(path) is in use by another controller, of this machine or of another "
          + "run; give each its own, or make both read-only or shared")
    }
    return file
  }

  /// Locks a file. A run that was killed just now lets go of it a moment later: half a second is
  /// waited for that.
  private static func lock(_ file: Int32, _ kind: Int32) -> Bool {
    for _ in 0..<50 {
      if flock(file, kind | LOCK_NB) == 0 { return true }
      DeviceThread.sleep(microseconds: 10_000)
    }
    return false
  }

  private static func size(
    of file: Int32, _ path: String, _ namespace: NVMeConfiguration.Namespace
  ) throws(IOMMUError) -> UInt64 {
    let end = lseek(file, 0, SEEK_END)
    guard hasBlocks(file), end >= 0 else {
      throw IOMMUError(.invalidArgument, "namespace file \(path) is no file of blocks")
    }
    var size = UInt64(end)
    if let wanted = namespace.size, wanted != size {
      guard size == 0 else {
        throw IOMMUError(
          .invalidArgument,
          "namespace file \(path) has \(size) bytes, not \(wanted); leave its size out to take "
            + "what there is")
      }
      guard !namespace.isReadOnly, ftruncate(file, off_t(clamping: wanted)) == 0 else {
        throw IOMMUError(
          Errno(rawValue: namespace.isReadOnly ? EINVAL : errno),
          "namespace file \(path) cannot be made \(wanted) bytes long")
      }
      size = wanted
    }
    guard size > 0, size % UInt64(namespace.blockSize) == 0 else {
      throw IOMMUError(
        .invalidArgument,
        "namespace file \(path) has \(size) bytes, which are no blocks of \(namespace.blockSize)"
      )
    }
    return size
  }

  /// Whether it is a regular file or a disk.
  private static func hasBlocks(_ file: Int32) -> Bool {
    var status = stat()
    // SAFETY: the structure outlives the call.
    guard unsafe fstat(file, &status) == 0 else { return false }
    return [S_IFREG, S_IFBLK].contains(status.st_mode & S_IFMT)
  }

  // MARK: Blocks

  /// Blocks that take room; more than there are where the file system rounds.
  var usedBlocks: UInt64 {
    var status = stat()
    // SAFETY: the structure outlives the call.
    guard unsafe fstat(descriptor, &status) == 0 else { return blockCount }
    return min(blockCount, UInt64(clamping: status.st_blocks) * 512 / UInt64(blockSize))
  }

  /// Reads whole blocks.
  /// - Parameter offset: In bytes.
  func read(
    at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) throws(NVMeStatus) {
    guard lock(offset, UInt64(buffer.count), isExclusive: false) else { throw .readError }
    defer { unlock(offset, UInt64(buffer.count)) }
    var done = 0
    while done < buffer.count {
      // SAFETY: the rest of the caller's buffer.
      let count = unsafe pread(
        descriptor, buffer.baseAddress.unsafelyUnwrapped + done, buffer.count - done,
        off_t(clamping: offset) + off_t(done))
      if count < 0, errno == EINTR { continue }
      // Somebody cut the file, or the medium is bad.
      guard count > 0 else { throw .readError }
      done += count
    }
  }

  /// Writes whole blocks.
  func write(at offset: UInt64, from buffer: UnsafeRawBufferPointer) throws(NVMeStatus) {
    guard lock(offset, UInt64(buffer.count), isExclusive: true) else { throw .writeFault }
    defer { unlock(offset, UInt64(buffer.count)) }
    var done = 0
    while done < buffer.count {
      // SAFETY: as in `read`.
      let count = unsafe pwrite(
        descriptor, buffer.baseAddress.unsafelyUnwrapped + done, buffer.count - done,
        off_t(clamping: offset) + off_t(done))
      if count < 0 {
        guard errno != EINTR else { continue }
        throw Self.writeError(errno)
      }
      done += count
    }
  }

  /// Waits until a part of a shared file is this controller's; of others it always is.
  private func lock(_ offset: UInt64, _ count: UInt64, isExclusive: Bool) -> Bool {
    !isShared || count == 0 || cblock_lock(descriptor, isExclusive ? 1 : 0, offset, count) == 0
  }

  private func unlock(_ offset: UInt64, _ count: UInt64) {
    if isShared, count > 0 { _ = cblock_lock(descriptor, -1, offset, count) }
  }

  private static func writeError(_ error: Int32) -> NVMeStatus {
    error == ENOSPC || error == EDQUOT || error == EFBIG ? .capacityExceeded : .writeFault
  }

  /// Whether a flush has anything to do.
  var canFlush: Bool { isFile && !isReadOnly }

  /// What was written is on the medium when it returns.
  func flush() throws(NVMeStatus) {
    guard canFlush else { return }
    beforeFlush.withLock { $0 }?()
    while fdatasync(descriptor) != 0 {
      guard errno == EINTR else { throw Self.writeError(errno) }
    }
  }

  /// Makes blocks zero, and gives back the room that they took.
  /// - Parameters: In bytes; whole blocks. A length of 0 does nothing.
  func deallocate(at offset: UInt64, count: UInt64) throws(NVMeStatus) {
    guard count > 0 else { return }
    guard lock(offset, count, isExclusive: true) else { throw .writeFault }
    defer { unlock(offset, count) }
    while true {
      let result = cblock_punch_hole(descriptor, offset, count)
      switch -result {
      case 0: return
      case EINTR: continue
      // A file system without holes.
      case EOPNOTSUPP, ENOSYS: return try clear(at: offset, count: count)
      default: throw Self.writeError(-result)
      }
    }
  }

  private func clear(at offset: UInt64, count: UInt64) throws(NVMeStatus) {
    // SAFETY: zeroed here, and freed when this returns.
    let zeros = UnsafeMutableRawBufferPointer.allocate(byteCount: 64 << 10, alignment: 4096)
    defer { unsafe zeros.deallocate() }
    _ = unsafe zeros.initializeMemory(as: UInt8.self, repeating: 0)
    var done: UInt64 = 0
    while done < count {
      let piece = Int(min(count - done, UInt64(zeros.count)))
      try unsafe write(
        at: offset + done, from: UnsafeRawBufferPointer(rebasing: zeros[..<piece]))
      done += UInt64(piece)
    }
  }
}
