// SPDX-License-Identifier: Apache-2.0
//
// MODEL H3 in the software IOMMU: every wait of a device for a page ends, whatever its user does.

import Glibc
import IOMMU
import PageTables
import Synchronization
import SystemPackage
import Testing

@testable import SoftwareIOMMU

@Suite("H3: a wait for a page ends", .serialized)
struct PageRequestEndTests {
  /// An access that waits for its page.
  private func wait(
    _ rig: PageRequestRig, _ waits: DeviceWait = DeviceWait(), read: Bool = true
  ) throws -> BackgroundAccess {
    let port = rig.port(waits)
    let access = BackgroundAccess { () throws(DMAFault) in
      try port.store(UInt8(1), at: IOVA(0x5000))
    }
    while rig.iommu.pageRequestCounts.groups == 0 { usleep(100) }
    if read { _ = try rig.read() }
    #expect(!access.isDone)
    return access
  }

  @Test("H3: detach ends it, the request being read or not", arguments: [true, false])
  func detach(read: Bool) throws {
    let rig = try PageRequestRig()
    let access = try wait(rig, read: read)
    rig.binding.group.detach()
    #expect(access.end() != nil)
    #expect(rig.iommu.pageRequestCounts.outstanding == 0)
  }

  @Test("H3: replace ends it with the old table's queue", arguments: [true, false])
  func replace(read: Bool) throws {
    let rig = try PageRequestRig()
    let other = try rig.context.allocateHWPT(
      for: rig.binding.id, from: rig.ioas, attributes: .pasid)
    let access = try wait(rig, read: read)
    _ = try rig.binding.group.attach(to: other)
    #expect(access.end() != nil)
    #expect(rig.iommu.pageRequestCounts.outstanding == 0)
  }

  @Test("H3: closing the queue ends it, and what comes later has an answer at once")
  func close() throws {
    let rig = try PageRequestRig()
    let access = try wait(rig)
    rig.context.close(rig.queue)
    #expect(access.end() == .notPresent)
    let port = rig.port()
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(0x5000)) }
        == .notPresent)
  }

  @Test("H3: a reset of the device ends it; its answer comes late and answers nobody else")
  func cancel() throws {
    let rig = try PageRequestRig()
    let waits = DeviceWait()
    let port = rig.port(waits)
    let access = BackgroundAccess { () throws(DMAFault) in
      try port.store(UInt8(1), at: IOVA(0x5000))
    }
    let old = try rig.read()
    waits.cancel()
    #expect(access.end() == .notPresent)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(0x5000)) }
        == .notPresent,
      "as long as it is cancelled")
    waits.renew()
    let next = BackgroundAccess { () throws(DMAFault) in
      try port.store(UInt8(1), at: IOVA(0x7000))
    }
    let new = try rig.read()
    #expect(new.requests[0].group != old.requests[0].group)
    try rig.respond(old, .invalid)
    usleep(1000)
    #expect(!next.isDone)
    try rig.map(page: 0, at: 0x7000)
    try rig.respond(new, .success)
    #expect(next.end() == nil)
  }

  @Test(
    "H3: a device has so many requests outstanding; more wait for their turn, and may give up")
  func credit() throws {
    let rig = try PageRequestRig(features: .init(pageRequests: true, outstandingRequests: 1))
    let access = try wait(rig, read: false)
    let table = try rig.context.allocateHWPT(
      for: rig.binding.id, from: rig.ioas, attributes: .pasid, faultQueue: rig.queue.id)
    try rig.binding.group.attachOrReplace(PageRequestRig.pasid, to: table)
    let physical = try #require(rig.binding.device.physicalPASID(for: PageRequestRig.pasid))
    let waits = DeviceWait()
    let port = rig.port(waits, pasid: physical)
    let second = BackgroundAccess { () throws(DMAFault) in
      try port.store(UInt8(1), at: IOVA(0x9000))
    }
    usleep(2000)
    #expect(rig.iommu.pageRequestCounts.requests == 1)
    waits.cancel()
    #expect(second.end() == .notPresent)
    waits.renew()
    let third = BackgroundAccess { () throws(DMAFault) in
      try port.store(UInt8(1), at: IOVA(0x9000))
    }
    try rig.map(page: 0, at: 0x5000)
    try rig.respond(rig.read(), .success)
    #expect(access.end() == nil)
    let group = try rig.read()
    #expect(group.requests.map(\.address) == [IOVA(0x9000)])
    rig.binding.group.detach(PageRequestRig.pasid)
    #expect(third.end() != nil)
  }

  @Test("H3: detaching who waits for its turn ends that, though others never get an answer")
  func detachWaitingForCredit() throws {
    let rig = try PageRequestRig(features: .init(pageRequests: true, outstandingRequests: 1))
    let access = try wait(rig, read: true)
    let table = try rig.context.allocateHWPT(
      for: rig.binding.id, from: rig.ioas, attributes: .pasid, faultQueue: rig.queue.id)
    try rig.binding.group.attachOrReplace(PageRequestRig.pasid, to: table)
    let physical = try #require(rig.binding.device.physicalPASID(for: PageRequestRig.pasid))
    let port = rig.port(pasid: physical)
    let second = BackgroundAccess { () throws(DMAFault) in
      try port.store(UInt8(1), at: IOVA(0x9000))
    }
    usleep(2000)
    rig.binding.group.detach(PageRequestRig.pasid)
    #expect(second.end() != nil)
    #expect(!access.isDone)
    rig.binding.group.detach()
    #expect(access.end() != nil)
  }

  @Test("H3: who is about to ask sees a detach that has ended before, and tries again")
  func detachBeforeAsking() throws {
    let rig = try PageRequestRig(features: .init(pageRequests: true, outstandingRequests: 1))
    let access = try wait(rig, read: true)
    let source = SoftwareIOMMU.Source(requester: Bench.device, pasid: nil)
    let requests = rig.iommu.requesters.pageRequests
    let switches = requests.switches
    let resolution = rig.iommu.requesters.resolve(source)
    let answerer = try #require(resolution.answerer)
    rig.binding.group.detach()
    #expect(access.end() != nil)
    let outcome = requests.request(
      [0x9000], access: .write, from: source, to: answerer, since: switches,
      features: resolution.features, wait: DeviceWait())
    #expect(outcome == .tryAgain)
    #expect(rig.iommu.pageRequestCounts.requests == 1, "it has asked nobody")
  }

  @Test("H1: a device whose requester id a bridge takes away has no table with a fault queue")
  func belowBridge() throws {
    let rig = try PageRequestRig()
    let alias = RequesterID(bus: 0xE2, device: 0, function: 0)
    rig.iommu.setFeatures(.init(pageRequests: true), of: alias)
    let device = try rig.system.addDevice(
      name: "below", address: RequesterID(bus: 0xE2, device: 4, function: 0), requester: alias,
      driver: rig.iommu, group: rig.system.addGroup())
    let binding = try rig.context.register(device)
    let table = try rig.context.allocateHWPT(
      for: binding.id, from: rig.ioas, faultQueue: rig.queue.id)
    func isRefused(_ error: any Error) -> Bool {
      (error as? IOMMUError)?.errno == .noSuchDevice
        && "\(error)".contains("the bridge above it")
    }
    #expect {
      _ = try binding.group.attach(to: table)
    } throws: {
      isRefused($0)
    }
    let plain = try rig.context.allocateHWPT(for: binding.id, from: rig.ioas)
    _ = try binding.group.attach(to: plain)
    #expect {
      _ = try binding.group.attach(to: table)
    } throws: {
      isRefused($0)
    }
  }

  @Test("H3: who finds the queue full tries again when it is empty")
  func crowd() throws {
    let rig = try PageRequestRig(
      features: .init(pageRequests: true, outstandingRequests: 512, pagesPerGroup: 32),
      queueLength: 32, pages: 512)
    // A port for each thread.
    let accesses = try (0..<16).map { number in
      let pasid = PASID(rawValue: UInt32(20 + number))
      try rig.binding.group.attachOrReplace(pasid, to: rig.table)
      let port = rig.port(pasid: rig.binding.device.physicalPASID(for: pasid))
      let first = UInt64(0x10_0000 + number * 0x2_0000)
      return BackgroundAccess { () throws(DMAFault) in
        try port.fill(IOVA(first), pattern: .max, length: 32 * 4096)
      }
    }
    var answered = 0
    while accesses.contains(where: { !$0.isDone }) {
      guard let group = try rig.readOrNothing() else { continue }
      let first = group.requests[0].address.rawValue
      let page = Int((first - 0x10_0000) >> 12)
      try rig.map(page: page, pages: group.requests.count, at: first)
      try rig.respond(group, .success)
      answered += 1
    }
    #expect(answered >= 16 && accesses.allSatisfy { $0.end() == nil })
    #expect(rig.memory[512 * 4096 - 1] == 0xFF)
  }

  @Test("H3: a queue that is full answers for its devices to try again; none is lost")
  func overflow() throws {
    // Groups of 8 pages, and room for one: what two ports ask at a time overflows it.
    let rig = try PageRequestRig(
      features: .init(pageRequests: true, outstandingRequests: 32, pagesPerGroup: 8),
      queueLength: 4)
    rig.system.events.startRecording()
    let port = rig.port()
    let access = BackgroundAccess { () throws(DMAFault) in
      try port.fill(IOVA(0x1000), pattern: .max, length: 8 * 4096)
    }
    while rig.iommu.pageRequestCounts.overflows < 5 { usleep(100) }
    #expect(!access.isDone)
    #expect(try rig.readOrNothing() == nil)
    let notes = rig.system.events.drain().entries.filter {
      if case .note(let text) = $0.event { text.contains("queue is full") } else { false }
    }
    #expect(notes.count == 1, "said once, not each time")
    // The pages come otherwise: the device finds them when it tries again. One that looks in the
    // middle of the map asks for what it has not found, and is answered.
    try rig.map(page: 0, pages: 8, at: 0x1000)
    while !access.isDone {
      if let group = try rig.readOrNothing() { try rig.respond(group, .success) }
    }
    #expect(access.end() == nil)
    #expect(rig.memory[8 * 4096 - 1] == 0xFF)
    #expect(rig.iommu.faults[Bench.device].count == 0)
  }

  @Test("H3: an IOMMU that goes ends its thread, and nobody waits")
  func goes() throws {
    weak var gone: SoftwareIOMMU?
    do {
      let rig = try PageRequestRig()
      gone = rig.iommu
      let access = try wait(rig)
      rig.binding.group.detach()
      #expect(access.end() != nil)
      rig.context.close(rig.queue)
    }
    #expect(gone == nil)
  }
}
