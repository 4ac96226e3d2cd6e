// SPDX-License-Identifier: Apache-2.0
//
// Pages that a driver shares with programs, in the file that stands for their context: mmap of
// that file at an area's offset gives the driver's own pages, with no call of ours in between.
//
// The file is empty until the first area is made, and then has holes up to it: nothing backs any
// other offset. Areas lie above 2⁴⁵, where the filter knows an mmap by its offset, whatever the
// descriptor's number: each is checked first, then goes on to the kernel.

import CSyscalls
import IOMMU

#if canImport(Glibc)
  import Glibc
#else
  import Musl
#endif

/// The pages of one context's file. Thread-safe.
final class SharedPages: MmapBacking {
  private let file: OwnedDescriptor
  private let identity: csys_identity

  /// - Parameter file: Open for reading and writing.
  init(_ file: OwnedDescriptor, _ identity: csys_identity) {
    self.file = file
    self.identity = identity
  }

  func makePages(at offset: UInt64, length: UInt64) throws(IOMMUError) -> UInt {
    // Offsets only grow, but two threads may come here in either order: never shrink (which a
    // seal forbids anyhow).
    var now = csys_identity()
    if unsafe csys_identity(file.number, &now) == 0, now.size < offset + length {
      _ = ftruncate(file.number, off_t(offset + length))
    }
    var base: UInt = 0
    let result = unsafe csys_map_shared(file.number, offset, Int(length), 1, &base)
    guard result == 0 else {
      throw IOMMUError(.noMemory, "\(hex(length)) bytes to share cannot be had")
    }
    return base
  }

  func freePages(at offset: UInt64, length: UInt64, base: UInt) {
    _ = csys_unmap(base, Int(length))
    _ = csys_punch_hole(file.number, offset, length)
  }

  /// Looks at the mappings of every process of the run (`AddressSpaces`).
  func isMapped(at offset: UInt64, length: UInt64) -> Bool {
    AddressSpaces.contains { hasMapping(offset, length, $0 + "/maps") }
  }

  private func hasMapping(_ offset: UInt64, _ length: UInt64, _ path: String) -> Bool {
    let maps = System.open(path, O_RDONLY)
    guard maps >= 0 else { return false }
    defer { close(maps) }
    return MemoryArea.areas(of: identity.inode, in: maps).contains { area in
      area.offset < offset + length && offset < area.offset + (area.end - area.start)
        && identity.device == csys_device_number(area.major, area.minor)
    }
  }
}
