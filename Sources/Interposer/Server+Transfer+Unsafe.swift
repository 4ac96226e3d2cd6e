// SPDX-License-Identifier: Apache-2.0
//
// read, write, pread, pwrite and their vector forms on our files.

import CSyscalls
import IOMMU
import LinuxABI

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

extension Server {
  /// A part of the caller's memory.
  struct Piece {
    var address: UInt64
    var length: UInt64
  }

  /// What a call that moves data is.
  struct TransferForm {
    var isWrite = false
    var isVector = false
    var hasOffset = true

    init(_ number: Int32) {
      switch number {
      case CSYS_NR_read: hasOffset = false
      case CSYS_NR_write: (isWrite, hasOffset) = (true, false)
      case CSYS_NR_readv: (isVector, hasOffset) = (true, false)
      case CSYS_NR_writev: (isWrite, isVector, hasOffset) = (true, true, false)
      case CSYS_NR_pread64: break
      case CSYS_NR_pwrite64: isWrite = true
      case CSYS_NR_preadv, CSYS_NR_preadv2: isVector = true
      default: (isWrite, isVector) = (true, true)
      }
    }
  }

  /// `IOV_MAX` of Linux.
  private static let mostPieces: UInt64 = 1024

  /// Does the call piece by piece.
  /// - Returns: Bytes moved; fewer than asked for where a later piece failed.
  func transfer(
    _ call: SystemCall, _ caller: ClientCaller, _ file: any OpenFile,
    _ descriptor: ClientDescriptor
  ) throws(IOMMUError) -> Int {
    let form = TransferForm(call.number)
    let isWrite = form.isWrite
    let mode = descriptor.accessMode
    guard mode != (isWrite ? O_RDONLY : O_WRONLY) else {
      throw IOMMUError(
        .badFileDescriptor, "\(file.name) is not open for \(isWrite ? "writing" : "reading")")
    }
    let positioned = form.hasOffset ? nil : file as? any PositionedFile
    var offset = form.hasOffset ? call[3] : positioned?.position ?? 0
    guard offset <= UInt64(Int64.max) else {
      throw IOMMUError(.invalidArgument, "the file offset \(hex(offset)) is negative")
    }
    var total = 0
    defer { positioned?.position &+= UInt64(total) }
    do throws(IOMMUError) {
      for piece in try pieces(call, form, caller) {
        var done: UInt64 = 0
        while done < piece.length {
          let count = Int(min(piece.length - done, UInt64(unsafe caller.lane.buffer.count)))
          let moved = try move(
            count, at: offset, memory: piece.address &+ done, isWrite: isWrite, caller, file)
          total += moved
          done += UInt64(moved)
          offset &+= UInt64(moved)
          if moved < count { return total }
        }
      }
    } catch {
      guard total > 0 else { throw error }
    }
    return total
  }

  private func move(
    _ count: Int, at offset: UInt64, memory: UInt64, isWrite: Bool, _ caller: ClientCaller,
    _ file: any OpenFile
  ) throws(IOMMUError) -> Int {
    // SAFETY: `count` is at most the buffer's size in all uses.
    let part = unsafe UnsafeMutableRawBufferPointer(rebasing: caller.lane.buffer[..<count])
    if isWrite {
      try unsafe caller.copyIn(from: memory, into: part)
      return try unsafe file.write(at: offset, from: UnsafeRawBufferPointer(part))
    }
    let read = min(try unsafe file.read(at: offset, into: part), count)
    try unsafe caller.copyOut(UnsafeRawBufferPointer(rebasing: part[..<read]), to: memory)
    return read
  }

  /// The memory that a call names.
  func pieces(
    _ call: SystemCall, _ form: TransferForm, _ caller: ClientCaller
  ) throws(IOMMUError) -> [Piece] {
    form.isVector
      ? try vector(call[1], count: call[2], caller)
      : [Piece(address: call[1], length: min(call[2], 0x7FFF_F000))]
  }

  private func vector(
    _ address: UInt64, count: UInt64, _ caller: ClientCaller
  ) throws(IOMMUError) -> [Piece] {
    guard count <= Self.mostPieces else {
      throw IOMMUError(.invalidArgument, "\(count) pieces are more than Linux takes")
    }
    var words = [UInt64](repeating: 0, count: Int(count) * 2)
    try unsafe words.withUnsafeMutableBufferPointer { (words) throws(IOMMUError) in
      try unsafe caller.copyIn(from: address, into: UnsafeMutableRawBufferPointer(words))
    }
    var left: UInt64 = 0x7FFF_F000
    return try (0..<Int(count)).map { (index) throws(IOMMUError) in
      guard words[2 * index + 1] <= UInt64(Int64.max) else {
        throw IOMMUError(.invalidArgument, "a piece of the vector has a negative length")
      }
      let length = min(words[2 * index + 1], left)
      left -= length
      return Piece(address: words[2 * index], length: length)
    }
  }
}
