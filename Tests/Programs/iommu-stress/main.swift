// SPDX-License-Identifier: Apache-2.0
//
// The stress test as a program: runs as long as asked and prints its rates.

import ArgumentParser
import Stress

/// Printed on standard error; the exit status is 1.
struct BrokenInvariant: Error, CustomStringConvertible {
  let description: String
}

struct StressCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "iommu-stress",
    abstract: "Map, unmap, attach, destroy, DMA and page requests at once, from many threads.",
    discussion: """
      All threads work on one context of a machine in this process. Every page
      carries a stamp while it is mapped and poison while it is not: a DMA that
      sees or changes poison, a stamp of another mapping, or another space than
      its device is on, has found a bug. Now and then all threads stand still
      and everything is counted; at the end everything is closed and every count
      must be zero.

      Exit status: 0 where all invariants held; 1 where one was broken, with
      the sentence and the seed on standard error.

      Examples:
        swift run iommu-stress
        swift run -c release iommu-stress --seconds 3600 --threads 16
        SANITIZE=thread swift run --sanitize=thread --scratch-path .build-thread \\
          iommu-stress --seconds 60
      """)

  @Option(help: "How long to run.") var seconds: Double = 10
  @Option(help: "How many threads; at least 6.") var threads = 8
  @Option(help: "What to choose by; a random one where it is not given.") var seed: UInt64?
  @Option(help: "Seconds from one line of progress to the next.") var interval: Double = 10

  func validate() throws {
    guard seconds > 0, seconds.isFinite else {
      throw ValidationError("--seconds must be more than 0.")
    }
    guard (6...1024).contains(threads) else {
      throw ValidationError("--threads must be 6 to 1024.")
    }
    guard interval > 0 else { throw ValidationError("--interval must be more than 0.") }
  }

  func run() throws {
    let seed = self.seed ?? UInt64.random(in: 0...UInt64(UInt32.max))
    print("iommu-stress: \(threads) threads, \(seconds) s, seed \(seed)")
    let options = StressOptions(
      seconds: seconds, threads: threads, seed: seed, interval: interval)
    let report = try runStress(options) { print($0) }
    for line in report.rates { print(line) }
    guard let failure = report.failure else {
      print("every invariant held; nothing is left")
      return
    }
    throw BrokenInvariant(description: "broken with seed \(seed): \(failure)")
  }
}

StressCommand.main()
