// SPDX-License-Identifier: Apache-2.0
//
// Programs that bring page tables of their own, on a machine of each kind: the example of it.

import Foundation
import Testing

@Suite("Users' page tables in a program's hands") struct UserTableRunTests {
  private func machine(_ kind: String) -> String {
    URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent().appendingPathComponent("Examples/user-tables/\(kind).yaml")
      .path
  }

  @Test(
    "B8: a program is told what the IOMMU is, bit by bit, and chooses its format by it",
    arguments: [
      (
        "intel",
        """
        type 1, 24 bytes, PASIDs of 20 bits, capabilities 0x9
        cap 0x11d2078c22780806
        ecap 0x0003e99c84f050cb
        VT-d first stage, 5 levels, 57 bits

        """
      ),
      (
        "amd",
        """
        type 4, 16 bytes, PASIDs of 16 bits, capabilities 0x9
        efr 0x0013002f00009458
        efr2 0x0000000000000008
        AMD v2, 5 levels, 57 bits, by a GCR3 table of 2 levels

        """
      ),
      (
        "smmuv3",
        """
        type 2, 40 bytes, PASIDs of 8 bits, capabilities 0x9
        idr0 0x0d4c109b
        idr1 0x01070220
        idr2 0x00000000
        idr3 0x00001414
        idr4 0x00000000
        idr5 0x00000075
        iidr 0x00000000
        aidr 0x00000001
        SMMUv3 stage 1, 4 KiB, 4 levels, 48 bits, by 256 context descriptors in two levels

        """
      ),
      (
        "riscv",
        """
        type 0, 0 bytes, PASIDs of 8 bits, capabilities 0x9
        none: the kernel's tables only

        """
      ),
    ])
  func information(kind: String, output: String) throws {
    let run = try iommu(
      "run", "--machine", machine(kind), "--", built("user-tables").path, "--info")
    #expect(run.status == 0, "\(run.errors)")
    #expect(run.output == output)
  }

  @Test(
    "H2: --explain says whose table a fault is in, the user's or its parent's",
    arguments: ["intel", "amd", "smmuv3"])
  func whoseFault(kind: String) throws {
    let run = try iommu(
      "run", "--explain", "--machine", machine(kind), "--", built("user-tables").path)
    #expect(run.status == 0, "\(run.output)\(run.errors)")
    #expect(run.errors.contains("in the user's table nothing is mapped there"), "\(run.errors)")
    #expect(
      run.errors.contains("the user's table leads to 0x40400000, and in its parent nothing"),
      "\(run.errors)")
  }

  @Test(
    "B1: a program that maps and copies needs not know what the IOMMU is",
    arguments: ["intel", "amd", "smmuv3", "riscv"], ["first", "second"])
  func copies(kind: String, stage: String) throws {
    let file = """
      iommus: [{name: unit0, kind: \(kind), stage: \(stage)}]
      devices: [{model: copy-engine, address: "e0:04.0"}]
      """
    let run = try iommu(
      "run", "--explain", "--machine", "-", "--", built("dma-copy").path, "--size", "3M",
      input: file)
    #expect(run.status == 0, "\(run.output)\(run.errors)")
    #expect(run.explanations.isEmpty, "\(run.errors)")
  }

  @Test(
    "B2, G1: a program copies through a table of its own, changes it, invalidates it, and reaches no more than it has",
    arguments: ["intel", "amd", "smmuv3"], [[], ["--memfd"]])
  func nested(kind: String, options: [String]) throws {
    let run = try iommu(
      ["run", "--machine", machine(kind), "--", built("user-tables").path] + options)
    #expect(run.status == 0, "\(run.output)\(run.errors)")
    #expect(run.output.contains("the engine reads the new page"))
    #expect(run.output.contains("past the guest's memory leads nowhere: source address"))
    #expect(run.output.contains("neither does an address without an entry: source address"))
  }

  @Test(
    "B8, B2: the format that the registers lead to works, whatever the machine file says",
    arguments: [
      ("kind: intel", "VT-d first stage, 4 levels, 48 bits"),
      ("kind: intel, stage: first, dirty-tracking: false", "4 levels, 48 bits"),
      ("kind: amd", "4 levels, 48 bits, by a GCR3 table of 1 level"),
      (
        "kind: amd, address-width: 64, pasid-bits: 20",
        "5 levels, 57 bits, by a GCR3 table of 3"
      ),
      ("kind: smmuv3, address-width: 40", "48 bits, by 1 context descriptor"),
      ("kind: smmuv3, pasid-bits: 4, stage: second", "48 bits, by 16 context descriptors"),
    ])
  func formats(options: String, chosen: String) throws {
    let file = """
      iommus: [{name: unit0, \(options)}]
      devices: [{model: copy-engine, address: "e0:04.0"}]
      """
    let run = try iommu("run", "--machine", "-", "--", built("user-tables").path, input: file)
    #expect(run.status == 0, "\(run.output)\(run.errors)")
    #expect(run.output.contains(chosen))
  }

  @Test(
    "B8: without nesting the registers do not offer it, and a program makes no table of its own",
    arguments: ["intel", "amd", "smmuv3"])
  func withoutNesting(kind: String) throws {
    let file = """
      iommus: [{name: unit0, kind: \(kind), nesting: false}]
      devices: [{model: copy-engine, address: "e0:04.0"}]
      """
    let run = try iommu("run", "--machine", "-", "--", built("user-tables").path, input: file)
    #expect(run.status == 4, "\(run.output)\(run.errors)")
  }

  @Test("B8: where the IOMMU tells nothing, a program makes no table of its own")
  func nothing() throws {
    let run = try iommu("run", "--machine", machine("riscv"), "--", built("user-tables").path)
    #expect(run.status == 4, "\(run.errors)")
    #expect(run.output.contains("chose: none"))
  }
}
