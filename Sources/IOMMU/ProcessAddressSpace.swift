// SPDX-License-Identifier: Apache-2.0
//
// A process's own address space as devices share it (MODEL B3): what the engine needs of one, and
// the table that an IOMMU makes of it (Linux: SVA, `struct iommu_mm_data`).

import PageTables

/// A process's virtual memory, reached as the process itself reaches it. Thread-safe.
///
/// Nothing is pinned and nothing is remembered: each access looks at the process's memory as it is
/// then, faults in what is not present, and stops at the first byte that the process could not
/// access itself. So `munmap` and `mprotect` need not be told: they are followed at once. The
/// memory is that of one program: it is gone when the process exits or executes another.
public protocol ProcessAddressSpace: AnyObject, Sendable {
  /// Names the process in sentences: "process 4711".
  var name: String { get }

  /// Copies from the process's `address` into `buffer`, in ascending order.
  /// - Returns: How many bytes were copied: fewer than asked for where the next one cannot be
  ///   read.
  func copyOut(from address: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Int

  /// Copies `buffer` to the process's `address`, in ascending order.
  /// - Returns: How many bytes were copied: fewer than asked for where the next one cannot be
  ///   written. Pages that the process may not write are never changed.
  func copyIn(to address: UInt64, from buffer: UnsafeRawBufferPointer) -> Int

  /// Why a byte could not be accessed. Asked after the fact: the process may have changed its
  /// memory since.
  /// - Parameter access: `.read` or `.write`.
  func obstacle(at address: UInt64, to access: Permissions) -> ProcessMemoryObstacle
}

/// Why a process's memory cannot be accessed.
public enum ProcessMemoryObstacle: Hashable, Sendable {
  /// No memory is there, or none that could be faulted in.
  case notMapped
  /// Memory is there that may not be accessed so.
  case notPermitted
  /// The process has exited or executes another program.
  case gone
}

/// A process's page table as one IOMMU walks it (Linux: an `iommu_domain` of type SVA).
/// Thread-safe.
public protocol SharedDomain: AnyObject, Sendable {
  var process: any ProcessAddressSpace { get }
  /// Whether DMA through it snoops the CPU's caches whatever the device says (MODEL F1).
  var enforcesSnoop: Bool { get }
}
