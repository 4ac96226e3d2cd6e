// SPDX-License-Identifier: Apache-2.0
//
// Whose turn it is on an engine that several users share: round robin by bytes, so that no ring,
// however long its copies, keeps another waiting for more than a turn.

/// Turns among those who have work. Plain data; whoever holds it locks it.
///
/// Surplus round robin: at its turn a member may spend what it has; what a job costs beyond that
/// is a debt that its next turns pay off first, also where it slept in between.
struct FairTurns<Member: Hashable & Sendable>: Sendable {
  /// Bytes that each turn brings.
  let quantum: Int
  /// Those with work, the one whose turn it is first.
  private var ring: [Member] = []
  /// What each may still spend; negative is a debt.
  private var credit: [Member: Int] = [:]

  init(quantum: Int) { self.quantum = quantum }

  /// A member has work. Nothing where it has its place already.
  mutating func wake(_ member: Member) {
    guard !ring.contains(member) else { return }
    ring.append(member)
  }

  /// A member has none any more. What it did not spend is gone, what it owes is not.
  mutating func sleep(_ member: Member) {
    ring.removeAll { $0 == member }
    credit[member] = min(credit[member] ?? 0, 0)
  }

  mutating func remove(_ member: Member) {
    ring.removeAll { $0 == member }
    credit[member] = nil
  }

  /// Whose turn it is; nil where nobody has work.
  mutating func next() -> Member? {
    guard !ring.isEmpty else { return nil }
    while true {
      let member = ring[0]
      if credit[member] ?? 0 > 0 { return member }
      let paid = (credit[member] ?? 0) + quantum
      credit[member] = paid
      if paid > 0 { return member }
      rotate()
    }
  }

  /// A member did a job at its turn. The turn ends when all is spent.
  mutating func charge(_ member: Member, bytes: Int) {
    let left = (credit[member] ?? 0) - bytes
    credit[member] = left
    if left <= 0, ring.first == member { rotate() }
  }

  private mutating func rotate() { ring.append(ring.removeFirst()) }
}
