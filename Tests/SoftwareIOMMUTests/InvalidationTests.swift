// SPDX-License-Identifier: Apache-2.0
//
// MODEL G2 with threads: once an unmap or a switch has returned, no DMA uses the old
// translation. Run these under the thread sanitizer too.

import Glibc
import IOMMU
import PageTables
import Synchronization
import Testing

@testable import SoftwareIOMMU

/// A device thread that does `body` again and again until it is stopped.
final class DeviceThread: Sendable {
  private let stopping = Atomic(false)
  private let rounds = Atomic(0)
  private let finished = Atomic(false)

  init(_ body: @escaping @Sendable () -> Void) {
    let state = self
    Self.spawn {
      while !state.stopping.load(ordering: .acquiring) {
        body()
        state.rounds.add(1, ordering: .releasing)
      }
      state.finished.store(true, ordering: .releasing)
    }
  }

  /// Waits until the body has run so many times more.
  func wait(rounds more: Int = 1) {
    let target = rounds.load(ordering: .acquiring) + more
    while rounds.load(ordering: .acquiring) < target { sched_yield() }
  }

  func stop() {
    stopping.store(true, ordering: .releasing)
    while !finished.load(ordering: .acquiring) { sched_yield() }
  }

  private final class Body: Sendable {
    let run: @Sendable () -> Void
    init(_ run: @escaping @Sendable () -> Void) { self.run = run }
  }

  private static func spawn(_ body: @escaping @Sendable () -> Void) {
    var thread = pthread_t()
    let argument = Unmanaged.passRetained(Body(body)).toOpaque()
    pthread_create(
      &thread, nil,
      { argument in
        Unmanaged<Body>.fromOpaque(argument!).takeRetainedValue().run()
        return nil
      }, argument)
    pthread_detach(thread)
  }
}

@Suite("G2: invalidation", .serialized)
struct InvalidationTests {
  /// The page whose number a device writes is unmapped, then looked at: no write may come any
  /// more.
  @Test(
    "G2: after unmap returns no DMA reaches the page, while a device writes all the time",
    arguments: formats)
  func unmap(configuration: SoftwareIOMMU.Configuration) throws {
    let bench = Bench(configuration)
    let domain = try bench.attachedDomain()
    let page = Buffer(4096)
    let fixed = Buffer(4096)
    let fixedPhysical = try bench.pin(fixed.run(), at: 0)
    try domain.map(IOVA(0x4000_0000), to: fixedPhysical, length: 4096, permissions: .readWrite)
    let port = bench.port
    let succeeded = Atomic(0)
    let device = DeviceThread {
      for _ in 0..<20 {
        let written: Bool
        do throws(DMAFault) {
          try port.store(UInt64(0x1111_1111_1111_1111), at: IOVA(0x5008))
          written = true
        } catch {
          written = false
        }
        if written { succeeded.add(1, ordering: .relaxed) }
        // Keeps other translations in the way of the last-page shortcut.
        try? port.store(UInt64(1), at: IOVA(0x4000_0000))
      }
    }
    defer { device.stop() }
    for round in 0..<200 {
      let physical = try bench.pin(page.run(), at: 0x5000)
      try domain.map(IOVA(0x5000), to: physical, length: 4096, permissions: .readWrite)
      if round % 4 == 0 {
        // At least one write that began after the map.
        let before = succeeded.load(ordering: .acquiring)
        while succeeded.load(ordering: .acquiring) < before + 2 { sched_yield() }
      }
      domain.unmap(IOVA(0x5000), length: 4096)
      bench.memory.remove(physical, length: 4096)
      // The page is ours again: whatever the device does now, it stays as we leave it.
      page.fill(UInt8(truncatingIfNeeded: round))
      if round % 8 == 0 { device.wait() }
      #expect(page.bytes.allSatisfy { $0 == UInt8(truncatingIfNeeded: round) })
    }
    #expect(succeeded.load(ordering: .relaxed) >= 100)
  }

  @Test("G2: a long copy lets an unmap of its own memory through and faults where it got to")
  func longCopy() throws {
    let bench = Bench()
    let domain = try bench.attachedDomain()
    let size = 8 << 20
    let source = Buffer(size, alignment: 2 << 20)
    let target = Buffer(size, alignment: 2 << 20)
    let from = try bench.pin(source.run(), at: 1 << 30)
    try domain.map(IOVA(1 << 30), to: from, length: UInt64(size), permissions: .read)
    let port = bench.port
    let faults = Atomic(0)
    let whole = Atomic(0)
    let device = DeviceThread {
      do throws(DMAFault) {
        try port.copy(from: IOVA(1 << 30), to: IOVA(2 << 30), length: size)
        whole.add(1, ordering: .relaxed)
      } catch {
        faults.add(1, ordering: .relaxed)
      }
    }
    defer { device.stop() }
    for round in 0..<32 {
      let to = try bench.pin(target.run(), at: 2 << 30)
      try domain.map(IOVA(2 << 30), to: to, length: UInt64(size), permissions: .write)
      for _ in 0..<round * 50 { sched_yield() }
      domain.unmap(IOVA(2 << 30), length: UInt64(size))
      bench.memory.remove(to, length: UInt64(size))
      let mark = UInt8(truncatingIfNeeded: round | 1)
      for offset in stride(from: 0, to: size, by: 64 << 10) { target[offset] = mark }
      device.wait()
      #expect(stride(from: 0, to: size, by: 64 << 10).allSatisfy { target[$0] == mark })
    }
    #expect(faults.load(ordering: .relaxed) > 0)
  }

  @Test(
    "D1: a switch of context is one step: every access lands in the old table or the new one")
  func atomicSwitch() throws {
    let bench = Bench()
    let pages = [Buffer(4096), Buffer(4096)]
    let domains = [try bench.domain(), try bench.domain()]
    for (domain, page) in zip(domains, pages) {
      try domain.map(
        IOVA(0x7000), to: try bench.pin(page.run(), at: 0x7000), length: 4096,
        permissions: .readWrite)
    }
    try bench.iommu.setContext(of: Bench.device, pasid: nil, to: .paging(domains[0]))
    let port = bench.port
    let faults = Atomic(0)
    let device = DeviceThread {
      for word in 0..<64 {
        do throws(DMAFault) {
          try port.store(UInt64(7), at: IOVA(0x7000 + UInt64(word) * 8))
        } catch {
          faults.add(1, ordering: .relaxed)
        }
      }
    }
    defer { device.stop() }
    for round in 1...300 {
      let new = round & 1
      try bench.iommu.setContext(of: Bench.device, pasid: nil, to: .paging(domains[new]))
      // The old page is out of reach from now on.
      pages[1 - new].fill(0)
      if round % 4 == 0 { device.wait() }
      #expect(pages[1 - new].bytes.allSatisfy { $0 == 0 })
    }
    device.wait(rounds: 2)
    #expect(pages[0][0] == 7)
    #expect(faults.load(ordering: .relaxed) == 0, "no moment without a context")
  }

  @Test("C2: after a switch to blocked returns no interrupt is raised")
  func blockedInterrupts() throws {
    let bench = Bench()
    let domain = try bench.domain()
    let counter = Counter()
    let message = try bench.iommu.interrupts.allocate(for: Bench.device, signal: counter)
    let port = bench.port
    let device = DeviceThread {
      do throws(DMAFault) { try port.store(message.data, at: IOVA(message.address)) } catch {}
    }
    defer { device.stop() }
    for round in 0..<300 {
      try bench.iommu.setContext(of: Bench.device, pasid: nil, to: .paging(domain))
      if round % 4 == 0 { device.wait(rounds: 2) }
      try bench.iommu.setContext(of: Bench.device, pasid: nil, to: .blocked)
      let count = counter.count
      if round % 8 == 0 { device.wait(rounds: 2) } else { sched_yield() }
      #expect(counter.count == count)
    }
    #expect(counter.count > 0)
  }

  @Test("G2: an idle port is not waited for, and forgets when it next does DMA")
  func idle() throws {
    let bench = Bench()
    let domain = try bench.attachedDomain()
    let buffer = Buffer(256 << 10)
    let port = bench.port
    let physical = try bench.pin(buffer.run(), at: 0x1000)
    for count in [1, 3, 15, 16, 17, 40] {
      // Pages apart, so that their ranges do not merge; more than the mailbox holds at last.
      for page in 0..<count {
        let offset = UInt64(page) * 0x2000 % 0x40000
        try domain.map(
          IOVA(0x10_0000 + UInt64(page) * 0x2000),
          to: PhysicalAddress(physical.rawValue + offset),
          length: 4096, permissions: .readWrite)
        try port.store(UInt8(page), at: IOVA(0x10_0000 + UInt64(page) * 0x2000))
      }
      for page in 0..<count {
        domain.unmap(IOVA(0x10_0000 + UInt64(page) * 0x2000), length: 4096)
      }
      for page in 0..<count {
        #expect(
          reason { () throws(DMAFault) in
            try port.store(UInt8(0), at: IOVA(0x10_0000 + UInt64(page) * 0x2000))
          } == .notPresent)
      }
    }
  }

  @Test("G2: an unmap of a large range forgets large and small pages, and nothing else")
  func ranges() throws {
    for configuration in formats {
      let bench = Bench(configuration)
      let domain = try bench.attachedDomain()
      let buffer = Buffer(8 << 20, alignment: 2 << 20)
      let physical = try bench.pin(buffer.run(), at: 0)
      let port = bench.port
      // Two large leaves, then pages of 4 KiB after them.
      for leaf: UInt64 in 0..<2 {
        try domain.map(
          IOVA(leaf << 21), to: PhysicalAddress(physical.rawValue + leaf << 21),
          length: 2 << 20, permissions: .readWrite)
      }
      for page in 0..<256 {
        try domain.map(
          IOVA(4 << 20 + UInt64(page) << 12),
          to: PhysicalAddress(physical.rawValue + 4 << 20 + UInt64(255 - page) << 12),
          length: 4096, permissions: .readWrite)
      }
      for address in stride(from: UInt64(0), to: 5 << 20, by: 4096) {
        try port.store(UInt8(1), at: IOVA(address))
      }
      domain.unmap(IOVA(2 << 20), length: 2 << 20)
      domain.unmap(IOVA(4 << 20), length: 128 << 12)
      for address in stride(from: UInt64(0), to: 5 << 20, by: 4096) {
        let gone = address >= 2 << 20 && address < 4 << 20 + 128 << 12
        #expect(
          reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(address)) }
            == (gone ? .notPresent : nil))
      }
    }
  }

  @Test("G2: unmaps and switches of two devices on one table do not lose each other")
  func twoDevices() throws {
    let bench = Bench()
    let domain = try bench.attachedDomain()
    let other = try bench.domain()
    let page = Buffer(4096)
    let ports = [bench.port, bench.iommu.port(for: Bench.neighbour)]
    try bench.iommu.setContext(of: Bench.neighbour, pasid: nil, to: .paging(domain))
    let devices = ports.map { port in
      DeviceThread {
        for _ in 0..<16 {
          do throws(DMAFault) { try port.store(UInt64.max, at: IOVA(0x9000)) } catch {}
        }
      }
    }
    defer { for device in devices { device.stop() } }
    let switcher = DeviceThread {
      try? bench.iommu.setContext(of: Bench.neighbour, pasid: nil, to: .paging(other))
      try? bench.iommu.setContext(of: Bench.neighbour, pasid: nil, to: .paging(domain))
    }
    defer { switcher.stop() }
    for round in 0..<100 {
      let physical = try bench.pin(page.run(), at: 0x9000)
      try domain.map(IOVA(0x9000), to: physical, length: 4096, permissions: .readWrite)
      if round % 8 == 0 { for device in devices { device.wait() } }
      domain.unmap(IOVA(0x9000), length: 4096)
      bench.memory.remove(physical, length: 4096)
      page.fill(3)
      if round % 16 == 0 { for device in devices { device.wait() } }
      #expect(page.bytes.allSatisfy { $0 == 3 })
    }
  }

  @Test("G2: what a transaction translated stays true until it ends, whatever else it accesses")
  func transaction() throws {
    let bench = Bench()
    let domain = try bench.attachedDomain()
    let page = Buffer(8192)
    let physical = try bench.pin(page.run(), at: 0)
    try domain.map(IOVA(0), to: physical, length: 8192, permissions: .readWrite)
    let port = bench.port
    let unmapping = Atomic(false)
    let unmapped = Atomic(false)
    let other = try port.transaction { port in
      let run = try port.translate(IOVA(0), for: .write)
      #expect(run.isLocal && run.address == UInt64(UInt(bitPattern: page.bytes.baseAddress!)))
      #expect(run.length == 4096 || run.length == 8192)
      let other = DeviceThread {
        guard !unmapping.exchange(true, ordering: .acquiringAndReleasing) else { return }
        domain.unmap(IOVA(0), length: 4096)
        unmapped.store(true, ordering: .releasing)
      }
      while !port.channel.pending.load(ordering: .acquiring) { sched_yield() }
      for _ in 0..<100 {
        try port.fill(IOVA(4096), pattern: 1, length: 4096)
        sched_yield()
      }
      let early = unmapped.load(ordering: .acquiring)
      #expect(!early)
      return other
    }
    other.wait()
    other.stop()
    let late = unmapped.load(ordering: .acquiring)
    #expect(late)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(0), at: IOVA(0)) } == .notPresent)
    try port.store(UInt8(0), at: IOVA(4096))
  }

  @Test("G2: table pages that an unmap frees are never walked afterwards")
  func tablePages() throws {
    let bench = Bench(.init(levels: 5))
    let domain = try bench.attachedDomain()
    let page = Buffer(4096)
    let physical = try bench.pin(page.run(), at: 0)
    let port = bench.port
    // Walks down many tables that come and go, which the sanitizers watch.
    let device = DeviceThread {
      for place in 0..<64 {
        do throws(DMAFault) {
          _ = try port.load(IOVA(UInt64(place) << 39)) as UInt64
        } catch {}
      }
    }
    defer { device.stop() }
    for round in 0..<40 {
      for place in 0..<64 {
        try domain.map(
          IOVA(UInt64(place) << 39), to: physical, length: 4096, permissions: .readWrite)
      }
      if round % 4 == 0 { device.wait() }
      domain.unmap(IOVA(0), length: .max)
    }
    #expect(domain.translate(IOVA(0)) == nil)
  }
}
