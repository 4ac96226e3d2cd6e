// SPDX-License-Identifier: Apache-2.0
//
// MODEL G1 and G2 with devices that keep translations themselves (ATS): what they may still use
// before they confirm an invalidation, what nobody uses after it, and those that never confirm.

import Glibc
import HardwareTables
import IOMMU
import PageTables
import Synchronization
import SystemPackage
import Testing

@testable import SoftwareIOMMU

/// A call on a thread of its own.
private final class BackgroundCall: Sendable {
  private let access: BackgroundAccess
  init(_ call: @escaping @Sendable () -> Void) {
    access = BackgroundAccess { () throws(DMAFault) in call() }
  }
  var isDone: Bool { access.isDone }
  func end() { _ = access.end() }
}

@Suite("G2: devices that cache translations", .serialized)
struct DeviceCacheTests {
  let bench: Bench
  let domain: any PagingDomain
  let buffer = Buffer(16 * 4096)
  let first: PhysicalAddress

  init() throws { try self.init(timeout: .seconds(20)) }

  private init(timeout: Duration) throws {
    var configuration = SoftwareIOMMU.Configuration()
    configuration.invalidationTimeout = timeout
    bench = Bench(configuration)
    bench.iommu.setFeatures(.init(translationCache: true), of: Bench.device)
    domain = try bench.attachedDomain()
    first = try bench.pin(buffer.run(), at: 0x10000)
    try map()
  }

  private func map() throws {
    try domain.map(IOVA(0x10000), to: first, length: 16 * 4096, permissions: .readWrite)
  }

  @Test("B8: a device with ATS is not said to lack it; one without is")
  func capability() {
    #expect(!bench.iommu.capabilities(for: Bench.device).lacksATS)
    #expect(bench.iommu.capabilities(for: Bench.neighbour).lacksATS)
  }

  @Test(
    "G2: a device confirms by its next access, unless it says otherwise: nobody waits for it")
  func byItself() throws {
    let port = bench.port
    try port.store(UInt8(1), at: IOVA(0x10000))
    domain.unmap(IOVA(0x10000), length: 4096)
    #expect(!port.hasInvalidations)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(2), at: IOVA(0x10000)) }
        == .notPresent)
    #expect(buffer[0] == 1)
  }

  @Test(
    "G2: before a device confirms an unmap, its stale translation works; after, it does not")
  func unmap() throws {
    let port = bench.port
    port.confirmsByHand = true
    try port.store(UInt8(1), at: IOVA(0x10000))
    try port.store(UInt8(1), at: IOVA(0x11000))
    let domain = domain
    let unmap = BackgroundCall { domain.unmap(IOVA(0x10000), length: 4096) }
    while !port.hasInvalidations { usleep(100) }
    try port.store(UInt8(7), at: IOVA(0x10000))
    #expect(buffer[0] == 7, "the cache is real")
    #expect(!unmap.isDone)
    #expect(port.confirmInvalidations())
    unmap.end()
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(9), at: IOVA(0x10000)) }
        == .notPresent)
    #expect(buffer[0] == 7)
    try port.store(UInt8(3), at: IOVA(0x11000))
    #expect(!port.confirmInvalidations())
  }

  @Test("G2: a switch waits for the device to confirm, too; then it is blocked")
  func detach() throws {
    let port = bench.port
    port.confirmsByHand = true
    try port.store(UInt8(1), at: IOVA(0x10000))
    let iommu = bench.iommu
    let detach = BackgroundCall {
      try? iommu.setContext(of: Bench.device, pasid: nil, to: .blocked)
    }
    while !port.hasInvalidations { usleep(100) }
    try port.store(UInt8(8), at: IOVA(0x10000))
    #expect(buffer[0] == 8)
    #expect(!detach.isDone)
    port.confirmInvalidations()
    detach.end()
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(9), at: IOVA(0x10000)) } == .blocked)
  }

  @Test(
    "G2: a device that does not confirm in time is cut off, said so, until a context is set")
  func timeout() throws {
    let rig = try Self(timeout: .milliseconds(30))
    rig.bench.events.startRecording()
    let port = rig.bench.port
    port.confirmsByHand = true
    try port.store(UInt8(1), at: IOVA(0x10000))
    rig.domain.unmap(IOVA(0x10000), length: 4096)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(2), at: IOVA(0x10000)) } == .blocked)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(2), at: IOVA(0x12000)) } == .blocked)
    #expect(rig.buffer[0] == 1)
    let notes = rig.bench.events.drain().entries.compactMap {
      if case .note(let text) = $0.event { text } else { nil }
    }
    #expect(
      notes.count == 1 && notes[0].contains("0000:e0:04.0, behind dmar0, has not confirmed"))
    // Nobody waits for it again.
    rig.domain.unmap(IOVA(0x11000), length: 4096)
    port.confirmsByHand = false
    try rig.bench.iommu.setContext(of: Bench.device, pasid: nil, to: .paging(rig.domain))
    try port.store(UInt8(5), at: IOVA(0x12000))
    #expect(rig.buffer[2 * 4096] == 5)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(2), at: IOVA(0x10000)) }
        == .notPresent)
  }

  @Test(
    "G2, I1: a translation for reading, and a write later: it misses again and marks the page")
  func readOnlyFirst() throws {
    let bench = Bench()
    bench.iommu.setFeatures(.init(translationCache: true), of: Bench.device)
    let domain = try bench.iommu.makePagingDomain(
      for: Bench.device, attributes: .dirtyTracking)
    try bench.iommu.setContext(of: Bench.device, pasid: nil, to: .paging(domain))
    let memory = Buffer(2 * 4096)
    try domain.map(
      IOVA(0x10000), to: try bench.pin(memory.run(), at: 0x10000), length: 2 * 4096,
      permissions: .readWrite)
    let tracking = try #require(domain as? any DirtyTrackingDomain)
    try tracking.setDirtyTracking(true)
    func dirty() throws -> [UInt64] {
      var pages: [UInt64] = []
      try tracking.readDirty(0x10000...0x11FFF, clear: true) { first, _ in pages.append(first) }
      return pages
    }
    let port = bench.port
    _ = try port.load(IOVA(0x10000), as: UInt8.self)
    #expect(try dirty().isEmpty)
    try port.store(UInt8(1), at: IOVA(0x10000))
    #expect(try dirty() == [0x10000])
    try port.store(UInt8(2), at: IOVA(0x10000))
    #expect(try dirty() == [0x10000], "the cleared bit was invalidated in the device")
  }

  @Test("G2: unmaps on one thread, stale use until each is confirmed on another: none after it")
  func storm() throws {
    let port = bench.port
    port.confirmsByHand = true
    let (domain, first, buffer) = (domain, first, buffer)
    // What the device wrote last through translations that it may use.
    let done = Atomic(false)
    let device = DeviceThread {
      for page in 0..<16 {
        _ = reason { () throws(DMAFault) in
          try port.store(UInt8(1), at: IOVA(0x10000 + UInt64(page) * 4096))
        }
      }
      port.confirmInvalidations()
    }
    for _ in 0..<300 {
      domain.unmap(IOVA(0x10000), length: 16 * 4096)
      // Nothing reaches the memory now.
      for page in 0..<16 { buffer[page * 4096] = 0 }
      device.wait(rounds: 1)
      for page in 0..<16 where buffer[page * 4096] != 0 {
        Issue.record("page \(page) was written after its unmap")
      }
      try domain.map(IOVA(0x10000), to: first, length: 16 * 4096, permissions: .readWrite)
    }
    done.store(true, ordering: .relaxed)
    device.stop()
  }
}

extension NestedSMMUTests {
  @Test("G1: CMD_TLBI is nothing to what a device keeps (EATS); CMD_ATC_INV is what it forgets")
  func deviceTLB() throws {
    var configuration = SoftwareIOMMU.Configuration(architecture: .smmuV3, pasidBits: 8)
    configuration.pageRequests = true
    for (eats, isKept) in [(UInt64(1), true), (0, false)] {
      let guest = try NestedBench(configuration)
      guest.bench.iommu.setFeatures(.init(translationCache: true), of: Bench.device)
      let virtual = try guest.virtualSMMU()
      let (descriptors, root, target) = (guest.page(), guest.page(), guest.page())
      let entry = guest.mapArm(0x5000, to: target, in: root)
      guest.writeContext(descriptors, table: root)
      try virtual.addDevice(Bench.device, virtualID: 7)
      try guest.attach(
        try virtual.makeNestedDomain(
          attributes: [], data: NestedBench.streamData(1 | 5 << 1 | descriptors, 2 | eats << 28)
        ))
      let port = guest.bench.port
      try port.store(UInt64(1), at: IOVA(0x5000))
      guest[entry] = 0
      func command(_ low: UInt64, _ high: UInt64) {
        let failure = virtual.invalidate(NestedBench.smmuCommands([(low, high)])).failure
        #expect(failure == nil)
      }
      // NH_ALL.
      command(0x10, 0)
      let stale = reason { () throws(DMAFault) in try port.store(UInt64(2), at: IOVA(0x5000)) }
      #expect(stale == (isKept ? nil : .notPresent), "EATS \(eats)")
      #expect(guest[target] == (isKept ? 2 : 1))
      command(0x40 | 7 << 32, 52)
      #expect(
        reason { () throws(DMAFault) in try port.store(UInt64(3), at: IOVA(0x5000)) }
          == .notPresent)
      #expect(guest[target] == (isKept ? 2 : 1))
    }
  }
}
