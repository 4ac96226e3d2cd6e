// SPDX-License-Identifier: Apache-2.0
//
// How DMA is named in what is reported of it (MODEL E4).

import Testing

@testable import IOMMU

@Suite struct DMASourcesTests {
  private let requester = RequesterID(bus: 0xE0, device: 6, function: 0)

  private func pasid(_ number: UInt32) -> PASID { PASID(rawValue: number) }

  @Test("E4: a slice by its name, its PASIDs by their virtual numbers, and after it neither")
  func slices() {
    let sources = DMASources()
    #expect(sources.source(requester, nil) == "0000:e0:06.0")
    let own = DMASources.Holder(name: "slice", virtual: nil)
    let other = DMASources.Holder(name: "slice", virtual: pasid(9))
    sources.enter(own, requester, pasid(1))
    sources.enter(other, requester, pasid(3))
    #expect(sources.source(requester, pasid(1)) == "slice (0000:e0:06.0)")
    #expect(sources.source(requester, pasid(3)) == "slice PASID 9 (0000:e0:06.0)")
    sources.leave(other, requester, pasid(3))
    #expect(
      sources.source(requester, pasid(3)) == "0000:e0:06.0 unattached PASID",
      "3 is no number of anybody's")
    #expect(sources.source(requester, nil) == "0000:e0:06.0")
  }

  @Test("E4: a whole device's PASIDs are what its user calls them, attached or not")
  func identity() {
    let sources = DMASources()
    #expect(sources.source(requester, pasid(5)) == "0000:e0:06.0 PASID 5")
    sources.enter(
      DMASources.Holder(name: "\(requester)", virtual: pasid(5)), requester, pasid(5))
    #expect(sources.source(requester, pasid(5)) == "0000:e0:06.0 PASID 5")
    #expect(sources.source(requester, pasid(6)) == "0000:e0:06.0 PASID 6")
  }

  @Test("E4: where slices share a PASID both are named, and who stays once one has left")
  func shared() {
    let sources = DMASources()
    let holders = ["a", "b"].map { DMASources.Holder(name: $0, virtual: pasid(2)) }
    for holder in holders { sources.enter(holder, requester, pasid(7)) }
    #expect(sources.source(requester, pasid(7)) == "a PASID 2 or b PASID 2 (0000:e0:06.0)")
    sources.leave(holders[0], requester, pasid(7))
    #expect(sources.source(requester, pasid(7)) == "b PASID 2 (0000:e0:06.0)")
  }
}
