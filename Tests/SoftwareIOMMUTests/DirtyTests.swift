// SPDX-License-Identifier: Apache-2.0
//
// MODEL I1: what DMA wrote is dirty, also through cached translations and from many threads.
// Run these under the thread sanitizer too.

import Glibc
import IOMMU
import PageTables
import Synchronization
import SystemPackage
import Testing

@testable import SoftwareIOMMU

/// A gibibyte of memory that is there when it is touched.
private final class SparseMemory: Sendable {
  static let size = 1 << 30
  let base: UInt

  init() throws {
    let address = mmap(
      nil, Self.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
    )
    guard let address, address != MAP_FAILED else { throw Errno(rawValue: errno) }
    base = UInt(bitPattern: address)
  }

  deinit { munmap(UnsafeMutableRawPointer(bitPattern: base), Self.size) }

  func run() -> PinnedRun {
    PinnedRun(
      length: UInt64(Self.size), backing: .local(base: base, owner: self),
      identity: MemoryIdentity(space: 7, object: 0, offset: 0))
  }
}

@Suite("I1: dirty pages", .serialized)
struct DirtyTests {
  private func tracked(_ bench: Bench) throws -> any DirtyTrackingDomain {
    let domain = try bench.iommu.makePagingDomain(
      for: Bench.device, attributes: .dirtyTracking)
    try bench.iommu.setContext(of: Bench.device, pasid: nil, to: .paging(domain))
    return try #require(domain as? any DirtyTrackingDomain)
  }

  private func dirty(
    _ domain: any DirtyTrackingDomain, _ range: ClosedRange<UInt64>? = nil, clear: Bool = true
  ) throws -> [UInt64: UInt64] {
    var leaves: [UInt64: UInt64] = [:]
    try domain.readDirty(range ?? domain.geometry.aperture, clear: clear) { leaves[$0] = $1 }
    return leaves
  }

  @Test(
    "I1: a write after a read, and after each clearing, is seen again",
    arguments: trackingFormats)
  func cachedTranslations(configuration: SoftwareIOMMU.Configuration) throws {
    let bench = Bench(configuration)
    let domain = try tracked(bench)
    let buffer = Buffer(2 * 4096)
    let physical = try bench.pin(buffer.run(), at: 0x5000)
    try domain.map(IOVA(0x5000), to: physical, length: 8192, permissions: .readWrite)
    let port = bench.port
    try port.store(UInt64(1), at: IOVA(0x5000))
    #expect(try dirty(domain).isEmpty, "tracking is off")
    try domain.setDirtyTracking(true)
    #expect(try dirty(domain).isEmpty)
    #expect(try port.load(IOVA(0x5000)) == UInt64(1))
    #expect(try dirty(domain, clear: false).isEmpty, "a read does not make a page dirty")
    for round in 0..<3 {
      try port.store(UInt64(round), at: IOVA(0x5000))
      try port.store(UInt64(round), at: IOVA(0x5100))
      #expect(try dirty(domain, clear: false) == [0x5000: 4096])
      #expect(try dirty(domain) == [0x5000: 4096])
      #expect(try dirty(domain).isEmpty)
    }
    try domain.setDirtyTracking(false)
    try port.store(UInt64(1), at: IOVA(0x6000))
    #expect(try dirty(domain).isEmpty)
    try domain.setDirtyTracking(true)
    #expect(try dirty(domain).isEmpty, "a new start is clean")
    try port.store(UInt64(1), at: IOVA(0x6000))
    #expect(try dirty(domain) == [0x6000: 4096])
  }

  @Test(
    "I1: every kind of access that writes makes dirty exactly the pages it wrote",
    arguments: [
      SoftwareIOMMU.Configuration(), .init(tracksDirty: false, tracksDirtyInSoftware: true),
    ])
  func kindsOfAccess(configuration: SoftwareIOMMU.Configuration) throws {
    let bench = Bench(configuration)
    let domain = try tracked(bench)
    let (near, far) = (Buffer(64 << 12), FarMemory(64 << 12, base: 0x7000_0000))
    let nearAt = try bench.pin(near.run(), at: 0x10_0000)
    let farAt = try bench.pin(far.run(), at: 0x20_0000)
    try domain.map(IOVA(0x10_0000), to: nearAt, length: 64 << 12, permissions: .readWrite)
    try domain.map(IOVA(0x20_0000), to: farAt, length: 64 << 12, permissions: .readWrite)
    try domain.setDirtyTracking(true)
    let port = bench.port
    for base in [0x10_0000, 0x20_0000] as [UInt64] {
      try port.store(UInt32(1), at: IOVA(base + 0xFFC))
      try port.store(UInt64(1), at: IOVA(base + 0x2FFC))
      try port.fill(IOVA(base + 0x5800), pattern: 7, length: 0x1000)
      try port.copy(from: IOVA(0x30_0000 - base), to: IOVA(base + 0x8000), length: 0x2000)
      try withUnsafeBytes(of: UInt64(3)) { try port.write(IOVA(base + 0xB000), from: $0) }
      let pages = try dirty(domain, base...base + 0x3_FFFF).keys.map { ($0 - base) >> 12 }
      #expect(pages.sorted() == [0, 2, 3, 5, 6, 8, 9, 11])
    }
  }

  @Test(
    "I1: a large leaf is dirty, and is cleared, as a whole; a 1 GiB leaf too",
    arguments: trackingFormats)
  func largeLeaves(configuration: SoftwareIOMMU.Configuration) throws {
    let bench = Bench(configuration)
    let domain = try tracked(bench)
    let memory = try SparseMemory()
    // Sv39 has 38 bits for the engine.
    let base: UInt64 = 0x20_0000_0000
    let physical = try bench.pin(memory.run(), at: base)
    for size: UInt64 in [4 << 10, 16 << 10, 2 << 20, 16 << 20, 1 << 30]
    where domain.geometry.pageSizes.rawValue & size != 0 {
      try domain.map(IOVA(base), to: physical, length: size, permissions: .readWrite)
      try domain.setDirtyTracking(true)
      let port = bench.port
      // Two places far apart are cached apart, and both are forgotten.
      for _ in 0..<2 {
        for offset in [0, size - 8] {
          try port.store(UInt64(1), at: IOVA(base + offset))
          #expect(try dirty(domain, clear: false) == [base: size])
          #expect(try dirty(domain, base...base + 4095) == [base: size], "asked for a part")
          #expect(try dirty(domain).isEmpty)
        }
        try port.store(UInt64(1), at: IOVA(base))
        try port.store(UInt64(1), at: IOVA(base + size - 8))
        #expect(try dirty(domain) == [base: size])
      }
      domain.unmap(IOVA(base), length: size)
    }
  }

  @Test("I1: unmapping forgets what was dirty, as on Linux; the next mapping starts clean")
  func unmapping() throws {
    let bench = Bench()
    let domain = try tracked(bench)
    let buffer = Buffer(4096)
    let physical = try bench.pin(buffer.run(), at: 0x5000)
    try domain.setDirtyTracking(true)
    for _ in 0..<2 {
      try domain.map(IOVA(0x5000), to: physical, length: 4096, permissions: .readWrite)
      #expect(try dirty(domain).isEmpty)
      try bench.port.store(UInt64(1), at: IOVA(0x5000))
      domain.unmap(IOVA(0x5000), length: 4096)
    }
  }

  @Test(
    "I1: without dirty bits pages that cannot be read are taken as written, and stay unreadable",
    arguments: [
      SoftwareIOMMU.Configuration(tracksDirty: false, tracksDirtyInSoftware: true),
      .init(architecture: .amd, tracksDirty: false, tracksDirtyInSoftware: true),
    ])
  func writeOnly(configuration: SoftwareIOMMU.Configuration) throws {
    let bench = Bench(configuration)
    let domain = try tracked(bench)
    let buffer = Buffer(3 * 4096)
    let physical = try bench.pin(buffer.run(), at: 0x5000)
    try domain.map(IOVA(0x5000), to: physical, length: 4096, permissions: .write)
    try domain.setDirtyTracking(true)
    try domain.map(
      IOVA(0x6000), to: PhysicalAddress(physical.rawValue + 4096), length: 4096,
      permissions: .write)
    try domain.map(
      IOVA(0x7000), to: PhysicalAddress(physical.rawValue + 8192), length: 4096,
      permissions: .read)
    for _ in 0..<2 {
      #expect(try dirty(domain) == [0x5000: 4096, 0x6000: 4096])
    }
    let port = bench.port
    for page: UInt64 in [0x5000, 0x6000] {
      #expect(
        reason { () throws(DMAFault) in _ = try port.load(IOVA(page), as: UInt8.self) }
          == .permission)
      try port.store(UInt8(1), at: IOVA(page))
    }
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(0x7000)) }
        == .permission)
    #expect(buffer[8192] == 0)
    try domain.setDirtyTracking(false)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(0x7000)) }
        == .permission)
    #expect(buffer[8192] == 0)
  }

  @Test("G2: a transaction is not left to recover a miss, for what it translated would change")
  func transaction() throws {
    let bench = Bench(.init(tracksDirty: false, tracksDirtyInSoftware: true))
    let domain = try tracked(bench)
    let buffer = Buffer(2 * 4096)
    let physical = try bench.pin(buffer.run(), at: 0x5000)
    try domain.map(IOVA(0x5000), to: physical, length: 8192, permissions: .readWrite)
    try domain.setDirtyTracking(true)
    let port = bench.port
    try port.transaction { port in
      _ = try port.translate(IOVA(0x5000), for: .read)
      #expect(
        reason { () throws(DMAFault) in _ = try port.translate(IOVA(0x6000), for: .write) }
          == .permission)
    }
    #expect(try dirty(domain).isEmpty)
    #expect(try port.translate(IOVA(0x6000), for: .write).isLocal)
    try port.transaction { port in _ = try port.translate(IOVA(0x6000), for: .write) }
    #expect(try dirty(domain) == [0x6000: 4096])
  }

  @Test("B7: an IOMMU without dirty bits takes no table that keeps them")
  func otherIOMMU() throws {
    let bench = Bench()
    let old = SoftwareIOMMU(
      name: "dmar1", configuration: .init(tracksDirty: false), memory: bench.memory,
      events: bench.events)
    let domain = try tracked(bench)
    #expect {
      try old.setContext(of: Bench.neighbour, pasid: nil, to: .paging(domain))
    } throws: {
      ($0 as? IOMMUError)?.errno == .invalidArgument
    }
    #expect(!old.capabilities(for: Bench.neighbour).dirtyTracking)
    #expect(bench.iommu.capabilities(for: Bench.device).dirtyTracking)
  }

  // MARK: Threads

  /// What a device thread wrote: for each page, after which read the last write began.
  private final class Writer: Sendable {
    private struct State {
      var random: UInt64
      var lastWrite: [UInt64: Int] = [:]
    }
    private let state: Guarded<State>

    init(seed: UInt64) { state = Guarded(State(random: seed)) }

    var lastWrites: [UInt64: Int] { state.withLock { $0.lastWrite } }

    func write(_ pages: [UInt64], _ port: DMAPort, reads: borrowing Atomic<Int>) {
      let page = state.withLock { state in
        state.random = state.random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return pages[Int(state.random >> 33) % pages.count]
      }
      let began = reads.load(ordering: .sequentiallyConsistent)
      do throws(DMAFault) {
        try port.store(UInt64(1), at: IOVA(page))
        state.withLock { $0.lastWrite[page] = began }
      } catch {}
    }
  }

  /// The leaf of a page: as `layout` maps it.
  private struct Layout {
    /// 32 pages of 4 KiB, 2 MiB whole, and 16 KiB (one leaf with AMD).
    let pages: [UInt64] =
      (0..<32).map { 0x7_0000_0000 + $0 << 12 } + (0..<8).map { 0x7_4000_0000 + $0 << 18 }
      + (0..<4).map { 0x7_8000_4000 + $0 << 12 }

    func map(_ bench: Bench, _ domain: any PagingDomain) throws -> [any Sendable] {
      let memory = try SparseMemory()
      let physical = try bench.pin(memory.run(), at: 0x7_4000_0000)
      for index in 0..<32 as Range<UInt64> {
        try domain.map(
          IOVA(0x7_0000_0000 + index << 12),
          to: PhysicalAddress(physical.rawValue + index << 13),
          length: 4096, permissions: .readWrite)
      }
      try domain.map(
        IOVA(0x7_4000_0000), to: PhysicalAddress(physical.rawValue + 2 << 20), length: 2 << 20,
        permissions: .readWrite)
      try domain.map(
        IOVA(0x7_8000_4000), to: PhysicalAddress(physical.rawValue + 0x100_4000),
        length: 16 << 10, permissions: .readWrite)
      return [memory]
    }
  }

  /// A page whose last write began after read number n is in a read of a higher number.
  @Test(
    "I1: nothing that two devices write at random is lost between reads that clear",
    arguments: trackingFormats)
  func nothingLost(configuration: SoftwareIOMMU.Configuration) throws {
    let bench = Bench(configuration)
    let domain = try tracked(bench)
    try bench.iommu.setContext(of: Bench.neighbour, pasid: nil, to: .paging(domain))
    let layout = Layout()
    let memory = try layout.map(bench, domain)
    try domain.setDirtyTracking(true)
    let ports = [bench.port, bench.iommu.port(for: Bench.neighbour)]
    let writers = [Writer(seed: 1), Writer(seed: 2)]
    try withExtendedLifetime(memory) {
      let shared = SharedCount()
      let threads = zip(ports, writers).map { port, writer in
        DeviceThread { writer.write(layout.pages, port, reads: shared.value) }
      }
      for thread in threads { thread.wait(rounds: 10) }
      var lastReported: [UInt64: Int] = [:]
      var number = 0
      func read() throws {
        number += 1
        for (first, length) in try dirty(domain) {
          for page in layout.pages where first <= page && page - first < length {
            lastReported[page] = number
          }
        }
        shared.value.store(number, ordering: .sequentiallyConsistent)
      }
      for _ in 0..<300 { try read() }
      for thread in threads { thread.stop() }
      try read()
      #expect(try dirty(domain).isEmpty)
      var written: Set<UInt64> = []
      for writer in writers {
        for (page, began) in writer.lastWrites {
          written.insert(page)
          #expect(
            lastReported[page, default: 0] > began, "page \(hex(page)), written after \(began)")
        }
      }
      #expect(
        Set(lastReported.keys.filter { $0 < 0x7_4000_0000 })
          == written.filter { $0 < 0x7_4000_0000 }, "and no other small page")
    }
  }

  /// Counts reads for all threads.
  private final class SharedCount: Sendable { let value = Atomic(0) }

  @Test(
    "I1: while DMA runs, tracking goes on and off, and pages come and go, nothing is lost",
    arguments: trackingFormats)
  func toggling(configuration: SoftwareIOMMU.Configuration) throws {
    let bench = Bench(configuration)
    let domain = try tracked(bench)
    let layout = Layout()
    let memory = try layout.map(bench, domain)
    let port = bench.port
    let count = SharedCount()
    let other = Buffer(4096)
    let otherAt = try bench.pin(other.run(identity: 9), at: 0)
    try withExtendedLifetime(memory) {
      for round in 0..<60 {
        let writer = Writer(seed: UInt64(round))
        try domain.setDirtyTracking(true)
        let thread = DeviceThread {
          writer.write(layout.pages + [0x3000], port, reads: count.value)
        }
        for _ in 0..<3 {
          try domain.map(IOVA(0x3000), to: otherAt, length: 4096, permissions: .readWrite)
          thread.wait(rounds: 5)
          domain.unmap(IOVA(0x3000), length: 4096)
        }
        thread.stop()
        let reported = try dirty(domain)
        #expect(reported[0x3000] == nil)
        for page in writer.lastWrites.keys where page != 0x3000 {
          #expect(
            reported.contains { $0.key <= page && page - $0.key < $0.value }, "\(hex(page))")
        }
        try port.store(UInt64(1), at: IOVA(layout.pages[0]))
        try domain.setDirtyTracking(false)
        try port.store(UInt64(1), at: IOVA(layout.pages[1]))
      }
    }
  }
}
