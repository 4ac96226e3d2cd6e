// SPDX-License-Identifier: Apache-2.0
//
// `iommu demo`: two unmodified programs on a machine that is not there, with a word on each
// thing that they do.

import ArgumentParser
import Glibc
import Machine
import SystemPackage

struct Demo: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Show it at work: a device copies memory, and an intruder is stopped.",
    discussion: """
      Runs the example programs dma-copy and trespass, which know only Linux's
      interface, and explains what happens at each step.

      Examples:
        iommu demo
        iommu demo --trace demo.json   also a trace, for https://ui.perfetto.dev
      """)

  @Option(
    help: ArgumentHelp("Write a trace of the copy to this file.", valueName: "file"),
    completion: .file(extensions: ["json"]))
  var trace: String?

  @Option(
    help: ArgumentHelp(
      "Where dma-copy and trespass are; beside iommu where not given.", valueName: "directory"),
    completion: .directory)
  var examples: String?

  func run() throws {
    let place = try ExamplePrograms(directory: examples)
    let narrator = Narrator(colour: Terminal.colour)
    narrator.open(machine: .standard)

    narrator.chapter(1, "A program lets a device copy 4 MiB of its memory")
    let tracing = trace.map { ["--trace", $0] } ?? []
    // More than an ordinary user may lock as a rule.
    try play(
      [place.iommu, "run"] + tracing
        + ["--no-memlock-limit", "--", place.copy, "--size", "4194304"],
      narrator: narrator, topics: Narrator.copyTopics)
    if let trace {
      narrator.say("The trace is in \(trace): open it at https://ui.perfetto.dev.")
    }

    narrator.chapter(2, "A program tries everything that it must not do")
    try play(
      [place.iommu, "run", "--", place.trespass], narrator: narrator,
      topics: Narrator.trespassTopics)
    narrator.close()
  }

  private func play(
    _ arguments: [String], narrator: Narrator, topics: [Narrator.Topic]
  ) throws {
    narrator.command(arguments)
    var remaining = topics
    let status: Int32
    do {
      status = try ChildProcess.run(arguments) { line in
        narrator.show(line, topics: &remaining)
      }
    } catch {
      throw Complaint("cannot start \(arguments[0]): \(error)")
    }
    switch status {
    case 0: break
    case 125: throw Complaint("the program was not run; `iommu run` says why, above")
    default: throw Complaint("the program ended with status \(status)")
    }
  }
}

/// Where the programs of the demo are.
struct ExamplePrograms {
  let iommu: String
  let copy: String
  let trespass: String

  /// - Parameter directory: nil for the directory that this program is in.
  init(directory: String?) throws {
    let own = try Self.ownPath()
    let place = directory.map { FilePath($0) } ?? own.removingLastComponent()
    iommu = own.string
    copy = try Self.program("dma-copy", in: place)
    trespass = try Self.program("trespass", in: place)
  }

  private static func program(_ name: String, in directory: FilePath) throws -> String {
    let path = directory.appending(name).string
    // SAFETY: the string lives through the call.
    guard unsafe access(path, X_OK) == 0 else {
      throw Complaint(
        "the demo's program \(name) is not in \(directory): build it with `swift build`, or "
          + "say where it is with --examples DIRECTORY")
    }
    return path
  }

  private static func ownPath() throws -> FilePath {
    // SAFETY: realpath returns memory that is copied and freed here.
    guard let path = unsafe realpath("/proc/self/exe", nil) else {
      throw Complaint("cannot tell where this program is: /proc is not mounted")
    }
    defer { unsafe free(path) }
    return unsafe FilePath(String(cString: path))
  }
}
