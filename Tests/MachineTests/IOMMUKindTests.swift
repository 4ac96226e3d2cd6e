// SPDX-License-Identifier: Apache-2.0
//
// IOMMUs of every kind in a machine file: what is made of them, printed, and shown in /sys.

import Foundation
import IOMMU
import LinuxABI
import SoftwareIOMMU
import Testing

@testable import Machine

/// A machine with one engine behind one IOMMU, of which the text says more.
private func text(_ iommu: String) -> String {
  """
  iommus:
    - name: unit0
      \(iommu.replacing("; ", with: "\n    "))
  devices:
    - model: copy-engine
      address: 0000:e0:04.0

  """
}

@Suite("Kinds of IOMMU in a machine file") struct IOMMUKindTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var file: String
    var configuration: SoftwareIOMMU.Configuration
    var summary: String
    var testDescription: String { file }

    init(_ file: String, _ configuration: SoftwareIOMMU.Configuration, _ summary: String) {
      self.file = file
      self.configuration = configuration
      self.configuration.maximumTablePages = Machine.maximumTablePages
      self.summary = summary
    }
  }

  static let cases = [
    Case(
      "kind: intel", .init(architecture: .intel, stage: .second, levels: 4),
      "Intel second stage, 4 levels, 48-bit addresses, snoop control"),
    Case(
      "kind: intel; stage: first; levels: 5; pasid-bits: 20; nesting: false; page-requests: true",
      .init(
        architecture: .intel, stage: .first, levels: 5, pasidBits: 20, pageRequests: true,
        nests: false),
      "Intel first stage, 5 levels, 57-bit addresses, 20-bit PASIDs, no nesting, page requests, "
        + "snoop control"),
    Case(
      "kind: amd; address-width: 64; snoop-control: false",
      .init(architecture: .amd, stage: .second, addressBits: 64, snoopControl: false),
      "AMD v1, 6 levels, 64-bit addresses, no snoop control"),
    Case(
      "kind: amd; stage: first; pasid-bits: 8",
      .init(architecture: .amd, stage: .first, addressBits: 48, pasidBits: 8),
      "AMD v2, 4 levels, 48-bit addresses, 8-bit PASIDs, snoop control"),
    Case(
      "kind: smmuv3; pasid-bits: 16; dirty-tracking: false",
      .init(architecture: .smmuV3, stage: .first, pasidBits: 16, tracksDirty: false),
      "SMMUv3 stage 1, 4 levels, 48-bit addresses, 16-bit PASIDs, snoop control, "
        + "no dirty tracking"),
    Case(
      "kind: smmuv3; stage: second; address-width: 40",
      .init(architecture: .smmuV3, stage: .second, addressBits: 40),
      "SMMUv3 stage 2, 3 levels, 40-bit addresses, snoop control"),
    Case(
      "kind: amd; dirty-tracking: software",
      .init(architecture: .amd, tracksDirty: false, tracksDirtyInSoftware: true),
      "AMD v1, 4 levels, 48-bit addresses, snoop control, dirty tracking in software"),
    Case(
      "kind: riscv; levels: 3",
      .init(architecture: .riscv, stage: .first, levels: 3),
      "RISC-V Sv39, 3 levels, 39-bit addresses, snoop control"),
    Case(
      "kind: riscv; stage: second; address-width: 57",
      .init(architecture: .riscv, stage: .second, levels: 5),
      "RISC-V Sv57x4, 5 levels, 59-bit addresses, snoop control"),
  ]

  @Test("B8: an IOMMU is made as the file says, printed so, and reads back", arguments: cases)
  func made(_ given: Case) throws {
    let description = try machine(text(given.file))
    let made = try Machine(description)
    #expect(made.iommus.map(\.configuration) == [given.configuration])
    #expect(description.iommus.map(\.summary) == [given.summary])
    #expect(description.tree(colour: false).contains("unit0  \(given.summary)\n"))
    #expect(try machine(description.yaml) == description)
    // A table of the width that is printed.
    let domain = try made.iommus[0].makePagingDomain(
      for: RequesterID(bus: 0xe0, device: 4, function: 0), attributes: [])
    let bits = 64 - domain.geometry.aperture.upperBound.leadingZeroBitCount
    let half =
      switch given.configuration.architecture {
      case .intel, .amd, .riscv: given.configuration.stage == .first ? 1 : 0
      case .smmuV3: 0
      }
    #expect(bits == description.iommus[0].tableWidth - half)
  }

  @Test("B7: each option of an IOMMU is what its page tables can be asked for")
  func attributes() throws {
    let device = RequesterID(bus: 0xe0, device: 4, function: 0)
    for kind in IOMMUDescription.Kind.allCases {
      func makes(_ attributes: PagingAttributes, _ options: String) throws -> Bool {
        let iommu = try Machine(machine(text("kind: \(kind.rawValue)\(options)"))).iommus[0]
        return (try? iommu.makePagingDomain(for: device, attributes: attributes)) != nil
      }
      #expect(try makes(.nestParent, ""))
      #expect(try !makes(.nestParent, "; nesting: false"))
      #expect(try makes(.dirtyTracking, ""))
      #expect(try !makes(.dirtyTracking, "; dirty-tracking: false"))
      #expect(try makes(.dirtyTracking, "; dirty-tracking: software"))
      #expect(try !makes(.pasid, ""))
      #expect(try makes(.pasid, "; pasid-bits: 4"))
    }
  }

  @Test("E2: devices behind each kind of IOMMU have PASIDs where it has", arguments: [0, 8])
  func pasids(bits: Int) throws {
    for kind in IOMMUDescription.Kind.allCases {
      let description = try machine(text("kind: \(kind.rawValue); pasid-bits: \(bits)"))
      let made = try Machine(description)
      let device: any BindableDevice = try #require(made.functions[0].device)
      #expect(device.kind == (bits > 0 ? .physical : .physicalWithoutPASIDs), "\(kind)")
      #expect(Int(device.physical.capabilities.pasidBits) == bits)
    }
  }

  @Test("I1: software that tracks what is written is no bit of the registers")
  func softwareDirtyTracking() throws {
    let device = RequesterID(bus: 0xe0, device: 4, function: 0)
    for kind in IOMMUDescription.Kind.allCases {
      func made(_ tracking: String) throws -> SoftwareIOMMU {
        try Machine(machine(text("kind: \(kind.rawValue); dirty-tracking: \(tracking)")))
          .iommus[0]
      }
      let (none, software) = (try made("false"), try made("software"))
      #expect(
        none.hardwareInformation(for: device) == software.hardwareInformation(for: device))
      #expect(!none.capabilities(for: device).dirtyTracking)
      #expect(software.capabilities(for: device).dirtyTracking)
    }
  }

  @Test("JSON has each option of an IOMMU") func json() throws {
    let description = try machine(text("kind: smmuv3; nesting: false; address-width: 44"))
    let object = try JSONSerialization.jsonObject(with: Data(description.json.utf8))
    let fields = try #require(object as? [String: Any])
    let iommu = try #require((fields["iommus"] as? [[String: Any]])?.first)
    #expect(iommu["kind"] as? String == "smmuv3" && iommu["stage"] as? String == "first")
    #expect(iommu["nesting"] as? Bool == false && iommu["address-width"] as? Int == 44)
    #expect(iommu["levels"] as? Int == 4 && iommu["dirty-tracking"] as? Bool == true)
    #expect(
      try machine(text("kind: amd; dirty-tracking: software")).json.contains(
        "\"dirty-tracking\": \"software\""))
  }

  @Test("an IOMMU's directory in /sys is that of its driver, with the registers of GET_HW_INFO")
  func sysfs() throws {
    func tree(_ iommu: String) throws -> Tree { try Tree(Machine(machine(text(iommu))).view) }
    let path = "/sys/class/iommu/unit0"
    let intel = try tree("kind: intel; pasid-bits: 20; levels: 5; page-requests: true")
    #expect(
      try intel.list("\(path)/intel-iommu")
        == ["address", "cap", "domains_supported", "domains_used", "ecap", "version"])
    #expect(try intel.text("\(path)/intel-iommu/cap") == "11d2078c22780806\n")
    #expect(try intel.text("\(path)/intel-iommu/ecap") == "3e99ca4f050cf\n")
    let amd = try tree("kind: amd")
    #expect(try amd.list("\(path)/amd-iommu") == ["cap", "features"])
    #expect(try amd.text("\(path)/amd-iommu/features") == "13002000008058:8\n")
    #expect(try amd.text("\(path)/amd-iommu/cap") == "180b640f\n")
    for kind in ["smmuv3", "riscv"] {
      #expect(
        try tree("kind: \(kind)").list(path) == ["devices", "power", "subsystem", "uevent"])
    }
  }
}
