// SPDX-License-Identifier: Apache-2.0
//
// What an IOMMU keeps of PASIDs that come and go: a port is half a megabyte.

import IOMMU
import PageTables
import Testing

@testable import SoftwareIOMMU

@Suite("D1: what is kept of PASIDs that come and go")
struct RequesterTableTests {
  private static let most = 2 * RequesterTable.spare

  @Test("D1: a PASID that was given back while a thread had its port leaves neither of both")
  func detached() throws {
    let bench = Bench(.init(pasidBits: 20))
    let domain = try bench.iommu.makePagingDomain(for: Bench.device, attributes: .pasid)
    let buffer = Buffer(4096)
    try domain.map(
      IOVA(0), to: try bench.pin(buffer.run(), at: 0), length: 4096, permissions: .readWrite)
    for number in 1...UInt32(20 * Self.most) {
      let pasid = PASID(rawValue: number)
      // One that is attached and detached, one that a slice has from its beginning to its end.
      let isSlice = number % 2 == 0
      if isSlice {
        try bench.iommu.setContext(of: Bench.device, pasid: pasid, to: .blocked)
      }
      let port = bench.iommu.port(for: Bench.device, pasid: pasid)
      if number % 4 != 0 {
        try bench.iommu.setContext(of: Bench.device, pasid: pasid, to: .paging(domain))
        try port.store(number, at: IOVA(0))
        if !isSlice {
          try bench.iommu.setContext(of: Bench.device, pasid: pasid, to: .blocked)
        }
      }
      if isSlice { bench.iommu.forgetPASID(pasid, of: Bench.device) }
      let refusal = reason { () throws(DMAFault) in try port.store(number, at: IOVA(0)) }
      #expect(refusal == .blocked)
      #expect(bench.iommu.kept.contexts == 0)
    }
    #expect(bench.iommu.kept.ports <= Self.most)
  }

  @Test("D1: a port that nobody has is let go, one in use stays, and both go where they went")
  func unused() throws {
    let bench = Bench(.init(pasidBits: 20))
    let domain = try bench.iommu.makePagingDomain(for: Bench.device, attributes: .pasid)
    let buffer = Buffer(4096)
    try domain.map(
      IOVA(0), to: try bench.pin(buffer.run(), at: 0), length: 4096, permissions: .readWrite)
    let pasids = (1...UInt32(20 * Self.most)).map(PASID.init(rawValue:))
    let kept = bench.iommu.port(for: Bench.device, pasid: pasids[0])
    for pasid in pasids {
      try bench.iommu.setContext(of: Bench.device, pasid: pasid, to: .paging(domain))
      try bench.iommu.port(for: Bench.device, pasid: pasid).store(UInt8(1), at: IOVA(0))
    }
    #expect(bench.iommu.kept.ports <= Self.most)
    #expect(bench.iommu.kept.contexts == pasids.count)
    #expect(bench.iommu.port(for: Bench.device, pasid: pasids[0]) === kept)
    for (index, pasid) in pasids.enumerated() {
      let value = UInt8(truncatingIfNeeded: index)
      try bench.iommu.port(for: Bench.device, pasid: pasid).store(value, at: IOVA(0))
      #expect(buffer[0] == value)
    }
    // Those that were made anew hear of unmaps as the old ones did.
    let last = bench.iommu.port(for: Bench.device, pasid: pasids[1])
    domain.unmap(IOVA(0), length: 4096)
    for port in [kept, last] {
      let refusal = reason { () throws(DMAFault) in try port.store(UInt8(1), at: IOVA(0)) }
      #expect(refusal == .notPresent)
    }
  }

  @Test("D1: ports that are all in use are all kept")
  func used() {
    let bench = Bench(.init(pasidBits: 20))
    let pasids = (1...UInt32(3 * Self.most)).map(PASID.init(rawValue:))
    let ports = pasids.map { bench.iommu.port(for: Bench.device, pasid: $0) }
    #expect(bench.iommu.kept.ports == ports.count)
    for (pasid, port) in zip(pasids, ports) {
      #expect(bench.iommu.port(for: Bench.device, pasid: pasid) === port)
    }
  }
}
