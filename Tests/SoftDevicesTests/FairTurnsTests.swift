// SPDX-License-Identifier: Apache-2.0
//
// Turns on a shared engine, counted: nobody has more than its share by more than a job.

import Testing

@testable import SoftDevices

@Suite struct FairTurnsTests {
  /// Bytes that each of some members gets, where each job of member n costs `costs[n]`.
  private func shares(_ costs: [Int], jobs: Int) -> [Int] {
    var turns = FairTurns<Int>(quantum: 100)
    for member in costs.indices { turns.wake(member) }
    var bytes = costs.map { _ in 0 }
    for _ in 0..<jobs {
      guard let member = turns.next() else { break }
      bytes[member] += costs[member]
      turns.charge(member, bytes: costs[member])
    }
    return bytes
  }

  @Test("D2: those who ask for much and for little get the same bytes, to within a job")
  func equalShares() {
    for costs in [[1000, 10], [100, 100, 100], [1, 999, 37], [350, 20, 20, 20]] {
      let bytes = shares(costs, jobs: 20_000)
      let largest = bytes.max() ?? 0
      let least = bytes.min() ?? 0
      #expect(largest - least <= 100 + (costs.max() ?? 0), "\(costs): \(bytes)")
    }
  }

  @Test("D2: who owes pays before it has another turn, asleep in between or not")
  func debts() {
    var turns = FairTurns<Int>(quantum: 100)
    turns.wake(0)
    turns.wake(1)
    #expect(turns.next() == 0)
    turns.charge(0, bytes: 350)
    turns.sleep(0)
    turns.wake(0)
    var served: [Int] = []
    for _ in 0..<8 {
      guard let member = turns.next() else { break }
      served.append(member)
      turns.charge(member, bytes: 100)
    }
    #expect(served == [1, 1, 1, 0, 1, 0, 1, 0])
  }

  @Test("D2: nobody waits for one who sleeps or has gone, and a debt alone holds nobody up")
  func sleepers() {
    var turns = FairTurns<Int>(quantum: 100)
    #expect(turns.next() == nil)
    turns.wake(0)
    turns.wake(0)
    turns.charge(0, bytes: 100_000)
    #expect(turns.next() == 0, "nobody else wants it")
    turns.wake(1)
    turns.sleep(1)
    turns.wake(2)
    turns.remove(2)
    #expect(turns.next() == 0)
    turns.remove(0)
    #expect(turns.next() == nil)
  }
}
