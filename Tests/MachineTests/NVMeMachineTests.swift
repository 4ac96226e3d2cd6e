// SPDX-License-Identifier: Apache-2.0
//
// MODEL J1: what a machine file says of NVMe controllers, and what comes of it.

import Foundation
import IOMMU
import LinuxABI
import SoftDevices
import Testing

@testable import Machine

@Suite struct NVMeMachineTests {
  private func machine(_ text: String, file: String = "m.yaml") throws -> MachineDescription {
    try MachineDescription(file: file, bytes: Array(text.utf8))
  }

  private let here = FileManager.default.currentDirectoryPath

  private func text(_ keys: String) -> String {
    """
    iommus:
      - {name: dmar0, kind: intel}
    devices:
      - {model: nvme, address: "e0:04.0", \(keys)}

    """
  }

  @Test("J1: a machine file makes NVMe controllers, which are printed as they were")
  func printed() throws {
    let description = try machine(
      text(
        """
        serial: SN1, model-name: a disk, queues: 3, queue-entries: 64, mdts: 5, \
        vendor-id: 0x1234, device-id: 0x5678, \
        namespaces: [{file: a.img, size: 1MiB}, {size: 12KiB, block-size: 4096, read-only: true}]
        """), file: "machines/m.yaml")
    guard case .nvme(let controller) = description.devices[0].model else {
      Issue.record("\(description.devices[0].model)")
      return
    }
    #expect(
      controller
        == NVMeConfiguration(
          namespaces: [
            .init(file: here + "/machines/a.img", size: 1 << 20),
            .init(size: 12 << 10, blockSize: 4096, isReadOnly: true),
          ], serial: "SN1", modelName: "a disk", queues: 3, queueEntries: 64, transferLimit: 5,
          vendor: 0x1234, device: 0x5678))
    #expect(try machine(description.yaml) == description)
    #expect(description.json.contains("\"file\": \"\(here)/machines/a.img\""))
    #expect(description.tree(colour: false).contains("machines/a.img (1MiB)"))
  }

  @Test(
    "J1: a wrong NVMe controller is refused with what was expected",
    arguments: [
      ("serial: SN1", "without 'namespaces'"),
      ("namespaces: [{}]", "without 'file' and 'size'"),
      ("namespaces: [{size: 1000}]", "from 4KiB"),
      ("namespaces: [{size: 4100}]", "a multiple of the block size 512"),
      ("namespaces: [{size: 1MiB, block-size: 1024}]", "512 or 4096"),
      ("namespaces: [{size: 1MiB, shared: true}]", "expected a file that others have too"),
      ("namespaces: [{size: 1MiB, blocksize: 512}]", "did you mean 'block-size'"),
      ("namespaces: [{file: a}, {file: a}]", "twice"),
      ("namespaces: [{size: 1MiB}], queues: 256", "from 1 to 255"),
      ("namespaces: [{size: 1MiB}], mdts: 11", "from 1 to 10"),
      ("namespaces: [{size: 1MiB}], serial: \"012345678901234567890\"", "1 to 20 ASCII"),
      ("namespaces: [{size: 1MiB}], host-driver: ioat-mdev", "does not drive a nvme"),
      ("namespaces: [{size: 1MiB}], virtual-functions: 2", "expected none"),
      ("namespaces: [{size: 1MiB}], version: 0x33", "unknown key 'version'"),
    ])
  func refused(keys: String, words: String) throws {
    let error = #expect(throws: MachineFileError.self) { try machine(text(keys)) }
    #expect(error?.description.contains(words) == true, "\(error?.description ?? "")")
  }

  @Test("J1: a namespace's file is made, has its size, and is one run's at a time")
  func files() throws {
    let directory = FileManager.default.temporaryDirectory.appendingPathComponent(
      "nvme-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: directory) }
    let path = directory.appendingPathComponent("m.yaml").path
    func make(_ namespace: String) throws -> Machine {
      try Machine(machine(text("namespaces: [{\(namespace)}]"), file: path))
    }
    func error(_ namespace: String) -> IOMMUError? {
      #expect(throws: IOMMUError.self) { _ = try make(namespace) }
    }
    #expect(error("file: a.img")?.errno == .noSuchFileOrDirectory)
    do {
      let machine = try make("file: a.img, size: 1MiB")
      let image = directory.appendingPathComponent("a.img").path
      let size = try FileManager.default.attributesOfItem(atPath: image)[.size] as? Int
      #expect(size == 1 << 20)
      #expect(error("file: a.img")?.errno == .resourceBusy)
      #expect(error("file: a.img, read-only: true")?.errno == .resourceBusy)
      withExtendedLifetime(machine) {}
    }
    #expect(error("file: a.img, size: 2MiB")?.errno == .invalidArgument)
    let readers = try (0..<2).map { _ in try make("file: a.img, read-only: true") }
    #expect(error("file: a.img")?.errno == .resourceBusy)
    withExtendedLifetime(readers) {}
  }

  @Test("J1: what has no blocks is no namespace, and a pipe is not waited for")
  func noBlocks() throws {
    let directory = FileManager.default.temporaryDirectory.appendingPathComponent(
      "nvme-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: directory) }
    #expect(mkfifo(directory.appendingPathComponent("pipe").path, 0o600) == 0)
    let path = directory.appendingPathComponent("m.yaml").path
    for name in ["pipe", ".", "/dev/null"] {
      let error = #expect(throws: IOMMUError.self) {
        try Machine(machine(text("namespaces: [{file: \(name), read-only: true}]"), file: path))
      }
      #expect(error?.errno == .invalidArgument)
      #expect(error?.description.contains("is no file of blocks") == true)
    }
    let missing = #expect(throws: IOMMUError.self) {
      try Machine(machine(text("namespaces: [{file: nowhere, read-only: true}]"), file: path))
    }
    #expect(missing?.errno == .noSuchFileOrDirectory)
    #expect(missing?.description.contains("size") == false, "it would not be made")
  }

  @Test("J1: controllers share a namespace where each of them says so")
  func shared() throws {
    let directory = FileManager.default.temporaryDirectory.appendingPathComponent(
      "nvme-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: directory) }
    let path = directory.appendingPathComponent("m.yaml").path
    let both = try machine(
      """
      iommus:
        - {name: dmar0, kind: intel}
      devices:
        - {model: nvme, address: "e0:04.0", namespaces: [{file: a, size: 1MiB, shared: true}]}
        - {model: nvme, address: "e0:05.0", namespaces: [{file: a, size: 1MiB, shared: true}]}

      """, file: path)
    #expect(try machine(both.yaml) == both)
    #expect(both.json.contains("\"shared\": true"))
    #expect(both.tree(colour: false).contains("a (1MiB, shared)"))
    let pair = try Machine(both)
    let alone = #expect(throws: IOMMUError.self) {
      _ = try Machine(machine(text("namespaces: [{file: a}]"), file: path))
    }
    #expect(alone?.errno == .resourceBusy)
    withExtendedLifetime(pair) {}
  }

  @Test("J1: an NVMe controller is in /sys as one: class 010802")
  func view() throws {
    let machine = try Machine(machine(text("namespaces: [{size: 1MiB}]")))
    let entry = machine.view.entries.first {
      $0.path.hasSuffix("0000:e0:04.0/class")
    }
    #expect(entry != nil)
    #expect(machine.functions[0].model.identity.classCode == 0x010802)
  }
}
