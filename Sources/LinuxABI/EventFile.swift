// SPDX-License-Identifier: Apache-2.0
//
// A file that is a queue of records: fault queues and event queues (MODEL H1, H2). Linux: the
// files of `iommufd/eventq.c`. Neither call ever blocks, whatever O_NONBLOCK says.

import IOMMU
import SystemPackage

/// An open queue of records. Thread-safe.
///
/// A carrier gives the copying in and out to the calls: what cannot be copied out stays in the
/// queue, what cannot be copied in is not there.
public protocol EventFile: OpenFile {
  /// What poll says of reading. The queue sets it; the carrier attaches its descriptor.
  var readiness: Readiness { get }

  /// Whether records are answered by write(2): poll then always says writable, and never else.
  var isWritable: Bool { get }

  /// One `read(2)`. Never blocks.
  /// - Parameters:
  ///   - count: Bytes that the caller has room for; any value.
  ///   - deliver: Takes the next whole record, or whole group of records, for the caller's
  ///     buffer. Where it throws (`EFAULT`), what it was given stays first in the queue.
  /// - Returns: Bytes delivered, at most `count`; 0 where the queue is empty or its first record
  ///   does not fit. After a delivery that failed, the bytes before it.
  /// - Throws: `ESPIPE` for a count that the queue's kind refuses, `EINVAL` where its kind refuses
  ///   one that the first record does not fit; what `deliver` threw where nothing was delivered
  ///   before.
  func read(
    count: Int, deliver: ([UInt8]) throws(IOMMUError) -> Void
  ) throws(IOMMUError) -> Int

  /// One `write(2)`. Never blocks.
  /// - Parameters:
  ///   - count: Bytes that the caller offers; any value.
  ///   - fetch: Copies `size` bytes in, which begin at `offset` of the caller's buffer.
  /// - Returns: Bytes taken: those of the whole responses before the first that failed.
  /// - Throws: `ESPIPE` for a ragged count; where the first response fails, its error. `EINVAL`
  ///   on a queue that takes none.
  func write(
    count: Int, fetch: (_ offset: Int, _ size: Int) throws(IOMMUError) -> [UInt8]
  ) throws(IOMMUError) -> Int
}

/// What poll(2) says of a file. The bits are Linux's `POLLIN | POLLRDNORM` and `POLLOUT`.
public struct PollEvents: OptionSet, Sendable {
  public let rawValue: UInt16

  public init(rawValue: UInt16) { self.rawValue = rawValue }

  public static let readable = PollEvents(rawValue: 0x41)
  public static let writable = PollEvents(rawValue: 0x4)
}

extension EventFile {
  /// What poll says now.
  public var pollEvents: PollEvents {
    var events: PollEvents = isWritable ? .writable : []
    if readiness.isReadable { events.insert(.readable) }
    return events
  }

  /// One read into memory that is there.
  public func read(count: Int) throws(IOMMUError) -> [UInt8] {
    var bytes: [UInt8] = []
    _ = try read(count: count) { (records) throws(IOMMUError) in bytes += records }
    return bytes
  }

  /// One write from memory that is there.
  public func write(_ bytes: [UInt8]) throws(IOMMUError) -> Int {
    try write(count: bytes.count) { (offset, size) throws(IOMMUError) in
      Array(bytes[offset..<offset + size])
    }
  }
}

// What such a file is not. Linux: an anonymous inode whose file operations are read, write and
// poll, and which has no file position.
extension EventFile {
  /// It is no device.
  public var number: DeviceNumber { DeviceNumber(major: 0, minor: 0) }

  public func write(
    count: Int, fetch: (_ offset: Int, _ size: Int) throws(IOMMUError) -> [UInt8]
  ) throws(IOMMUError) -> Int {
    throw IOMMUError(.invalidArgument, "\(name) takes no responses: it can only be read")
  }

  public func ioctl(
    _ command: UInt32, argument: UInt64, by caller: any Caller
  ) throws(IOMMUError) -> Int {
    throw IOMMUError(
      .inappropriateIOCTLForDevice, "\(name) has no command \(hex(command)): read it")
  }

  public func read(
    at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) throws(IOMMUError) -> Int {
    throw IOMMUError(.illegalSeek, "\(name) has no file position: use read, not pread")
  }

  public func write(
    at offset: UInt64, from buffer: UnsafeRawBufferPointer
  ) throws(IOMMUError) -> Int {
    throw IOMMUError(.illegalSeek, "\(name) has no file position: use write, not pwrite")
  }
}
