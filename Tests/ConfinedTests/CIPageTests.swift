// SPDX-License-Identifier: Apache-2.0
//
// docs/ci.md and Examples/ci keep their word: what a job does is done here, as a container would
// have it.

import Foundation
import Testing

@Suite struct CIPageTests {
  private static let root = URL(filePath: #filePath).deletingLastPathComponent()
    .deletingLastPathComponent().deletingLastPathComponent()

  private static func text(_ path: String) throws -> String {
    try String(contentsOf: root.appending(path: path), encoding: .utf8)
  }

  /// A block of the page.
  private static func block(_ language: String) throws -> String {
    let page = try text("docs/ci.md")
    let start = try #require(page.range(of: "```\(language)\n"))
    let end = try #require(page[start.upperBound...].range(of: "```"))
    return String(page[start.upperBound..<end.lowerBound])
  }

  /// A directory that everybody may read, with these files.
  private static func directory(_ files: [String: String]) throws -> URL {
    let place = URL(filePath: "/tmp/iommu-ci-\(UUID().uuidString)")
    try FileManager.default.createDirectory(
      at: place, withIntermediateDirectories: true,
      attributes: [.posixPermissions: 0o777])
    chmod(place.path, 0o777)
    for (name, text) in files {
      try Data(text.utf8).write(to: place.appending(path: name))
    }
    return place
  }

  private func iommu(
    _ arguments: String, in directory: URL, confined isConfined: Bool, as user: User
  ) throws -> Finished {
    let script = ["sh", "-c", "cd \(directory.path) && exec \(Built.iommu) \(arguments)"]
    return try isConfined ? confined(script, as: user) : run(script)
  }

  @Test("The page's first test passes on the page's machine", arguments: User.allCases)
  func first(_ user: User) throws {
    let place = try Self.directory([
      "first.py": try Self.block("python"), "machine.yaml": try Self.block("yaml"),
    ])
    defer { try? FileManager.default.removeItem(at: place) }
    for options in ["", "--machine machine.yaml "] {
      let run = try iommu(
        "run \(options)-- python3 first.py", in: place, confined: true, as: user)
      #expect(run.status == 0 && run.output == "" && run.errors == "", "\(run)")
    }
  }

  @Test(
    "The examples' tests pass, say what the page says, and leave a trace",
    arguments: User.allCases, [false, true])
  func driver(_ user: User, isConfined: Bool) throws {
    let place = try Self.directory([
      "driver_test.py": try Self.text("Examples/ci/driver_test.py"),
      "machine.yaml": try Self.text("Examples/ci/machine.yaml"),
    ])
    defer { try? FileManager.default.removeItem(at: place) }
    let run = try iommu(
      "run --explain --trace trace.json --machine machine.yaml -- python3 driver_test.py",
      in: place, confined: isConfined, as: user)
    #expect(run.status == 0 && run.output == "2 tests passed\n", "\(run)")
    let fault = try #require(
      run.errors.split(separator: "\n").first { $0.hasPrefix("iommu: DMA fault") }, "\(run)")
    #expect(try Self.text("docs/ci.md").contains(fault))
    let trace = try Data(contentsOf: place.appending(path: "trace.json"))
    #expect(try JSONSerialization.jsonObject(with: trace) is [Any])
  }

  @Test("Each example runs what is tested here")
  func commands() throws {
    let run = "--machine machine.yaml -- python3 driver_test.py"
    for file in ["github-workflow.yml", "gitlab-ci.yml"] {
      let text = try Self.text("Examples/ci/\(file)")
      #expect(text.contains("iommu run --explain --trace trace.json \(run)"), "\(file)")
      #expect(text.contains("iommu doctor") && text.contains("sha256sum --check"), "\(file)")
    }
    let words = try Self.text("Examples/ci/Dockerfile").replacing("\", \"", with: " ")
    #expect(words.contains("iommu run --explain \(run)"))
    #expect(
      try ConfinedTests.run(["sh", "-n", Self.root.path + "/Examples/ci/build-iommu"]).status
        == 0)
  }

  @Test(
    "Where an older profile refuses process_vm_readv, the program's memory is read all the same"
  )
  func older() throws {
    let place = try Self.directory([
      "driver_test.py": try Self.text("Examples/ci/driver_test.py")
    ])
    defer { try? FileManager.default.removeItem(at: place) }
    let run = try confined(
      [Built.iommu, "run", "--", "python3", place.path + "/driver_test.py"],
      options: ["--profile", "20.10"])
    #expect(run.status == 0 && run.output == "2 tests passed\n", "\(run)")
  }
}
