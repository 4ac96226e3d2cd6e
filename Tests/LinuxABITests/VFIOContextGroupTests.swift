// SPDX-License-Identifier: Apache-2.0
//
// MODEL C6, J1: groups whose container is an open of /dev/iommu: the same calls on the objects of
// a context.

import CLinuxABI
import IOMMU
import TestSupport
import Testing
import VFIO

@testable import LinuxABI

@Suite struct VFIOContextGroupTests {
  let rig: GroupRig
  let iommu: Int32
  let group: Int32

  init() throws {
    rig = try GroupRig()
    iommu = rig.openIOMMU()
    group = rig.openGroup(1)
  }

  private func compatibilityIOAS() -> UInt32? {
    var cmd = iommu_vfio_ioas()
    cmd.size = 12
    cmd.op = UInt16(IOMMU_VFIO_IOAS_GET)
    return rig.call(iommu, IOMMU_VFIO_IOAS, &cmd) == 0 ? cmd.ioas_id : nil
  }

  @Test("C6: /dev/iommu as the container gets a space to map in, which an open device is on")
  func wholeWay() {
    #expect(compatibilityIOAS() == nil)
    #expect(rig.setContainer(group, iommu) == 0)
    #expect(rig.status(group) == VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_CONTAINER_SET)
    #expect(compatibilityIOAS() != nil)
    #expect(!rig.groups[1].group.isOwned, "owned from the first device on")
    #expect(rig.call(iommu, VFIO_SET_IOMMU, 3) == 0)
    #expect(rig.map(iommu, 0x10_0000, to: 0x10_0000, size: 0x10_0000) == 0)
    let device = rig.getDevice(group, "0000:e0:01.1")
    #expect(device > 0)
    #expect(rig.groups[1].group.isOwned)
    rig.caller.put(UInt64(0x1234), at: 0x11_0000)
    #expect(
      rig.copy(device, ring: 0x10_0000, at: 0x10_0000, from: 0x11_0000, to: 0x12_0000) == 1)
    #expect(rig.caller.get(UInt64.self, at: 0x12_0000) == 0x1234)
    #expect(rig.leftovers() == [])
  }

  @Test("C6: a chosen space is taken; a second group shares it; who destroyed it gets ENODEV")
  func chosenSpace() throws {
    let file = try #require(try rig.caller.openFile(descriptor: iommu) as? any ContextFile)
    let ioas = try file.context.allocateIOAS()
    try file.context.setCompatibilityIOAS(ioas)
    let other = rig.openGroup(0)
    #expect(rig.setContainer(group, iommu) == 0)
    #expect(rig.setContainer(other, iommu) == 0)
    #expect(compatibilityIOAS() == ioas.rawValue)
    #expect(file.context.objectCount == 1)
    try file.context.destroy(ioas)
    #expect(rig.getDevice(group, "0000:e0:01.0") == -19)
    #expect(!rig.groups[1].group.isOwned, "the bind before it is undone")
    #expect(rig.unsetContainer(group) == 0)
    #expect(rig.setContainer(group, iommu) == 0, "makes another")
    #expect(rig.getDevice(group, "0000:e0:01.0") > 0)
    #expect(rig.getDevice(other, "0000:e0:00.0") > 0)
    #expect(rig.leftovers() == [])
  }

  @Test("C6: of a context a group may go while devices are open: they stay bound, and alone")
  func leaving() throws {
    #expect(rig.setContainer(group, iommu) == 0)
    let device = rig.getDevice(group, "0000:e0:01.0")
    #expect(rig.unsetContainer(group) == 0)
    #expect(rig.status(group) == 0, "the context owns it")
    #expect(rig.getDevice(group, "0000:e0:01.1") == -22)
    // A container of the other kind cannot have what a context owns.
    #expect(rig.setContainer(group, rig.openContainer()) == -1)
    rig.caller.close(group)
    let again = rig.openGroup(1)
    #expect(again > 0, "the device does not hold its file")
    rig.caller.close(again)
    // By its node it is bound to somebody, so the group's way is still the only one.
    let node = rig.openDevice(1)
    var bind = vfio_device_bind_iommufd()
    bind.argsz = 16
    bind.iommufd = iommu
    #expect(rig.call(node, VFIO_DEVICE_BIND_IOMMUFD, &bind) == -22)
    #expect(rig.map(iommu, 0x10_0000, to: 0x10_0000, size: 0x10_0000) == 0)
    #expect(
      rig.copy(device, ring: 0x10_0000, at: 0x10_0000, from: 0x11_0000, to: 0x12_0000) == 1)
    rig.caller.close(device)
    #expect(!rig.groups[1].group.isOwned)
    #expect(rig.call(node, VFIO_DEVICE_BIND_IOMMUFD, &bind) == 0)
    #expect(rig.leftovers() == [])
  }

  @Test("C6: the group and the device keep a context whose descriptor is closed")
  func keeping() {
    #expect(rig.setContainer(group, iommu) == 0)
    #expect(rig.map(iommu, 0x10_0000, to: 0x10_0000, size: 0x10_0000) == 0)
    rig.caller.close(iommu)
    #expect(rig.system.contextCount == 1)
    let device = rig.getDevice(group, "0000:e0:01.0")
    #expect(
      rig.copy(device, ring: 0x10_0000, at: 0x10_0000, from: 0x11_0000, to: 0x12_0000) == 1)
    rig.caller.close(group)
    #expect(rig.system.contextCount == 1)
    #expect(
      rig.copy(device, ring: 0x10_0000, at: 0x10_0000, from: 0x11_0000, to: 0x12_0000) == 1)
    rig.caller.close(device)
    #expect(rig.system.contextCount == 0)
    #expect(rig.leftovers() == [])
  }

  @Test("C2, C6: a device whose group another context owns is EPERM, and the sentence says so")
  func owned() throws {
    #expect(rig.setContainer(group, iommu) == 0)
    let context = Context(system: rig.system)
    let binding = try context.register(#require(rig.devices[2].function.device))
    #expect(rig.getDevice(group, "0000:e0:01.0") == -1)
    let session = rig.devices[1].makeGroupSession()
    let error = #expect(throws: IOMMUError.self) { try session.openThroughGroup() }
    #expect(error?.reason.contains("group 1") == true)
    _ = consume binding
    context.close()
    #expect(rig.getDevice(group, "0000:e0:01.0") > 0)
    #expect(rig.leftovers() == [])
  }
}
