// SPDX-License-Identifier: Apache-2.0
//
// How calls read in a trace.

import CLinuxABI
import IOMMU
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct CallFieldsTests {
  @Test("L: a trace names the command and its fields, after the call")
  func describesMap() throws {
    let caller = try LocalCaller()
    let file = try IOMMUNode(system: IOMMUSystem()).open(flags: 2, by: caller)
    let describer = try #require(file as? any DescribesCalls)
    var alloc = iommu_ioas_alloc()
    alloc.size = 12
    #expect(caller.ioctl(file, IOMMU_IOAS_ALLOC, &alloc) == 0)
    let words = describer.describe(IOMMU_IOAS_ALLOC, argument: 0x2000, by: caller)
    #expect(words.name == "IOMMU_IOAS_ALLOC")
    #expect(words.fields.map { "\($0.name)=\($0.value)" } == ["flags=0x0", "out_ioas_id=1"])
  }

  @Test("L: a trace of a bad pointer or an unknown number shows what there is")
  func describesNonsense() throws {
    let caller = try LocalCaller()
    let file = try IOMMUNode(system: IOMMUSystem()).open(flags: 2, by: caller)
    let describer = try #require(file as? any DescribesCalls)
    let bad = describer.describe(IOMMU_IOAS_MAP, argument: 8, by: caller)
    #expect(bad.name == "IOMMU_IOAS_MAP" && bad.fields.map(\.value) == ["0x8"])
    let unknown = describer.describe(0x3bff, argument: 8, by: caller)
    #expect(unknown.name == "0x3bff" && unknown.fields.map(\.value) == ["0x8"])
  }
}
