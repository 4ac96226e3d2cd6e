// SPDX-License-Identifier: Apache-2.0
//
// A caller of /dev/iommu whose memory is this process: what a command costs without a trap.

import IOMMU
import LinuxABI
import SystemPackage

/// Structures are read and written in place; what is mapped lies in one piece of memory.
final class InProcessCaller: Caller {
  let userID: UInt32 = 0
  let processID: Int32 = 1
  let maySetResourceLimits = true
  private let mapped: LocalMemory
  private let owner = MemoryOwner(
    user: PinnedMemory(), process: ProcessMemory(), limit: NoLimit())

  private final class NoLimit: MemoryLimit { let bytes = UInt64.max }

  /// - Parameter mapped: Its offsets are the addresses that IOAS_MAP takes.
  init(mapped: LocalMemory) { self.mapped = mapped }

  func copyIn(
    from address: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) throws(IOMMUError) {
    buffer.copyMemory(
      from: UnsafeRawBufferPointer(
        start: UnsafeRawPointer(bitPattern: UInt(address)), count: buffer.count))
  }

  func copyOut(_ buffer: UnsafeRawBufferPointer, to address: UInt64) throws(IOMMUError) {
    UnsafeMutableRawBufferPointer(
      start: UnsafeMutableRawPointer(bitPattern: UInt(address)), count: buffer.count
    ).copyMemory(from: buffer)
  }

  func memoryOwner() throws(IOMMUError) -> (owner: MemoryOwner, right: LockingRight) {
    (owner, .limited)
  }

  func memory() throws(IOMMUError) -> any MemorySource { mapped }

  func fileMemory(
    descriptor: Int32
  ) throws(IOMMUError) -> (source: any MemorySource, size: UInt64) {
    throw IOMMUError(.badFileDescriptor, "this caller has no files")
  }

  func openFile(descriptor: Int32) throws(IOMMUError) -> (any OpenFile)? {
    throw IOMMUError(.badFileDescriptor, "this caller has no files")
  }

  func eventFD(descriptor: Int32) throws(IOMMUError) -> any EventSignal {
    throw IOMMUError(.badFileDescriptor, "this caller has no files")
  }

  func install(_ file: any OpenFile, closeOnExec: Bool) throws(IOMMUError) -> Int32 {
    throw IOMMUError(.tooManyOpenFiles, "this caller has no files")
  }
}

extension OpenFile {
  /// One ioctl with a structure of this process.
  @inline(__always)
  func ioctl<Structure>(
    _ command: UInt32, _ structure: inout Structure, by caller: InProcessCaller
  ) throws {
    try withUnsafeMutablePointer(to: &structure) { pointer in
      _ = try ioctl(command, argument: UInt64(UInt(bitPattern: pointer)), by: caller)
    }
  }
}
