// SPDX-License-Identifier: Apache-2.0
//
// MODEL C3, C6: the group-centric way by its bytes: status, containers in and out, devices by
// name, and closing in any order. Errnos and their order are Linux 6.12's.

import CLinuxABI
import IOMMU
import TestSupport
import Testing
import VFIO

@testable import LinuxABI

private let viable = VFIO_GROUP_FLAGS_VIABLE
private let set = VFIO_GROUP_FLAGS_CONTAINER_SET

@Suite struct VFIOGroupTests {
  let rig: GroupRig
  let group: Int32
  let container: Int32

  init() throws {
    rig = try GroupRig()
    group = rig.openGroup(0)
    container = rig.openContainer()
  }

  @Test("C3: GET_STATUS says viable while no host driver is in the way")
  func status() throws {
    var status = vfio_group_status(argsz: 8, flags: 0)
    #expect(rig.call(group, VFIO_GROUP_GET_STATUS, &status) == 0)
    #expect(status.flags == viable)
    status.argsz = 7
    #expect(rig.call(group, VFIO_GROUP_GET_STATUS, &status) == -22)
    #expect(rig.call(group, VFIO_GROUP_GET_STATUS, 0) == -14)
    _ = try rig.system.addDevice(
      name: "0000:e0:00.1", requester: RequesterID(bus: 0xE0, device: 0, function: 1),
      driver: rig.iommus[0], group: rig.groups[0].group, hostDriver: .dma("ioatdma"))
    #expect(rig.status(group) == 0)
    #expect(rig.setContainer(group, container) == -1, "not viable")
    #expect(rig.status(group) == 0)
    #expect(rig.leftovers() == [])
  }

  @Test("C6: a group in a container is viable and says so; out of it again it does not")
  func containerFlags() {
    #expect(rig.setContainer(group, container) == 0)
    #expect(rig.status(group) == viable | set)
    #expect(rig.groups[0].group.isOwned)
    #expect(rig.setContainer(group, container) == -22)
    #expect(rig.unsetContainer(group) == 0)
    #expect(rig.status(group) == viable)
    #expect(!rig.groups[0].group.isOwned)
    #expect(rig.unsetContainer(group) == -22)
    #expect(rig.leftovers() == [])
  }

  @Test(
    "C6: GET_DEVICE_FD: a name that is not in the group is ENODEV, one that is needs a container"
  )
  func deviceByName() {
    #expect(rig.getDevice(group, "0000:00:00.0") == -19)
    #expect(rig.getDevice(group, "0000:e0:01.0") == -19, "of another group")
    #expect(rig.getDevice(group, "0000:e0:00.0") == -22)
    #expect(rig.getDevice(group, "0000:e0:00.00") == -19)
    #expect(rig.getDevice(group, "0000:e0:00") == -19)
    #expect(rig.getDevice(group, "") == -19)
    #expect(rig.getDevice(group, String(repeating: "a", count: 5000)) == -22)
    #expect(rig.getDevice(group, String(repeating: "a", count: 4095)) == -19)
    #expect(rig.call(group, VFIO_GROUP_GET_DEVICE_FD, 0) == -14)
    #expect(rig.setContainer(group, container) == 0)
    #expect(rig.getDevice(group, "0000:e0:00.0") == -22, "no IOMMU set yet")
    #expect(rig.call(container, VFIO_SET_IOMMU, 3) == 0)
    #expect(rig.getDevice(group, "0000:e0:00.0") > 0)
  }

  @Test(
    "C6: options after a device's name: a token where none is used is EINVAL, as is the rest")
  func options() throws {
    let rig = try GroupRig()
    let (_, groups) = try rig.connect()
    let name = "0000:e0:00.0"
    let uuid = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"
    #expect(rig.getDevice(groups[0], "\(name) ") > 0)
    #expect(rig.getDevice(groups[0], "\(name)    ") > 0)
    #expect(rig.getDevice(groups[0], "\(name) vf_token=\(uuid)") == -22)
    #expect(rig.getDevice(groups[0], "\(name) vf_token=1") == -22)
    #expect(rig.getDevice(groups[0], "\(name) no_such_option") == -22)
    #expect(rig.getDevice(groups[0], "\(name)\tvf_token=\(uuid)") == -19)
    #expect(rig.getDevice(groups[0], "0000:e0:00.1 vf_token=1") == -19, "not looked at")
    #expect(VFToken(uuid.utf8)?.bytes.prefix(4) == [0xbd, 0x8d, 0x9d, 0x2b])
    #expect(VFToken("\(uuid)0".utf8) == nil)
    #expect(VFToken("bd8d9d2b05a5f-4f5a-a211-f591514ba1f3".utf8) == nil)
    #expect(VFToken("bd8d9d2g-5a5f-4f5a-a211-f591514ba1f3".utf8) == nil)
    #expect(rig.leftovers() == [])
  }

  @Test("C6: containers: no container to unset EINVAL, bad descriptors EBADF and EBADFD")
  func containers() {
    #expect(rig.unsetContainer(group) == -22)
    #expect(rig.setContainer(group, -1) == -9)
    #expect(rig.setContainer(group, rig.caller.add(CountingSignal())) == -77)
    #expect(rig.setContainer(group, group) == -77)
    #expect(rig.call(group, VFIO_GROUP_SET_CONTAINER, 0) == -14)
    #expect(rig.call(group, 0x3bff) == -25)
    #expect(rig.setContainer(group, container) == 0)
    #expect(rig.setContainer(group, -1) == -9, "the descriptor comes first")
    #expect(rig.setContainer(group, group) == -22, "then whether it is in one")
  }

  @Test(
    "C6: a device's file is open at once, is bound and attached by nobody, and is the node's")
  func deviceFile() throws {
    let rig = try GroupRig()
    let (_, groups) = try rig.connect()
    let device = rig.getDevice(groups[0], "0000:e0:00.0")
    let file = try #require(try rig.caller.openFile(descriptor: device))
    #expect(file.number == DeviceNumber(major: VFIODeviceNode.major, minor: 0))
    var info = vfio_device_info()
    info.argsz = 16
    #expect(rig.call(device, VFIO_DEVICE_GET_INFO, &info) == 0)
    #expect(info.num_regions == 9)
    #expect(rig.read(device, 1 << 45 | 7 << 40, as: UInt32.self) == 0x2021_8086)
    #expect(rig.read(device, 7 << 40, as: UInt32.self) == 0x2021_8086, "where DPDK looks")
    #expect(rig.read(device, 9 << 40, as: UInt32.self) == nil)
    var bind = vfio_device_bind_iommufd()
    bind.argsz = 16
    bind.iommufd = rig.openIOMMU()
    #expect(rig.call(device, VFIO_DEVICE_BIND_IOMMUFD, &bind) == -22)
    bind.argsz = 15
    #expect(rig.call(device, VFIO_DEVICE_BIND_IOMMUFD, &bind) == -22)
    #expect(rig.call(device, VFIO_DEVICE_BIND_IOMMUFD, 0) == -14, "its structure comes first")
    var attach = vfio_device_attach_iommufd_pt()
    attach.argsz = 12
    attach.pt_id = 1
    #expect(rig.call(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) == -25)
    var detach = vfio_device_detach_iommufd_pt()
    detach.argsz = 8
    #expect(rig.call(device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach) == -25)
    #expect(rig.leftovers() == [])
  }

  @Test("Traces name the device that a group is asked for, and the container's descriptor")
  func traces() throws {
    let file = try #require(
      try rig.caller.openFile(descriptor: group) as? any DescribesCalls)
    _ = rig.getDevice(group, "0000:e0:00.0")
    let device = file.describe(VFIO_GROUP_GET_DEVICE_FD, argument: 0x3000, by: rig.caller)
    #expect(device.name == "VFIO_GROUP_GET_DEVICE_FD")
    #expect(device.fields.map { "\($0.name)=\($0.value)" } == ["name=0000:e0:00.0"])
    #expect(rig.setContainer(group, container) == 0)
    let set = file.describe(VFIO_GROUP_SET_CONTAINER, argument: 0x2000, by: rig.caller)
    #expect(set.fields.map { "\($0.name)=\($0.value)" } == ["container=\(container)"])
    let bad = file.describe(VFIO_GROUP_SET_CONTAINER, argument: 8, by: rig.caller)
    #expect(bad.fields.map { "\($0.name)=\($0.value)" } == ["argument=0x8"])
    let unset = file.describe(VFIO_GROUP_UNSET_CONTAINER, argument: 0, by: rig.caller)
    #expect(unset.fields.isEmpty)
  }

  @Test("C3: while a container owns a group, no host driver that does DMA is bound in it")
  func hostDriver() throws {
    let neighbour = try rig.system.addDevice(
      name: "0000:e0:00.1", requester: RequesterID(bus: 0xE0, device: 0, function: 1),
      driver: rig.iommus[0], group: rig.groups[0].group)
    #expect(rig.setContainer(group, container) == 0)
    let error = #expect(throws: IOMMUError.self) {
      try neighbour.bindHostDriver(.dma("ioatdma"))
    }
    #expect(error?.errno == .resourceBusy)
    #expect(rig.unsetContainer(group) == 0)
    try neighbour.bindHostDriver(.dma("ioatdma"))
    #expect(rig.status(group) == 0)
    let refusal = #expect(throws: IOMMUError.self) {
      try rig.groups[0].setContainer(.container(VFIOContainer(system: rig.system)))
    }
    #expect(refusal?.errno == .notPermitted)
    #expect(refusal?.reason.contains("0000:e0:00.1") == true, "it says who is in the way")
    #expect(rig.leftovers() == [])
  }

  @Test("C6: a device opens as often as asked for; the last close stops it")
  func manyFiles() throws {
    let rig = try GroupRig()
    let (_, groups) = try rig.connect()
    let first = rig.getDevice(groups[0], "0000:e0:00.0")
    let second = rig.getDevice(groups[0], "0000:e0:00.0")
    #expect(first > 0 && second > 0 && first != second)
    #expect(rig.write(first, 1 << 45 | 7 << 40 | 4, UInt16(6)) == 2)
    rig.caller.close(first)
    #expect(rig.devices[0].isBound)
    #expect(rig.read(second, 1 << 45 | 7 << 40 | 4, as: UInt16.self) == 6, "not reset")
    rig.caller.close(second)
    #expect(!rig.devices[0].isBound)
    let third = rig.getDevice(groups[0], "0000:e0:00.0")
    #expect(rig.read(third, 1 << 45 | 7 << 40 | 4, as: UInt16.self) == 2, "reset")
    #expect(rig.leftovers() == [])
  }

  @Test("C6: no way out of a container while a device is open: EBUSY, and its sentence counts")
  func unsetWithDevices() throws {
    let rig = try GroupRig()
    let (_, groups) = try rig.connect([1])
    let first = rig.getDevice(groups[0], "0000:e0:01.0")
    let second = rig.getDevice(groups[0], "0000:e0:01.1")
    #expect(rig.unsetContainer(groups[0]) == -16)
    let error = #expect(throws: IOMMUError.self) { try rig.groups[1].unsetContainer() }
    #expect(error?.reason.contains("2 of its devices") == true)
    #expect(error?.reason.contains("unmap") == true, "a mapping keeps a device as a file does")
    rig.caller.close(first)
    #expect(rig.unsetContainer(groups[0]) == -16)
    rig.caller.close(second)
    #expect(rig.unsetContainer(groups[0]) == 0)
    #expect(rig.leftovers() == [])
  }

  @Test("C6: container, group and devices close in any order; what is open goes on working")
  func closeOrders() throws {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    for order in orders {
      let rig = try GroupRig()
      let (container, groups) = try rig.connect()
      #expect(rig.map(container, 0x10_0000, to: 0x10_0000, size: 0x10_0000) == 0)
      let device = rig.getDevice(groups[0], "0000:e0:00.0")
      let files = [container, groups[0], device]
      for (step, index) in order.enumerated() {
        rig.caller.close(files[index])
        let isDeviceOpen = !order[...step].contains(2)
        guard isDeviceOpen else { continue }
        rig.caller.put(UInt64(order[0]), at: 0x11_0000)
        rig.caller.put(UInt64(99), at: 0x12_0000)
        #expect(
          rig.copy(device, ring: 0x10_0000, at: 0x10_0000, from: 0x11_0000, to: 0x12_0000) == 1,
          "\(order) after \(step)")
        #expect(rig.caller.get(UInt64.self, at: 0x12_0000) == UInt64(order[0]))
        #expect(rig.openGroup(0) == -16, "the device holds the group")
        #expect(rig.openDevice(0) > 0)
      }
      #expect(rig.leftovers() == [], "\(order)")
      #expect(rig.openGroup(0) > 0)
    }
  }

  @Test("C6: a group that is open keeps device nodes from being bound, and they keep it closed")
  func exclusion() throws {
    let device = rig.openDevice(0)
    var bind = vfio_device_bind_iommufd()
    bind.argsz = 16
    bind.iommufd = rig.openIOMMU()
    #expect(rig.call(device, VFIO_DEVICE_BIND_IOMMUFD, &bind) == -16)
    #expect(rig.openGroup(0) == -16, "it opens once")
    rig.caller.close(group)
    #expect(rig.call(device, VFIO_DEVICE_BIND_IOMMUFD, &bind) == 0)
    #expect(rig.openGroup(0) == -16)
    rig.caller.close(device)
    #expect(rig.openGroup(0) > 0)
    // A neighbour of a bound device is in the same group, and so are both nodes.
    let neighbour = rig.openDevice(1)
    #expect(rig.call(neighbour, VFIO_DEVICE_BIND_IOMMUFD, &bind) == 0)
    #expect(rig.openGroup(1) == -16)
    #expect(rig.leftovers() == [])
  }
}
