// SPDX-License-Identifier: Apache-2.0
//
// MODEL E2, E4: what a machine file says of PASIDs and of VMs, and what comes of it.

import IOMMU
import LinuxABI
import Testing

@testable import Machine

@Suite struct MachinePASIDTests {
  private func machine(_ text: String) throws -> MachineDescription {
    try MachineDescription(file: "m.yaml", bytes: Array(text.utf8))
  }

  private static let file = """
    iommus:
      - {name: dmar0, kind: intel, pasid-bits: 10}
    devices:
      - {model: copy-engine, address: "e0:01.0", group: 1, pasids: none}
      - {model: copy-engine, address: "e0:04.0", group: 4, pasids: delegated}
      - {model: work-queue, address: "e0:05.0", group: 5, mode: dedicated}
      - {model: work-queue, address: "e0:07.0", group: 7, depth: 3}
      - {model: copy-engine, address: "e0:08.0", group: 8}
    virtual-machines: true

    """

  @Test("E2: a machine file makes devices of kinds 1, 4, 5 and 7")
  func kinds() throws {
    let machine = try Machine(machine(Self.file))
    let kinds = machine.functions.compactMap { function -> UInt8? in
      let device: (any BindableDevice)? = function.device
      return device?.kind.rawValue
    }
    #expect(kinds == [1, 4, 5, 7, 5])
    #expect(machine.functions.map { $0.portal != nil } == [false, false, false, true, false])
  }

  @Test("E4: /dev/kvm is the machine's where the file says so, and only there")
  func virtualMachines() throws {
    #expect(try Machine(machine(Self.file)).nodes.contains { $0.path == "/dev/kvm" })
    #expect(try !Machine(.standard).nodes.contains { $0.path == "/dev/kvm" })
  }

  @Test("E2: what is printed of PASIDs and VMs reads back as it was")
  func printed() throws {
    let description = try machine(Self.file)
    #expect(try machine(description.yaml) == description)
    #expect(description.json.contains("\"pasid-kind\": 7"))
    #expect(description.json.contains("\"virtual-machines\": true"))
  }

  @Test(
    "E2: a machine file cannot ask for PASIDs that are not there",
    arguments: [
      ("model: copy-engine, pasids: registered", "which has no PASIDs"),
      ("model: copy-engine, pasids: delegated", "which has no PASIDs"),
      ("model: work-queue", "which has no PASIDs"),
      ("model: copy-engine, pasids: some", "none, delegated, registered"),
      ("model: work-queue, depth: 65", "from 1 to 64"),
      ("model: work-queue, mode: both", "shared, dedicated"),
      ("model: copy-engine, mode: shared", "unknown key 'mode'"),
    ])
  func mistakes(device: String, message: String) throws {
    #expect {
      _ = try machine(
        """
        iommus: [{name: ivhd0, kind: amd}]
        devices: [{\(device), address: "e0:01.0"}]

        """)
    } throws: { error in
      "\(error)".contains(message)
    }
  }

  @Test("E2: a shared work queue has PASIDs that are registered")
  func sharedQueue() throws {
    for use in ["none", "delegated"] {
      #expect {
        _ = try machine(
          """
          iommus: [{name: dmar0, kind: intel, pasid-bits: 8}]
          devices: [{model: work-queue, address: "e0:01.0", pasids: \(use)}]

          """)
      } throws: { error in
        "\(error)".contains("expected registered")
      }
    }
  }
}
