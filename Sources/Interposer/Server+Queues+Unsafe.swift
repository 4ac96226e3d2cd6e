// SPDX-License-Identifier: Apache-2.0
//
// Calls on queues of records: read and write move whole records, copies stay where the filter
// can tell them, and nobody sees that a pipe stands for the queue.

import CSyscalls
import IOMMU
import LinuxABI
import Synchronization

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

extension Server {
  /// read, write and their vector forms. Linux calls the file's read once for each piece of a
  /// vector, and stops at the first that is not filled.
  func transfer(
    _ call: SystemCall, _ caller: ClientCaller, _ queue: any EventFile
  ) throws(IOMMUError) -> Int {
    let form = TransferForm(call.number)
    if form.hasOffset {
      // Offset -1 of the newest calls means none.
      let hasNone =
        (call.number == CSYS_NR_preadv2 || call.number == CSYS_NR_pwritev2)
        && call[3] == .max
      guard hasNone || call[3] <= UInt64(Int64.max) else {
        throw IOMMUError(.invalidArgument, "the file offset \(hex(call[3])) is negative")
      }
      guard hasNone else {
        throw IOMMUError(.illegalSeek, "\(queue.name) has no file position")
      }
      // RWF_HIPRI alone is ignored.
      guard call[5] & ~1 == 0 else {
        throw IOMMUError(.operationNotSupported, "\(queue.name) has no flags for its reads")
      }
    }
    var total = 0
    for piece in try pieces(call, form, caller) {
      if form.isVector, piece.length == 0 { continue }
      do throws(IOMMUError) {
        let moved =
          form.isWrite
          ? try write(piece, to: queue, caller) : try read(piece, of: queue, caller)
        total += moved
        if UInt64(moved) < piece.length { break }
      } catch {
        guard total > 0 else { throw error }
        break
      }
    }
    return total
  }

  private func read(
    _ piece: Piece, of queue: any EventFile, _ caller: ClientCaller
  ) throws(IOMMUError) -> Int {
    var done: UInt64 = 0
    return try queue.read(count: Int(piece.length)) { (records) throws(IOMMUError) in
      var failure: IOMMUError?
      // SAFETY: the buffer is the array's storage for the length of the closure.
      unsafe records.withUnsafeBytes { bytes in
        do throws(IOMMUError) {
          try unsafe caller.copyOut(bytes, to: piece.address &+ done)
        } catch {
          failure = error
        }
      }
      if let failure { throw failure }
      done += UInt64(records.count)
    }
  }

  private func write(
    _ piece: Piece, to queue: any EventFile, _ caller: ClientCaller
  ) throws(IOMMUError) -> Int {
    try queue.write(count: Int(piece.length)) { (offset, size) throws(IOMMUError) in
      var bytes = [UInt8](repeating: 0, count: size)
      var failure: IOMMUError?
      // SAFETY: the buffer is the array's storage for the length of the closure.
      unsafe bytes.withUnsafeMutableBytes { bytes in
        do throws(IOMMUError) {
          try unsafe caller.copyIn(from: piece.address &+ UInt64(offset), into: bytes)
        } catch {
          failure = error
        }
      }
      if let failure { throw failure }
      return bytes
    }
  }

  /// dup and fcntl. A copy gets a number in the window too, or its reads would not come by here;
  /// Linux would give the lowest free one. Where the window is full, and for `dup2`, which says
  /// the number, the kernel does it.
  func control(
    _ call: SystemCall, _ caller: ClientCaller, _ pipe: StandInPipe,
    _ descriptor: ClientDescriptor
  ) -> Answer {
    func duplicate(from least: UInt64, closeOnExec: Bool) -> Answer {
      guard let copy = descriptor.copy else {
        guard let number = caller.freeInWindow(from: least) else { return .goOn }
        let command = closeOnExec ? Self.duplicateCloseOnExec : F_DUPFD
        return control(descriptor, command, UInt64(number), caller) ?? .goOn
      }
      guard let number = caller.duplicate(copy, from: least, closeOnExec: closeOnExec) else {
        return .goOn
      }
      return .result(Int(number))
    }
    if call.number == CSYS_NR_dup { return duplicate(from: 0, closeOnExec: false) }
    let value = Int32(truncatingIfNeeded: call[2])
    switch Int32(truncatingIfNeeded: call[1]) {
    case F_DUPFD:
      return duplicate(from: UInt64(UInt32(bitPattern: value)), closeOnExec: false)
    case Self.duplicateCloseOnExec:
      return duplicate(from: UInt64(UInt32(bitPattern: value)), closeOnExec: true)
    case F_GETFL:
      guard let flags = descriptor.flags else { return .goOn }
      let isNonBlocking = pipe.isNonBlocking.load(ordering: .relaxed)
      return .result(
        Int(
          flags & ~(O_ACCMODE | O_NONBLOCK | Self.largeFile) | O_RDWR
            | (isNonBlocking ? O_NONBLOCK : 0)))
    case F_SETFL:
      let flags = value | O_NONBLOCK
      let isNonBlocking = value & O_NONBLOCK != 0
      guard let copy = descriptor.copy else {
        pipe.isNonBlocking.store(isNonBlocking, ordering: .relaxed)
        if isNonBlocking { return .goOn }
        return control(descriptor, F_SETFL, UInt64(UInt32(bitPattern: flags)), caller)
          ?? .result(0)
      }
      let result = csys_fcntl(copy.number, F_SETFL, Int(flags))
      guard result >= 0 else { return .goOn }
      pipe.isNonBlocking.store(isNonBlocking, ordering: .relaxed)
      return .result(0)
    default:
      return .goOn
    }
  }

  /// Has the caller make another `fcntl`; nil where it cannot be made to.
  private func control(
    _ descriptor: ClientDescriptor, _ command: Int32, _ value: UInt64, _ caller: ClientCaller
  ) -> Answer? {
    let call = ReplacementCall(
      number: CSYS_NR_fcntl,
      arguments: [
        .value(UInt64(UInt32(bitPattern: descriptor.number))),
        .value(UInt64(UInt32(bitPattern: command))), .value(value),
      ])
    do throws(IOMMUError) {
      try tracer.replace(caller.waiting, by: call)
      return .errand(0)
    } catch {
      return nil
    }
  }

  /// `F_DUPFD_CLOEXEC`.
  private static let duplicateCloseOnExec: Int32 = 1030
  /// The kernel's `O_LARGEFILE`, which `open(2)` sets by itself.
  #if arch(arm64)
    private static let largeFile: Int32 = 0o400000
  #else
    private static let largeFile: Int32 = 0o100000
  #endif
}
