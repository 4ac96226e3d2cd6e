// SPDX-License-Identifier: Apache-2.0
//
// MODEL B3: DMA through this process's own page table, by virtual address, with nothing pinned.

import Glibc
import IOMMU
import PageTables
import Synchronization
import SystemPackage
import Testing

@testable import SoftwareIOMMU

/// Pages of this process that tests may unmap and protect: where nobody else maps anything, or
/// what they unmap would be somebody's next.
private final class Mapping: Sendable {
  let address: UInt64
  let count: Int

  /// The address sanitizer has its own memory at the first of these, the thread sanitizer at the
  /// second.
  private static let base = [0x10_0000_0000, 0x2000_0000_0000].first(where: isFree)

  private static let next = Atomic<UInt64>(base ?? 0x10_0000_0000)

  /// Whether a page of this process can be there.
  static func isFree(_ address: UInt64) -> Bool {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | 0x100000
    let wish = UnsafeMutableRawPointer(bitPattern: UInt(address))
    let pointer = mmap(wish, 4096, PROT_NONE, flags, -1, 0)
    if pointer != MAP_FAILED { munmap(pointer, 4096) }
    return pointer == wish
  }

  /// - Parameter fixed: Where; nil is where no test was before.
  init(pages: Int, at fixed: UInt64? = nil) throws {
    count = pages * 4096
    address =
      fixed ?? Self.next.wrappingAdd(UInt64(count) + 4096 << 8, ordering: .relaxed).oldValue
    // MAP_FIXED_NOREPLACE is 0x100000.
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | 0x100000
    let wish = UnsafeMutableRawPointer(bitPattern: UInt(address))
    let pointer = mmap(wish, count, PROT_READ | PROT_WRITE, flags, -1, 0)
    try #require(pointer == wish)
  }

  deinit { munmap(pointer(0), count) }

  private func pointer(_ page: Int) -> UnsafeMutableRawPointer {
    UnsafeMutableRawPointer(bitPattern: UInt(address) + UInt(page) * 4096)!
  }

  func unmap(page: Int) { munmap(pointer(page), 4096) }

  func remap(page: Int) {
    mmap(
      pointer(page), 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
      0)
  }

  func protect(page: Int, _ protection: Int32) { mprotect(pointer(page), 4096, protection) }

  /// Whether a page has memory, as the kernel sees it.
  func isPresent(page: Int) -> Bool {
    var vector: UInt8 = 0
    return mincore(pointer(page), 4096, &vector) == 0 && vector & 1 == 1
  }

  subscript(offset: Int) -> UInt8 {
    get { pointer(0).load(fromByteOffset: offset, as: UInt8.self) }
    set { pointer(0).storeBytes(of: newValue, toByteOffset: offset, as: UInt8.self) }
  }

  func iova(_ offset: Int) -> IOVA { IOVA(address + UInt64(offset)) }
}

/// A process that is gone when a test says so.
private final class FakeProcess: ProcessAddressSpace {
  private let isGone = Atomic(false)
  let name = "process 7"
  func end() { isGone.store(true, ordering: .sequentiallyConsistent) }

  func copyOut(from address: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Int {
    guard !isGone.load(ordering: .sequentiallyConsistent) else { return 0 }
    buffer.initializeMemory(as: UInt8.self, repeating: UInt8(truncatingIfNeeded: address))
    return buffer.count
  }

  func copyIn(to address: UInt64, from buffer: UnsafeRawBufferPointer) -> Int {
    isGone.load(ordering: .sequentiallyConsistent) ? 0 : buffer.count
  }

  func obstacle(at address: UInt64, to access: Permissions) -> ProcessMemoryObstacle { .gone }
}

@Suite("B3: a process's own page table", .serialized)
struct SharedProcessTests {
  let bench = Bench(.init(pasidBits: 8))
  let pasid = PASID(rawValue: 5)

  /// The port of a PASID, or of none, that reaches this process.
  private func port(pasid: PASID? = PASID(rawValue: 5)) throws -> DMAPort {
    let domain = try bench.iommu.makeSharedDomain(for: Bench.device, process: OwnProcess())
    try bench.iommu.setContext(of: Bench.device, pasid: pasid, to: .shared(domain))
    return bench.iommu.port(for: Bench.device, pasid: pasid)
  }

  @Test(
    "B3: a device reads, writes, copies and fills by the process's addresses; nothing is pinned"
  )
  func accesses() throws {
    let port = try port()
    let memory = try Mapping(pages: 300)
    memory[4095] = 1
    memory[4096] = 2
    #expect(try port.load(memory.iova(4095), as: UInt16.self) == 0x0201)
    try port.store(UInt64(0x1122_3344_5566_7788), at: memory.iova(8))
    #expect(memory[8] == 0x88 && memory[15] == 0x11)
    for index in 0..<300_000 {
      memory[index] = UInt8(truncatingIfNeeded: index &* 31 &+ index >> 9)
    }
    try port.copy(from: memory.iova(3), to: memory.iova(600_001), length: 299_000)
    #expect((0..<299_000).allSatisfy { memory[3 + $0] == memory[600_001 + $0] })
    try port.fill(memory.iova(10), pattern: 0x0807_0605_0403_0201, length: 70_001)
    #expect((0..<70_001).allSatisfy { memory[10 + $0] == UInt8($0 % 8 + 1) })
    var bytes = [UInt8](repeating: 0, count: 200_000)
    try bytes.withUnsafeMutableBytes { try port.read(memory.iova(600_001), into: $0) }
    #expect(bytes.indices.allSatisfy { bytes[$0] == memory[600_001 + $0] })
    try bytes.withUnsafeBytes { try port.write(memory.iova(1), from: $0) }
    #expect(bytes.indices.allSatisfy { bytes[$0] == memory[1 + $0] })
    #expect(bench.memory.usedSlots == 0)
    #expect(bench.iommu.faults.count == 0)
  }

  @Test("B3: a page that is not present is faulted in by the access itself")
  func notPresent() throws {
    let port = try port()
    let memory = try Mapping(pages: 4)
    #expect(!memory.isPresent(page: 2))
    try port.store(UInt8(9), at: memory.iova(2 * 4096 + 7))
    #expect(memory.isPresent(page: 2) && !memory.isPresent(page: 1))
    #expect(memory[2 * 4096 + 7] == 9)
    #expect(try port.load(memory.iova(4096), as: UInt64.self) == 0)
  }

  @Test(
    "B3: unmapped, protected and read-only addresses fault, at the first byte, and are counted")
  func faults() throws {
    let port = try port()
    let memory = try Mapping(pages: 6)
    let source = try Mapping(pages: 6)
    for index in 0..<6 * 4096 { source[index] = 7 }
    memory.unmap(page: 2)
    do {
      try port.copy(from: source.iova(0), to: memory.iova(100), length: 5 * 4096)
      Issue.record("no fault")
    } catch {
      #expect(error.iova == memory.iova(2 * 4096) && error.access == .write)
      #expect(error.reason == .notPresent && error.pasid == pasid)
    }
    #expect(
      memory[2 * 4096 - 1] == 7 && memory[3 * 4096] == 0, "all before it, nothing after it")
    memory.protect(page: 3, PROT_READ)
    let far = try Mapping(pages: 1)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: memory.iova(3 * 4096)) }
        == .permission)
    #expect(memory[3 * 4096] == 0)
    #expect(try port.load(memory.iova(3 * 4096), as: UInt8.self) == 0)
    #expect(
      reason { () throws(DMAFault) in
        try port.fill(memory.iova(3 * 4096 - 4), pattern: 0, length: 8)
      } == .notPresent)
    memory.protect(page: 4, PROT_NONE)
    #expect(
      reason { () throws(DMAFault) in _ = try port.load(memory.iova(4 * 4096), as: UInt8.self) }
        == .permission)
    do {
      try port.copy(from: memory.iova(3 * 4096), to: far.iova(0), length: 4096 + 1)
    } catch {
      #expect(error.iova == memory.iova(4 * 4096) && error.access == .read)
      #expect(error.reason == .permission)
    }
    // The kernel's half, the last byte, and past it.
    for address in [0, 0xFFFF_8000_0000_0000, UInt64.max] as [UInt64] {
      #expect(
        reason { () throws(DMAFault) in _ = try port.load(IOVA(address), as: UInt8.self) }
          == .notPresent)
    }
    #expect(
      reason { () throws(DMAFault) in _ = try port.load(IOVA(.max), as: UInt64.self) }
        == .addressWidth)
    let record = bench.iommu.faults[Bench.device, pasid: pasid]
    #expect(record.count == 9)
    #expect(record.latest?.pasid == pasid)
    // And what was unmapped is reached again once it is there again.
    memory.remap(page: 2)
    try port.store(UInt8(3), at: memory.iova(2 * 4096))
    #expect(memory[2 * 4096] == 3)
  }

  @Test("B3: munmap is followed at once, while a device writes on another thread")
  func unmapUnderDMA() throws {
    let port = try port()
    let memory = try Mapping(pages: 1)
    do {
      let counter = Landed()
      let device = DeviceThread {
        do throws(DMAFault) {
          try port.store(UInt32(1), at: memory.iova(64))
          counter.count.add(1, ordering: .sequentiallyConsistent)
        } catch {
          #expect(error.reason == .notPresent)
        }
      }
      for _ in 0..<40 {
        device.wait()
        memory.unmap(page: 0)
        // The access that was under way may still count.
        device.wait()
        let before = counter.count.load(ordering: .sequentiallyConsistent)
        device.wait(rounds: 3)
        #expect(counter.count.load(ordering: .sequentiallyConsistent) == before)
        memory.remap(page: 0)
        device.wait(rounds: 2)
        #expect(counter.count.load(ordering: .sequentiallyConsistent) > before)
        #expect(memory[64] == 1)
      }
      device.stop()
    }
  }

  private final class Landed: Sendable { let count = Atomic(0) }

  @Test(
    "D1, B3: a switch from a process's table to another or to blocked has returned: no DMA comes"
  )
  func switching() throws {
    let shared = try port()
    let memory = try Mapping(pages: 1)
    let device = DeviceThread { try? shared.store(UInt8(1), at: memory.iova(0)) }
    for round in 0..<100 {
      device.wait()
      let context: DMAContext =
        round % 2 == 0
        ? .blocked
        : .paging(try bench.iommu.makePagingDomain(for: Bench.device, attributes: .pasid))
      try bench.iommu.setContext(of: Bench.device, pasid: pasid, to: context)
      memory[0] = 0
      device.wait(rounds: 2)
      #expect(memory[0] == 0)
      let domain = try bench.iommu.makeSharedDomain(for: Bench.device, process: OwnProcess())
      try bench.iommu.setContext(of: Bench.device, pasid: pasid, to: .shared(domain))
      device.wait(rounds: 2)
      #expect(memory[0] == 1)
    }
    device.stop()
    try bench.iommu.setContext(of: Bench.device, pasid: pasid, to: .blocked)
    #expect(
      reason { () throws(DMAFault) in try shared.store(UInt8(1), at: memory.iova(0)) }
        == .blocked)
  }

  @Test("B3: once the process is gone, DMA faults as on memory that is gone")
  func gone() throws {
    let process = FakeProcess()
    let domain = try bench.iommu.makeSharedDomain(for: Bench.device, process: process)
    try bench.iommu.setContext(of: Bench.device, pasid: pasid, to: .shared(domain))
    let port = bench.iommu.port(for: Bench.device, pasid: pasid)
    #expect(try port.load(IOVA(0x42), as: UInt16.self) == 0x4242)
    process.end()
    #expect(
      reason { () throws(DMAFault) in _ = try port.load(IOVA(0x42), as: UInt8.self) }
        == .memoryGone)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(0), at: IOVA(0x42)) } == .memoryGone)
    #expect(
      reason { () throws(DMAFault) in try port.copy(from: IOVA(0), to: IOVA(64), length: 8) }
        == .memoryGone)
  }

  @Test(
    "B3: the interrupt window is memory with a PASID, and interrupts without one",
    .enabled(if: Mapping.isFree(0xFEE0_0000), "the address sanitizer has that address"))
  func interruptWindow() throws {
    let window = try Mapping(pages: 1, at: 0xFEE0_0000)
    let tagged = try port()
    try tagged.store(UInt32(0x0403_0201), at: window.iova(16))
    #expect(window[16] == 1 && window[19] == 4)
    #expect(try tagged.load(window.iova(16), as: UInt32.self) == 0x0403_0201)
    let plain = try port(pasid: nil)
    #expect(
      reason { () throws(DMAFault) in try plain.store(UInt32(0), at: window.iova(16)) }
        == .interruptRefused)
    #expect(
      reason { () throws(DMAFault) in _ = try plain.load(window.iova(16), as: UInt32.self) }
        == .interruptWindow)
    #expect(
      reason { () throws(DMAFault) in
        try plain.fill(IOVA(window.address - 8), pattern: 0, length: 16)
      } == .notPresent)
    #expect(window[16] == 1)
  }

  @Test("B3: an IOMMU without PASIDs has no tables of processes, and takes none of another's")
  func refused() throws {
    let plain = Bench()
    let process = try OwnProcess()
    for configuration in [SoftwareIOMMU.Configuration(), .init(architecture: .amd)] {
      #expect {
        _ = try Bench(configuration).iommu.makeSharedDomain(for: Bench.device, process: process)
      } throws: {
        ($0 as? IOMMUError)?.errno == .notSupportedOnSocket
      }
    }
    let domain = try bench.iommu.makeSharedDomain(for: Bench.device, process: process)
    #expect {
      try plain.iommu.setContext(of: Bench.device, pasid: nil, to: .shared(domain))
    } throws: {
      ($0 as? IOMMUError)?.errno == .invalidArgument
    }
  }
}
