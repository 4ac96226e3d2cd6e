// SPDX-License-Identifier: Apache-2.0
//
// `iommu ctl`: devices of a running machine are removed, put back and made to fail.

import ArgumentParser
import Glibc
import Machine

struct Control: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "ctl",
    abstract: "Remove, add and disturb devices of a running `iommu run`.",
    discussion: """
      Speaks to a run of the same user; where there are several, --run says
      which. Exits with 0 where it was done, 1 where it was refused or nobody
      runs, 64 where the command was wrong, 124 where --timeout was over.

      Examples:
        iommu ctl list
        iommu ctl remove 0000:e0:04.0
        iommu ctl add 0000:e0:04.0
        iommu ctl fault 0000:e0:04.0 completion-timeout
        iommu run -- ./my-driver & iommu ctl remove --run $! 0000:e0:04.0
      """,
    subcommands: [List.self, Remove.self, Add.self, Fault.self])

  /// `--run PID`.
  struct Target: ParsableArguments {
    @Option(
      name: .customLong("run"),
      help: ArgumentHelp(
        "Process id of the `iommu run` (where there is one, it is that).", valueName: "pid"))
    var pid: Int32?

    /// Sends a command, and prints what comes back.
    /// - Parameter timeout: In seconds; nil for none.
    func send(_ words: [String], timeout: Double? = nil) throws {
      for word in words where word.utf8.contains(where: { $0 <= 0x20 }) {
        throw Complaint("'\(word)' is no word of a command")
      }
      let connection = try connect()
      defer { close(connection) }
      ControlSocket.send(
        ([ControlServer.version] + words).joined(separator: " "), to: connection)
      let end = timeout.map { now() + $0 }
      var reader = LineReader(connection)
      while true {
        if let end, !ControlSocket.wait(connection, milliseconds: milliseconds(until: end)) {
          Terminal.complain("iommu: timed out")
          throw ExitCode(124)
        }
        guard let line = reader.next() else {
          throw Complaint("the run ended before it answered")
        }
        let text = String(line.drop { $0 != " " }.dropFirst())
        switch line.prefix(while: { $0 != " " }) {
        case "progress": Terminal.complain("iommu: \(text)")
        case "out": Terminal.print(text + "\n")
        case "ok": return
        case "error":
          throw Complaint(String(text.drop { $0 != " " }.dropFirst()))
        default: break
        }
      }
    }

    private func connect() throws -> Int32 {
      let runs = ControlSocket.runs.filter { pid == nil || $0.pid == pid }
      let live = runs.compactMap { run in
        ControlSocket.connect(to: run).map { (pid: run.pid, connection: $0) }
      }
      guard let first = live.first else {
        throw Complaint(
          pid.map {
            "there is no run \($0) of yours; `iommu ctl list` shows those that there are"
          }
            ?? "nothing runs: start a program with `iommu run -- PROGRAM` first")
      }
      guard live.count == 1 else {
        for run in live { close(run.connection) }
        let pids = live.map { "\($0.pid)" }.joined(separator: ", ")
        throw Complaint("several run (\(pids)); say which with --run PID")
      }
      return first.connection
    }

    private func now() -> Double {
      var time = timespec()
      unsafe clock_gettime(CLOCK_MONOTONIC, &time)
      return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
    }

    private func milliseconds(until end: Double) -> Int32 {
      Int32(clamping: Int(max(0, (end - now()) * 1000).rounded(.up)))
    }
  }

  struct List: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Show what runs, and the devices of each machine.")

    func run() throws {
      var isAny = false
      for run in ControlSocket.runs {
        guard let connection = ControlSocket.connect(to: run) else { continue }
        defer { close(connection) }
        isAny = true
        ControlSocket.send("\(ControlServer.version) list", to: connection)
        var reader = LineReader(connection)
        while let line = reader.next(), line != "ok" {
          if line.hasPrefix("program ") {
            Terminal.print("\(run.pid)  \(line.dropFirst(8))\n")
          } else if line.hasPrefix("out ") {
            Terminal.print("  \(line.dropFirst(4))\n")
          }
        }
      }
      if !isAny { Terminal.complain("iommu: nothing runs") }
    }
  }

  struct Remove: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Take a device out of the machine.",
      discussion: """
        Nobody opens the device from now on. Whoever has it is asked to let go
        by the request interrupt (VFIO_PCI_REQ_IRQ_INDEX), again every 10
        seconds; once all files and mappings are closed it is gone. Ctrl-C and
        --timeout leave it where it is.
        """)

    @OptionGroup var target: Target

    @Argument(help: ArgumentHelp("The device, as in 0000:e0:04.0.", valueName: "device"))
    var device: String

    @Flag(
      help:
        "Tear it out: registers read as all ones, mappings fault, DMA ends, calls are ENODEV.")
    var surprise = false

    @Option(help: ArgumentHelp("Give up after so many seconds.", valueName: "seconds"))
    var timeout: Double?

    func validate() throws {
      if let timeout, !(timeout >= 0 && timeout <= 1e6) {
        throw ValidationError("--timeout is 0 to 1000000 seconds.")
      }
    }

    func run() throws {
      try target.send(
        ["remove", device] + (surprise ? ["surprise"] : []), timeout: timeout)
    }
  }

  struct Add: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Put a removed device back, as a new one.")

    @OptionGroup var target: Target

    @Argument(help: ArgumentHelp("The device, as in 0000:e0:04.0.", valueName: "device"))
    var device: String

    func run() throws { try target.send(["add", device]) }
  }

  struct Fault: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Put an error into a device.",
      discussion: """
        Errors that it reports (the bit in its advanced error reporting
        capability, and the error interrupt, VFIO_PCI_ERR_IRQ_INDEX, unless the
        error is masked or was corrected):
          \(MachineControl.errors.joined(separator: " "))
        Other things that go wrong:
        \(MachineControl.faults.map { "  \($0.name): \($0.summary)" }.joined(separator: "\n"))
        """)

    @OptionGroup var target: Target

    @Argument(help: ArgumentHelp("The device, as in 0000:e0:04.0.", valueName: "device"))
    var device: String

    @Argument(
      help: "What goes wrong.",
      completion: .list(MachineControl.errors + MachineControl.faults.map(\.name)))
    var kind: String

    @Argument(help: "For dma: how many accesses fail.")
    var count: Int?

    func run() throws {
      try target.send(["fault", device, kind] + (count.map { ["\($0)"] } ?? []))
    }
  }
}
