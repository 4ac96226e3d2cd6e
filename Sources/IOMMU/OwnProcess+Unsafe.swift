// SPDX-License-Identifier: Apache-2.0
//
// This process's own memory, shared with devices (MODEL B3). The kernel does each access, so that
// an address where nothing is mapped is a short count and no signal.

import CProcessMemory
import PageTables
import SystemPackage

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// The address space of the process that this runs in. Thread-safe.
///
/// A device that shares it reaches all that the process can: also memory that nobody meant for
/// it. DMA to memory that is freed and used anew is DMA into the new owner's, as on hardware.
public final class OwnProcess: ProcessAddressSpace {
  /// - Throws: `EPERM` or `ENOSYS` where the host forbids `process_vm_readv(2)`, as some containers
  ///   do.
  public init() throws(IOMMUError) {
    var byte: UInt8 = 42
    let moved = unsafe withUnsafeMutableBytes(of: &byte) { bytes in
      // SAFETY: a byte of our own, copied onto itself.
      unsafe csys_process_vm_readv(
        getpid(), bytes.baseAddress, UInt64(UInt(bitPattern: bytes.baseAddress)), 1)
    }
    guard moved == 1 else {
      throw IOMMUError(
        Errno(rawValue: Int32(truncatingIfNeeded: -moved)),
        "this host does not let a process read its own memory by process_vm_readv(2), which "
          + "sharing its address space with devices needs")
    }
  }

  public var name: String { "this process" }

  public func copyOut(
    from address: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) -> Int {
    // SAFETY: the buffer is the caller's; of `address` the kernel checks each page.
    max(0, unsafe csys_process_vm_readv(getpid(), buffer.baseAddress, address, buffer.count))
  }

  public func copyIn(to address: UInt64, from buffer: UnsafeRawBufferPointer) -> Int {
    // SAFETY: the buffer is the caller's; of `address` the kernel checks each page.
    max(0, unsafe csys_process_vm_writev(getpid(), buffer.baseAddress, address, buffer.count))
  }

  public func obstacle(
    at address: UInt64, to access: Permissions
  ) -> ProcessMemoryObstacle {
    let allowed = Self.permissions(at: address, in: Self.maps())
    return allowed.map { $0.isSuperset(of: access) ? .notMapped : .notPermitted } ?? .notMapped
  }

  private static func maps() -> [UInt8] {
    let file = unsafe open("/proc/self/maps", O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { return [] }
    defer { close(file) }
    var text: [UInt8] = []
    var part = [UInt8](repeating: 0, count: 65536)
    while true {
      // SAFETY: the count is the array's.
      let count = unsafe part.withUnsafeMutableBytes { bytes in
        unsafe read(file, bytes.baseAddress, bytes.count)
      }
      guard count > 0 else { return text }
      text += part[..<count]
    }
  }

  /// What the mapping around an address allows; nil where there is none.
  /// - Parameter maps: As `proc_pid_maps(5)`: "first-end rwxp …", in order.
  static func permissions(at address: UInt64, in maps: [UInt8]) -> Permissions? {
    for line in maps.split(separator: UInt8(ascii: "\n")) {
      let fields = line.split(separator: UInt8(ascii: " "), maxSplits: 2)
      guard fields.count >= 2 else { continue }
      let ends = fields[0].split(separator: UInt8(ascii: "-")).map {
        UInt64(String(decoding: $0, as: UTF8.self), radix: 16)
      }
      guard ends.count == 2, let first = ends[0], let end = ends[1], address >= first,
        address < end
      else { continue }
      var permissions: Permissions = []
      if fields[1].first == UInt8(ascii: "r") { permissions.insert(.read) }
      if fields[1].dropFirst().first == UInt8(ascii: "w") { permissions.insert(.write) }
      return permissions
    }
    return nil
  }
}
