// SPDX-License-Identifier: Apache-2.0
//
// What is mapped over a mapping of a device as soon as the program's `mmap` is done, before it
// returns: doorbells, which have a file of their own (from then on a ring needs nobody while they are
// open), and what the program asked for at an offset where the device's file has something else.

import CSyscalls
import IOMMU
import LinuxABI

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// What a thread maps over a part of what its `mmap` maps, or over all of it.
struct MapOverlay: Sendable {
  /// A descriptor of the program's; closed when it is mapped.
  let descriptor: Int32
  /// From what `mmap` returns, in bytes.
  let start: UInt64
  let length: UInt64
  /// In the descriptor's file, in bytes.
  let offset: UInt64
  /// As `mmap` has it.
  let protection: UInt64
}

extension TraceLoop {
  /// The thread is at the end of its `mmap`.
  func map(_ overlay: MapOverlay, in thread: TracedThread) {
    var registers = csys_registers()
    guard unsafe csys_trace_registers(thread.number, &registers) == 0 else { return }
    let isMapped =
      registers.orig_rax == UInt64(CSYS_NR_mmap) && Int64(bitPattern: registers.rax) > 0
    let descriptor = UInt64(UInt32(bitPattern: overlay.descriptor))
    if isMapped {
      // Where it fails each ring traps, and what was asked for elsewhere has no pages.
      _ = inject(
        InjectedCall(
          number: CSYS_NR_mmap,
          arguments: (
            registers.rax &+ overlay.start, overlay.length, overlay.protection,
            UInt64(MAP_SHARED | MAP_FIXED), descriptor, overlay.offset
          )), in: thread)
    }
    _ = inject(
      InjectedCall(number: CSYS_NR_close, arguments: (descriptor, 0, 0, 0, 0, 0)), in: thread)
  }
}

extension Server {
  /// Doorbells in what a call maps; nil where there are none, or the program has no descriptor free:
  /// each ring traps then.
  /// - Parameter offset: Where in the device's file the mapping begins, in bytes.
  func doorbells(_ call: SystemCall, _ handle: Handle, at offset: UInt64) -> MapOverlay? {
    let length = (call[1] + 4095) & ~4095
    guard let pages = handle.doorbells.withLock({ $0?.pages }) else { return nil }
    let first = max(pages.offset, offset)
    let end = min(pages.offset + pages.byteCount, offset &+ length)
    guard first < end, let description = pages.describe(),
      let number = give(description, to: call)
    else { return nil }
    return MapOverlay(
      descriptor: number, start: first - offset, length: end - first,
      offset: first - pages.offset, protection: call[2])
  }

  /// All that a call maps, from another place in the device's file.
  /// - Parameter offset: In the file, in bytes.
  /// - Throws: `ENOMEM` where the program has no descriptor free.
  func move(
    _ call: SystemCall, _ handle: Handle, to offset: UInt64
  ) throws(IOMMUError) -> MapOverlay {
    let isWritten = Int32(truncatingIfNeeded: call[2]) & PROT_WRITE != 0
    guard let description = handle.describe(flags: isWritten ? O_RDWR : O_RDONLY),
      let number = give(description, to: call)
    else {
      throw IOMMUError(
        .noMemory,
        "\(handle.file.name) is mapped at \(hex(offset)), as GET_REGION_INFO tells, and to do that "
          + "for \(hex(call[5])) takes a descriptor that the program has not free")
    }
    return MapOverlay(
      descriptor: number, start: 0, length: (call[1] + 4095) & ~4095, offset: offset,
      protection: call[2])
  }

  private func give(_ description: OwnedDescriptor, to call: SystemCall) -> Int32? {
    let number = csys_notif_add_fd(
      listener, call.id, description.number, -1, UInt32(O_CLOEXEC))
    return number < 0 ? nil : number
  }
}
