// SPDX-License-Identifier: Apache-2.0
//
// MODEL H1, G1: what a machine file says of devices with ATS and page requests, what it is refused
// for, and what programs see of it in configuration space.

import IOMMU
import LinuxABI
import Testing
import VFIO

@testable import Machine

@Suite("H1: devices with ATS and page requests in a machine file")
struct TranslationServicesTests {
  private func machine(
    iommu: String = "page-requests: true", device: String
  ) throws(MachineFileError) -> MachineDescription {
    try MachineDescription(
      file: "m.yaml",
      bytes: Array(
        """
        iommus: [{name: dmar0, kind: intel, \(iommu)}]
        devices: [{model: copy-engine, address: "e0:04.0", \(device)}]
        """.utf8))
  }

  @Test("H1: the keys make a device that asks, and are printed as they are read")
  func keys() throws {
    let machine = try machine(device: "ats: true, page-requests: true, pages-per-group: 8")
    #expect(
      machine.devices[0].services
        == TranslationServices(ats: true, pageRequests: true, pagesPerGroup: 8))
    let again = try MachineDescription(file: "again.yaml", bytes: Array(machine.yaml.utf8))
    #expect(again.devices[0].services == machine.devices[0].services)
    #expect(machine.tree(colour: false).contains("page requests"))
    #expect(
      try self.machine(device: "ats: true").devices[0].services
        == TranslationServices(ats: true))
    #expect(try self.machine(device: "page-requests: true").devices[0].services.ats)
  }

  @Test(
    "H1: what cannot be is refused with what to do",
    arguments: [
      ("page-requests: true", "page-requests: true, ats: false", "expected ats: true"),
      (
        "page-requests: false", "page-requests: true",
        "give the IOMMU 'page-requests: true' too"
      ),
      ("page-requests: true", "pages-per-group: 2", "expected page-requests: true"),
      ("page-requests: true", "page-requests: true, pages-per-group: 33", "1 to 32"),
      (
        "page-requests: true", "page-requests: true, host-driver: ioat-mdev",
        "expected a device that is not shared out"
      ),
    ])
  func refused(iommu: String, device: String, words: String) {
    #expect {
      _ = try machine(iommu: iommu, device: device)
    } throws: {
      "\($0)".contains(words)
    }
  }

  @Test(
    "H1: below a bridge that takes requester ids away there is no ATS, and no page request",
    arguments: ["page-requests: true", "ats: true"])
  func belowBridge(device: String) {
    #expect {
      _ = try MachineDescription(
        file: "test.yaml",
        bytes: Array(
          """
          iommus: [{name: dmar0, kind: intel, page-requests: true}]
          bridges: [{address: "e0:06.0", bus: 0xe2, kind: pcie-to-pci}]
          devices: [{model: copy-engine, address: "e2:04.0", \(device)}]
          """.utf8))
    } throws: {
      "\($0)".contains("test.yaml:3:")
        && "\($0)".contains("the bridge above it passes on none")
    }
  }

  /// An extended capability of a function as sysfs shows it; nil where it has none.
  private func capability(_ id: UInt16, _ bytes: [UInt8]) -> Int? {
    var offset = 0x100
    for _ in 0..<16 where offset != 0 {
      if UInt16(bytes[offset]) | UInt16(bytes[offset + 1]) << 8 == id { return offset }
      offset = Int(bytes[offset + 2] >> 4) | Int(bytes[offset + 3]) << 4
    }
    return nil
  }

  @Test("H1: configuration space has ATS and PRI, enabled, and PASID where it has PASIDs")
  func configurationSpace() throws {
    let machine = try Machine(
      self.machine(iommu: "page-requests: true, pasid-bits: 12", device: "page-requests: true"))
    let bytes = machine.functions[0].config.contents
    let ats = try #require(capability(0x000F, bytes))
    #expect(bytes[ats + 7] == 0x80, "enabled")
    let requests = try #require(capability(0x0013, bytes))
    #expect(bytes[requests + 4] == 1, "enabled")
    #expect(bytes[requests + 8] == 32 && bytes[requests + 12] == 32)
    let pasid = try #require(capability(0x001B, bytes))
    #expect(bytes[pasid + 5] == 12 && bytes[pasid + 6] == 1)
    #expect(machine.iommus[0].capabilities(for: machine.functions[0].address).lacksATS == false)

    let plain = try Machine(self.machine(device: "group: 0"))
    let none = plain.functions[0].config.contents
    #expect(capability(0x000F, none) == nil && capability(0x0013, none) == nil)
    #expect(capability(0x001B, none) == nil)
    #expect(plain.iommus[0].capabilities(for: plain.functions[0].address).lacksATS)
  }
}
