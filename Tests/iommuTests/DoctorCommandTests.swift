// SPDX-License-Identifier: Apache-2.0
//
// `iommu doctor`: says what holds, in words and in JSON, and by its status.

import Foundation
import Testing

@Suite("iommu doctor") struct DoctorCommandTests {
  @Test("where programs run, the doctor says so") func verdict() throws {
    let works = try iommu("run", "--", "true").status == 0
    let run = try iommu("doctor")
    #expect(run.status == (works ? 0 : 1))
    #expect(run.output.contains(works ? "works here" : "does not work here"))
    #expect(!run.output.contains("\u{1B}"))
  }

  @Test("where there are too few files to try anything with, the doctor says that and ends")
  func fewFiles() throws {
    let run = try shell("ulimit -n 7; exec \"$0\" doctor", built("iommu").path)
    #expect(run.status == 1 && run.output.contains("no more than 7 open files"), "\(run)")
  }

  @Test("its JSON has each mechanism with what is lost and what to do") func json() throws {
    let run = try iommu("doctor", "--json")
    let report = try JSONSerialization.jsonObject(with: Data(run.output.utf8))
    let fields = try #require(report as? [String: Any])
    #expect(fields["works"] as? Bool == (run.status == 0))
    let findings = try #require(fields["findings"] as? [[String: Any]])
    #expect(findings.count >= 5)
    for finding in findings {
      #expect(finding["works"] is Bool)
      for key in ["feature", "mechanism", "lost-without", "remedy"] {
        #expect((finding[key] as? String)?.isEmpty == false, "\(key) of \(finding)")
      }
    }
  }
}
