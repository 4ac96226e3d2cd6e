// SPDX-License-Identifier: Apache-2.0
//
// Whose calls the serving threads do while many calls take long, so that a process whose calls all
// wait (for a long map, for memory that another process supplies) takes some of them, not all.

import CSyscalls

/// The lanes that each process has, and its calls that wait for one of them. A value; guarded by
/// `Lanes`.
struct Shares: Sendable {
  private struct Share {
    /// How many lanes do its calls.
    var lanes = 0
    /// Its calls that were put aside, from `first` on the oldest first.
    var calls: [csys_notif] = []
    var first = 0
    /// How many there are when it is worth looking for callers that are gone.
    var callsToLook = 64
  }

  private var shares: [Int32: Share] = [:]

  /// How many lanes one process may have: the fewer are left, the smaller. A process alone never
  /// takes all, nor do hundreds.
  /// - Parameters:
  ///   - lanes: How many there are.
  ///   - most: How many there can be.
  static func share(of lanes: Int, most: Int) -> Int {
    switch lanes {
    case ..<(most / 8): max(2, most / 16)
    case ..<(most / 2): max(2, most / 64)
    case ..<(most / 4 * 3): max(2, most / 512)
    default: 2
    }
  }

  /// Counts a process's call, or puts it aside where the process has its share.
  /// - Parameter isAlive: Whether the caller of a notification still waits.
  /// - Returns: False where it is put aside: `end` gives it to a lane that does the process's calls.
  mutating func take(
    _ call: csys_notif, of process: Int32, _ most: Int, _ isAlive: (UInt64) -> Bool
  ) -> Bool {
    var share = shares.removeValue(forKey: process) ?? Share()
    defer { shares[process] = share }
    guard share.lanes >= most else {
      share.lanes += 1
      return true
    }
    if share.calls.count >= share.callsToLook {
      share.calls = share.calls[share.first...].filter { isAlive($0.id) }
      share.first = 0
      share.callsToLook = 2 * share.calls.count + 64
    }
    share.calls.append(call)
    return false
  }

  /// A lane is done with a counted call.
  /// - Returns: The process's next call, which is counted; nil where it has none.
  mutating func end(_ process: Int32) -> csys_notif? {
    guard var share = shares.removeValue(forKey: process) else { return nil }
    if share.first < share.calls.count {
      let next = share.calls[share.first]
      share.first += 1
      if share.first == share.calls.count {
        share.calls.removeAll(keepingCapacity: true)
        share.first = 0
      }
      shares[process] = share
      return next
    }
    share.lanes -= 1
    if share.lanes > 0 { shares[process] = share }
    return nil
  }

  /// How many processes are counted.
  var processes: Int { shares.count }
}
