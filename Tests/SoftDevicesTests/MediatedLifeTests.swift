// SPDX-License-Identifier: Apache-2.0
//
// Slices that are made and taken away again and again: nothing of them stays. A program may do that
// without end, and the PASIDs that it goes through are many.

import IOMMU
import SoftDevices
import SoftwareIOMMU
import Testing
import VFIO

@Suite("Slices without end") struct MediatedLifeTests {
  private struct Traces {
    weak var instance: MediatedInstance?
    weak var device: VFIODevice?
    weak var function: PCIFunction?
    weak var group: DeviceGroup?

    init(_ instance: MediatedInstance) {
      self.instance = instance
      device = instance.device
      function = instance.device.function
      group = instance.device.group.group
    }

    var areGone: Bool { instance == nil && device == nil && function == nil && group == nil }
  }

  @Test(
    "J2: of a slice that was taken away nothing stays, however many PASIDs there are",
    arguments: ["pasid", "fixed", "software"])
  func removal(type: String) throws {
    let rig = try MediatedRig(pasidBits: 20)
    let before = rig.iommu.kept
    for _ in 0..<100 {
      let traces = Traces(try rig.create(type, 0))
      try rig.bus.remove(MediatedRig.uuid(0))
      #expect(traces.areGone)
    }
    let after = rig.iommu.kept
    #expect(after.contexts == before.contexts)
    #expect(after.ports - before.ports < 20, "half a megabyte each")
  }

  @Test(
    "J2: nor of one that had a user", arguments: ["pasid", "fixed", "software"])
  func use(type: String) throws {
    let rig = try MediatedRig(pasidBits: 20)
    let before = rig.iommu.kept
    for number: UInt64 in 1...40 {
      let user = try rig.user(type, 0)
      user.fill(0x10_0000, number)
      user.copy(from: 0x10_0000, to: 0x20_0000)
      #expect(user.wait() == 0x10001)
      #expect(user.word(0x20_0000) == number)
      user.caller.closeAll()
      try rig.bus.remove(MediatedRig.uuid(0))
    }
    let after = rig.iommu.kept
    #expect(after.contexts == before.contexts)
    #expect(after.ports - before.ports < 20, "half a megabyte each")
    #expect(rig.system.contextCount == 0)
  }
}
