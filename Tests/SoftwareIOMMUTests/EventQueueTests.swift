// SPDX-License-Identifier: Apache-2.0
//
// What an IOMMU's hardware records of DMA that it aborted: the records of each architecture, its
// queue when there is no room, storms, and what the logs say beside it (MODEL H2).

import HardwareTables
import IOMMU
import PageTables
import Testing

@testable import SoftwareIOMMU

@Suite("H2: events", .timeLimit(.minutes(10))) struct EventQueueTests {
  static let families: [SoftwareIOMMU.Configuration] = SoftwareIOMMU.Architecture.allCases.map {
    .init(architecture: $0, pasidBits: 16)
  }

  /// Makes an access that has to fail.
  static func abort(_ access: () throws(DMAFault) -> Void) -> DMAFault? {
    do throws(DMAFault) {
      try access()
      Issue.record("the access succeeded")
      return nil
    } catch {
      return error
    }
  }

  @Test("H2: an unmapped access is recorded with its format's code", arguments: formats)
  func codes(configuration: SoftwareIOMMU.Configuration) throws {
    let bench = Bench(configuration)
    let domain = try bench.attachedDomain()
    let physical = try bench.pin(Buffer(4096).run(), at: 0x4000)
    try domain.map(IOVA(0x4000), to: physical, length: 4096, permissions: .read)
    let write: [SoftwareIOMMU.Architecture: (first: UInt16, second: UInt16)] = [
      .intel: (0x71, 0x79), .amd: (2, 2), .smmuV3: (0x10, 0x10), .riscv: (15, 23),
    ]
    let read: [SoftwareIOMMU.Architecture: (first: UInt16, second: UInt16)] = [
      .intel: (0x71, 0x79), .amd: (2, 2), .smmuV3: (0x10, 0x10), .riscv: (13, 21),
    ]
    let forbidden: [SoftwareIOMMU.Architecture: (first: UInt16, second: UInt16)] = [
      .intel: (0x85, 0x85), .amd: (2, 2), .smmuV3: (0x13, 0x13), .riscv: (15, 23),
    ]
    func code(_ pair: (first: UInt16, second: UInt16)?) -> UInt16? {
      configuration.stage == .first ? pair?.first : pair?.second
    }
    let port = bench.port
    _ = Self.abort { () throws(DMAFault) in try port.store(UInt8(0), at: IOVA(0x5123)) }
    _ = Self.abort { () throws(DMAFault) in _ = try port.load(IOVA(0x5123)) as UInt8 }
    _ = Self.abort { () throws(DMAFault) in try port.store(UInt8(0), at: IOVA(0x4000)) }
    let (events, lost) = bench.iommu.eventQueue.drain()
    #expect(lost == 0)
    #expect(
      events.map(\.code)
        == [write, read, forbidden].map { code($0[configuration.architecture]) })
    #expect(bench.iommu.eventQueue.drain().events.isEmpty)
  }

  @Test("H2: records by hand: requester, address, access")
  func records() throws {
    // (architecture, stage): the bytes of a write to 0x5123 by 0000:e0:04.0.
    let expected: [(SoftwareIOMMU.Configuration, [UInt8])] = [
      // FI, then SID, FR 05h (LGN.2: legacy mode), F.
      (
        .init(tracksDirty: false, nests: false),
        [0, 0x50, 0, 0, 0, 0, 0, 0, 0x20, 0xE0, 0, 0, 5, 0, 0, 0x80]
      ),
      // DeviceID, RW, code 2; the address.
      (
        .init(architecture: .amd),
        [0x20, 0xE0, 0, 0, 0, 0, 0x20, 0x20, 0x23, 0x51, 0, 0, 0, 0, 0, 0]
      ),
      // F_TRANSLATION, StreamID; CLASS IN; InputAddr.
      (
        .init(architecture: .smmuV3),
        [0x10, 0, 0, 0, 0x20, 0xE0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0]
          + [0x23, 0x51] + Array(repeating: 0, count: 14)
      ),
      // CAUSE 23, TTYP 3, DID; iotval, iotval2.
      (
        .init(architecture: .riscv, stage: .second),
        [23, 0, 0, 0, 0x0C, 0x20, 0xE0, 0] + Array(repeating: 0, count: 8)
          + [0x23, 0x51, 0, 0, 0, 0, 0, 0, 0x20, 0x51, 0, 0, 0, 0, 0, 0]
      ),
    ]
    for (configuration, bytes) in expected {
      let bench = Bench(configuration)
      let domain = try bench.attachedDomain()
      let port = bench.port
      _ = Self.abort { () throws(DMAFault) in try port.store(UInt8(0), at: IOVA(0x5123)) }
      #expect(bench.iommu.eventQueue.next()?.bytes == bytes, "\(configuration.architecture)")
      #expect(bench.iommu.eventQueue.next() == nil)
      _ = domain
    }
  }

  @Test("H2: unknown and blocked requesters and PASIDs, as each architecture has it")
  func refusals() throws {
    let expected: [SoftwareIOMMU.Architecture: [UInt16]] = [
      .intel: [0x41, 0x59, 0x59], .amd: [1, 2, 2], .smmuV3: [2, 0x0A], .riscv: [258, 258, 266],
    ]
    for configuration in Self.families {
      let bench = Bench(configuration)
      let pasid = PASID(rawValue: 7)
      try bench.iommu.setContext(of: Bench.neighbour, pasid: nil, to: .blocked)
      try bench.iommu.setContext(of: Bench.neighbour, pasid: pasid, to: .blocked)
      for port in [
        bench.port, bench.iommu.port(for: Bench.neighbour),
        bench.iommu.port(for: Bench.neighbour, pasid: pasid),
      ] {
        _ = Self.abort { () throws(DMAFault) in try port.store(UInt8(0), at: IOVA(0x5000)) }
      }
      // An SMMUv3 says nothing of a stream that is to be aborted (STE.Config).
      #expect(
        bench.iommu.eventQueue.drain().events.map(\.code)
          == expected[configuration.architecture], "\(configuration.architecture)")
      #expect(bench.iommu.faults.count == 3)
    }
  }

  @Test("H2: what the IOMMU lets through is not its fault, and what it cannot reach is counted")
  func notTheHardware() throws {
    let bench = Bench()
    try bench.iommu.setContext(of: Bench.device, pasid: nil, to: .host)
    let port = bench.port
    let fault = Self.abort { () throws(DMAFault) in try port.store(UInt8(0), at: IOVA(0)) }
    #expect(fault?.cause == nil)
    let domain = try bench.attachedDomain()
    let far = FarMemory(4096, base: 0x10_0000)
    let physical = try bench.pin(far.run(), at: 0)
    try domain.map(IOVA(0), to: physical, length: 4096, permissions: .readWrite)
    far.vanish()
    let gone = Self.abort { () throws(DMAFault) in try port.store(UInt8(0), at: IOVA(0)) }
    #expect(gone?.reason == .memoryGone && gone?.cause == nil)
    #expect(bench.iommu.eventQueue.count == 0 && bench.iommu.faults.count == 2)
  }

  @Test("H2: a fault carries the stage, the level and what it asked of the second stage")
  func causes() throws {
    let bench = Bench(.init(architecture: .riscv, stage: .second))
    let domain = try bench.attachedDomain()
    let physical = try bench.pin(Buffer(4096).run(), at: 0x4000)
    try domain.map(IOVA(0x4000), to: physical, length: 4096, permissions: .read)
    let port = bench.port
    let write = Self.abort { () throws(DMAFault) in try port.store(UInt8(0), at: IOVA(0x5000)) }
    guard case .walk(let fault, let tables)? = write?.cause else {
      Issue.record("\(String(describing: write?.cause))")
      return
    }
    #expect(fault == WalkFault(.notPresent, level: 1))
    #expect(tables == WalkedTables(secondLevels: 4))
    // What is looked for ahead of an access is nobody's fault.
    var bytes = [UInt8](repeating: 0, count: 4096)
    try bytes.withUnsafeMutableBytes { try port.read(IOVA(0x4000), into: $0) }
    #expect(bench.iommu.eventQueue.count == 1)
  }

  @Test("H2: interrupts that are refused, with VT-d's codes and index")
  func interrupts() throws {
    let bench = Bench()
    _ = try bench.attachedDomain()
    let counter = Counter()
    let message = try bench.iommu.interrupts.allocate(for: Bench.neighbour, signal: counter)
    let port = bench.port
    let base = InterruptRemapper.window.lowerBound
    // Another's; one that is not there; compatibility format; a reserved subhandle; a read.
    for (address, data) in [
      (message.address, 0), (InterruptRemapper.message(handle: 0x1234).address, 0), (base, 0),
      (message.address, 1),
    ] as [(UInt64, UInt32)] {
      _ = Self.abort { () throws(DMAFault) in try port.store(data, at: IOVA(address)) }
    }
    _ = Self.abort { () throws(DMAFault) in _ = try port.load(IOVA(base)) as UInt32 }
    let events = bench.iommu.eventQueue.drain().events
    #expect(events.map(\.code) == [0x26, 0x22, 0x25, 0x20, 0x87])
    #expect(events[1].words[0] == 0x1234 << 48)
    #expect(counter.count == 0)
  }

  @Test("H2: a full queue loses, says so, and recovers as its architecture does")
  func overflow() throws {
    for configuration in Self.families {
      let bench = Bench(configuration)
      let domain = try bench.attachedDomain()
      let queue = bench.iommu.eventQueue
      let port = bench.port
      func fault(_ times: Int) {
        for _ in 0..<times {
          _ = Self.abort { () throws(DMAFault) in try port.store(UInt8(0), at: IOVA(0x5000)) }
        }
      }
      #expect(
        queue.capacity
          == [.intel: 8, .amd: 511, .smmuV3: 128, .riscv: 127][
            configuration.architecture])
      fault(queue.capacity + 5)
      #expect(queue.count == queue.capacity && queue.lost == 5 && queue.hasOverflowed)
      // Room, and the overflow not acknowledged: only SMMUv3 goes on.
      #expect(queue.next() != nil)
      fault(1)
      let goesOn = configuration.architecture == .smmuV3
      #expect(queue.lost == (goesOn ? 5 : 6) && queue.hasOverflowed)
      queue.acknowledgeOverflow()
      #expect(!queue.hasOverflowed)
      let drained = queue.drain()
      #expect(drained.events.count == queue.capacity - (goesOn ? 0 : 1))
      #expect(drained.lost == (goesOn ? 5 : 6))
      fault(1)
      let again = queue.drain()
      #expect(again.events.count == 1 && again.lost == 0)
      #expect(bench.iommu.faults[Bench.device].count == UInt64(queue.capacity + 7))
      _ = domain
    }
  }

  @Test(
    "H2: storms on two threads: each fault is read or counted as lost, whoever reads meanwhile")
  func storm() async throws {
    for configuration in Self.families {
      let bench = Bench(configuration)
      for device in [Bench.device, Bench.neighbour] {
        let domain = try bench.iommu.makePagingDomain(for: device, attributes: [])
        try bench.iommu.setContext(of: device, pasid: nil, to: .paging(domain))
      }
      let iommu = bench.iommu
      let each = 3000
      let done = Counter()
      let read = try await withThrowingTaskGroup(of: Int.self) { group in
        for device in [Bench.device, Bench.neighbour] {
          group.addTask {
            let port = iommu.port(for: device)
            for number in 0..<each {
              _ = Self.abort { () throws(DMAFault) in
                try port.store(UInt8(0), at: IOVA(UInt64(number % 512) << 12))
              }
            }
            done.signal()
            return 0
          }
        }
        group.addTask {
          var read = 0
          while done.count < 2 {
            read += iommu.eventQueue.drain().events.count
            await Task.yield()
          }
          return read + iommu.eventQueue.drain().events.count
        }
        return try await group.reduce(0, +)
      }
      #expect(UInt64(read) + iommu.eventQueue.lost == UInt64(2 * each))
      #expect(iommu.faults.count == UInt64(2 * each))
      #expect(iommu.faults[Bench.device].count == UInt64(each))
    }
  }

  @Test("H2: the log says the architecture's code and name beside our sentence")
  func sentences() throws {
    let expected: [SoftwareIOMMU.Architecture: String] = [
      .intel: "nothing is mapped there (VT-d fault 79h, SSS.2)",
      .amd: "nothing is mapped there (AMD event 02h, IO_PAGE_FAULT)",
      .smmuV3: "nothing is mapped there (SMMUv3 event 0x10, F_TRANSLATION)",
      .riscv: "nothing is mapped there (RISC-V fault 15, write/AMO page fault)",
    ]
    for configuration in Self.families {
      let bench = Bench(configuration)
      bench.events.startRecording()
      let domain = try bench.attachedDomain()
      let port = bench.port
      _ = Self.abort { () throws(DMAFault) in try port.store(UInt8(0), at: IOVA(0x5000)) }
      let reasons = bench.events.drain().entries.compactMap { entry -> String? in
        guard case .fault(_, _, _, let reason) = entry.event else { return nil }
        return reason
      }
      #expect(reasons == [expected[configuration.architecture]])
      _ = domain
    }
  }

  @Test("H2: a guest with a virtual SMMUv3 is told of its stage's faults, by its own name")
  func virtualEvents() throws {
    let bench = Bench(.init(architecture: .smmuV3))
    let domain = try bench.attachedDomain()
    let port = bench.port
    let fault = Self.abort { () throws(DMAFault) in _ = try port.load(IOVA(0x5123)) as UInt8 }
    #expect(
      fault?.virtualSMMUEvent(stream: 0x42)
        == [0x10, 0, 0, 0, 0x42, 0, 0, 0, 0, 0, 0, 0, 8, 2, 0, 0, 0x23, 0x51]
        + Array(repeating: 0, count: 14))
    // Of the host's stage it is told nothing.
    let host = Bench(.init(architecture: .smmuV3, stage: .second))
    let other = try host.attachedDomain()
    let hostPort = host.port
    let hidden = Self.abort { () throws(DMAFault) in _ = try hostPort.load(IOVA(0)) as UInt8 }
    #expect(hidden?.virtualSMMUEvent(stream: 0x42) == nil)
    #expect(host.iommu.eventQueue.count == 1)
    _ = (domain, other)
  }
}

@Suite("H2: the log of faults") struct FaultLogTests {
  @Test("H2: sources that fault are bounded, however many PASIDs there are; the total is kept")
  func bounded() throws {
    let bench = Bench(.init(pasidBits: 20))
    bench.events.startRecording()
    let count = 3 * FaultLog.maximumSources
    for number in 1...count {
      let port = bench.iommu.port(for: Bench.device, pasid: PASID(rawValue: UInt32(number)))
      _ = EventQueueTests.abort { () throws(DMAFault) in try port.store(UInt8(0), at: IOVA(0)) }
    }
    let faults = bench.iommu.faults
    #expect(faults.sourceCount <= FaultLog.maximumSources)
    #expect(faults.count == UInt64(count))
    #expect(
      faults[Bench.device, pasid: PASID(rawValue: UInt32(count))].count == 1, "the latest")
    #expect(faults[Bench.device, pasid: PASID(rawValue: 1)].count == 0, "let go")
    let logged = bench.events.drain().entries.count {
      if case .fault = $0.event { true } else { false }
    }
    // Each is the first of its kind. A slow machine may take a few intervals.
    #expect(logged >= FaultLog.requesterBurst && logged < count / 2, "\(logged)")
  }

  @Test("H2: the record of a PASID goes with the PASID; its faults were counted")
  func forgotten() throws {
    let bench = Bench(.init(pasidBits: 16))
    let pasid = PASID(rawValue: 9)
    let port = bench.iommu.port(for: Bench.device, pasid: pasid)
    for _ in 0..<3 {
      _ = EventQueueTests.abort { () throws(DMAFault) in try port.store(UInt8(0), at: IOVA(0)) }
    }
    #expect(bench.iommu.faults[Bench.device, pasid: pasid].count == 3)
    bench.iommu.forgetPASID(pasid, of: Bench.device)
    #expect(bench.iommu.faults[Bench.device, pasid: pasid].count == 0)
    #expect(bench.iommu.faults.sourceCount == 0 && bench.iommu.faults.count == 3)
  }

  @Test("H2: a source that is busy is kept, whoever comes and goes beside it")
  func leastRecent() throws {
    let bench = Bench(.init(pasidBits: 20))
    let port = bench.port
    for number in 1...UInt32(3 * FaultLog.maximumSources) {
      _ = EventQueueTests.abort { () throws(DMAFault) in try port.store(UInt8(0), at: IOVA(0)) }
      let other = bench.iommu.port(for: Bench.device, pasid: PASID(rawValue: number))
      _ = EventQueueTests.abort { () throws(DMAFault) in try other.store(UInt8(0), at: IOVA(0))
      }
    }
    #expect(
      bench.iommu.faults[Bench.device].count == UInt64(3 * FaultLog.maximumSources))
  }
}
