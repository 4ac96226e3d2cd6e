// SPDX-License-Identifier: Apache-2.0
//
// The command line: the list of commands, and which exit status a mistake ends with.

import ArgumentParser
import Glibc
import Machine

@main
struct IOMMUTool: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "iommu",
    abstract: "/dev/iommu, and devices behind it, on machines that have none.",
    discussion: """
      Runs unmodified VFIO and iommufd programs against a software IOMMU with
      PCI devices of its own. No root, no daemon, no set-up.

      To see it work:            iommu demo
      To run your own program:   iommu run -- ./program
      To see the machine:        iommu machine
      To disturb a running one:  iommu ctl
      If something is refused:   iommu doctor
      """,
    version: "swift-iommu \(version)",
    subcommands: [
      Run.self, Control.self, Demo.self, PrintMachine.self, Doctor.self, Completion.self,
    ])

  static let version = "0.1.0"

  static func main() {
    do {
      var command = try parseAsRoot()
      try command.run()
    } catch let error as MachineFileError {
      Terminal.complain("\(error)")
      Self.exit(withError: ownFailure)
    } catch let error as Complaint {
      Terminal.complain("iommu: \(error.description)")
      Self.exit(withError: ownFailure)
    } catch {
      guard exitCode(for: error) == .validationFailure, isRun else { exit(withError: error) }
      Terminal.complain(fullMessage(for: error))
      Self.exit(withError: ownFailure)
    }
  }

  private static var isRun: Bool { CommandLine.arguments.dropFirst().first == "run" }

  /// The status of a failure of our own. Under `run` it is the one that env(1) and its family
  /// use, so that it is told apart from the program's.
  private static var ownFailure: ExitCode { isRun ? ExitCode(125) : .failure }
}

/// A failure of ours with a sentence for the user; no usage text follows.
struct Complaint: Error, CustomStringConvertible {
  let description: String

  init(_ description: String) { self.description = description }
}
