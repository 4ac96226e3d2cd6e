// SPDX-License-Identifier: Apache-2.0
//
// MODEL C6: what the group-centric nodes answer before groups can be used: complete where they
// are complete, refused where they are not.

import CLinuxABI
import IOMMU
import TestSupport
import Testing
import VFIO

@testable import LinuxABI

@Suite struct VFIOGroupTests {
  let rig: EngineRig
  let group: any OpenFile
  let container: any OpenFile

  init() throws {
    rig = try EngineRig()
    group = try VFIOGroupNode(group: rig.group).open(flags: 2, by: rig.caller)
    container = try VFIOContainerNode().open(flags: 2, by: rig.caller)
  }

  @Test("C3: GET_STATUS says viable while no host driver is in the way")
  func status() throws {
    var status = vfio_group_status(argsz: 8, flags: 0)
    #expect(rig.caller.ioctl(group, VFIO_GROUP_GET_STATUS, &status) == 0)
    #expect(status.flags == VFIO_GROUP_FLAGS_VIABLE)
    status.argsz = 7
    #expect(rig.caller.ioctl(group, VFIO_GROUP_GET_STATUS, &status) == -22)
    #expect(rig.caller.ioctl(group, VFIO_GROUP_GET_STATUS, at: 0) == -14)
    _ = try rig.system.addDevice(
      name: "0000:e0:04.1", requester: RequesterID(bus: 0xE0, device: 4, function: 1),
      driver: rig.iommu, group: rig.group.group, hostDriver: .dma("ioatdma"))
    status.argsz = 8
    #expect(rig.caller.ioctl(group, VFIO_GROUP_GET_STATUS, &status) == 0)
    #expect(status.flags == 0)
  }

  private func putName(_ name: String, at address: UInt64 = 0x3000) -> UInt64 {
    for (offset, byte) in zip(UInt64(0)..., Array(name.utf8) + [0]) {
      rig.caller.put(byte, at: address + offset)
    }
    return address
  }

  @Test(
    "C6: GET_DEVICE_FD: a name that is not in the group is ENODEV, one that is needs a container"
  )
  func deviceByName() {
    func get(_ address: UInt64) -> Int32 {
      rig.caller.ioctl(group, VFIO_GROUP_GET_DEVICE_FD, at: address)
    }
    #expect(get(putName("0000:00:00.0")) == -19)
    #expect(get(putName("0000:e0:04.0")) == -22)
    #expect(get(putName("0000:e0:04.0 vf_token=1")) == -22)
    #expect(get(putName("0000:e0:04.00")) == -19)
    #expect(get(putName("")) == -19)
    #expect(get(putName(String(repeating: "a", count: 5000))) == -22)
    #expect(get(0) == -14)
  }

  @Test("C6: containers: no container to unset EINVAL, bad descriptors EBADF and EBADFD")
  func containers() {
    #expect(rig.caller.ioctl(group, VFIO_GROUP_UNSET_CONTAINER, at: 0) == -22)
    func set(_ fd: Int32) -> Int32 {
      rig.caller.put(fd, at: 0x3000)
      return rig.caller.ioctl(group, VFIO_GROUP_SET_CONTAINER, at: 0x3000)
    }
    #expect(set(-1) == -9)
    #expect(set(rig.caller.add(CountingSignal())) == -77)
    #expect(set(rig.caller.add(container)) == -95)
    #expect(set(rig.iommufd) == -95)
    #expect(rig.caller.ioctl(group, VFIO_GROUP_SET_CONTAINER, at: 0) == -14)
    #expect(rig.caller.ioctl(group, 0x3bff, at: 0) == -25)
  }

  @Test("C6: a container has API version 0, offers no extension, and has no IOMMU to set")
  func containerAlone() {
    #expect(rig.caller.ioctl(container, VFIO_GET_API_VERSION, at: 0) == 0)
    for extensionNumber in UInt64(0)..<16 {
      #expect(
        rig.caller.ioctl(container, VFIO_CHECK_EXTENSION, at: extensionNumber) == 0)
    }
    #expect(rig.caller.ioctl(container, VFIO_SET_IOMMU, at: 1) == -22)
    #expect(rig.caller.ioctl(container, 0x3bff, at: 0) == -22)
  }
}
