// SPDX-License-Identifier: Apache-2.0
//
// MODEL H1 and H3 by `iommu run`: an unmodified program serves the page requests of its device, and
// each way in which it does not ends them.

import Foundation
import Testing

@Suite("Page requests in a program's hands") struct PageRequestRunTests {
  private let machine = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    .deletingLastPathComponent().deletingLastPathComponent()
    .appendingPathComponent("Examples/page-requests/machine.yaml").path

  @Test("H1: a program polls, reads, maps and answers, and sees its copy done")
  func serve() throws {
    let run = try iommu(
      "run", "--machine", machine, "--", built("page-requests").path, "--pages", "10")
    #expect(run.status == 0, "\(run.errors)")
    // One for the descriptors and the completion, then source and destination, four at a time:
    // reads of 10 pages and writes of 10 pages.
    #expect(run.output.contains("page request: read at 0x30000000"))
    #expect(run.output.contains("page request: write at 0x20000000"))
    #expect(run.output.contains("21 requests in 7 groups"), "\(run.output)")
    #expect(run.output.contains("copied, and every page was mapped"))
  }

  @Test(
    "H3: a program that refuses, detaches, closes the queue, resets the device or exits ends it",
    arguments: ["refuse", "detach", "close", "reset", "leave"])
  func endings(ending: String) throws {
    let run = try iommu(
      "run", "--machine", machine, "--", built("page-requests").path, "--ending", ending)
    #expect(run.status == 0, "\(run.output)\(run.errors)")
    if ["refuse", "detach", "close"].contains(ending) {
      #expect(run.output.contains("the engine ended: status 3"), "\(run.output)")
    }
  }

  @Test("H1: a device or an IOMMU without page requests takes no table with a fault queue")
  func without() throws {
    let run = try iommu("run", "--", built("page-requests").path)
    #expect(run.status == 3)
    #expect(run.errors.contains("makes no page requests, or its IOMMU takes none"))
  }

  @Test("H1: --explain says that a device was refused its page, or could have asked")
  func refusals() throws {
    let refused = try iommu(
      "run", "--explain", "--trace", "-", "--machine", machine, "--",
      built("page-requests").path, "--ending", "refuse")
    #expect(refused.status == 0, "\(refused.output)\(refused.errors)")
    #expect(refused.errors.contains("page response: 0000:e0:04.0 group 0 success"))
    #expect(
      refused.errors.contains(
        "its page request was answered with invalid, or ended unanswered"),
      "\(refused.errors)")
    // Attached without a fault queue: everything that must fail does, and says so.
    let unasked = try iommu(
      "run", "--explain", "--machine", machine, "--", built("trespass").path, "--quiet",
      "--bdf",
      "0000:e0:04.0")
    #expect(
      unasked.errors.contains(
        "the device could ask for it, but its page table has no fault queue"),
      "\(unasked.errors)")
  }

  @Test("H1, K1: the proposal's guest SVA, with page faults that come to the user")
  func guestSVA() throws {
    let machine = URL(fileURLWithPath: machine).deletingLastPathComponent()
      .appending(components: "..", "ioasid-use-cases", "machine.yaml").path
    let run = try iommu("run", "--machine", machine, "--", built("ioasid-use-cases").path)
    #expect(run.status == 0, "\(run.output)\(run.errors)")
    #expect(!run.output.contains("left out"), "\(run.output)")
    #expect(run.output.contains("was answered 3 times, and copied"), "\(run.output)")
  }

  @Test("H1: --explain tells of page requests")
  func explain() throws {
    let run = try iommu(
      "run", "--trace", "-", "--machine", machine, "--", built("page-requests").path, "--quiet")
    #expect(run.status == 0)
    #expect(
      run.errors.contains("page request: 0000:e0:04.0 iova 0x30000000 r-- pages 1 group 0"),
      "\(run.errors)")
  }
}
