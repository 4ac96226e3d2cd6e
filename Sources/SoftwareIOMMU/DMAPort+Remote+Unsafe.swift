// SPDX-License-Identifier: Apache-2.0
//
// Accesses to memory that is reached by calls, in pieces: what is not there is told to the page,
// and only of the side that it is true of.
//
// The other side of such an access is a buffer of the device's own, or local memory of the same
// piece: mapped, and held until the transaction ends. Pages of a file that its owner has cut are
// not there for the kernel, which then does not do the call. They are the device's all the same,
// as pinned pages are: an access of our own finds them (`LocalAccess`).

import IOMMU
import PageTables

extension DMAPort {
  /// Reads from a remote address.
  /// - Parameter isOwn: Whether `buffer` is the device's own.
  /// - Returns: How much was read: all, or less where what follows is not there or is a process's
  ///   own; at least one byte.
  /// - Throws: Why the first byte cannot be read.
  func readRemote(
    _ address: UInt64, to buffer: UInt64, count: UInt64, isOwn: Bool
  ) throws(DMAFault.Reason) -> UInt64 {
    // SAFETY: `count` bytes from a local address that was just translated, or of a buffer.
    let bytes = unsafe UnsafeMutableRawBufferPointer(
      start: UnsafeMutableRawPointer(bitPattern: UInt(buffer)), count: Int(count))
    if case .process(let root) = unsafe state.pointee.context {
      return try unsafe root.read(address, into: bytes)
    }
    if unsafe memory.readRemote(at: PhysicalAddress(address), into: bytes) { return count }
    let part = Self.withinPages(address, buffer, count)
    // SAFETY: `part` is at most `count`, and the bounce buffer longer than a page.
    let resting =
      unsafe isOwn
      ? UnsafeMutableRawBufferPointer(rebasing: bytes[..<Int(part)])
      : UnsafeMutableRawBufferPointer(rebasing: bounce[..<Int(part)])
    guard unsafe memory.readRemote(at: PhysicalAddress(address), into: resting) else {
      throw .memoryGone
    }
    if !isOwn { LocalAccess.copy(to: buffer, from: bounceAddress, count: Int(part)) }
    return part
  }

  /// As `readRemote`.
  func writeRemote(
    _ address: UInt64, from buffer: UInt64, count: UInt64, isOwn: Bool
  ) throws(DMAFault.Reason) -> UInt64 {
    // SAFETY: as in `readRemote`.
    let bytes = unsafe UnsafeRawBufferPointer(
      start: UnsafeRawPointer(bitPattern: UInt(buffer)), count: Int(count))
    if case .process(let root) = unsafe state.pointee.context {
      return try unsafe root.write(address, from: bytes)
    }
    if unsafe memory.writeRemote(at: PhysicalAddress(address), from: bytes) { return count }
    let part = Self.withinPages(address, buffer, count)
    if !isOwn { LocalAccess.copy(to: bounceAddress, from: buffer, count: Int(part)) }
    // SAFETY: as in `readRemote`.
    let resting =
      unsafe isOwn
      ? UnsafeRawBufferPointer(rebasing: bytes[..<Int(part)])
      : UnsafeRawBufferPointer(rebasing: bounce[..<Int(part)])
    guard unsafe memory.writeRemote(at: PhysicalAddress(address), from: resting) else {
      throw .memoryGone
    }
    return part
  }

  /// How many of `count` bytes lie in one page on both sides.
  private static func withinPages(_ first: UInt64, _ second: UInt64, _ count: UInt64) -> UInt64
  {
    let page: UInt64 = 4096
    return min(count, min(page &- (first & (page &- 1)), page &- (second & (page &- 1))))
  }
}
