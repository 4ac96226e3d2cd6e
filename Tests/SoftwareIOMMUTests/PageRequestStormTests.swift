// SPDX-License-Identifier: Apache-2.0
//
// MODEL H1 and H3 with threads: two device threads that fault all the time, a user that maps, lies,
// refuses and stays away, and switches of the table. Run it under the thread sanitizer too. And B3:
// what the IOMMU answers by itself.

import Glibc
import IOMMU
import PageTables
import Synchronization
import SystemPackage
import Testing

@testable import SoftwareIOMMU

/// A process whose memory is not there before the IOMMU faults it in, up to `limit`.
private final class LazyProcess: ProcessAddressSpace {
  let name = "process 8"
  private let state = Guarded((present: Set<UInt64>(), faults: 0))
  let limit: UInt64
  /// Whether what is faulted in can be written.
  let isFull: Bool

  init(limit: UInt64, isFull: Bool = false) {
    self.limit = limit
    self.isFull = isFull
  }

  var faults: Int { state.withLock { $0.faults } }

  func copyOut(from address: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Int {
    guard address < limit else { return 0 }
    return state.withLock { state in
      // One byte is how an IOMMU touches a page.
      if buffer.count == 1 {
        state.faults += 1
        state.present.insert(address >> 12)
      }
      return state.present.contains(address >> 12) ? min(buffer.count, 4096) : 0
    }
  }

  func copyIn(to address: UInt64, from buffer: UnsafeRawBufferPointer) -> Int {
    state.withLock { state in
      !isFull && state.present.contains(address >> 12)
        ? min(buffer.count, 4096 - Int(address & 4095)) : 0
    }
  }

  func obstacle(at address: UInt64, to access: Permissions) -> ProcessMemoryObstacle {
    .notMapped
  }
}

@Suite("H1, B3: page requests that the IOMMU answers, and storms", .serialized)
struct PageRequestStormTests {
  private func port(_ rig: PageRequestRig, _ process: LazyProcess) throws -> DMAPort {
    let domain = try rig.iommu.makeSharedDomain(for: Bench.device, process: process)
    let pasid = PASID(rawValue: 77)
    try rig.iommu.setContext(of: Bench.device, pasid: pasid, to: .shared(domain))
    return rig.port(pasid: pasid)
  }

  @Test(
    "B3: a page that a process has not present is faulted in by the IOMMU, and no client asked")
  func faultsIn() throws {
    let rig = try PageRequestRig()
    let process = LazyProcess(limit: 0x10000)
    let port = try port(rig, process)
    #expect(
      reason { () throws(DMAFault) in try port.fill(IOVA(0x2800), pattern: 1, length: 8192) }
        == nil)
    #expect(process.faults == 3)
    #expect(rig.iommu.pageRequestCounts.succeeded == 3)
    #expect(try rig.readOrNothing() == nil)
    #expect(rig.iommu.faults.count == 0)
  }

  @Test(
    "B3: where the process has no such memory the answer is invalid, and the access aborted")
  func hasNone() throws {
    let rig = try PageRequestRig()
    let port = try port(rig, LazyProcess(limit: 0x10000))
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt32(1), at: IOVA(0x20000)) }
        == .notPresent)
    #expect(rig.iommu.pageRequestCounts.groups == 1)
    #expect(rig.iommu.faults.count == 1)
  }

  @Test("B3: memory that comes in and still cannot be written ends in a fault, not in a loop")
  func givesUp() throws {
    let rig = try PageRequestRig()
    let port = try port(rig, LazyProcess(limit: 0x10000, isFull: true))
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt32(1), at: IOVA(0x2000)) }
        == .notPresent)
  }

  @Test("H1, H3: a storm of faults on two threads: each access ends, each group has one answer")
  func storm() throws {
    let rig = try PageRequestRig(
      features: .init(pageRequests: true, outstandingRequests: 6, pagesPerGroup: 4),
      queueLength: 6, pages: 256)
    let pasidTable = try rig.context.allocateHWPT(
      for: rig.binding.id, from: rig.ioas, attributes: .pasid, faultQueue: rig.queue.id)
    let other = try rig.context.allocateHWPT(
      for: rig.binding.id, from: rig.ioas, attributes: .pasid, faultQueue: rig.queue.id)
    try rig.binding.group.attachOrReplace(PageRequestRig.pasid, to: pasidTable)
    let physical = try #require(rig.binding.device.physicalPASID(for: PageRequestRig.pasid))
    let waits = [DeviceWait(), DeviceWait()]
    let devices = [nil, physical].enumerated().map { index, pasid in
      let port = rig.port(waits[index], pasid: pasid)
      let counter = Atomic64()
      return DeviceThread {
        let at = UInt64(counter.next() &* 7 % 200) * 4096
        _ = reason { () throws(DMAFault) in
          try port.copy(from: IOVA(at), to: IOVA(0x100_0000 + at), length: 5 * 4096)
        }
      }
    }
    // The user: maps most, forgets some, and answers all of what it reads.
    let turn = Atomic64()
    let user = DeviceThread {
      guard let group = try? rig.readOrNothing() else {
        usleep(50)
        return
      }
      let number = turn.next()
      for request in group.requests where number % 5 != 0 {
        let page = Int(request.address.rawValue & 0xFF_FFFF) / 4096
        try? rig.map(page: page, at: request.address.rawValue)
      }
      if number % 11 == 0 {
        _ = try? rig.context.unmap(0...UInt64.max, from: rig.ioas)
      }
      try? rig.respond(group, number % 7 == 0 ? .invalid : .success)
    }
    for round in 0..<60 {
      usleep(1500)
      switch round % 4 {
      case 0: _ = try rig.binding.group.attach(to: round % 8 == 0 ? other : rig.table)
      case 1: try rig.binding.group.attachOrReplace(PageRequestRig.pasid, to: other)
      case 2:
        rig.binding.group.detach(PageRequestRig.pasid)
        try rig.binding.group.attachOrReplace(PageRequestRig.pasid, to: pasidTable)
      default:
        waits[round / 4 % 2].cancel()
        waits[round / 4 % 2].renew()
      }
    }
    for wait in waits { wait.cancel() }
    for device in devices { device.stop() }
    rig.context.close(rig.queue)
    user.stop()
    let counts = rig.iommu.pageRequestCounts
    #expect(counts.groups > 60)
    // The last may be on its way from the queue's thread.
    for _ in 0..<1000 where rig.iommu.pageRequestCounts.outstanding != 0 { usleep(1000) }
    #expect(rig.iommu.pageRequestCounts.outstanding == 0, "\(counts)")
  }
}

/// Counts, from any thread.
private final class Atomic64: Sendable {
  private let value = Atomic(0)
  func next() -> Int { value.add(1, ordering: .relaxed).newValue }
}
