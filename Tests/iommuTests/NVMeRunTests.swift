// SPDX-License-Identifier: Apache-2.0
//
// J1: a program drives the NVMe controller through Linux's interface, and what it wrote is there
// for the next one.

import Foundation
import Testing

@Suite(.timeLimit(.minutes(5))) struct NVMeRunTests {
  @Test("J1: nvme-rw writes, reads back, and finds its data in the next run")
  func data() throws {
    let directory = FileManager.default.temporaryDirectory.appendingPathComponent(
      "nvme-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: directory) }
    let machine = directory.appendingPathComponent("machine.yaml")
    try """
    iommus:
      - {name: dmar0, kind: intel}
    devices:
      - model: nvme
        address: 0000:e0:04.0
        namespaces:
          - {file: disk.img, size: 4MiB}

    """.write(to: machine, atomically: true, encoding: .utf8)
    let write = try iommu(
      "run", "--machine", machine.path, "--", built("nvme-rw").path, "--block", "100")
    #expect(write.status == 0, "\(write)")
    #expect(write.output.contains("64 KiB written at block 100, read back, the same"))
    let other = try iommu(
      "run", "--machine", machine.path, "--", built("nvme-rw").path, "--linux-offsets",
      "--block", "1000")
    #expect(other.status == 0 && other.output.contains("registers are mapped"), "\(other)")
    let read = try iommu(
      "run", "--machine", machine.path, "--", built("nvme-rw").path, "--block", "100", "--read")
    #expect(read.status == 0, "\(read)")
    let image = try Data(contentsOf: directory.appendingPathComponent("disk.img"))
    #expect(image.count == 4 << 20)
    let first = image[51200..<51216]
    #expect(first != Data(count: 16))
    let text = first.map { String(format: "%02x", $0) }.joined(separator: " ")
    #expect(read.output.contains(text), "\(read)")
  }

  @Test("J1: nvme-rw without a controller says what it looks for")
  func none() throws {
    let run = try iommu("run", "--", built("nvme-rw").path)
    #expect(run.status == 3)
    #expect(run.errors.contains("no NVMe controller (PCI class 010802)"))
  }
}
