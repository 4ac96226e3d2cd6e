// SPDX-License-Identifier: Apache-2.0
//
// Walks a call through all of its failures: the first failure point fails, then the second,
// until the call succeeds with none. After each failure everything must be as it was.

import IOMMU
import Testing

/// Sweeps calls on one context.
public final class FailureSweep {
  /// What has failed so far, in any call.
  public private(set) var failed: Set<FailurePoint> = []
  private let takeSnapshot: () -> [String]

  /// - Parameter snapshot: All that must be as it was: the context's own, and more.
  public init(snapshot: @escaping () -> [String]) { takeSnapshot = snapshot }

  private var snapshot: [String] { takeSnapshot() }

  /// - Parameters:
  ///   - name: For messages.
  ///   - kept: Failure points after which, as on Linux, what was done stays: `undo` is called
  ///     then too.
  ///   - call: The call; 0 or a negative errno.
  ///   - undo: Takes back what a call that succeeded did.
  public func callAsFunction(
    _ name: String, kept: Set<FailurePoint> = [], _ call: () -> Int32, undo: () -> Void = {}
  ) {
    let before = snapshot
    var nth = 0
    while true {
      nth += 1
      let countdown = FailureCountdown(nth)
      let result = countdown.run { call() }
      guard let point = countdown.failed else {
        #expect(result >= 0, "\(name) fails by itself: \(result)")
        break
      }
      failed.insert(point)
      let expected: Set<Int32> = point == .descriptor ? [-24] : [-12, -14]
      #expect(expected.contains(result), "\(name): point \(nth), \(point): \(result)")
      if kept.contains(point) { undo() }
      expectSame(before, "\(name): point \(nth), \(point)")
      guard nth < 1000 else {
        Issue.record("\(name) never runs out of failures")
        return
      }
    }
    undo()
    expectSame(before, "\(name), undone")
  }

  private func expectSame(_ before: [String], _ what: String) {
    let after = snapshot
    let gone = before.filter { !after.contains($0) }
    let new = after.filter { !before.contains($0) }
    #expect(before == after, "\(what): gone \(gone), new \(new)")
  }
}
