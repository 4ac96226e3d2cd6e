// SPDX-License-Identifier: Apache-2.0
//
// What the user is told: refusals, explanations, the trace.

import Foundation
import Testing

@Suite("What the interposer says", .serialized)
struct MessageTests {
  @Test("A run inside of a run is refused in one sentence", arguments: User.allCases)
  func nested(_ user: User) {
    let outcome = Programs.hosted([Programs.host, "--", "true"], as: user)
    #expect(outcome.status == 125)
    #expect(outcome.error.contains("nested `iommu run`"))
    #expect(outcome.error.split(separator: "\n").count == 1)
  }

  @Test("A machine that cannot be made ends with 125 and its own sentence")
  func noMachine() {
    let outcome = Programs.hosted(["true"], options: ["--fail"])
    #expect(outcome.status == 125)
    // Whatever the view: neither would have helped.
    #expect(outcome.error == "iommu: the machine cannot be made\n", "\(outcome)")
  }

  @Test("A 32-bit program is named and killed")
  func foreign() {
    let outcome = Programs.client(["foreign"])
    #expect(outcome.signal == SIGKILL)
    #if arch(x86_64)
      #expect(outcome.error.contains("interposer-client is a 32-bit program"))
    #endif
  }

  @Test("Opening a no-IOMMU node says what to use instead")
  func noIOMMU() {
    let outcome = Programs.hosted(["sh", "-c", "exec 3< /dev/vfio/noiommu-0"])
    #expect(outcome.status != 0)
    #expect(outcome.error.contains("no-IOMMU mode is not offered"))
  }

  // Under the thread sanitizer it finds that a process of several threads gets no namespace.
  #if !SANITIZER_thread
    @Test(
      "The doctor finds that everything works where the other tests pass",
      arguments: User.allCases)
    func doctor(_ user: User) {
      let outcome = Programs.run([Programs.host, "--doctor"], as: user)
      #expect(outcome.status == 0)
      // What containers forbid has another way.
      let lacking = outcome.output.split(separator: "\n").filter { line in
        line.hasPrefix("NO ")
          && !(!Programs.hasMounts && line.hasPrefix("NO mount namespace"))
          && !(!Programs.hasCopies && line.hasPrefix("NO pidfd_getfd"))
      }
      #expect(!outcome.output.isEmpty && lacking.isEmpty, "\(outcome.output)")
      let inside = Programs.hosted([Programs.host, "--doctor"], as: user)
      #expect(inside.output.contains("NO seccomp user notification Device or resource busy"))
    }
  #endif

  @Test("--explain says why each failed call failed")
  func explain() {
    let outcome = Programs.client(["plain-calls"], options: ["--explain"])
    #expect(outcome.status == 0)
    #expect(
      outcome.error.contains(
        "iommu: ioctl(0x3b02) on /dev/iommu: the test asked for it (ENODEV)\n"))
    #expect(outcome.error.contains("iommu: lseek on /dev/iommu: "))
  }

  @Test("--trace - writes a line for each call")
  func traceLines() {
    let outcome = Programs.client(["hello"], options: ["--trace", "-"])
    #expect(outcome.error.contains("/dev/iommu: ioctl(0x3b01) fd=768"))
    #expect(outcome.error.contains(" = 41\n"))
  }

  @Test("A trace that finds no room is said to be incomplete, once; the program goes on")
  func fullDisk() {
    let outcome = Programs.client(["hello"], options: ["--trace", "/dev/full"])
    #expect(outcome.status == 0)
    #expect(outcome.error.contains("trace cannot be written"))
    #expect(outcome.error.split(separator: "\n").count == 1)
  }

  @Test("--trace FILE writes JSON that is whole even where the program is killed")
  func traceFile() throws {
    let path = Programs.directory + "/trace.json"
    defer { unlink(path) }
    let outcome = Programs.hosted(
      ["sh", "-c", "\(Programs.client) hello; kill -9 $$"], options: ["--trace", path])
    #expect(outcome.signal == SIGKILL)
    let data = try Data(contentsOf: URL(fileURLWithPath: path))
    let events = try #require(
      try JSONSerialization.jsonObject(with: data) as? [[String: Any]])
    let call = try #require(events.first { $0["name"] as? String == "ioctl(0x3b01)" })
    let arguments = try #require(call["args"] as? [String: String])
    #expect(arguments["result"] == "41")
    #expect(call["ph"] as? String == "X")
  }
}
