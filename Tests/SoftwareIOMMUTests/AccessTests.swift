// SPDX-License-Identifier: Apache-2.0
//
// What DMA reaches and what it does not.

import IOMMU
import PageTables
import Testing

@testable import SoftwareIOMMU

@Suite("D: DMA through a page table")
struct AccessTests {
  @Test("D1: reads, writes, loads and stores land in mapped memory", arguments: formats)
  func access(configuration: SoftwareIOMMU.Configuration) throws {
    let bench = Bench(configuration)
    let domain = try bench.attachedDomain()
    let buffer = Buffer(64 << 10)
    for index in buffer.bytes.indices { buffer[index] = UInt8(truncatingIfNeeded: index &* 7) }
    let physical = try bench.pin(buffer.run(), at: 0x1234_5000)
    try domain.map(
      IOVA(0x1234_5000), to: physical, length: 64 << 10, permissions: .readWrite)
    let port = bench.port

    var out = [UInt8](repeating: 0, count: 10_000)
    try out.withUnsafeMutableBytes { bytes in
      try port.read(IOVA(0x1234_5123), into: bytes)
    }
    #expect(out == (0..<10_000).map { UInt8(truncatingIfNeeded: ($0 + 0x123) &* 7) })

    let source = (0..<9000).map { UInt8(truncatingIfNeeded: $0 &* 13) }
    try source.withUnsafeBytes { bytes in
      try port.write(IOVA(0x1234_5801), from: bytes)
    }
    #expect((0..<9000).allSatisfy { buffer[0x801 + $0] == source[$0] })
    #expect(buffer[0x800] == UInt8(truncatingIfNeeded: 0x800 &* 7), "the byte before is old")

    try port.store(UInt64(0x0123_4567_89AB_CDEF), at: IOVA(0x1234_5000))
    #expect(buffer[0] == 0xEF && buffer[7] == 0x01)
    #expect(try port.load(IOVA(0x1234_5000)) as UInt64 == 0x0123_4567_89AB_CDEF)
    #expect(try port.load(IOVA(0x1234_5004)) as UInt32 == 0x0123_4567)
    // Across two pages.
    try port.store(UInt32(0xAABB_CCDD), at: IOVA(0x1234_5FFE))
    #expect(buffer[0xFFE] == 0xDD && buffer[0x1001] == 0xAA)
    #expect(try port.load(IOVA(0x1234_5FFE)) as UInt32 == 0xAABB_CCDD)
    #expect(bench.iommu.faults.count == 0)
  }

  @Test(
    "D1: leaves of 4 KiB, 2 MiB and 1 GiB translate the same, and the device sees them",
    arguments: formats)
  func leafSizes(configuration: SoftwareIOMMU.Configuration) throws {
    let bench = Bench(configuration)
    let domain = try bench.attachedDomain()
    // A GiB that touches little memory: a run that says so, over a small buffer at its ends.
    let size: UInt64 = 1 << 30
    let buffer = Buffer(4 << 20, alignment: 2 << 20)
    let small = try bench.pin(buffer.run(), at: 0)
    try domain.map(IOVA(0), to: small, length: 4 << 20, permissions: .readWrite)
    let far = FarMemory(4096, base: 0)
    let gib = PinnedRun(
      length: size, backing: .remote(far, address: 0),
      identity: MemoryIdentity(space: 0, object: 2, offset: 0))
    let large = try bench.memory.insert(gib, congruentTo: 0)
    try domain.map(IOVA(size), to: large, length: size, permissions: .readWrite)
    let odd = Buffer(8192)
    let pages = try bench.pin(odd.run(), at: 0x1000)
    try domain.map(IOVA(3 * size), to: pages, length: 8192, permissions: .readWrite)

    let port = bench.port
    try port.store(UInt8(1), at: IOVA(0))
    try port.store(UInt8(2), at: IOVA(0x3F_FFFF))
    #expect(buffer[0] == 1 && buffer[0x3F_FFFF] == 2)
    try port.store(UInt8(3), at: IOVA(size + 7))
    #expect(far.buffer[7] == 3)
    try port.store(UInt8(4), at: IOVA(3 * size + 0x1FFF))
    #expect(odd[0x1FFF] == 4)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(0), at: IOVA(0x40_0000)) }
        == .notPresent)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(0), at: IOVA(size - 1)) }
        == .notPresent)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(0), at: IOVA(2 * size)) }
        == .notPresent)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(0), at: IOVA(3 * size + 0x2000)) }
        == .notPresent)
    #expect(
      domain.translate(IOVA(size + 0x1234_5678))?.rawValue == large.rawValue + 0x1234_5678)
    #expect(domain.translate(IOVA(2 * size)) == nil)
  }

  @Test("A3: an unknown, a blocked and a host requester reach nothing, and are counted")
  func outside() throws {
    let bench = Bench()
    let port = bench.port
    func store() -> DMAFault.Reason? {
      reason { () throws(DMAFault) in try port.store(UInt32(1), at: IOVA(0x1000)) }
    }
    #expect(store() == .unknownRequester)
    try bench.iommu.setContext(of: Bench.device, pasid: nil, to: .blocked)
    #expect(store() == .blocked)
    try bench.iommu.setContext(of: Bench.device, pasid: nil, to: .host)
    #expect(store() == .hostMemory)
    #expect(bench.iommu.faults[Bench.device].count == 3)
    #expect(bench.iommu.faults[Bench.neighbour].count == 0)
    let fault = try #require(bench.iommu.faults[Bench.device].latest)
    #expect(fault.iova == IOVA(0x1000) && fault.access == .write && fault.pasid == nil)
    #expect(
      fault.description
        == "0000:e0:04.0: write at 0x1000 aborted: nobody owns the device, and the host's "
        + "memory is out of reach")
  }

  @Test(
    "B1: a write through a read-only mapping faults and changes nothing; so does a read of write-only",
    arguments: formats)
  func permissions(configuration: SoftwareIOMMU.Configuration) throws {
    let bench = Bench(configuration)
    let domain = try bench.attachedDomain()
    let buffer = Buffer(8192)
    buffer.fill(9)
    let physical = try bench.pin(buffer.run(), at: 0)
    try domain.map(IOVA(0), to: physical, length: 4096, permissions: .read)
    try domain.map(
      IOVA(4096), to: PhysicalAddress(physical.rawValue + 4096), length: 4096,
      permissions: .write)
    let port = bench.port
    #expect(try port.load(IOVA(0)) as UInt32 == 0x0909_0909)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt32(0), at: IOVA(0)) } == .permission)
    #expect(buffer[0] == 9)
    try port.store(UInt32(0), at: IOVA(4096))
    #expect(buffer[4096] == 0)
    #expect(
      reason { () throws(DMAFault) in _ = try port.load(IOVA(4096)) as UInt32 }
        == (configuration.readsWhatItWrites ? nil : .permission))
    // A copy into the read-only page stops there.
    #expect(
      reason { () throws(DMAFault) in try port.copy(from: IOVA(0), to: IOVA(0), length: 8) }
        == .permission)
  }

  @Test(
    "D1: an access that runs off a mapping transfers what lies before and faults at the edge")
  func edge() throws {
    let bench = Bench()
    let domain = try bench.attachedDomain()
    let buffer = Buffer(4096)
    let physical = try bench.pin(buffer.run(), at: 0x8000)
    try domain.map(IOVA(0x8000), to: physical, length: 4096, permissions: .readWrite)
    let port = bench.port
    let data = Buffer(16)
    data.fill(7)
    var fault: DMAFault?
    do throws(DMAFault) {
      try port.write(IOVA(0x8FF8), from: UnsafeRawBufferPointer(data.bytes))
    } catch {
      fault = error
    }
    #expect(fault?.iova == IOVA(0x9000))
    #expect(fault?.reason == .notPresent)
    #expect(buffer[0xFF7] == 0 && buffer[0xFF8] == 7 && buffer[0xFFF] == 7)
    #expect(bench.iommu.faults.count == 1)
  }

  @Test("D1: an access past the width or round the end of the address space faults")
  func overflow() throws {
    for configuration in formats {
      let bench = Bench(configuration)
      _ = try bench.attachedDomain()
      let port = bench.port
      let isWide = configuration.addressBits != 64 && !configuration.isCanonical
      let wide: DMAFault.Reason = isWide ? .addressWidth : .notPresent
      if configuration.isCanonical {
        #expect(
          reason { () throws(DMAFault) in
            try port.store(UInt8(0), at: IOVA(1 << UInt64(configuration.apertureBits)))
          } == .addressWidth)
      }
      #expect(
        reason { () throws(DMAFault) in try port.store(UInt8(0), at: IOVA(.max)) } == wide)
      #expect(
        reason { () throws(DMAFault) in try port.store(UInt16(0), at: IOVA(.max)) }
          == .addressWidth)
      #expect(
        reason { () throws(DMAFault) in try port.fill(IOVA(.max - 6), pattern: 0, length: 8) }
          == .addressWidth)
      #expect(
        reason { () throws(DMAFault) in try port.copy(from: IOVA(0), to: IOVA(.max), length: 2)
        } == .addressWidth)
      #expect(
        reason { () throws(DMAFault) in try port.copy(from: IOVA(.max), to: IOVA(0), length: 2)
        } == .addressWidth)
    }
  }

  @Test(
    "D1: copies and fills work between local memory and memory behind calls, in every pairing")
  func copies() throws {
    let bench = Bench()
    let domain = try bench.attachedDomain()
    let size = 300 << 10
    let near = Buffer(size)
    let other = Buffer(size)
    let far = FarMemory(size, base: 0x7000_0000)
    let farther = FarMemory(size, base: 0x9000_0000)
    // Offsets that are no multiples of 2 MiB: leaves of 4 KiB.
    let places: [(UInt64, Buffer, PinnedRun)] = [
      (0x1_0010_0000, near, near.run()), (0x2_0020_1000, other, other.run()),
      (0x3_0030_2000, far.buffer, far.run()), (0x4_0040_3000, farther.buffer, farther.run()),
    ]
    for (iova, _, run) in places {
      let physical = try bench.pin(run, at: iova)
      try domain.map(IOVA(iova), to: physical, length: UInt64(size), permissions: .readWrite)
    }
    let port = bench.port
    for (from, source, _) in places {
      for (to, target, _) in places where from != to {
        for index in source.bytes.indices {
          source[index] = UInt8(truncatingIfNeeded: index &* 31 &+ Int(from >> 32))
        }
        target.fill(0)
        let calls = far.calls
        try port.copy(from: IOVA(from + 5), to: IOVA(to + 11), length: size - 100)
        #expect((0..<size - 100).allSatisfy { target[$0 + 11] == source[$0 + 5] })
        #expect(target[10] == 0 && target[size - 89] == 0)
        #expect(far.calls - calls <= 8, "neighbouring pages are one call")
      }
    }
    for (iova, target, _) in places {
      target.fill(0)
      try port.fill(IOVA(iova + 3), pattern: 0x8877_6655_4433_2211, length: 200_005)
      #expect((0..<200_005).allSatisfy { target[$0 + 3] == UInt8(($0 % 8 + 1) * 0x11) })
      #expect(target[2] == 0 && target[200_008] == 0)
    }
    #expect(bench.iommu.faults.count == 0)
  }

  @Test("D1: memory that is gone faults, and so does memory that is not pinned")
  func gone() throws {
    let bench = Bench()
    let domain = try bench.attachedDomain()
    let far = FarMemory(4096, base: 0x1000)
    let physical = try bench.pin(far.run(), at: 0)
    try domain.map(IOVA(0), to: physical, length: 4096, permissions: .readWrite)
    try domain.map(
      IOVA(0x10000), to: PhysicalAddress(physical.rawValue + (5 << 30)), length: 4096,
      permissions: .readWrite)
    let port = bench.port
    try port.store(UInt64(1), at: IOVA(0))
    far.vanish()
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt64(1), at: IOVA(0)) } == .memoryGone)
    #expect(
      reason { () throws(DMAFault) in _ = try port.load(IOVA(0)) as UInt64 } == .memoryGone)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt64(1), at: IOVA(0x10000)) }
        == .memoryGone)
  }

  @Test("D1: an access crosses from one pinned run behind calls to the next")
  func neighbours() throws {
    let bench = Bench()
    let domain = try bench.attachedDomain()
    // The first run ends where its GiB of physical space ends, the second begins there.
    let runs = [FarMemory(64 << 10, base: 0x1000), FarMemory(64 << 10, base: 0x90000)]
    let start: UInt64 = 1 << 30 - 64 << 10
    var physical: [PhysicalAddress] = []
    for (index, far) in runs.enumerated() {
      let iova = start + UInt64(index) << 16
      physical.append(try bench.pin(far.run(), at: iova))
      try domain.map(
        IOVA(iova), to: physical[index], length: 64 << 10, permissions: .readWrite)
    }
    #expect(physical[1].rawValue == physical[0].rawValue + 64 << 10, "what the test is about")
    try bench.port.fill(
      IOVA(start + 4096), pattern: 0x0101_0101_0101_0101, length: 120 << 10)
    #expect(runs[0].buffer.bytes.dropFirst(4096).allSatisfy { $0 == 1 })
    #expect(runs[1].buffer.bytes.prefix(60 << 10).allSatisfy { $0 == 1 })
    #expect(runs[0].buffer[4095] == 0 && runs[1].buffer[60 << 10] == 0)
    #expect(bench.iommu.faults.count == 0)
  }

  @Test("D1: a leaf that sticks out of its pinned window gives no way out of it")
  func window() throws {
    let bench = Bench()
    let domain = try bench.attachedDomain()
    let buffer = Buffer(8192)
    // Pinned: 8 KiB at 2 MiB. Mapped: 2 MiB from there, as a faulty engine might.
    let physical = try bench.pin(buffer.run(), at: 2 << 20)
    try domain.map(IOVA(0), to: physical, length: 2 << 20, permissions: .readWrite)
    let port = bench.port
    try port.store(UInt8(1), at: IOVA(8191))
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(8192)) } == .memoryGone)
    #expect(
      reason { () throws(DMAFault) in try port.fill(IOVA(0), pattern: 0, length: 8193) }
        == .memoryGone)
  }
}
