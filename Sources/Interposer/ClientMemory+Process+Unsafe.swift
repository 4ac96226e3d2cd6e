// SPDX-License-Identifier: Apache-2.0
//
// A program's address space as devices share it (MODEL B3): nothing pinned, nothing remembered, and
// only what the program could do itself.

import CProcessMemory
import CSyscalls
import IOMMU
import PageTables

extension ClientMemory: ProcessAddressSpace {
  var name: String { "process \(group)" }

  func copyOut(from address: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Int {
    guard buffer.count > 0 else { return 0 }
    // SAFETY: the counts stay inside of the buffer; of the address the kernel checks each page.
    let moved = direct.attempt(process) {
      unsafe csys_process_vm_readv(group, buffer.baseAddress, address, buffer.count)
    }
    if moved > 0 { return moved }
    let allowed = allowedBytes(at: address, for: .read, atMost: buffer.count)
    guard allowed > 0 else { return 0 }
    return max(0, mem.use { unsafe csys_pread($0, buffer.baseAddress!, allowed, address) })
  }

  func copyIn(to address: UInt64, from buffer: UnsafeRawBufferPointer) -> Int {
    guard buffer.count > 0 else { return 0 }
    // SAFETY: as in `copyOut`.
    let moved = direct.attempt(process) {
      unsafe csys_process_vm_writev(group, buffer.baseAddress, address, buffer.count)
    }
    if moved > 0 { return moved }
    // By descriptor the kernel would force its way into pages that may only be read.
    let allowed = allowedBytes(at: address, for: .write, atMost: buffer.count)
    guard allowed > 0 else { return 0 }
    return max(0, mem.use { unsafe csys_pwrite($0, buffer.baseAddress!, allowed, address) })
  }

  /// How many bytes the mapping at an address allows to access.
  private func allowedBytes(
    at address: UInt64, for access: Permissions, atMost count: Int
  ) -> Int {
    guard let area = maps.use({ MemoryArea.find(address, in: $0) }), area.start <= address,
      area.end > address, area.permissions.isSuperset(of: access)
    else { return 0 }
    return Int(min(UInt64(count), area.end - address))
  }

  func obstacle(
    at address: UInt64, to access: Permissions
  ) -> ProcessMemoryObstacle {
    if let area = maps.use({ MemoryArea.find(address, in: $0) }), area.start <= address,
      area.end > address
    {
      return area.permissions.isSuperset(of: access) ? .notMapped : .notPermitted
    }
    // The file belongs to the address space: it is empty once that is gone.
    var byte: UInt8 = 0
    return maps.use { unsafe csys_pread($0, &byte, 1, 0) } == 1 ? .notMapped : .gone
  }
}

extension MemoryArea {
  /// What the mapping allows its process.
  fileprivate var permissions: Permissions {
    (isReadable ? Permissions.read : []).union(isWritable ? .write : [])
  }
}
