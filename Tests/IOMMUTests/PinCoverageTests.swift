// SPDX-License-Identifier: Apache-2.0
//
// MODEL B6: what overlapping pins cover, against a plain array of counts.

import Testing

@testable import IOMMU

@Suite struct PinCoverageTests {
  @Test("B6: users of overlapping ranges are counted as an array of counters counts them")
  func random() {
    var generator = SplitMix(seed: 7)
    for _ in 0..<200 {
      var coverage = PinCoverage()
      var model = [Int](repeating: 0, count: 40)
      var live: [Range<UInt64>] = []
      for _ in 0..<60 {
        if live.isEmpty || generator.next(below: 3) > 0 {
          let first = generator.next(below: 40)
          let range = first..<first + 1 + generator.next(below: 40 - first)
          #expect(
            coverage.gaps(in: range).flatMap { $0.map { $0 } }
              == range.filter { model[Int($0)] == 0 })
          #expect(coverage.covers(range) == range.allSatisfy { model[Int($0)] > 0 })
          coverage.add(range)
          for index in range { model[Int(index)] += 1 }
          live.append(range)
        } else {
          let range = live.remove(at: Int(generator.next(below: UInt64(live.count))))
          for index in range { model[Int(index)] -= 1 }
          let freed = coverage.remove(range)
          #expect(freed.flatMap { $0.map { $0 } } == range.filter { model[Int($0)] == 0 })
        }
        var counted = [Int](repeating: 0, count: 40)
        for span in coverage.spans {
          for index in span.range { counted[Int(index)] = span.users }
        }
        #expect(counted == model)
        for (left, right) in zip(coverage.spans, coverage.spans.dropFirst()) {
          #expect(left.range.upperBound <= right.range.lowerBound)
          #expect(left.range.upperBound < right.range.lowerBound || left.users != right.users)
        }
      }
      for range in live { _ = coverage.remove(range) }
      #expect(coverage.isEmpty)
    }
  }
}
