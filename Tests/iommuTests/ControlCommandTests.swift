// SPDX-License-Identifier: Apache-2.0
//
// J1: `iommu ctl` against a run: by the built program, as a user types it.

import Foundation
import Testing

@Suite(.timeLimit(.minutes(10))) struct ControlCommandTests {
  @Test(
    "J1: iommu ctl without a run of that number says so, and how to find those that there are")
  func nobody() throws {
    for command in [
      ["remove", "0000:e0:04.0"], ["add", "0000:e0:04.0"], ["fault", "x", "dma"],
    ] {
      let finished = try iommu(["ctl"] + command + ["--run", "1"])
      #expect(finished.status == 1)
      #expect(finished.errors.contains("no run 1 of yours"))
    }
    #expect(try iommu("ctl", "remove", "0000:e0:04.0", "--timeout", "-1").status == 64)
  }

  @Test("J1: the socket of a run that was killed is passed over, and taken away")
  func stale() throws {
    let directory = "/tmp/swift-iommu-\(geteuid())"
    // No process has such a number. What is there and no socket answers as little as one whose
    // listener is gone.
    mkdir(directory, 0o700)
    let path = "\(directory)/4194305.sock"
    for command in [["list"], ["remove", "0000:e0:04.0", "--run", "4194305"]] {
      #expect(FileManager.default.createFile(atPath: path, contents: nil))
      let finished = try iommu(["ctl"] + command)
      #expect(finished.status == (command == ["list"] ? 0 : 1), "\(finished)")
      #expect(!finished.output.contains("4194305"))
      #expect(!FileManager.default.fileExists(atPath: path))
    }
  }

  @Test(
    "J1: a program removes, adds and disturbs its own machine's devices by iommu ctl",
    arguments: ["", "--view paths"])
  func itself(_ view: String) throws {
    // The shell's parent is the supervisor, whose parent is the run.
    let script = """
      ctl="$0"
      for i in $(seq 100); do "$ctl" ctl list | grep -q "^$PPID_RUN" && break; sleep 0.1; done
      set -- --run $PPID_RUN
      "$ctl" ctl list
      exec 9<>/dev/vfio/devices/vfio0
      "$ctl" ctl remove 0000:e0:04.0 "$@" --timeout 0.2; echo "timeout $?"
      exec 9>&-
      "$ctl" ctl remove 0000:e0:04.0 "$@"; echo "remove $?"
      test -e /dev/vfio/devices/vfio0; echo "there $?"
      "$ctl" ctl fault 0000:e0:04.0 dma "$@"; echo "fault $?"
      "$ctl" ctl add 0000:e0:04.0 "$@"; echo "add $?"
      "$ctl" ctl fault 0000:e0:04.0 dma 3 "$@"; echo "fault $?"
      test -e /dev/vfio/devices/vfio0; echo "there $?"
      """
    // The run's number is that of the process which becomes it.
    let outer = """
      export PPID_RUN=$$
      exec "$0" run \(view) -- /bin/sh -c "$1" "$0"
      """
    let place = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    try FileManager.default.createDirectory(at: place, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: place) }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/bin/sh")
    process.arguments = ["-c", outer, built("iommu").path, script]
    let output = Pipe()
    process.standardOutput = output
    process.standardError = FileHandle.nullDevice
    try process.run()
    let text = String(
      decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    #expect(process.terminationStatus == 0)
    let words = [
      "0000:e0:04.0  group 0  vfio-pci  free", "timeout 124", "0000:e0:04.0 is gone",
      "remove 0",
      "there 1", "fault 1", "0000:e0:04.0 is there", "add 0", "0000:e0:04.0: dma", "fault 0",
      "there 0",
    ]
    var rest = text[...]
    for word in words {
      guard let range = rest.range(of: word) else {
        Issue.record("\(word) is not in \(text)")
        return
      }
      rest = rest[range.upperBound...]
    }
  }

  @Test(
    "J1: an error that iommu ctl puts in is in --explain and in the trace",
    arguments: ["", "--view paths"])
  func isTold(_ view: String) throws {
    let trace = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    defer { try? FileManager.default.removeItem(at: trace) }
    let script = """
      for i in $(seq 100); do "$0" ctl list | grep -q "^$RUN" && break; sleep 0.1; done
      "$0" ctl fault 0000:e0:04.0 link-down --run "$RUN"
      "$0" ctl list
      """
    let run = try shell(
      #"export RUN=$$; exec "$0" run $3 --explain --trace "$1" -- /bin/sh -c "$2" "$0""#,
      built("iommu").path, trace.path, script, view)
    #expect(run.status == 0, "\(run)")
    let told = "fault put in by iommu ctl: 0000:e0:04.0: link-down"
    #expect(run.explanations == "iommu: \(told)\n", "\(run.errors)")
    #expect(run.output.contains("0000:e0:04.0  group 0  vfio-pci  link down\n"), "\(run)")
    #expect(try String(contentsOf: trace, encoding: .utf8).contains("\"what\":\"\(told)\""))
  }
}
