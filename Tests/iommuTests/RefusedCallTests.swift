// SPDX-License-Identifier: Apache-2.0
//
// `iommu run` where pidfd_getfd is refused, as in most containers: real drivers, in both views.

import Foundation
import Testing

@Suite("iommu run without pidfd_getfd", .serialized) struct RefusedCallTests {
  private static let examples = URL(fileURLWithPath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
    .appendingPathComponent("Examples")

  private func refused(_ program: String, _ view: String, _ arguments: [String] = []) throws
    -> Finished
  {
    var words = [built("refused").path, "pidfd_getfd", "--", built("iommu").path, "run"]
    words += ["--view", view]
    let machine = Self.examples.appendingPathComponent("\(program)/machine.yaml").path
    if FileManager.default.fileExists(atPath: machine) { words += ["--machine", machine] }
    return try run(words + ["--", built(program).path] + arguments)
  }

  @Test(
    "J1, H1: drivers bind, map memory and files, take interrupts by eventfd and page requests",
    arguments: [
      "dma-copy", "nvme-rw", "page-requests", "mdev-copy", "live-migration", "both-descriptors",
      "locked-memory", "two-processes",
    ], ["namespace", "paths"])
  func drivers(_ program: String, _ view: String) throws {
    let run = try refused(program, view)
    // A container has no mount namespace to give.
    let isToBeHad =
      try view == "paths" || iommu("run", "--view", view, "--", "true").status == 0
    #expect(run.status == (isToBeHad ? 0 : 125), "\(run.output)\(run.errors)")
  }

  #if arch(x86_64)
    @Test(
      "J1: mapped registers and what is handed over do not get in each other's way",
      arguments: ["widths", "forks", "executes", "killed", "own-handler", "threads"])
    func registers(_ name: String) throws {
      let run = try refused("mapped-registers", "paths", [name])
      #expect(run.status == 0, "\(run.output)\(run.errors)")
    }
  #endif
}
