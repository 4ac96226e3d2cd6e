// SPDX-License-Identifier: Apache-2.0
//
// What the driver says of itself, what it refuses, and interrupts.

import IOMMU
import PageTables
import SystemPackage
import Testing

@testable import SoftwareIOMMU

@Suite("B8: the software IOMMU as a driver")
struct DriverTests {
  @Test("B8: geometry is what the table translates", arguments: formats)
  func geometry(configuration: SoftwareIOMMU.Configuration) throws {
    let domain = try Bench(configuration).domain()
    let bits = UInt64(configuration.apertureBits)
    #expect(domain.geometry.aperture == 0...(bits == 64 ? .max : (1 << bits) - 1))
    #expect(domain.geometry.pageSizes.smallest == 4096)
    #expect(domain.geometry.enforcesSnoop)
  }

  @Test("B7: attributes that the IOMMU lacks are refused with EOPNOTSUPP")
  func attributes() {
    let bench = Bench(.init(tracksDirty: false, nests: false))
    for attribute: PagingAttributes in [.nestParent, .dirtyTracking, .pasid] {
      #expect {
        _ = try bench.iommu.makePagingDomain(for: Bench.device, attributes: attribute)
      } throws: {
        ($0 as? IOMMUError)?.errno == .notSupportedOnSocket
      }
    }
  }

  @Test(
    "B7: what others nest on is a second stage, and all but VT-d have first stages for PASIDs")
  func stages() throws {
    for architecture in SoftwareIOMMU.Architecture.allCases {
      let bench = Bench(.init(architecture: architecture, stage: .first, pasidBits: 4))
      let parent = try bench.iommu.makePagingDomain(for: Bench.device, attributes: .nestParent)
      let isSecond =
        switch architecture {
        case .intel: parent is IntelSecondStageDomain
        case .amd: parent is AMDv1Domain
        case .smmuV3: parent is ArmStage2Domain
        case .riscv: parent is RISCVSecondStageDomain
        }
      #expect(isSecond, "\(architecture)")
      let both = reasonForRefusal {
        _ = try bench.iommu.makePagingDomain(
          for: Bench.device, attributes: [.nestParent, .pasid])
      }
      #expect(both == (architecture == .intel ? nil : .notSupportedOnSocket))
    }
    for architecture in SoftwareIOMMU.Architecture.allCases where architecture != .intel {
      let bench = Bench(.init(architecture: architecture, stage: .second, pasidBits: 4))
      let table = try bench.iommu.makePagingDomain(for: Bench.device, attributes: .pasid)
      let isFirst = table is AMDv2Domain || table is ArmStage1Domain
      #expect(isFirst || table is RISCVFirstStageDomain, "\(architecture)")
    }
    let amd = Bench(.init(architecture: .amd, pasidBits: 4))
    #expect(try amd.domain() is AMDv1Domain)
  }

  private func reasonForRefusal(_ body: () throws -> Void) -> Errno? {
    do {
      try body()
      return nil
    } catch {
      return (error as? IOMMUError)?.errno
    }
  }

  @Test("B8: the MSI window is always reserved, beside what the machine file reserves")
  func reserved() {
    let extra = ReservedRegion(0x1000...0x1FFF, kind: .direct)
    let bench = Bench(.init(reservedRegions: [extra]))
    #expect(
      bench.iommu.reservedRegions(for: Bench.device) == [
        ReservedRegion(0xFEE0_0000...0xFEEF_FFFF, kind: .msi), extra,
      ])
  }

  @Test(
    "B7: a page table of another format, width, machine or driver is refused; the old context stays"
  )
  func misfit() throws {
    let bench = Bench()
    let domain = try bench.attachedDomain()
    let buffer = Buffer(4096)
    try domain.map(
      IOVA(0), to: try bench.pin(buffer.run(), at: 0), length: 4096, permissions: .readWrite)
    final class Foreign: PagingDomain {
      var geometry: DomainGeometry {
        DomainGeometry(aperture: 0...1, pageSizes: [], enforcesSnoop: false)
      }
      func map(
        _ iova: IOVA, to physical: PhysicalAddress, length: UInt64, permissions: Permissions
      ) throws(IOMMUError) {}
      func unmap(_ iova: IOVA, length: UInt64) {}
      func translate(_ iova: IOVA) -> PhysicalAddress? { nil }
    }
    let strangers: [any PagingDomain] = [
      Foreign(), try Bench(.init(architecture: .amd)).domain(),
      try Bench(.init(levels: 5)).domain(), try Bench().domain(),
    ]
    for stranger in strangers {
      #expect {
        try bench.iommu.setContext(of: Bench.device, pasid: nil, to: .paging(stranger))
      } throws: {
        ($0 as? IOMMUError)?.errno == .invalidArgument
      }
    }
    try bench.port.store(UInt8(1), at: IOVA(0))
    #expect(buffer[0] == 1)
  }

  @Test("D1: requests with a PASID go through the PASID's context, others through the RID's")
  func pasids() throws {
    let bench = Bench(.init(pasidBits: 4))
    let mine = Buffer(4096)
    let theirs = Buffer(4096)
    let own = try bench.attachedDomain()
    let other = try bench.iommu.makePagingDomain(for: Bench.device, attributes: .pasid)
    try own.map(
      IOVA(0), to: try bench.pin(mine.run(), at: 0), length: 4096, permissions: .readWrite)
    try other.map(
      IOVA(0), to: try bench.pin(theirs.run(), at: 0), length: 4096, permissions: .readWrite)
    let pasid = PASID(rawValue: 15)
    let port = bench.iommu.port(for: Bench.device, pasid: pasid)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(0)) }
        == .unknownRequester)
    try bench.iommu.setContext(of: Bench.device, pasid: pasid, to: .paging(other))
    try port.store(UInt8(1), at: IOVA(0))
    try bench.port.store(UInt8(2), at: IOVA(0))
    #expect(mine[0] == 2 && theirs[0] == 1)
    #expect(throws: IOMMUError.self) {
      try bench.iommu.setContext(of: Bench.device, pasid: PASID(rawValue: 16), to: .blocked)
    }
    #expect(throws: IOMMUError.self) {
      try Bench().iommu.setContext(of: Bench.device, pasid: PASID(rawValue: 0), to: .blocked)
    }
  }

  @Test("D1: a table over its memory limit answers ENOMEM and keeps nothing")
  func memoryLimit() throws {
    let bench = Bench(.init(maximumTablePages: 3))
    let domain = try bench.attachedDomain()
    #expect {
      try domain.map(IOVA(0), to: PhysicalAddress(0), length: 4096, permissions: .read)
    } throws: {
      ($0 as? IOMMUError)?.errno == .noMemory
    }
    #expect(domain.translate(IOVA(0)) == nil)
  }

  @Test("H2: each kind of fault is logged once, then at a bounded rate, and always counted")
  func faultLog() throws {
    let bench = Bench()
    bench.events.startRecording()
    try bench.iommu.setContext(of: Bench.device, pasid: nil, to: .blocked)
    for _ in 0..<1000 {
      #expect(throws: DMAFault.self) { try bench.port.store(UInt8(0), at: IOVA(0x5000)) }
    }
    let record = bench.iommu.faults[Bench.device]
    #expect(record.count == 1000)
    let logged = bench.events.drain().entries.filter {
      if case .fault = $0.event { true } else { false }
    }
    #expect(logged.count == 1000 - Int(record.suppressed))
    // The loop may straddle intervals on a slow machine, but not a hundred of them.
    #expect(logged.count >= 1 + FaultLog.burst && logged.count < 900)
  }
}

@Suite("C4: interrupts are writes to the reserved window")
struct InterruptTests {
  @Test(
    "C4: an interrupt reaches its signal in the host's and in a user's context, not when blocked"
  )
  func delivery() throws {
    let bench = Bench()
    let counter = Counter()
    let message = try bench.iommu.interrupts.allocate(for: Bench.device, signal: counter)
    #expect(InterruptRemapper.window.contains(message.address))
    let port = bench.port
    func raise() -> DMAFault.Reason? {
      reason { () throws(DMAFault) in try port.store(message.data, at: IOVA(message.address)) }
    }
    #expect(raise() == .unknownRequester)
    try bench.iommu.setContext(of: Bench.device, pasid: nil, to: .blocked)
    #expect(raise() == .blocked)
    #expect(counter.count == 0)
    try bench.iommu.setContext(of: Bench.device, pasid: nil, to: .host)
    #expect(raise() == nil)
    #expect(counter.count == 1)
    _ = try bench.attachedDomain()
    #expect(raise() == nil)
    #expect(counter.count == 2)
    bench.iommu.interrupts.free(message)
    #expect(raise() == .interruptRefused)
    #expect(counter.count == 2)
    #expect(bench.iommu.interrupts.count == 0)
  }

  @Test("C4: a device cannot raise another device's interrupt")
  func foreign() throws {
    let bench = Bench()
    let counter = Counter()
    let message = try bench.iommu.interrupts.allocate(for: Bench.neighbour, signal: counter)
    _ = try bench.attachedDomain()
    #expect(
      reason { () throws(DMAFault) in
        try bench.port.store(message.data, at: IOVA(message.address))
      } == .interruptRefused)
    #expect(counter.count == 0)
  }

  @Test("C4: the window takes aligned writes of 4 bytes only, whatever is mapped there")
  func window() throws {
    let bench = Bench()
    let domain = try bench.attachedDomain()
    let buffer = Buffer(4 << 20, alignment: 2 << 20)
    // The engine never maps the window; a table that does must not be walked there.
    let physical = try bench.pin(buffer.run(), at: 0xFEE0_0000)
    try domain.map(IOVA(0xFEE0_0000), to: physical, length: 4 << 20, permissions: .readWrite)
    let port = bench.port
    let base: UInt64 = 0xFEE0_0000
    // Beside the window, in the same 2 MiB leaf: memory.
    try port.store(UInt8(5), at: IOVA(0xFEF0_0000))
    #expect(buffer[0x10_0000] == 5)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt64(0), at: IOVA(base)) }
        == .interruptWindow)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt16(0), at: IOVA(base)) }
        == .interruptWindow)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt32(0), at: IOVA(base + 2)) }
        == .interruptWindow)
    #expect(
      reason { () throws(DMAFault) in _ = try port.load(IOVA(base)) as UInt32 }
        == .interruptWindow)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt32(0), at: IOVA(base)) }
        == .interruptRefused)
    #expect(
      reason { () throws(DMAFault) in
        try port.copy(from: IOVA(0xFEF0_0000), to: IOVA(0xFEEF_FFF8), length: 8)
      } == .interruptWindow)
    #expect(buffer.bytes.prefix(0x10_0000).allSatisfy { $0 == 0 })
  }

  @Test("C4: messages have VT-d's remappable format, and all handles survive it")
  func encoding() throws {
    #expect(InterruptRemapper.message(handle: 0) == MSIMessage(address: 0xFEE0_0010, data: 0))
    #expect(InterruptRemapper.message(handle: 1) == MSIMessage(address: 0xFEE0_0030, data: 0))
    #expect(InterruptRemapper.message(handle: 0x8000).address == 0xFEE0_0014)
    for handle in 0..<InterruptRemapper.capacity {
      let message = InterruptRemapper.message(handle: handle)
      #expect(InterruptRemapper.handle(address: message.address, data: message.data) == handle)
    }
    #expect(
      InterruptRemapper.handle(address: 0xFEE0_0000, data: 0) == nil, "compatibility format")
    #expect(InterruptRemapper.handle(address: 0xFEE0_0010, data: 1) == nil)
    #expect(InterruptRemapper.handle(address: 0xFEF0_0010, data: 0) == nil)
  }

  @Test("C4: interrupts run out with ENOSPC and come back")
  func exhaustion() throws {
    let bench = Bench()
    let counter = Counter()
    var messages: [MSIMessage] = []
    for _ in 0..<InterruptRemapper.capacity {
      messages.append(try bench.iommu.interrupts.allocate(for: Bench.device, signal: counter))
    }
    #expect(Set(messages).count == InterruptRemapper.capacity)
    #expect {
      _ = try bench.iommu.interrupts.allocate(for: Bench.device, signal: counter)
    } throws: {
      ($0 as? IOMMUError)?.errno == .noSpace
    }
    bench.iommu.interrupts.free(messages[77])
    bench.iommu.interrupts.free(messages[77])
    #expect(
      try bench.iommu.interrupts.allocate(for: Bench.device, signal: counter) == messages[77])
  }

  @Test("C4: messages of a block differ in their data; vacant ones, and past it, are refused")
  func blocks() throws {
    let bench = Bench()
    _ = try bench.attachedDomain()
    let single = try bench.iommu.interrupts.allocate(for: Bench.device, signal: Counter())
    let counters = (0..<3).map { _ in Counter() }
    let block = try bench.iommu.interrupts.allocate(
      for: Bench.device, signals: counters + [nil])
    #expect(block == MSIMessage(address: 0xFEE0_0038, data: 0))
    #expect(bench.iommu.interrupts.count == 5)
    let port = bench.port
    func raise(_ data: UInt32) -> DMAFault.Reason? {
      reason { () throws(DMAFault) in try port.store(data, at: IOVA(block.address)) }
    }
    for data in 0..<3 as Range<UInt32> { #expect(raise(data) == nil) }
    for data in [3, 4, 0xFFFF, 0x1_0000, .max] as [UInt32] {
      #expect(raise(data) == .interruptRefused)
    }
    #expect(counters.map(\.count) == [1, 1, 1])
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt32(1), at: IOVA(single.address)) }
        == .interruptRefused, "its subhandle is not valid")
    bench.iommu.interrupts.free(block, count: 4)
    #expect(raise(0) == .interruptRefused)
    // What is free is used again, and what is not in a row is not.
    let next = try bench.iommu.interrupts.allocate(for: Bench.device, signal: Counter())
    let other = try bench.iommu.interrupts.allocate(
      for: Bench.device, signals: [counters[0], counters[1], nil, nil])
    #expect(InterruptRemapper.handle(address: next.address, data: 0) == 4)
    #expect(InterruptRemapper.handle(address: other.address, data: 0) == 5)
    bench.iommu.interrupts.free(next)
    let fits = try bench.iommu.interrupts.allocate(
      for: Bench.device, signals: Array(repeating: counters[0], count: 4))
    #expect(InterruptRemapper.handle(address: fits.address, data: 0) == 1)
    #expect {
      _ = try bench.iommu.interrupts.allocate(
        for: Bench.device,
        signals: Array(repeating: counters[0], count: InterruptRemapper.capacity))
    } throws: {
      ($0 as? IOMMUError)?.errno == .noSpace
    }
  }
}
