// SPDX-License-Identifier: Apache-2.0
//
// How fuzzers run: rounds, each of which is a function of its seed, until the time is up that
// FUZZ_SECONDS gives. The seed is printed before and with what fails; FUZZ_SEED begins with one.

import Foundation
import Synchronization
import Testing

public enum Fuzzing {
  /// How long a fuzzer runs, in seconds, unless it is told a seed: one.
  private static let seconds = number("FUZZ_SECONDS")
  private static let seed = number("FUZZ_SEED")

  private static func number(_ name: String) -> UInt64? {
    ProcessInfo.processInfo.environment[name].flatMap { UInt64($0) }
  }

  /// Whether one round alone is asked for.
  private static var isReplay: Bool { seed != nil && seconds == nil }

  /// Runs rounds until the time is up, or one fails.
  /// - Parameters:
  ///   - name: Of the suite, as `swift test --filter` takes it.
  ///   - parts: How many calls share the fuzzer's time.
  ///   - least: How many rounds at least, however slow they are.
  /// - Returns: How many there were.
  @discardableResult
  public static func run(
    _ name: String, parts: Int = 1, least: Int = 1,
    _ round: (_ random: inout Random) throws -> Void
  ) -> Int {
    let first = seed ?? .random(in: 0..<1 << 48)
    let limit = Duration.seconds(seconds ?? 1) / parts
    print("\(name): seeds from \(first) on, for \(limit)")
    let start = ContinuousClock.now
    var count = 0
    let isFailed = Atomic(false)
    repeat {
      let seed = first &+ UInt64(count)
      // No issue is known: this only looks on while they are recorded.
      withKnownIssue(isIntermittent: true) {
        var random = Random(state: seed)
        do {
          try round(&random)
        } catch {
          Issue.record(error)
        }
      } matching: { _ in
        isFailed.store(true, ordering: .relaxed)
        return false
      }
      count += 1
      if isFailed.load(ordering: .relaxed) {
        Issue.record("FUZZ_SEED=\(seed) swift test --filter \(name) does it again")
        break
      }
    } while !isReplay && (count < least || ContinuousClock.now - start < limit)
    print("\(name): \(count) rounds")
    return count
  }
}

/// SplitMix64: the same numbers whenever it starts from the same state.
public struct Random: RandomNumberGenerator {
  private var state: UInt64

  public init(state: UInt64) { self.state = state }

  public mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }

  public mutating func bool() -> Bool { Bool.random(using: &self) }
}
