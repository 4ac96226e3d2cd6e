// SPDX-License-Identifier: Apache-2.0
//
// Doorbells in a mapping of registers: their own file is mapped over that part as soon as the
// program's `mmap` is done, before it returns. From then on a ring needs nobody while they are open.

import CSyscalls
import IOMMU
import LinuxABI

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// Doorbells that a thread maps over a part of what its `mmap` maps.
struct DoorbellOverlay: Sendable {
  /// A descriptor of the program's, of the doorbells' file; closed when it is mapped.
  let descriptor: Int32
  /// From what `mmap` returns, in bytes.
  let start: UInt64
  let length: UInt64
  /// In the doorbells' file, in bytes.
  let offset: UInt64
  /// As `mmap` has it.
  let protection: UInt64
}

extension TraceLoop {
  /// The thread is at the end of its `mmap`.
  func map(_ overlay: DoorbellOverlay, in thread: TracedThread) {
    var registers = csys_registers()
    guard unsafe csys_trace_registers(thread.number, &registers) == 0 else { return }
    let isMapped =
      registers.orig_rax == UInt64(CSYS_NR_mmap) && Int64(bitPattern: registers.rax) > 0
    let descriptor = UInt64(UInt32(bitPattern: overlay.descriptor))
    if isMapped {
      // Where it fails each ring traps.
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
  func overlay(_ call: SystemCall, _ handle: Handle) -> DoorbellOverlay? {
    let length = (call[1] + 4095) & ~4095
    guard let pages = handle.doorbells.withLock({ $0?.pages }) else { return nil }
    let first = max(pages.offset, call[5])
    let end = min(pages.offset + pages.byteCount, call[5] &+ length)
    guard first < end, let description = pages.describe() else { return nil }
    let number = csys_notif_add_fd(
      listener, call.id, description.number, -1, UInt32(O_CLOEXEC))
    guard number >= 0 else { return nil }
    return DoorbellOverlay(
      descriptor: number, start: first - call[5], length: end - first,
      offset: first - pages.offset, protection: call[2])
  }
}
