// SPDX-License-Identifier: Apache-2.0
//
// Devices that go while their groups are open or in a container: who is in the way is a user of
// the device, not of its group (MODEL C3, C6; Linux: `vfio_unregister_group_dev`).

import CLinuxABI
import Foundation
import IOMMU
import LinuxABI
import SystemPackage
import TestSupport
import Testing
import VFIO

@testable import Machine

/// An engine alone, two in a group, one with virtual functions, one that is shared out.
private let text = """
  iommus: [{name: dmar0, kind: intel, pasid-bits: 4}]
  devices:
    - {model: copy-engine, address: "0000:e0:04.0", group: 0}
    - {model: copy-engine, address: "0000:e0:05.0", group: 1}
    - {model: copy-engine, address: "0000:e0:05.1", group: 1}
    - {model: copy-engine, address: "0000:e0:06.0", group: 2, virtual-functions: 4}
    - {model: copy-engine, address: "0000:e0:07.0", group: 3, host-driver: ioat-mdev, slices: 2}
  """

@Suite("Groups that outlive their devices", .timeLimit(.minutes(10))) struct RetiredGroupTests {
  private let machine: Machine
  private let caller: LocalCaller
  private let alone = "0000:e0:04.0"
  private let physical = "0000:e0:06.0"

  init() throws {
    machine = try Machine(MachineDescription(file: "m.yaml", bytes: Array(text.utf8)))
    caller = try LocalCaller()
  }

  // MARK: What a program does

  private func open(_ path: String) throws -> Int32 {
    let node = try #require(machine.nodes.first { $0.path == path }, "no \(path)")
    do throws(IOMMUError) {
      return caller.add(try node.open(flags: 2, by: caller))
    } catch {
      return -error.errno.rawValue
    }
  }

  private func call(_ fd: Int32, _ command: UInt32, at argument: UInt64 = 0) -> Int32 {
    guard let file = (try? caller.openFile(descriptor: fd)) ?? nil else { return -EBADF }
    return caller.ioctl(file, command, at: argument)
  }

  private func status(_ group: Int32) -> Int32 {
    caller.put(vfio_group_status(argsz: 8, flags: 0), at: 0x2000)
    return call(group, VFIO_GROUP_GET_STATUS, at: 0x2000)
  }

  private func setContainer(_ group: Int32, _ container: Int32) -> Int32 {
    caller.put(container, at: 0x2000)
    return call(group, VFIO_GROUP_SET_CONTAINER, at: 0x2000)
  }

  private func device(_ group: Int32, _ name: String) -> Int32 {
    for (offset, byte) in zip(UInt64(0)..., Array(name.utf8) + [0]) {
      caller.put(byte, at: 0x3000 + offset)
    }
    return call(group, VFIO_GROUP_GET_DEVICE_FD, at: 0x3000)
  }

  private func setIOMMU(_ container: Int32) -> Int32 {
    call(container, VFIO_SET_IOMMU, at: UInt64(VFIO_TYPE1v2_IOMMU))
  }

  /// Writes an attribute.
  /// - Returns: The errno; nil where it went well.
  private func echo(_ text: String, _ path: String) throws -> Errno? {
    let attribute = try #require(machine.view.attribute(at: path), "no \(path)")
    do throws(IOMMUError) {
      try attribute.store(text, by: caller)
      return nil
    } catch {
      return error.errno
    }
  }

  private func unbind(_ name: String) throws -> Errno? {
    try echo(name, "/sys/bus/pci/drivers/vfio-pci/unbind")
  }

  private func bind(_ name: String) throws -> Errno? {
    try echo(name, "/sys/bus/pci/drivers/vfio-pci/bind")
  }

  private func makeVirtualFunctions(_ count: Int) throws -> Errno? {
    try echo("\(count)", "/sys/bus/pci/devices/\(physical)/sriov_numvfs")
  }

  // MARK: Unbinding

  @Test(
    "C6: a group file that outlives the group's last device is ENODEV, and out of its container"
  )
  func outlived() throws {
    let container = try open("/dev/vfio/vfio")
    let old = try open("/dev/vfio/0")
    #expect(setContainer(old, container) == 0)
    #expect(setIOMMU(container) == 0)
    #expect(try unbind(alone) == nil, "nobody has the device open")
    #expect(status(old) == -ENODEV)
    #expect(setContainer(old, container) == -ENODEV)
    #expect(setContainer(old, 1000) == -EBADF)
    #expect(call(old, VFIO_GROUP_UNSET_CONTAINER) == -EINVAL)
    #expect(device(old, alone) == -ENODEV)
    #expect(setIOMMU(container) == -EINVAL, "the container has no group")
    // Bound again, the group is another, which opens beside the old file.
    #expect(try bind(alone) == nil)
    let new = try open("/dev/vfio/0")
    #expect(new > 0)
    #expect(try open("/dev/vfio/0") == -EBUSY)
    #expect(status(old) == -ENODEV)
    #expect(setContainer(new, container) == 0)
    caller.close(old)
    #expect(setIOMMU(container) == 0)
    #expect(device(new, alone) > 0)
  }

  @Test("C6: a context in a container's place stays with a group file that outlives its group")
  func contextStays() throws {
    let context = try open("/dev/iommu")
    let group = try open("/dev/vfio/0")
    #expect(setContainer(group, context) == 0)
    #expect(try unbind(alone) == nil)
    #expect(status(group) == -ENODEV)
    #expect(setContainer(group, context) == -EINVAL, "it has one")
    #expect(device(group, alone) == -ENODEV)
    #expect(call(group, VFIO_GROUP_UNSET_CONTAINER) == 0)
    #expect(setContainer(group, context) == -ENODEV)
  }

  @Test("C6: a group has its container as long as it has a device, and an open one stays")
  func notTheLast() throws {
    let container = try open("/dev/vfio/vfio")
    let group = try open("/dev/vfio/1")
    #expect(setContainer(group, container) == 0)
    #expect(setIOMMU(container) == 0)
    #expect(try unbind("0000:e0:05.0") == nil)
    #expect(status(group) == 0)
    #expect(device(group, "0000:e0:05.0") == -ENODEV)
    let open = device(group, "0000:e0:05.1")
    #expect(open > 0)
    #expect(try unbind("0000:e0:05.1") == .resourceBusy)
    #expect(status(group) == 0)
    caller.close(open)
    #expect(try unbind("0000:e0:05.1") == nil)
    #expect(status(group) == -ENODEV)
  }

  // MARK: Virtual functions

  @Test("J1: a virtual function goes though its group is in a container, unless it is open")
  func virtualFunctionInContainer() throws {
    #expect(try makeVirtualFunctions(2) == nil)
    let number = try #require(machine.virtualFunctions[0].devices.first?.group.group.id)
    let name = try #require(machine.virtualFunctions[0].devices.first?.function.name)
    let container = try open("/dev/vfio/vfio")
    let group = try open("/dev/vfio/\(number)")
    #expect(setContainer(group, container) == 0)
    #expect(setIOMMU(container) == 0)
    let uuid = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"
    let physicalGroup = try open("/dev/vfio/2")
    #expect(setContainer(physicalGroup, container) == 0)
    let owner = device(physicalGroup, "\(physical) vf_token=\(uuid)")
    #expect(owner > 0)
    let user = device(group, "\(name) vf_token=\(uuid)")
    #expect(user > 0)
    #expect(try makeVirtualFunctions(0) == .resourceBusy)
    #expect(status(group) == 0)
    caller.close(user)
    #expect(try makeVirtualFunctions(0) == nil)
    #expect(status(group) == -ENODEV)
    #expect(machine.view.place(of: "/sys/bus/pci/devices/\(name)") == nil)
    // The container goes on with the group that it has left.
    #expect(setIOMMU(container) == -EINVAL)
    #expect(try makeVirtualFunctions(1) == nil)
    let again = try open("/dev/vfio/\(number)")
    #expect(setContainer(again, container) == 0, "a group of that number again")
    #expect(device(again, "\(name) vf_token=\(uuid)") > 0)
  }

  @Test("J1: unbinding a physical function takes its virtual ones along, or nothing")
  func unbindPhysical() throws {
    let before = Set(machine.view.entries.map(\.path))
    let nodes = Set(machine.nodes.map(\.path))
    #expect(try makeVirtualFunctions(3) == nil)
    let all = Set(machine.view.entries.map(\.path))
    let virtual = machine.virtualFunctions[0].devices[1]
    // Whoever is in the way, nothing changes.
    for path in ["/dev/vfio/devices/vfio\(virtual.index)", "/dev/vfio/devices/vfio3"] {
      let context = try open("/dev/iommu")
      let file = try open(path)
      caller.put(
        vfio_device_bind_iommufd(
          argsz: 24, flags: path.hasSuffix("vfio3") ? 0 : VFIO_DEVICE_BIND_FLAG_TOKEN,
          iommufd: context, out_devid: 0, token_uuid_ptr: 0x4000), at: 0x2000)
      if !path.hasSuffix("vfio3") { virtual.physicalFunction?.setToken(Self.zeros) }
      #expect(call(file, VFIO_DEVICE_BIND_IOMMUFD, at: 0x2000) == 0)
      #expect(try unbind(physical) == .resourceBusy, "\(path) is in use")
      #expect(Set(machine.view.entries.map(\.path)) == all)
      #expect(machine.virtualFunctions[0].devices.count == 3)
      #expect(machine.drivers.driver(of: physical) == .vfio)
      caller.close(file)
    }
    #expect(try unbind(physical) == nil)
    #expect(machine.virtualFunctions[0].count == 0)
    #expect(machine.functions[3].config.value(at: 0x208) & 0xFFFF == 0, "VF Enable is off")
    #expect(machine.view.place(of: "/sys/bus/pci/devices/0000:e0:06.0/virtfn0") == nil)
    #expect(try makeVirtualFunctions(1) == .noSuchFileOrDirectory, "no driver")
    #expect(try bind(physical) == nil)
    #expect(Set(machine.view.entries.map(\.path)) == before)
    #expect(Set(machine.nodes.map(\.path)) == nodes)
    #expect(try makeVirtualFunctions(4) == nil)
  }

  private static let zeros = VFToken(bytes: [UInt8](repeating: 0, count: 16))

  @Test("J1: virtual functions come, go and lose their physical one at once, and stay in step")
  func concurrency() async throws {
    let (machine, name) = (machine, physical)
    await withTaskGroup(of: Void.self) { group in
      for worker in 0..<4 {
        group.addTask {
          for _ in 0..<20 {
            if worker.isMultiple(of: 2) {
              try? machine.drivers.unbind(name, from: .vfio)
              try? machine.drivers.bind(name, to: .vfio)
            } else {
              try? machine.virtualFunctions[0].set(2)
              try? machine.virtualFunctions[0].set(0)
            }
          }
        }
      }
    }
    try machine.drivers.bind(name, to: .vfio, orHasIt: true)
    try machine.virtualFunctions[0].set(0)
    #expect(machine.view.place(of: "/sys/bus/pci/devices/\(name)/virtfn0") == nil)
    try machine.virtualFunctions[0].set(2)
    #expect(machine.virtualFunctions[0].devices.count == 2)
  }

  // MARK: Mediated devices

  @Test("J2: a mediated device goes though its group is in a container, unless it is open")
  func mediated() throws {
    let uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
    let types = "/sys/class/mdev_bus/0000:e0:07.0/mdev_supported_types"
    for type in ["pasid", "software"] {
      #expect(try echo(uuid, "\(types)/ioat-mdev-\(type)/create") == nil)
      let number = try #require(machine.mediated.instances.first?.device.group.group.id)
      let container = try open("/dev/vfio/vfio")
      let group = try open("/dev/vfio/\(number)")
      #expect(setContainer(group, container) == 0)
      #expect(setIOMMU(container) == 0)
      let user = device(group, uuid)
      #expect(user > 0)
      #expect(try echo("1", "/sys/bus/mdev/devices/\(uuid)/remove") == .resourceBusy)
      #expect(status(group) == 0)
      caller.close(user)
      #expect(try echo("1", "/sys/bus/mdev/devices/\(uuid)/remove") == nil, "\(type)")
      #expect(status(group) == -ENODEV)
      #expect(setIOMMU(container) == -EINVAL, "the container has no group")
      caller.closeAll()
    }
  }
}

extension PCIDrivers {
  /// Binds a device that may be bound already.
  fileprivate func bind(_ name: String, to driver: Driver, orHasIt: Bool) throws(IOMMUError) {
    if self.driver(of: name) != driver { try bind(name, to: driver) }
  }
}
