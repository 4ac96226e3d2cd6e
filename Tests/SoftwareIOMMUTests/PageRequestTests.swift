// SPDX-License-Identifier: Apache-2.0
//
// MODEL H1 and H3 in the software IOMMU: devices that ask for pages, and all that ends their wait.

import Glibc
import IOMMU
import PageTables
import Synchronization
import SystemPackage
import Testing

@testable import SoftwareIOMMU

@Suite("H1: page requests of devices", .serialized)
struct PageRequestTests {
  @Test("H1: an access that misses asks, waits for the user, and goes on")
  func asks() throws {
    let rig = try PageRequestRig()
    let port = rig.port()
    let access = BackgroundAccess { () throws(DMAFault) in
      try port.store(UInt64(0x1122), at: IOVA(0x5008))
    }
    let group = try rig.read()
    #expect(
      group.requests == [PageRequest(group: 0, access: .write, address: IOVA(0x5000))])
    #expect(group.deviceCookie == 0xC00C1E)
    #expect(!access.isDone)
    try rig.map(page: 3, at: 0x5000)
    try rig.respond(group, .success)
    #expect(access.end() == nil)
    #expect(rig.memory[3 * 4096 + 8] == 0x22)
    #expect(rig.iommu.faults[Bench.device].count == 0, "nothing was aborted")
    #expect(rig.iommu.pageRequestCounts.succeeded == 1)
    #expect(rig.iommu.pageRequestCounts.outstanding == 0)
  }

  @Test("H1: an answer of invalid aborts the access, and the fault is counted")
  func invalid() throws {
    let rig = try PageRequestRig()
    let port = rig.port()
    let access = BackgroundAccess { () throws(DMAFault) in
      _ = try port.load(IOVA(0x5000), as: UInt8.self)
    }
    let group = try rig.read()
    #expect(group.requests.map(\.access) == [.read])
    try rig.respond(group, .invalid)
    #expect(access.end() == .notPresent)
    #expect(rig.iommu.faults[Bench.device].count == 1)
    #expect(rig.iommu.pageRequestCounts.invalid == 1)
  }

  @Test("H1: a port that cannot wait aborts what misses")
  func noWait() throws {
    let rig = try PageRequestRig()
    let port = rig.iommu.port(for: Bench.device)
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(0x5000)) }
        == .notPresent)
    #expect(try rig.readOrNothing() == nil)
  }

  @Test("H1: a copy asks on both sides, page by page, and copies everything")
  func copies() throws {
    let rig = try PageRequestRig()
    for index in 0..<8 * 4096 {
      rig.memory[index] = UInt8(truncatingIfNeeded: index &* 7 &+ index >> 8)
    }
    let port = rig.port()
    let access = BackgroundAccess { () throws(DMAFault) in
      try port.copy(from: IOVA(0x10_0000), to: IOVA(0x20_0000), length: 8 * 4096)
    }
    var pages: [UInt64: PageRequest.Access] = [:]
    while !access.isDone {
      guard let group = try rig.readOrNothing() else {
        usleep(100)
        continue
      }
      for request in group.requests {
        let address = request.address.rawValue
        pages[address] = request.access
        let page = Int(address & 0xF_FFFF) / 4096 + (address >= 0x20_0000 ? 16 : 0)
        try rig.map(page: page, at: address)
      }
      try rig.respond(group, .success)
    }
    #expect(access.end() == nil)
    #expect(pages.count == 16)
    #expect(pages[0x10_3000] == .read && pages[0x20_3000] == .write)
    for index in 0..<8 * 4096 where rig.memory[index] != rig.memory[16 * 4096 + index] {
      Issue.record("byte \(index) was not copied")
      return
    }
  }

  @Test("H1: a fill goes on in the middle of its pattern")
  func fills() throws {
    let rig = try PageRequestRig()
    try rig.map(page: 0, at: 0x1000)
    let port = rig.port()
    let access = BackgroundAccess { () throws(DMAFault) in
      try port.fill(IOVA(0x1003), pattern: 0x0706_0504_0302_0100, length: 8000)
    }
    let group = try rig.read()
    #expect(group.requests.map(\.address) == [IOVA(0x2000)])
    try rig.map(page: 1, at: 0x2000)
    try rig.respond(group, .success)
    #expect(access.end() == nil)
    for index in 0..<8000 where rig.memory[3 + index] != UInt8(index % 8) {
      Issue.record("byte \(index) is \(rig.memory[3 + index])")
      return
    }
  }

  @Test("H1: a group has the missing pages of an access, and one answer by its last")
  func groups() throws {
    let rig = try PageRequestRig(
      features: .init(pageRequests: true, pagesPerGroup: 4))
    let port = rig.port()
    // The fourth is there: the group ends before it.
    try rig.map(page: 3, at: 0x13000)
    let access = BackgroundAccess { () throws(DMAFault) in
      try port.fill(IOVA(0x10800), pattern: 0, length: 6 * 4096)
    }
    let first = try rig.read()
    #expect(first.requests.map(\.address.rawValue) == [0x10000, 0x11000, 0x12000])
    #expect(first.requests.map(\.isLast) == [false, false, true])
    #expect(Set(first.requests.map(\.group)).count == 1)
    try rig.map(page: 0, pages: 3, at: 0x10000)
    try rig.respond(first, .success)
    let second = try rig.read()
    #expect(second.requests.map(\.address.rawValue) == [0x14000, 0x15000, 0x16000])
    try rig.map(page: 4, pages: 3, at: 0x14000)
    try rig.respond(second, .success)
    #expect(access.end() == nil)
    #expect(rig.iommu.pageRequestCounts.groups == 2)
    #expect(rig.iommu.pageRequestCounts.requests == 6)
  }

  @Test("H1: a request of a PASID carries it, and goes to that table's queue")
  func pasids() throws {
    let rig = try PageRequestRig()
    let other = try rig.context.makeFaultQueue()
    let table = try rig.context.allocateHWPT(
      for: rig.binding.id, from: rig.ioas, attributes: .pasid, faultQueue: other.id)
    try rig.binding.group.attachOrReplace(PageRequestRig.pasid, to: table)
    let physical = try #require(rig.binding.device.physicalPASID(for: PageRequestRig.pasid))
    let port = rig.port(pasid: physical)
    let access = BackgroundAccess { () throws(DMAFault) in
      try port.store(UInt8(7), at: IOVA(0x6000))
    }
    let group = try rig.read(other)
    #expect(group.requests.map(\.pasid) == [PageRequestRig.pasid])
    #expect(try rig.readOrNothing() == nil)
    try rig.map(page: 1, at: 0x6000)
    try other.respond(to: group.cookie, with: .success)
    #expect(access.end() == nil)
    rig.context.close(other)
  }

  @Test("H1: a mapping without the permission is asked for as a missing one is")
  func permissions() throws {
    let rig = try PageRequestRig()
    try rig.map(page: 0, at: 0x5000, permissions: .read)
    let port = rig.port()
    #expect(try port.load(IOVA(0x5000), as: UInt8.self) == 0)
    let access = BackgroundAccess { () throws(DMAFault) in
      try port.store(UInt8(9), at: IOVA(0x5000))
    }
    let group = try rig.read()
    #expect(group.requests.map(\.access) == [.write])
    try rig.context.unmap(0x5000...0x5FFF, from: rig.ioas)
    try rig.map(page: 0, at: 0x5000)
    try rig.respond(group, .success)
    #expect(access.end() == nil)
    #expect(rig.memory[0] == 9)
  }

  @Test("H1: what no page could cure is aborted without a request")
  func unrecoverable() throws {
    let rig = try PageRequestRig()
    let port = rig.port()
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(1 << 60)) }
        == .addressWidth)
    #expect(
      reason { () throws(DMAFault) in _ = try port.load(IOVA(0xFEE0_0000), as: UInt8.self) }
        == .interruptWindow)
    rig.binding.group.detach()
    #expect(
      reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(0x5000)) } == .blocked)
    #expect(rig.iommu.pageRequestCounts.groups == 0)
  }

  @Test("H1: a table with a fault queue takes a device and an IOMMU with page requests: ENODEV")
  func refused() throws {
    #expect { _ = try PageRequestRig(features: .none) } throws: {
      ($0 as? IOMMUError)?.errno == .noSuchDevice
    }
    #expect { _ = try PageRequestRig(takesRequests: false) } throws: {
      ($0 as? IOMMUError)?.errno == .noSuchDevice
    }
  }
}
