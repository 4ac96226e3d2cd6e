// SPDX-License-Identifier: Apache-2.0
//
// DMA through a process's own page table (MODEL B3): by virtual address, with nothing cached.
// The kernel walks the table at each access, faults in what is not present, and refuses what
// the process could not do itself.

import IOMMU
import PageTables

/// A process's page table as this IOMMU walks it.
final class ProcessTable: SharedDomain {
  let process: any ProcessAddressSpace
  let enforcesSnoop: Bool

  init(process: any ProcessAddressSpace, enforcesSnoop: Bool) {
    self.process = process
    self.enforcesSnoop = enforcesSnoop
  }

  /// Brings a page of the process in, as the IOMMU does whom a device asks for it.
  /// - Returns: False where the process has no such memory, or not for this access.
  func faultIn(_ address: UInt64, _ access: PageRequest.Access) -> Bool {
    if access.contains(.write), process.obstacle(at: address, to: .write) != .notMapped {
      return false
    }
    var byte: UInt8 = 0
    // SAFETY: a byte of our own.
    return unsafe withUnsafeMutableBytes(of: &byte) { bytes in
      unsafe process.copyOut(from: address, into: bytes) == 1
    }
  }
}

/// What a port keeps of a process's table.
typealias ProcessRoot = Uncounted<ProcessTable>

extension ProcessRoot {
  /// - Returns: How many bytes were read, at least one.
  /// - Throws: Why the first byte cannot be read.
  func read(
    _ address: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) throws(DMAFault.Reason) -> UInt64 {
    let process = with { $0.process }
    // SAFETY: the buffer is the caller's.
    let count = unsafe process.copyOut(from: address, into: buffer)
    guard count > 0 else { throw DMAFault.Reason(process.obstacle(at: address, to: .read)) }
    return UInt64(min(count, buffer.count))
  }

  /// As `read`.
  func write(
    _ address: UInt64, from buffer: UnsafeRawBufferPointer
  ) throws(DMAFault.Reason) -> UInt64 {
    let process = with { $0.process }
    // SAFETY: as in `read`.
    let count = unsafe process.copyIn(to: address, from: buffer)
    guard count > 0 else { throw DMAFault.Reason(process.obstacle(at: address, to: .write)) }
    return UInt64(min(count, buffer.count))
  }
}

extension DMAFault.Reason {
  init(_ obstacle: ProcessMemoryObstacle) {
    switch obstacle {
    case .notMapped: self = .notPresent
    case .notPermitted: self = .permission
    case .gone: self = .memoryGone
    }
  }
}

extension DMAPort {
  /// What a miss finds in a process's table: the address itself, not local, as far as addresses
  /// go; the access will show what is there. Nothing of it is remembered.
  ///
  /// Without a PASID the interrupt window is no memory, as ever.
  func processHit(_ iova: UInt64) throws(DMAFault.Reason) -> Hit {
    let window = InterruptRemapper.window
    if pasid == nil, iova <= window.upperBound {
      guard iova < window.lowerBound else { throw .interruptWindow }
      return Hit(value: IOTLB.accessFlags, left: window.lowerBound - iova)
    }
    return Hit(value: IOTLB.accessFlags, left: iova == 0 ? .max : 0 &- iova)
  }
}
