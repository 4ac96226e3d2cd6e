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

      With --switches, threads bind, attach, replace, detach, share and unbind while
      others do DMA, which must meet the old security context or the new one: never
      the host's memory while somebody owns the group. --break makes the driver
      switch wrongly, to see that it is found.

      Exit status: 0 where all invariants held; 1 where one was broken, with
      the sentence and the seed on standard error.

      Examples:
        swift run iommu-stress
        swift run -c release iommu-stress --seconds 3600 --threads 16
        swift run -c release iommu-stress --switches --seconds 3600
        swift run iommu-stress --switches --break throughHost
        SANITIZE=thread swift run --sanitize=thread --scratch-path .build-thread \\
          iommu-stress --seconds 60
      """)

  @Option(help: "How long to run.") var seconds: Double = 10
  @Option(help: "How many threads; at least 6.") var threads = 8
  @Option(help: "What to choose by; a random one where it is not given.") var seed: UInt64?
  @Option(help: "Seconds from one line of progress to the next.") var interval: Double = 10

  @Flag(help: "Switch security contexts under DMA, and nothing else.") var switches = false
  @Option(
    name: .customLong("break"),
    help: "What the driver of --switches does wrong: \(Breakage.names).")
  var breakage: Breakage?

  func validate() throws {
    guard breakage == nil || switches else {
      throw ValidationError("--break needs --switches.")
    }
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
    if switches { return try runSwitches(seed) }
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

  private func runSwitches(_ seed: UInt64) throws {
    print("iommu-stress: switches under DMA, \(seconds) s, seed \(seed)")
    let options = SwitchOptions(seed: seed, seconds: seconds, breakage: breakage)
    let report = try Stress.runSwitches(options) { print($0) }
    for line in report.lines { print(line) }
    if let failure = report.failure {
      throw BrokenInvariant(description: "broken with seed \(seed): \(failure)")
    }
    print("every access met the old context or the new one; nothing is left")
  }
}

extension Breakage: ExpressibleByArgument {
  static let names = allCases.map(\.rawValue).joined(separator: ", ")
}

StressCommand.main()
