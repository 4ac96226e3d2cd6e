// SPDX-License-Identifier: Apache-2.0
//
// What the binary face offers to whoever carries system calls to it: device nodes that can
// be opened, and open files that answer ioctl, pread, pwrite and mmap. A carrier (the
// interposer, a test) knows files by these protocols only.

import IOMMU
import SystemPackage

/// A node of `/dev`.
public protocol DeviceNode: AnyObject, Sendable {
  /// Absolute, as the program names it: `/dev/iommu`.
  var path: String { get }
  var number: DeviceNumber { get }

  /// One `open(2)`. Each success is a new, independent file.
  /// - Parameter flags: `open(2)` flags of the caller.
  func open(flags: Int32, by caller: any Caller) throws(IOMMUError) -> any OpenFile
}

/// A character device's number, as `stat(2)` shows it.
public struct DeviceNumber: Hashable, Sendable {
  public var major: UInt32
  public var minor: UInt32

  public init(major: UInt32, minor: UInt32) {
    self.major = major
    self.minor = minor
  }
}

/// An open file description of one of our nodes.
///
/// Thread-safe: a program calls from many threads and processes at once.
public protocol OpenFile: AnyObject, Sendable {
  /// For messages and traces: `iommufd`, `vfio-device 0000:e0:04.0`.
  var name: String { get }
  var number: DeviceNumber { get }

  /// One `ioctl(2)`.
  /// - Returns: What the call returns, not negative.
  /// - Throws: The errno of the call.
  func ioctl(
    _ command: UInt32, argument: UInt64, by caller: any Caller
  ) throws(IOMMUError) -> Int

  /// One `pread(2)` piece: fills a prefix of `buffer` from a region.
  /// - Returns: Bytes read.
  func read(
    at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) throws(IOMMUError) -> Int

  /// One `pwrite(2)` piece.
  /// - Returns: Bytes written.
  func write(at offset: UInt64, from buffer: UnsafeRawBufferPointer) throws(IOMMUError) -> Int

  /// What `lseek(2)` tells of the file's length, in bytes; nil where it has none to tell.
  var seekableLength: UInt64? { get }

  /// Whether `mmap(2)` of this range may go ahead.
  /// - Throws: `ENODEV` where nothing of the file can be mapped at all.
  func checkMap(_ request: MapRequest) throws(IOMMUError)

  /// The last reference anywhere is gone. Called once; frees everything the file held.
  func close()
}

/// What a file does not offer.
extension OpenFile {
  public func ioctl(
    _ command: UInt32, argument: UInt64, by caller: any Caller
  ) throws(IOMMUError) -> Int {
    throw IOMMUError(
      .inappropriateIOCTLForDevice, "\(name) has no command \(hex(command)), and no other")
  }

  public func read(
    at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) throws(IOMMUError) -> Int {
    throw IOMMUError(.invalidArgument, "\(name) cannot be read")
  }

  public func write(
    at offset: UInt64, from buffer: UnsafeRawBufferPointer
  ) throws(IOMMUError) -> Int {
    throw IOMMUError(.invalidArgument, "\(name) cannot be written")
  }

  public var seekableLength: UInt64? { nil }

  public func checkMap(_ request: MapRequest) throws(IOMMUError) {
    throw IOMMUError(.noSuchDevice, "\(name) cannot be mapped")
  }
}

/// What an `mmap(2)` asks for.
public struct MapRequest: Sendable {
  /// In the file, in bytes, a multiple of 4 KiB.
  public var offset: UInt64
  /// In bytes, rounded up to whole pages of 4 KiB as Linux does.
  public var length: UInt64
  public var isWritable: Bool
  public var isExecutable: Bool
  public var isShared: Bool

  public init(
    offset: UInt64, length: UInt64, isWritable: Bool = true, isExecutable: Bool = false,
    isShared: Bool = true
  ) {
    self.offset = offset
    self.length = length
    self.isWritable = isWritable
    self.isExecutable = isExecutable
    self.isShared = isShared
  }
}

/// A file with pages that programs map, each at an offset of its own. The carrier says where
/// they are kept before a program has the file; what it keeps them in may go with the file.
public protocol MmapFile: OpenFile {
  var areas: MmapAreas { get }
}

/// A device's file, with memory of the device that programs map. The carrier says where that is
/// kept before a program has the file.
public protocol DeviceMemoryFile: OpenFile {
  /// Whether there is any.
  var hasMemory: Bool { get }
  /// Says who keeps it, at the offsets that `mmap(2)` takes.
  func keepMemory(in backing: any DeviceMemoryBacking)
  /// The memory at an offset of the file, and the offset in it; nil where there is none now.
  func memory(at offset: UInt64) -> (memory: any DeviceMemory, offset: UInt64)?
}

/// A device's file with registers that programs may map, where the carrier can carry out each touch
/// of such a mapping as a `read` or `write` of the file. Both fail where the registers do not answer:
/// the program gets the signal then that it would get on Linux (SIGBUS).
public protocol RegisterFile: OpenFile {
  /// Programs may map registers from here on. Called before a program has the file.
  func offerRegisters()
  /// Where in the file a mapping goes that asks for `offset`: another place where programs know the
  /// file by offsets that are not its own. The carrier sees to it that the mapping goes there.
  func mapOffset(_ offset: UInt64) -> UInt64
  /// Whether the registers answer now, or touching them would raise a signal. Takes no lock.
  var answers: Bool { get }
  /// The registers at an offset of the file, where they can be mapped; nil where there are none.
  func registers(at offset: UInt64) -> RegisterPlace?
  /// Offers a command to what lies at an offset of the file, as a processor does that executes
  /// ENQCMD. Registers that are no work portal put it off, always.
  /// - Parameter command: Without a PASID: the thread's takes its place.
  /// - Throws: `EIO` where the registers do not answer; other errors where the thread has no PASID
  ///   that counts there.
  func enqueue(_ command: WorkCommand, at offset: UInt64) throws(IOMMUError) -> DeferrableWrite

  /// As `read`, of a program that has mapped the registers and loads from there.
  func load(
    at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) throws(IOMMUError) -> Int

  /// As `write`, of a program that has mapped the registers and stores there.
  func store(at offset: UInt64, from buffer: UnsafeRawBufferPointer) throws(IOMMUError) -> Int
}

extension RegisterFile {
  public var answers: Bool { true }

  /// Registers that are the same to calls.
  public func load(
    at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) throws(IOMMUError) -> Int {
    // SAFETY: the carrier's buffer is passed on unchanged, for the length of the call.
    try unsafe read(at: offset, into: buffer)
  }

  public func store(
    at offset: UInt64, from buffer: UnsafeRawBufferPointer
  ) throws(IOMMUError) -> Int {
    // SAFETY: as in `load`.
    try unsafe write(at: offset, from: buffer)
  }

  public func mapOffset(_ offset: UInt64) -> UInt64 { offset }

  public func enqueue(
    _ command: WorkCommand, at offset: UInt64
  ) throws(IOMMUError) -> DeferrableWrite { .retry }
}

/// A place in a device's registers.
public struct RegisterPlace: Sendable {
  /// The BAR's number.
  public var bar: Int
  /// In bytes from the BAR's start. What a page has after the BAR's end reads as ones.
  public var offset: UInt64
  /// In bytes.
  public var barSize: UInt64

  public init(bar: Int, offset: UInt64, barSize: UInt64) {
    self.bar = bar
    self.offset = offset
    self.barSize = barSize
  }
}

/// Who makes a call, as far as the binary face needs to know: its memory, its files, its
/// limits. Lives for one call, but what it hands out may be kept.
public protocol Caller: AnyObject, Sendable {
  /// Copies in from the caller's memory.
  /// - Throws: `EFAULT`.
  func copyIn(
    from address: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) throws(IOMMUError)

  /// Copies out to the caller's memory.
  /// - Throws: `EFAULT`.
  func copyOut(_ buffer: UnsafeRawBufferPointer, to address: UInt64) throws(IOMMUError)

  /// The caller's address space, to map memory from. The same object for all calls of one
  /// process image.
  func memory() throws(IOMMUError) -> any MemorySource

  /// The caller's address space, to share with devices (MODEL B3): it goes with the caller's
  /// process.
  /// - Throws: `EOPNOTSUPP` where this caller's cannot be shared; `EFAULT` where it is gone.
  func addressSpace() throws(IOMMUError) -> any ProcessAddressSpace

  /// The memory of a file that the caller has open, for IOAS_MAP_FILE; and its size, in bytes.
  /// What cannot be pinned is `EINVAL` at the pin.
  /// - Throws: `EBADF`.
  func fileMemory(
    descriptor: Int32
  ) throws(IOMMUError) -> (source: any MemorySource, size: UInt64)

  /// Our file behind a descriptor of the caller; nil where it is some other file.
  /// - Throws: `EBADF` where it is not open.
  func openFile(descriptor: Int32) throws(IOMMUError) -> (any OpenFile)?

  /// Sees to it that these descriptors can be had as eventfds, all at once, before a call has done
  /// anything: it may begin anew for that. Those that are none, or not open, are found later.
  func prepare(eventFDs: [Int32]) throws(IOMMUError)

  /// An eventfd of the caller, to signal from here on.
  /// - Throws: `EBADF`; `EINVAL` where it is not an eventfd.
  func eventFD(descriptor: Int32) throws(IOMMUError) -> any EventSignal

  /// Gives the caller a descriptor for a file of ours. It is there once the call succeeds and
  /// is taken back if the call fails after all. A file that programs have already gets one more,
  /// and is closed when all are gone.
  func install(_ file: any OpenFile, closeOnExec: Bool) throws(IOMMUError) -> Int32

  /// User id, for permissions and accounting.
  var userID: UInt32 { get }
  /// Thread-group id, for accounting and traces.
  var processID: Int32 { get }
  /// The calling thread, as the kernel numbers threads.
  var threadID: Int32 { get }
  /// Whether the caller is privileged as `capable(CAP_SYS_RESOURCE)` means it: RLIMIT_MODE
  /// asks for it.
  var maySetResourceLimits: Bool { get }
  /// Whose account the memory that this call maps is pinned on (MODEL B6): the calling process
  /// and its user, and whether a limit holds for them.
  /// - Throws: `EFAULT` where the caller is gone.
  func memoryOwner() throws(IOMMUError) -> (owner: MemoryOwner, right: LockingRight)
}

/// Whether a caller may have any amount of memory pinned.
public enum LockingRight: Hashable, Sendable {
  /// `capable(CAP_IPC_LOCK)`: without limit.
  case unlimited
  /// As far as its RLIMIT_MEMLOCK goes.
  case limited
  /// As `limited`: it could have CAP_IPC_LOCK, but has dropped it for now. Tells a program that
  /// wants the limit from one that runs without privileges, where a node trusts its callers.
  case relinquished
}

extension Caller {
  public var threadID: Int32 { processID }

  public func prepare(eventFDs: [Int32]) throws(IOMMUError) {}

  public func addressSpace() throws(IOMMUError) -> any ProcessAddressSpace {
    throw IOMMUError(
      .operationNotSupported, "the address space of process \(processID) cannot be shared")
  }
}
