// SPDX-License-Identifier: Apache-2.0
//
// Runs a program under the interposer with small devices that do what the tests ask: echo,
// fail, give out files, keep memory and signal. Options, then `--`, then the program.

import Glibc
import IOMMU
import Interposer
import LinuxABI

var arguments = CommandLine.arguments.dropFirst()
var trace = RunOptions.Trace.none
var explain = false
var fail = false
// So that all tests can be run with either view; with --view any the host chooses.
// SAFETY: the C library's string is copied at once.
var view = unsafe getenv("INTERPOSER_TEST_VIEW").flatMap {
  unsafe ViewMode(rawValue: String(cString: $0))
}
while let option = arguments.popFirst(), option != "--" {
  switch option {
  case "--trace":
    trace = arguments.popFirst().map { $0 == "-" ? .standardError : .file(path: $0) } ?? .none
  case "--explain": explain = true
  case "--fail": fail = true
  case "--view": view = arguments.popFirst().flatMap { ViewMode(rawValue: $0) }
  case "--doctor":
    for finding in Doctor.probe() {
      print("\(finding.works ? "ok" : "NO") \(finding.mechanism) \(finding.detail)")
    }
    exit(0)
  default: break
  }
}
guard let program = arguments.popFirst() else { exit(2) }
let options = RunOptions(
  program: program, arguments: Array(arguments), trace: trace, explain: explain, view: view
) { [fail] in
  if fail { throw InterposerError("the machine cannot be made") }
  return TestMachine.make()
}
do {
  exit(try Interposer.run(options))
} catch {
  complain("iommu: \(error)")
  exit(125)
}
