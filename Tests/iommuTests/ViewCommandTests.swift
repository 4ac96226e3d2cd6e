// SPDX-License-Identifier: Apache-2.0
//
// `iommu run --view`, and `iommu run` where a container forbids namespaces.

import Foundation
import Testing

@Suite("iommu run --view") struct ViewCommandTests {
  @Test("a view that there is not is refused with the two that there are") func unknown() throws
  {
    let run = try iommu("run", "--view", "mounts", "--", "true")
    #expect(run.status == 125)
    #expect(run.errors.contains("'mounts' is invalid for '--view <namespace|paths>'"))
    #expect(run.errors.contains("namespace") && run.errors.contains("paths"))
  }

  @Test("the help says why one would choose one") func help() throws {
    let help = try iommu("run", "--help").output
    #expect(help.contains("--view <namespace|paths>") && help.contains("for containers"))
  }

  // The thread sanitizer's own thread keeps a process out of a user namespace, `confined` too.
  #if !SANITIZER_thread
    /// Runs `iommu` as a container confines it.
    private func confined(_ arguments: String...) throws -> Finished {
      try run([built("confined").path, built("iommu").path] + arguments)
    }

    @Test(
      "in a container that forbids namespaces programs run all the same, and nothing is said")
    func containers() throws {
      let run = try confined("run", "--", "true")
      #expect(run.status == 0 && run.errors == "", "\(run.errors)")
      let explained = try confined("run", "--explain", "--", "true")
      #expect(
        explained.errors.contains("shown by paths, without a mount namespace"),
        "\(explained.errors)")
      #expect(explained.errors.contains("the kernel refused a user namespace"))
      let forced = try confined("run", "--view", "namespace", "--", "true")
      #expect(forced.status == 125)
      #expect(
        forced.errors.contains("iommu: the kernel refused a user namespace"), "\(forced.errors)"
      )
    }

    @Test("the doctor says which view is taken there, and what the other one needs")
    func doctor() throws {
      let run = try confined("doctor", "--json")
      let report = try JSONSerialization.jsonObject(with: Data(run.output.utf8))
      let fields = try #require(report as? [String: Any])
      #expect(fields["view"] as? String == "paths")
      let findings = try #require(fields["findings"] as? [[String: Any]])
      func finding(_ view: String) throws -> [String: Any] {
        try #require(findings.first { $0["view"] as? String == view })
      }
      #expect(try finding("namespace")["works"] as? Bool == false)
      #expect(try finding("namespace")["required"] as? Bool == false)
      #expect(try finding("paths")["works"] as? Bool == true)
      #expect((try finding("namespace")["remedy"] as? String)?.contains("namespaces") == true)
      let text = try confined("doctor").output
      #expect(text.contains("no   /dev and /sys of the program's own"), "\(text)")
    }
  #endif
}
