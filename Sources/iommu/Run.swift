// SPDX-License-Identifier: Apache-2.0
//
// `iommu run`: a program on a machine that is not there.

import ArgumentParser
import Glibc
import Interposer
import Machine

struct Run: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Run a program that sees /dev/iommu, /dev/vfio and the machine's PCI devices.",
    discussion: """
      Everything after '--' is the program and its arguments. Its children see
      the machine too. The exit status is the program's; 125 where iommu itself
      failed, 126 where the program cannot be executed, 127 where it is not found.
      A program that a signal ends, ends iommu the same way.

      Examples:
        iommu run -- ./my-driver --device 0000:e0:04.0
        iommu run --explain -- ./my-driver          why a call was refused
        iommu run --trace run.json -- ./my-driver   open at https://ui.perfetto.dev
        iommu run --trace - -- ./my-driver          a line for each call, on stderr
        iommu run --machine my.yaml -- ls /sys/kernel/iommu_groups
      """)

  @OptionGroup var source: MachineOption

  @Option(
    help: ArgumentHelp(
      "Write every call, map, fault and invalidation to a Chrome/Perfetto trace; '-' prints a "
        + "line for each call instead.", valueName: "file"),
    completion: .file(extensions: ["json"]))
  var trace: String?

  @Flag(help: "Say on standard error why each failed call failed, and which DMA faulted.")
  var explain = false

  @Flag(
    help: ArgumentHelp(
      "Let programs pin more memory than RLIMIT_MEMLOCK (ulimit -l) allows.",
      discussion: "A VM's whole memory, for one: QEMU maps it for the device."))
  var noMemlockLimit = false

  @Flag(
    help: "Add the mock IOMMU driver that the kernel's own iommufd self-tests drive.")
  var selfTestDriver = false

  @Option(
    help: ArgumentHelp(
      "How programs see the machine's /dev and /sys; the first that this host allows.",
      discussion: """
        namespace: mounted in a mount namespace of the program's own; calls that take \
        a path go to the kernel, at its speed. paths: no namespace, no mount and no \
        privilege, for containers; calls that take a path come by iommu, and are \
        slower. Each can be chosen to try what a program does there.
        """, valueName: ViewMode.allCases.map(\.rawValue).joined(separator: "|")))
  var view: ViewMode?

  @Argument(
    parsing: .postTerminator,
    help: ArgumentHelp("The program and its arguments, after '--'.", valueName: "program"),
    completion: .file())
  var command: [String] = []

  func validate() throws {
    if command.isEmpty {
      throw ValidationError("Give the program after '--': iommu run -- PROGRAM ARGUMENTS…")
    }
    if command.first?.isEmpty == true {
      throw ValidationError("The program's name is empty.")
    }
  }

  func run() throws {
    // The machine file is read before anything is started; the machine is made afterwards, in
    // the supervisor, while the program starts.
    let machine = try source.description()
    let withSelfTests = selfTestDriver
    let (pid, program) = (getpid(), command.joined(separator: " "))
    let options = RunOptions(
      program: command[0], arguments: Array(command.dropFirst()), trace: traceTarget,
      explain: explain, limitsMemory: !noMemlockLimit, view: view,
      makeMachine: {
        let machine = try Machine(machine, selfTestDriver: withSelfTests)
        ControlServer.start(machine, pid: pid, program: program)
        return InterposedMachine(
          files: machine.files, threadNodes: machine.threadNodes,
          events: machine.system.events)
      })
    do {
      let status = try Interposer.run(options)
      ControlSocket.forget(pid: pid)
      Glibc.exit(status)
    } catch {
      throw Complaint(error.description)
    }
  }

  private var traceTarget: RunOptions.Trace {
    switch trace {
    case nil: .none
    case "-"?: .standardError
    case let path?: .file(path: path)
    }
  }
}

extension ViewMode: ExpressibleByArgument {}
