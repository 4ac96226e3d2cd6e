// SPDX-License-Identifier: Apache-2.0
//
// MODEL E3, E4: a VM is given a group by the group's file, and with it the devices that are opened
// through that, before and after.

import CLinuxABI
import Foundation
import IOMMU
import TestSupport
import Testing
import VFIO

@testable import LinuxABI

@Suite struct VirtualMachineGroupTests {
  let rig: PortalRig
  let vm: any OpenFile
  let vfio: any OpenFile
  private let add = KVM_DEV_VFIO_FILE_ADD
  private let del = KVM_DEV_VFIO_FILE_DEL

  init() throws {
    rig = try PortalRig()
    vm = try rig.makeVM()
    vfio = try rig.makeVFIO(vm)
  }

  /// What the VM has, by name.
  private func devices(of vm: any OpenFile) throws -> [String] {
    try #require(vm as? VirtualMachineFile).machine.devices.map(\.name)
  }

  @Test("E4: a group's file is given to a VM, once, and taken back")
  func files() throws {
    let device = try rig.offer(.physical)
    let group = try rig.openGroup(of: device)
    #expect(rig.attribute(vfio, del, group) == -ENOENT)
    #expect(rig.attribute(vfio, add, group) == 0)
    #expect(rig.attribute(vfio, add, group) == -EEXIST)
    let other = try rig.makeVFIO(try rig.makeVM())
    #expect(rig.attribute(other, add, group) == -EBUSY)
    #expect(rig.attribute(other, del, group) == -ENOENT)
    #expect(rig.attribute(vfio, del, group) == 0)
    #expect(rig.attribute(vfio, del, group) == -ENOENT)
    #expect(rig.attribute(other, add, group) == 0)
    // The VM's file goes, and the group may be another's.
    other.close()
    #expect(rig.attribute(vfio, add, group) == 0)
    let container = rig.caller.add(
      try VFIOContainerNode(system: rig.system).open(flags: 2, by: rig.caller))
    #expect(rig.attribute(vfio, add, container) == -EINVAL, "neither a device nor a group")
  }

  @Test("E4: a group's devices are its VM's while they are open, whichever came first")
  func members() throws {
    let device = try rig.offer(.physicalWithWorkQueue)
    let name = device.function.name
    let group = try rig.openGroup(of: device)
    let before = try rig.open(device, through: group)
    #expect(before > 0)
    #expect(rig.attribute(vfio, add, group) == 0)
    #expect(try devices(of: vm) == [name])
    #expect(rig.translate(vm, 1) == -EINVAL, "a device of kind 7 takes PASIDs as they are")
    rig.caller.close(before)
    #expect(try devices(of: vm) == [])
    let after = try rig.open(device, through: group)
    #expect(try devices(of: vm) == [name])
    #expect(rig.attribute(vfio, del, group) == 0)
    #expect(try devices(of: vm) == [])
    #expect(rig.translate(vm, 1) == 0)
    rig.caller.close(after)
    // The file of a device that its group gave is a device's, too.
    #expect(rig.translate(vm, 0) == 0)
    let own = try rig.open(device, through: group)
    #expect(rig.attribute(vfio, add, own) == 0)
    #expect(rig.attribute(vfio, add, group) == 0)
    #expect(try devices(of: vm) == [name, name])
    rig.caller.close(own)
    #expect(try devices(of: vm) == [])
    rig.caller.close(group)
    let again = try rig.openGroup(of: device)
    #expect(try rig.open(device, through: again) > 0)
    #expect(try devices(of: vm) == [], "a group that was closed is nobody's")
  }

  @Test("E3: a device that does not fit its group's VM is not opened, and its group not given")
  func mixture() throws {
    let device = try rig.offer(.physicalWithWorkQueue)
    let group = try rig.openGroup(of: device)
    #expect(rig.attribute(vfio, add, group) == 0)
    #expect(rig.translate(vm, 1) == 0)
    #expect(try rig.open(device, through: group) == -EINVAL)
    #expect(!device.isBound)
    #expect(rig.translate(vm, 0) == 0)
    #expect(try rig.open(device, through: group) > 0)
    #expect(try devices(of: vm) == [device.function.name])
    // The other way round: another VM has a slice of kind 8.
    let other = try rig.makeVM()
    let otherVFIO = try rig.makeVFIO(other)
    let slice = try rig.device(.mediatedWithWorkQueue)
    #expect(rig.attribute(otherVFIO, add, slice.descriptor) == 0)
    #expect(rig.attribute(vfio, del, group) == 0)
    #expect(rig.attribute(otherVFIO, add, group) == -EINVAL)
    #expect(try devices(of: other) == [slice.endpoint.name])
    #expect(rig.attribute(vfio, add, group) == 0, "it was given to nobody")
  }

  @Test("E4: a group given to a VM and its device files come and go at once")
  func concurrency() async throws {
    let device = try rig.offer(.physical)
    let group = try rig.openGroup(of: device)
    let machine = try #require(vm as? VirtualMachineFile).machine
    let file = try #require(try rig.caller.openFile(descriptor: group) as? VFIOGroupFile)
    await withTaskGroup(of: Void.self) { tasks in
      for worker in 0..<4 {
        tasks.addTask {
          for _ in 0..<100 {
            if worker == 0 {
              try? file.group.give(to: machine)
              file.group.takeBack(from: machine)
            } else {
              let session = device.makeGroupSession()
              try? session.openThroughGroup()
              session.close()
            }
          }
        }
      }
    }
    #expect(machine.devices.isEmpty && !device.isBound)
  }
}
