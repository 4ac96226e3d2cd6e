// SPDX-License-Identifier: Apache-2.0
//
// Users whose own tables keep their devices from asking for pages (MODEL H1, H2, B9): EN_ATS and
// EN_PRI of RISC-V's device contexts (RISC-V IOMMU 1.0, 2.1.3 and 2.7), PPR of AMD's device table
// entries (48882, 2.2.2.1), EATS of SMMUv3's stream table entries (IHI 0070, 3.9.1).

import Glibc
import HardwareTables
import IOMMU
import PageTables
import SystemPackage
import Testing

@testable import SoftwareIOMMU

@Suite("H1: page requests that a user's table forbids", .timeLimit(.minutes(10)))
struct PageRequestRefusalTests {
  /// A device that asks for pages, on a user's table with a fault queue, over a space that maps
  /// nothing.
  private final class Rig {
    let iommu: SoftwareIOMMU
    let context: Context
    let binding: Binding
    let queue: FaultQueue

    init(_ architecture: SoftwareIOMMU.Architecture, _ data: UserData) throws {
      let system = IOMMUSystem()
      var configuration = SoftwareIOMMU.Configuration(
        architecture: architecture, pasidBits: 8)
      configuration.pageRequests = true
      iommu = SoftwareIOMMU(
        name: "dmar0", configuration: configuration, memory: system.memory,
        events: system.events)
      iommu.setFeatures(.init(pageRequests: true), of: Bench.device)
      context = Context(system: system)
      binding = try context.register(
        system.addDevice(
          name: "device", requester: Bench.device, driver: iommu, group: system.addGroup()))
      queue = try context.makeFaultQueue()
      var parent = try context.allocateHWPT(
        for: binding.id, from: context.allocateIOAS(), attributes: .nestParent)
      if architecture != .riscv {
        parent = try context.allocateVirtualIOMMU(type: 1, for: binding.id, on: parent)
        _ = try context.allocateVirtualDevice(binding.id, in: parent, virtualID: 7)
      }
      let table = try context.allocateHWPT(
        for: binding.id, from: parent, data: data, faultQueue: queue.id)
      try binding.group.attach(to: table)
    }

    /// What becomes of an access: its fault, and whether pages were asked for, which nobody brings.
    func access() throws -> (fault: DMAFault?, asks: Bool, events: [Words4]) {
      let port = iommu.port(for: Bench.device)
      port.waits = DeviceWait()
      let fault = Monitor<DMAFault?>(nil)
      let access = BackgroundAccess { () throws(DMAFault) in
        do throws(DMAFault) {
          try port.store(UInt8(1), at: IOVA(0x5123))
        } catch {
          fault.change { $0 = error }
          throw error
        }
      }
      var asks = false
      while !access.isDone {
        var cookie: UInt32?
        _ = try queue.read(atMost: 64) { cookie = $0.cookie }
        if let cookie {
          asks = true
          try queue.respond(to: cookie, with: .invalid)
        } else {
          usleep(200)
        }
      }
      _ = access.end()
      return (
        fault.withLock { $0 }, asks, iommu.eventQueue.drain().events.map(\.words)
      )
    }
  }

  @Test(
    "H1, H2: RISC-V: EN_PRI clear is cause 260 of a message; EN_ATS clear, no request at all")
  func riscv() throws {
    let (ats, pri, dtf) = (1 << 1, 1 << 2, 1 << 4) as (UInt64, UInt64, UInt64)
    func rig(_ control: UInt64) throws -> Rig {
      try Rig(
        .riscv,
        RISCVNestedContext(translationControl: 1 | control, firstStageContext: 9 << 60 | 1)
          .userData)
    }
    let asked = try rig(ats | pri).access()
    #expect(asked.asks && asked.fault?.kind == .translation && asked.events.isEmpty)
    let refused = try rig(ats).access()
    #expect(!refused.asks && refused.fault?.reason == .notPresent)
    #expect(refused.fault?.kind == .page)
    // CAUSE 260, TTYP 9, DID; iotval is the message's code.
    #expect(refused.events == [Words4(260 | 9 << 34 | 0xE020 << 40, 0, 4, 0)])
    let hidden = try rig(ats | dtf).access()
    #expect(!hidden.asks && hidden.events.isEmpty)
    let off = try rig(0).access()
    #expect(!off.asks && off.fault?.kind == .untranslated)
    #expect(off.events == [Words4(23 | 3 << 34 | 0xE020 << 40, 0, 0x5123, 0x1001)])
  }

  @Test("H1: AMD: PPR clear: requests are answered invalid, and reach nobody")
  func amd() throws {
    // Without GIoV what has no PASID goes by the host's table.
    for asks in [true, false] {
      let data = NestedBench.amdData(
        gcr3: 0x1000, guestIO: false, { if asks { $0[0] |= 1 << 52 } })
      let found = try Rig(.amd, data).access()
      #expect(found.asks == asks && found.fault?.reason == .notPresent)
      #expect(found.fault?.kind == (asks ? .translation : .page) && found.events.isEmpty)
    }
  }

  @Test(
    "H1, H2: SMMUv3: where a stream has no ATS its device asks for nothing, and is recorded")
  func smmu() throws {
    // Stage 1 is bypassed.
    let found = try Rig(.smmuV3, NestedBench.streamData(1 | 4 << 1)).access()
    #expect(!found.asks && found.fault?.kind == .untranslated)
    #expect(
      found.events == [
        Words4(0xE020 << 32 | 0x10, 0x0000_0280_0000_0000, 0x5123, 0x5000)
      ])
  }
}
