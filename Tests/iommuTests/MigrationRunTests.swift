// SPDX-License-Identifier: Apache-2.0
//
// J1: a program moves devices with their work in hand by VFIO's own calls, and finds that nothing was
// lost or done twice.

import Foundation
import Testing

@Suite(.timeLimit(.minutes(10))) struct MigrationRunTests {
  private let example = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    .deletingLastPathComponent().deletingLastPathComponent()
    .appendingPathComponent("Examples/live-migration/machine.yaml")

  /// Runs it in the example's machine, whose file of blocks lies beside the machine's file.
  private func migrate(_ arguments: String...) throws -> Finished {
    let directory = FileManager.default.temporaryDirectory.appendingPathComponent(
      "migration-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: directory) }
    let machine = directory.appendingPathComponent("machine.yaml")
    try FileManager.default.copyItem(at: example, to: machine)
    return try iommu(
      ["run", "--machine", machine.path, "--", built("live-migration").path] + arguments)
  }

  @Test("J1: live-migration moves a ring of copies, with its memory and one interrupt")
  func engine() throws {
    let run = try migrate("--engine")
    #expect(run.status == 0, "\(run)")
    #expect(run.output.contains("PRE_COPY: its state is there to be read"), "\(run)")
    #expect(run.output.contains("all bytes are right, one interrupt came"), "\(run)")
    #expect(run.output.contains("16 more copies"), "\(run)")
  }

  @Test("J1: live-migration moves an NVMe controller: each command is answered once")
  func controller() throws {
    let run = try migrate("--nvme")
    #expect(run.status == 0, "\(run)")
    #expect(run.output.contains("were answered by the new one, each once"), "\(run)")
    #expect(run.output.contains("read back there: all 48 pages are right"), "\(run)")
  }

  @Test("J1: live-migration without two devices says what it looks for")
  func none() throws {
    let run = try iommu("run", "--", built("live-migration").path, "--nvme")
    #expect(run.status == 3)
    #expect(run.errors.contains("it takes two NVMe controllers"))
  }
}
