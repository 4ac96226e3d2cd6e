// SPDX-License-Identifier: Apache-2.0
//
// Whose calls are put aside while many calls wait.

import CSyscalls
import Testing

@testable import Interposer

@Suite("Shares of the serving threads") struct SharesTests {
  private func call(_ id: UInt64) -> csys_notif {
    var call = csys_notif()
    call.id = id
    return call
  }

  @Test(
    "A process beyond its share waits for its own calls, in their order; others do not wait")
  func order() {
    var shares = Shares()
    #expect(shares.take(call(1), of: 10, 2) { _ in true })
    #expect(shares.take(call(2), of: 10, 2) { _ in true })
    #expect(!shares.take(call(3), of: 10, 2) { _ in true })
    #expect(!shares.take(call(4), of: 10, 2) { _ in true })
    #expect(shares.take(call(5), of: 11, 2) { _ in true })
    #expect(shares.end(11) == nil)
    #expect(shares.end(10)?.id == 3)
    // Its lane has the next call: the share is still taken.
    #expect(!shares.take(call(6), of: 10, 2) { _ in true })
    #expect(shares.end(10)?.id == 4)
    #expect(shares.end(10)?.id == 6)
    #expect(shares.end(10) == nil)
    #expect(shares.take(call(7), of: 10, 2) { _ in true })
    #expect(shares.end(10) == nil)
    #expect(shares.end(10) == nil)
    #expect(shares.processes == 0)
  }

  @Test("Calls that were put aside and whose callers are gone do not gather")
  func gone() {
    var shares = Shares()
    #expect(shares.take(call(0), of: 1, 1) { _ in true })
    var asked = 0
    for id in 1...10_000 as ClosedRange<UInt64> {
      _ = shares.take(call(id), of: 1, 1) {
        asked += 1
        return $0 == 5
      }
    }
    #expect(asked < 20_000)
    #expect(shares.end(1)?.id == 5)
    var left = 0
    while shares.end(1) != nil { left += 1 }
    #expect(left < 200)
  }

  @Test(
    "However many processes take their shares, some threads are left",
    arguments: [16, 128, 4096])
  func shares(most: Int) {
    var lanes = 0
    var processes = 0
    while lanes < most {
      var own = 0
      while lanes < most, own < Shares.share(of: lanes, most: most) {
        own += 1
        lanes += 1
      }
      #expect(own < most / 4 || most < 64)
      guard own > 0 else { break }
      processes += 1
    }
    #expect(processes >= most / 8)
  }
}
