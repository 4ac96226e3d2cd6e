// SPDX-License-Identifier: Apache-2.0
//
// `iommu machine`, `--help`, `--version`, completions, and how mistakes end.

import Foundation
import Machine
import Testing

@Suite("iommu machine") struct MachineCommandTests {
  @Test("the machine is printed as a tree, without colour where nobody looks") func tree()
    throws
  {
    let run = try iommu("machine")
    #expect(run.status == 0)
    #expect(run.output == MachineDescription.standard.tree(colour: false))
    #expect(run.errors.isEmpty)
  }

  @Test("the other formats are what the library makes") func formats() throws {
    #expect(try iommu("machine", "--json").output == MachineDescription.standard.json)
    #expect(try iommu("machine", "--dot").output == MachineDescription.standard.dot)
    #expect(try iommu("machine", "--yaml").output == MachineDescription.standard.yaml)
  }

  @Test("a machine comes from standard input") func standardInput() throws {
    let yaml = MachineDescription.standard.yaml.replacing(
      "name: \"default\"", with: "name: x y")
    let run = try iommu("machine", "--machine", "-", input: yaml)
    #expect(run.status == 0)
    #expect(run.output.hasPrefix("x y\n"))
  }

  @Test("a wrong file is refused with line and column") func wrong() throws {
    let run = try iommu("machine", "--machine", "-", input: "iommus: 4\ndevices: []\n")
    #expect(run.status == 1)
    #expect(run.output.isEmpty)
    #expect(run.errors.hasPrefix("standard input:1:9: error: found '4', expected a list"))
  }

  @Test("help has examples", arguments: ["run", "demo", "machine", "doctor", "completion"])
  func help(command: String) throws {
    let run = try iommu(command, "--help")
    #expect(run.status == 0)
    #expect(run.output.contains("Examples:"))
    #expect(run.output.contains("iommu \(command)"))
  }

  @Test("the version is one line") func version() throws {
    #expect(try iommu("--version").output == "swift-iommu 0.1.0\n")
  }

  @Test("a script for each shell", arguments: ["bash", "zsh", "fish"])
  func completion(shell: String) throws {
    let run = try iommu("completion", shell)
    #expect(run.status == 0)
    #expect(run.output.contains("iommu"))
    #expect(run.output.contains("trace"))
  }

  @Test("after `iommu run --` bash completes the names of files") func completesFiles() throws {
    let place = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    try FileManager.default.createDirectory(at: place, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: place) }
    let script = place.appendingPathComponent("iommu.bash")
    try Data(try iommu("completion", "bash").output.utf8).write(to: script)
    try Data().write(to: place.appendingPathComponent("a-driver"))
    let run = try shell(
      #"exec bash -c "$0" "$1""#,
      """
      cd "$0" && . ./iommu.bash
      COMP_WORDS=(iommu run --explain -- ./a-) COMP_CWORD=4
      COMP_LINE="${COMP_WORDS[*]}" COMP_POINT=${#COMP_LINE}
      _iommu iommu ./a- --
      printf '[%s]' "${COMPREPLY[@]}"
      """, place.path)
    #expect(run.output == "[./a-driver]", "\(run)")
  }

  @Test(
    "what cannot be written ends with a sentence and a failure",
    arguments: [["machine"], ["machine", "--yaml"], ["completion", "bash"]])
  func fullDisk(arguments: [String]) throws {
    let run = try shell(
      "exec \"$0\" \(arguments.joined(separator: " ")) > /dev/full", built("iommu").path)
    #expect(run.status == 1, "\(run)")
    #expect(
      run.errors == "iommu: cannot write to standard output: No space left on device\n",
      "\(run)")
  }

  @Test("an unknown option is refused") func unknown() throws {
    let run = try iommu("machine", "--jason")
    #expect(run.status == 64)
    #expect(run.errors.contains("--jason"))
  }
}
