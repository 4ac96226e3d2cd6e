// SPDX-License-Identifier: Apache-2.0
//
// J1: a program drives the NVMe controller through Linux's interface, and what it wrote is there
// for the next one.

import Foundation
import Testing

@Suite(.timeLimit(.minutes(10))) struct NVMeRunTests {
  /// A directory of its own, and in it a machine with one controller.
  private func makeMachine(_ namespaces: String...) throws -> (directory: URL, machine: URL) {
    let directory = FileManager.default.temporaryDirectory.appendingPathComponent(
      "nvme-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    let machine = directory.appendingPathComponent("machine.yaml")
    try """
    iommus:
      - {name: dmar0, kind: intel}
    devices:
      - model: nvme
        address: 0000:e0:04.0
        namespaces: [\(namespaces.joined(separator: ", "))]

    """.write(to: machine, atomically: true, encoding: .utf8)
    return (directory, machine)
  }

  @Test("J1: nvme-rw writes, reads back, and finds its data in the next run")
  func data() throws {
    let (directory, machine) = try makeMachine("{file: disk.img, size: 4MiB}")
    defer { try? FileManager.default.removeItem(at: directory) }
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

  /// The blocks of a namespace's file that were stored in part: not one word again and again, or
  /// another block's.
  private func torn(_ file: URL, blockSize: Int) throws -> [Int] {
    let words = try Data(contentsOf: file).withUnsafeBytes {
      Array($0.bindMemory(to: UInt64.self))
    }
    #expect(words.count == 1 << 17)
    let perBlock = blockSize / 8
    return (0..<words.count / perBlock).filter { block in
      let first = words[block * perBlock]
      return !words[block * perBlock..<(block + 1) * perBlock].allSatisfy { $0 == first }
        || first != 0 && first >> 32 != block + 1
    }
  }

  /// Waits until nobody has a namespace's file: who is killed lets go of it when all its memory is
  /// free, which under a sanitizer takes longer than a run waits for it.
  private func waitUntilFree(_ file: URL) throws {
    let handle = try FileHandle(forReadingFrom: file)
    let start = ContinuousClock.now
    while flock(handle.fileDescriptor, LOCK_SH | LOCK_NB) != 0 {
      guard ContinuousClock.now - start < .seconds(30) else {
        Issue.record("\(file.path) is held by somebody")
        return
      }
      usleep(1000)
    }
  }

  @Test("J1: supervisor or program killed in the middle of writes leave whole blocks")
  func killed() throws {
    let (directory, machine) = try makeMachine(
      "{file: a.img, size: 1MiB}", "{file: b.img, size: 1MiB, block-size: 4096}")
    defer { try? FileManager.default.removeItem(at: directory) }
    let command = ["run", "--machine", machine.path, "--", built("nvme-stamps").path]
    func check(_ what: String) throws {
      for (name, size) in [("a.img", 512), ("b.img", 4096)] {
        let file = directory.appendingPathComponent(name)
        try waitUntilFree(file)
        let torn = try torn(file, blockSize: size)
        #expect(torn.isEmpty, "\(what): \(name): blocks \(torn)")
      }
    }
    var random = SystemRandomNumberGenerator()
    for turn in 0..<10 {
      let run = try iommu(command, killedAfter: .random(in: 0..<20_000, using: &random))
      #expect(run.status == 128 + SIGKILL, "\(run)")
      #expect(run.output == "writing\n", "\(run)")
      try check("supervisor \(turn)")
    }
    let run = try iommu(command + ["10"])
    #expect(run.output == "killed\n", "\(run)")
    try check("program")
    let image = try Data(contentsOf: directory.appendingPathComponent("b.img"))
    #expect(image != Data(count: 1 << 20))
  }

  @Test("J1: nvme-rw without a controller says what it looks for")
  func none() throws {
    let run = try iommu("run", "--", built("nvme-rw").path)
    #expect(run.status == 3)
    #expect(run.errors.contains("no NVMe controller (PCI class 010802)"))
  }
}
