// SPDX-License-Identifier: Apache-2.0
//
// What IOMMUs record of devices that translate ahead (MODEL H2; PCI Express, 10.2.3; VT-d 4.1,
// 7.1.3; 48882, 2.1.3.2 and 2.5.9; IHI 0070, 3.9.1.2 and 3.9.1.3; RISC-V IOMMU 1.0, 3.6): of their
// translation requests next to nothing, of what they keep too long all.

import HardwareTables
import IOMMU
import PageTables
import Testing

@testable import SoftwareIOMMU

@Suite("H2: requests of devices with ATS") struct DeviceRequestTests {
  private static func bench(_ configuration: SoftwareIOMMU.Configuration) -> Bench {
    var configuration = configuration
    configuration.invalidationTimeout = .milliseconds(30)
    let bench = Bench(configuration)
    bench.iommu.setFeatures(.init(translationCache: true), of: Bench.device)
    return bench
  }

  private static func store(_ port: DMAPort, _ iova: UInt64) -> DMAFault? {
    EventQueueTests.abort { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(iova)) }
  }

  @Test(
    "H2: a translation request that finds nothing is answered; the fault log has it, no queue",
    arguments: EventQueueTests.families)
  func answered(configuration: SoftwareIOMMU.Configuration) throws {
    let bench = Self.bench(configuration)
    let domain = try bench.attachedDomain()
    let physical = try bench.pin(Buffer(4096).run(), at: 0x4000)
    try domain.map(IOVA(0x4000), to: physical, length: 4096, permissions: .read)
    let queue = bench.iommu.eventQueue
    for iova: UInt64 in [0x5123, 0x4000] {
      let fault = Self.store(bench.port, iova)
      #expect(fault?.kind == .translation && fault?.cause != nil)
    }
    #expect(queue.drain().events.isEmpty && bench.iommu.faults.count == 2)
    // Its neighbour has no ATS. An interrupt is never translated, nor is what is sent while ATS is
    // off.
    let neighbour = bench.iommu.port(for: Bench.neighbour)
    try bench.iommu.setContext(of: Bench.neighbour, pasid: nil, to: .paging(domain))
    #expect(Self.store(neighbour, 0x5123)?.kind == .untranslated)
    #expect(queue.drain().events.count == 1)
    _ = EventQueueTests.abort { () throws(DMAFault) in
      try bench.port.store(UInt8(1), at: IOVA(0xFEE0_0000))
    }
    #expect(queue.drain().events.count == 1)
    try bench.iommu.setContext(of: Bench.device, pasid: nil, to: .blocked)
    let blocked = Self.store(bench.port, 0x4000)
    #expect(blocked?.kind == .untranslated && blocked?.cause == .blocked)
  }

  @Test(
    "H2, G2: a device that is cut off goes on with what it keeps: translated requests, recorded",
    arguments: EventQueueTests.families)
  func cutOff(configuration: SoftwareIOMMU.Configuration) throws {
    let bench = Self.bench(configuration)
    let domain = try bench.attachedDomain()
    let physical = try bench.pin(Buffer(2 * 4096).run(), at: 0x4000)
    // AMD's table would have one leaf for both.
    for page in [0, 4096] as [UInt64] {
      try domain.map(
        IOVA(0x4000 + page), to: PhysicalAddress(physical.rawValue + page), length: 4096,
        permissions: .readWrite)
    }
    let port = bench.port
    port.confirmsByHand = true
    try port.store(UInt8(1), at: IOVA(0x4000))
    domain.unmap(IOVA(0x4000), length: 4096)
    let fault = Self.store(port, 0x4008)
    #expect(fault?.reason == .blocked && fault?.kind == .translated)
    let words =
      switch configuration.architecture {
      // SCT.5, AT 10b.
      case .intel: Words4(0x4000, 0xA000_0044_0000_E020, 0, 0)
      // INVALID_DEVICE_REQUEST, type 1.
      case .amd: Words4(0x8200_0000_0000_E020, 0x4008, 0, 0)
      // F_TRANSL_FORBIDDEN.
      case .smmuV3: Words4(0x0000_E020_0000_0007, 0, 0x4008, 0)
      // Cause 260, TTYP 7.
      case .riscv: Words4(0x00E0_2000_0000_0104 | 7 << 34, 0, 0x4008, 0)
      }
    #expect(bench.iommu.eventQueue.drain().events.map(\.words) == [words])
    // Its interrupts are not translated, and blocked.
    let interrupt = EventQueueTests.abort { () throws(DMAFault) in
      try port.store(UInt32(0), at: IOVA(0xFEE0_0000))
    }
    #expect(interrupt?.kind == .untranslated && interrupt?.reason == .blocked)
    // With a context it begins anew.
    port.confirmsByHand = false
    try bench.iommu.setContext(of: Bench.device, pasid: nil, to: .paging(domain))
    try port.store(UInt8(1), at: IOVA(0x5000))
    #expect(Self.store(port, 0x4000)?.kind == .translation)
  }

  @Test(
    "H2: a stream whose EATS is 0 asks for no translations: its faults are recorded and told",
    arguments: [0, 1] as [UInt64])
  func eats(eats: UInt64) throws {
    var configuration = SoftwareIOMMU.Configuration(architecture: .smmuV3, pasidBits: 8)
    configuration.pageRequests = true
    let guest = try NestedBench(configuration)
    guest.bench.iommu.setFeatures(.init(translationCache: true), of: Bench.device)
    let virtual = try guest.virtualSMMU()
    try virtual.addDevice(Bench.device, virtualID: 7)
    let (descriptor, root) = (guest.page(), guest.page())
    guest.writeContext(descriptor, table: root)
    func attach() throws {
      try guest.attach(
        try virtual.makeNestedDomain(
          attributes: [],
          data: NestedBench.streamData(1 | 5 << 1 | descriptor, eats << 28)))
    }
    try attach()
    let port = guest.bench.port
    let first = Self.store(port, 0x6000)
    guest[descriptor] = 0
    try attach()
    let second = Self.store(port, 0x6000)
    #expect(first?.reason == .notPresent && second?.reason == .badConfiguration)
    let isTranslation = eats == 1
    for fault in [first, second] {
      #expect(fault?.kind == (isTranslation ? .translation : .untranslated))
      #expect((fault?.virtualSMMUEvent(stream: 7) == nil) == isTranslation)
    }
    // F_TRANSLATION and C_BAD_CD, or the answers R == W == 0 and Completer Abort.
    #expect(
      guest.bench.iommu.eventQueue.drain().events.map(\.code)
        == (isTranslation ? [] : [0x10, 0x0A]))
  }

  @Test(
    "H2: a RISC-V guest's EN_ATS says whether its device asks for translations; DTF hides faults"
  )
  func riscv() throws {
    var configuration = SoftwareIOMMU.Configuration(architecture: .riscv, pasidBits: 8)
    configuration.pageRequests = true
    for (control, isTranslation, events) in [
      (0, false, [15]), (1 << 1, true, []), (1 << 4, false, []),
    ] as [(UInt64, Bool, [UInt16])] {
      let guest = try NestedBench(configuration)
      guest.bench.iommu.setFeatures(.init(translationCache: true), of: Bench.device)
      let virtual = try guest.virtualIOMMU(type: RISCVVirtualIOMMU.type)
      try virtual.addDevice(Bench.device, virtualID: 7)
      try guest.attach(
        try virtual.makeNestedDomain(
          attributes: [],
          data: RISCVNestedContext(
            translationControl: control | 1,
            firstStageContext: 9 << 60 | guest.page() >> 12
          ).userData))
      let fault = Self.store(guest.bench.port, 0x6000)
      #expect(fault?.kind == (isTranslation ? .translation : .untranslated))
      #expect(guest.bench.iommu.eventQueue.drain().events.map(\.code) == events)
    }
  }
}
