// SPDX-License-Identifier: Apache-2.0
//
// Calls on attributes of /sys. Reads are the kernel's, of a text that is made anew where they
// begin at the start, and of bytes that are made anew each time; a write is one store.

import CSyscalls
import IOMMU
import LinuxABI

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

extension Server {
  /// Whether a call is output that has nothing to do with us: the filter takes every short write
  /// to descriptor 1 for one to an attribute.
  func isOrdinaryOutput(_ call: SystemCall) -> Bool {
    call.number == CSYS_NR_write && call[0] < UInt64(window.first)
  }

  func perform(
    _ call: SystemCall, _ caller: ClientCaller, _ attribute: AttributeFile,
    _ memory: StandInMemory, _ descriptor: ClientDescriptor
  ) throws(IOMMUError) -> Answer {
    switch call.number {
    case CSYS_NR_read, CSYS_NR_readv, CSYS_NR_pread64, CSYS_NR_preadv, CSYS_NR_preadv2:
      guard descriptor.accessMode != O_WRONLY else { return .goOn }
      if attribute.binary != nil || offset(of: call, descriptor) == 0 {
        try attribute.refresh(memory.probe.number)
      }
      return .goOn
    case CSYS_NR_write, CSYS_NR_writev, CSYS_NR_pwrite64, CSYS_NR_pwritev, CSYS_NR_pwritev2:
      let count = try store(call, caller, attribute, memory, descriptor)
      guard count > 0, !TransferForm(call.number).hasOffset else { return .result(count) }
      return advance(descriptor, by: count, caller)
    case CSYS_NR_mmap:
      throw IOMMUError(.noSuchDevice, "\(attribute.name) cannot be mapped")
    case CSYS_NR_ioctl:
      throw IOMMUError(.inappropriateIOCTLForDevice, "\(attribute.name) has no commands")
    case CSYS_NR_ftruncate:
      return .result(0)
    case CSYS_NR_fallocate:
      throw IOMMUError(.operationNotSupported, "\(attribute.name) has no space to allocate")
    default:
      return .goOn
    }
  }

  /// Where a read or a write begins.
  private func offset(of call: SystemCall, _ descriptor: ClientDescriptor) -> UInt64 {
    let form = TransferForm(call.number)
    if form.hasOffset, call.number != CSYS_NR_preadv2 || call[3] != .max { return call[3] }
    return descriptor.position
  }

  /// Moves the file position as the kernel does at the end of a write.
  private func advance(
    _ descriptor: ClientDescriptor, by count: Int, _ caller: ClientCaller
  ) -> Answer {
    if let copy = descriptor.copy {
      _ = lseek(copy.number, off_t(count), SEEK_CUR)
      return .result(count)
    }
    // Nobody but the caller can do that. Where it cannot be made to, it stays: text is stored wherever
    // that is.
    let seek = ReplacementCall(
      number: CSYS_NR_lseek,
      arguments: [
        .value(UInt64(UInt32(bitPattern: descriptor.number))), .value(UInt64(count)),
        .value(UInt64(SEEK_CUR)),
      ], result: UInt64(count))
    do throws(IOMMUError) {
      try tracer.replace(caller.waiting, by: seek)
      return .errand(count)
    } catch {
      return .result(count)
    }
  }

  /// One `write(2)`: at most a page of it, as one text.
  private func store(
    _ call: SystemCall, _ caller: ClientCaller, _ attribute: AttributeFile,
    _ memory: StandInMemory, _ descriptor: ClientDescriptor
  ) throws(IOMMUError) -> Int {
    guard descriptor.accessMode != O_RDONLY else {
      throw IOMMUError(.badFileDescriptor, "\(attribute.name) is not open for writing")
    }
    let form = TransferForm(call.number)
    var count = 0
    for piece in try pieces(call, form, caller) {
      let length = min(Int(clamping: piece.length), AttributeFile.mostBytes - count)
      guard length > 0 else { continue }
      // SAFETY: `count + length` is at most a page, and the buffer is 64 KiB.
      try unsafe caller.copyIn(
        from: piece.address,
        into: UnsafeMutableRawBufferPointer(
          rebasing: caller.lane.buffer[count..<count + length]))
      count += length
    }
    guard count > 0 else { return 0 }
    if let binary = attribute.binary {
      // SAFETY: as above.
      let bytes = unsafe [UInt8](caller.lane.buffer[..<count])
      return try store(bytes, at: offset(of: call, descriptor), attribute, binary, memory)
    }
    let text = unsafe String(decoding: caller.lane.buffer[..<count], as: UTF8.self)
    try attribute.store(text, by: caller)
    return count
  }

  /// One `write(2)` of bytes: what lies after the end is left out.
  private func store(
    _ bytes: [UInt8], at offset: UInt64, _ attribute: AttributeFile,
    _ binary: any BinaryAttribute, _ memory: StandInMemory
  ) throws(IOMMUError) -> Int {
    try attribute.place.check()
    let size = UInt64(try binary.read().count)
    guard offset < size else { return 0 }
    let part = bytes.prefix(Int(clamping: size - offset))
    try binary.write(Array(part), at: Int(offset))
    try attribute.refresh(memory.probe.number)
    return part.count
  }
}
