// SPDX-License-Identifier: Apache-2.0
//
// MODEL B4, E2 to E4 from a program: /dev/kvm of ours, its VMs, and work portals.

import CLinuxABI
import Foundation
import IOMMU
import SoftDevices
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct VirtualMachineFileTests {
  let rig: PortalRig
  let vm: any OpenFile
  let vfio: any OpenFile

  init() throws {
    rig = try PortalRig()
    vm = try rig.makeVM()
    vfio = try rig.makeVFIO(vm)
  }

  /// A device with a PASID attached to 1 MiB at an address, in a space of its own.
  private func prepare(
    _ device: PortalRig.Device, _ pasid: UInt32, _ address: UInt64
  ) -> (space: UInt32, table: UInt32) {
    let space = rig.space(address)
    let table = rig.table(device, space)
    #expect(rig.attach(device, pasid, table) == 0)
    rig.caller.put(UInt64(0x1122_3344_5566_7788) ^ address, at: address)
    return (space, table)
  }

  private func copied(_ address: UInt64) -> Bool {
    rig.caller.get(UInt64.self, at: address + 0x1000) == 0x1122_3344_5566_7788 ^ address
  }

  // MARK: /dev/kvm

  @Test("E4: /dev/kvm answers its version, makes VMs and says what else it has not")
  func node() throws {
    let kvm = try rig.node.open(flags: 2, by: rig.caller)
    #expect(rig.caller.ioctl(kvm, KVM_GET_API_VERSION, at: 0) == 12)
    #expect(rig.caller.ioctl(kvm, KVM_GET_API_VERSION, at: 1) == -EINVAL)
    for file in [kvm, vm] {
      #expect(rig.caller.ioctl(file, KVM_CHECK_EXTENSION, at: 3) == 1)
      #expect(rig.caller.ioctl(file, KVM_CHECK_EXTENSION, at: 10) == 32764)
      #expect(
        rig.caller.ioctl(file, KVM_CHECK_EXTENSION, at: UInt64(KVM_CAP_PASID_TRANSLATION)) == 1)
      #expect(rig.caller.ioctl(file, KVM_CHECK_EXTENSION, at: 206) == 0)
    }
    #expect(rig.caller.ioctl(kvm, KVM_CREATE_VM, at: 7) == -EINVAL)
    let createVCPU: UInt32 = 0xAE41
    for file in [kvm, vm, vfio] {
      #expect(rig.caller.ioctl(file, createVCPU, at: 0) == -ENOTTY)
    }
    #expect(rig.caller.ioctl(kvm, KVM_MAP_PASID, at: 0x2000) == -ENOTTY)
  }

  @Test("E4: KVM_CREATE_DEVICE makes one device of type VFIO, and no other")
  func createDevice() throws {
    var cmd = kvm_create_device(type: KVM_DEV_TYPE_VFIO, fd: 0, flags: 0)
    #expect(rig.caller.ioctl(vm, KVM_CREATE_DEVICE, &cmd) == -EBUSY)
    cmd.flags = KVM_CREATE_DEVICE_TEST
    #expect(rig.caller.ioctl(vm, KVM_CREATE_DEVICE, &cmd) == 0)
    cmd.type = 1
    #expect(rig.caller.ioctl(vm, KVM_CREATE_DEVICE, &cmd) == -ENODEV)
    #expect(rig.caller.ioctl(vm, KVM_CREATE_DEVICE, at: 8) == -EFAULT)
  }

  @Test("E4: devices are given to a VM by their files, once, and taken back")
  func files() throws {
    let device = try rig.device(.physical)
    let (add, del) = (KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL)
    #expect(rig.attribute(vfio, add, device.descriptor, KVM_HAS_DEVICE_ATTR) == 0)
    #expect(rig.attribute(vfio, 3, device.descriptor, KVM_HAS_DEVICE_ATTR) == -ENXIO)
    #expect(rig.attribute(vfio, add, device.descriptor, group: 2) == -ENXIO)
    #expect(rig.attribute(vfio, add, device.descriptor, KVM_GET_DEVICE_ATTR) == -EPERM)
    #expect(rig.attribute(vfio, del, device.descriptor) == -ENOENT)
    #expect(rig.attribute(vfio, add, rig.iommufd) == -EINVAL)
    #expect(rig.attribute(vfio, add, 9999) == -EBADF)
    #expect(rig.attribute(vfio, add, device.descriptor) == 0)
    #expect(rig.attribute(vfio, add, device.descriptor) == -EEXIST)
    let other = try rig.makeVFIO(try rig.makeVM())
    #expect(rig.attribute(other, add, device.descriptor) == -EBUSY)
    #expect(rig.attribute(vfio, del, device.descriptor) == 0)
    #expect(rig.attribute(other, add, device.descriptor) == 0)
  }

  @Test("E3: kinds 7 and 8 are not given to one VM")
  func mixture() throws {
    let whole = try rig.device(.physicalWithWorkQueue)
    let slice = try rig.device(.mediatedWithWorkQueue)
    #expect(rig.attribute(vfio, KVM_DEV_VFIO_FILE_ADD, whole.descriptor) == 0)
    #expect(rig.attribute(vfio, KVM_DEV_VFIO_FILE_ADD, slice.descriptor) == -EINVAL)
    #expect(rig.translate(vm, 1) == -EINVAL)
    rig.caller.close(whole.descriptor)
    #expect(rig.attribute(vfio, KVM_DEV_VFIO_FILE_ADD, slice.descriptor) == 0)
    #expect(rig.translate(vm, 1) == 0)
  }

  @Test("B4: memory slots of the VM are what a space that follows it has mapped")
  func memorySlots() throws {
    var region = kvm_userspace_memory_region(
      slot: 0, flags: 0, guest_phys_addr: 0x1000, memory_size: 0x2000, userspace_addr: 0x10_0000
    )
    #expect(rig.caller.ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0)
    region.slot = 1
    #expect(rig.caller.ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == -EEXIST)
    region.slot = 40_000
    #expect(rig.caller.ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == -EINVAL)
    region.slot = 2
    region.guest_phys_addr = 0x10_0000
    for kernelAddress: UInt64 in [1 << 63, 0xFFFF_8880_0000_0000, .max - 0xFFF] {
      region.userspace_addr = kernelAddress
      #expect(rig.caller.ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == -EINVAL)
    }
    let machine = try #require(vm as? VirtualMachineFile).machine
    #expect(machine.slots.map(\.guestAddress) == [0x1000])
    region.slot = 0
    region.userspace_addr = 0x10_0000
    region.memory_size = 0
    #expect(rig.caller.ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0)
    #expect(machine.slots.isEmpty)
  }

  @Test("E4: a VM is used by the process that made it")
  func foreignProcess() throws {
    let stranger = try LocalCaller(byteCount: 1 << 20)
    #expect(stranger.ioctl(vm, KVM_CHECK_EXTENSION, at: 3) == -EIO)
    #expect(stranger.ioctl(vfio, KVM_HAS_DEVICE_ATTR, at: 0x2000) == -EIO)
  }

  @Test("E4: the VM ends with the last of its files")
  func life() throws {
    let file = try #require(vm as? VirtualMachineFile)
    vm.close()
    #expect(throws: Never.self) { try file.machine.setTranslatesPASIDs(true) }
    vfio.close()
    #expect(throws: IOMMUError.self) { try file.machine.setTranslatesPASIDs(true) }
  }

  // MARK: PASIDs

  @Test("E4: KVM_MAP_PASID and KVM_UNMAP_PASID check their structure, files and PASIDs")
  func mapChecks() throws {
    let slice = try rig.device(.mediatedWithWorkQueue)
    let (space, table) = prepare(slice, 5, 0x10_0000)
    #expect(rig.pasidCall(vm, KVM_MAP_PASID, 5, space, argsz: 19) == -EINVAL)
    #expect(rig.pasidCall(vm, KVM_MAP_PASID, 5, space, flags: 1) == -EINVAL)
    #expect(rig.pasidCall(vm, KVM_MAP_PASID, 5, space, fd: 9999) == -EBADF)
    #expect(rig.pasidCall(vm, KVM_MAP_PASID, 5, space, fd: slice.descriptor) == -EINVAL)
    #expect(rig.pasidCall(vm, KVM_MAP_PASID, 6, space) == -ENOENT)
    #expect(rig.pasidCall(vm, KVM_MAP_PASID, 5, 999) == -ENOENT)
    #expect(rig.pasidCall(vm, KVM_UNMAP_PASID, 5) == -ENOENT)
    #expect(rig.caller.ioctl(vm, KVM_MAP_PASID, at: 8) == -EFAULT)
    #expect(rig.pasidCall(vm, KVM_MAP_PASID, 5, table) == 0)
    #expect(rig.pasidCall(vm, KVM_MAP_PASID, 5, space) == -EEXIST)
    #expect(rig.pasidCall(vm, KVM_UNMAP_PASID, 5) == 0)
    #expect(rig.translate(vm, 2) == -EINVAL)
  }

  @Test("E4: a kind-8 portal is closed, then translates, and each PASID has its own memory")
  func kind8() throws {
    let slice = try rig.device(.mediatedWithWorkQueue)
    let (one, other): (UInt64, UInt64) = (0x10_0000, 0x30_0000)
    let spaces = [prepare(slice, 5, one).space, prepare(slice, 6, other).space]
    #expect(rig.submit(slice, 5) == -Int(EPERM))
    #expect(rig.attribute(vfio, KVM_DEV_VFIO_FILE_ADD, slice.descriptor) == 0)
    #expect(rig.pasidCall(vm, KVM_MAP_PASID, 5, spaces[0]) == 0)
    #expect(rig.submit(slice, 5) == -Int(EPERM))
    #expect(rig.translate(vm, 1) == 0)
    #expect(rig.submit(slice, 5) == 64)
    #expect(rig.submit(slice, 6) == -Int(EFAULT))
    rig.settle(slice)
    #expect(copied(one) && rig.completion(one) == 0x1001)
    #expect(!copied(other))
    #expect(rig.pasidCall(vm, KVM_MAP_PASID, 6, spaces[1]) == 0)
    #expect(rig.submit(slice, 6) == 64)
    rig.settle(slice)
    #expect(copied(other))
    #expect(rig.detach(slice, 6) == 0)
    #expect(rig.submit(slice, 6) == -Int(EPERM))
    #expect(rig.attribute(vfio, KVM_DEV_VFIO_FILE_DEL, slice.descriptor) == 0)
    #expect(rig.submit(slice, 5) == -Int(EPERM))
  }

  @Test("E4: two slices of one parent share a PASID of one space, at once")
  func sharedPASID() throws {
    let parent = try rig.parent()
    let slices = try (0..<2).map { _ in try rig.device(.mediatedWithWorkQueue, of: parent) }
    let (space, table) = prepare(slices[0], 5, 0x10_0000)
    #expect(rig.attach(slices[1], 5, table) == 0)
    for slice in slices {
      #expect(rig.attribute(vfio, KVM_DEV_VFIO_FILE_ADD, slice.descriptor) == 0)
    }
    #expect(rig.pasidCall(vm, KVM_MAP_PASID, 5, space) == 0)
    #expect(rig.translate(vm, 1) == 0)
    for _ in 0..<200 {
      for slice in slices { while rig.submit(slice, 5) != 64 {} }
    }
    for slice in slices { rig.settle(slice) }
    #expect(copied(0x10_0000))
    #expect(slices.map { rig.read($0, at: WorkQueueEngine.Register.errors) } == [0, 0])
    #expect(rig.detach(slices[0], 5) == 0)
    rig.caller.put(UInt64(0), at: 0x10_1000)
    #expect(rig.submit(slices[0], 5) == -Int(EPERM))
    #expect(rig.submit(slices[1], 5) == 64)
    rig.settle(slices[1])
    #expect(copied(0x10_0000))
  }

  @Test("E4: a kind-7 portal takes what is attached as it is; a full queue is EAGAIN")
  func kind7() throws {
    let device = try rig.device(.physicalWithWorkQueue)
    #expect(rig.submit(device, 5) == -Int(EPERM))
    _ = prepare(device, 5, 0x10_0000)
    rig.hold(device, 1)
    for _ in 0..<2 { #expect(rig.submit(device, 5) == 64) }
    #expect(rig.submit(device, 5) == -Int(EAGAIN))
    #expect(rig.read(device, at: WorkQueueEngine.Register.occupancy) == 2)
    rig.hold(device, 0)
    rig.settle(device)
    #expect(copied(0x10_0000))
    #expect(rig.submit(device, 5) == 64)
    rig.settle(device)
  }

  @Test("E4: a detach drops what waits for its PASID, and nothing else")
  func drained() throws {
    let device = try rig.device(.physicalWithWorkQueue)
    _ = prepare(device, 5, 0x10_0000)
    _ = prepare(device, 6, 0x30_0000)
    rig.hold(device, 1)
    for pasid: UInt32 in 5...6 { #expect(rig.submit(device, pasid) == 64) }
    #expect(rig.detach(device, 5) == 0)
    #expect(rig.read(device, at: WorkQueueEngine.Register.occupancy) == 1)
    rig.hold(device, 0)
    rig.settle(device)
    #expect(copied(0x30_0000) && !copied(0x10_0000))
    #expect(rig.read(device, at: WorkQueueEngine.Register.errors) == 0)
  }

  @Test("E4: the portal takes 64 bytes at a multiple of 64, while memory is decoded")
  func portalShape() throws {
    let device = try rig.device(.physicalWithWorkQueue)
    _ = prepare(device, 5, 0x10_0000)
    let command = PortalRig.copy(5, from: 0, to: 0x1000, length: 16)
    let portal = PortalRig.region + WorkQueueEngine.portalOffset
    #expect(rig.write(device, at: portal, Array(command[..<32])) == -Int(EINVAL))
    #expect(rig.write(device, at: portal, command + command) == -Int(EINVAL))
    #expect(rig.write(device, at: portal + 8, command) == -Int(EINVAL))
    #expect(rig.write(device, at: portal + 0xFC0, command) == 64)
    rig.settle(device)
    #expect(rig.write(device, at: PortalRig.config + 4, [0, 0]) == 2)
    #expect(rig.write(device, at: portal, command) == -Int(EIO))
    let dedicated = try rig.device(.physical)
    #expect(rig.write(dedicated, at: portal, command) == 64, "registers that are not there")
    #expect(rig.read(dedicated, at: WorkQueueEngine.Register.occupancy) == 0)
  }

  @Test("H3: a reset drops a command that waits for its page, and counts no error")
  func resetWhileWaiting() throws {
    let rig = try PortalRig(pageRequests: true)
    let device = try rig.device(.physicalWithWorkQueue)
    var queue = iommu_fault_alloc()
    queue.size = 16
    #expect(rig.caller.ioctl(rig.iommuFile, IOMMU_FAULT_QUEUE_ALLOC, &queue) == 0)
    let table = rig.table(device, rig.space(0x10_0000), faultQueue: queue.out_fault_id)
    #expect(rig.attach(device, 5, table) == 0)
    for round in 1...20 as ClosedRange<UInt64> {
      let command = PortalRig.copy(5, from: 1 << 40, to: 0, length: 64)
      #expect(
        rig.write(device, at: PortalRig.region + WorkQueueEngine.portalOffset, command) == 64)
      while rig.iommu.pageRequestCounts.groups < round {}
      #expect(rig.caller.ioctl(device.file, VFIO_DEVICE_RESET, at: 0) == 0)
      #expect(rig.write(device, at: PortalRig.config + 4, [6, 0]) == 2)
      #expect(rig.read(device, at: WorkQueueEngine.Register.occupancy) == 0)
      #expect(rig.read(device, at: WorkQueueEngine.Register.errors) == 0)
      #expect(rig.completion(0x10_0000) == 0, "it was dropped, not ended")
    }
  }

  @Test("E4: what a command cannot do is in its completion", arguments: [5, 7])
  func failures(kind: UInt8) throws {
    let device = try rig.device(try #require(DeviceKind(rawValue: kind)))
    _ = prepare(device, 5, 0x10_0000)
    func run(_ command: [UInt8]) -> UInt64 {
      if kind == 7 {
        #expect(
          rig.write(device, at: PortalRig.region + WorkQueueEngine.portalOffset, command) == 64)
      } else {
        #expect(
          rig.write(
            device, at: PortalRig.region + WorkQueueEngine.Register.pasid, [5, 0, 0, 0]) == 4)
        #expect(
          rig.write(device, at: PortalRig.region + WorkQueueEngine.Register.command, command)
            == 64)
      }
      rig.settle(device)
      return rig.completion(0x10_0000)
    }
    #expect(run(PortalRig.copy(5, from: 0, to: 0x1000, length: 64)) == 0x4001)
    #expect(run(PortalRig.copy(5, from: 1 << 40, to: 0, length: 64)) == 3)
    #expect(run(PortalRig.copy(5, from: 0, to: 1 << 40, length: 64)) == 4)
    #expect(run(PortalRig.copy(5, from: 0, to: 0x1000, length: 2 << 20)) == 2)
    var unknown = PortalRig.copy(5, from: 0, to: 0x1000, length: 64)
    unknown[4] = 9
    #expect(run(unknown) == 2)
  }

  @Test("E2: a slice's dedicated queue is programmed with virtual PASIDs")
  func kind6() throws {
    let slice = try rig.device(.mediated)
    _ = prepare(slice, 5, 0x10_0000)
    #expect(slice.endpoint.physicalPASID(for: PASID(rawValue: 5)) != PASID(rawValue: 5))
    func run(_ pasid: UInt8) {
      #expect(
        rig.write(
          slice, at: PortalRig.region + WorkQueueEngine.Register.pasid, [pasid, 0, 0, 0]) == 4)
      #expect(
        rig.write(
          slice, at: PortalRig.region + WorkQueueEngine.Register.command,
          PortalRig.copy(0, from: 0, to: 0x1000, length: 16)) == 64)
      rig.settle(slice)
    }
    run(6)
    #expect(rig.read(slice, at: WorkQueueEngine.Register.errors) == 1)
    run(5)
    #expect(copied(0x10_0000))
    #expect(rig.read(slice, at: WorkQueueEngine.Register.pasid) == 5, "as it was programmed")
  }

  @Test("E3: GET_INFO's chain tells the kind of device by the vPASID capability")
  func capability() throws {
    for kind in DeviceKind.allCases where kind != .softwareMediated {
      let device = try rig.device(kind)
      var bytes = [UInt8](repeating: 0, count: 64)
      bytes[0] = 64
      rig.caller.put(UInt32(64), at: 0x2000)
      #expect(rig.caller.ioctl(device.file, VFIO_DEVICE_GET_INFO, at: 0x2000) == 0)
      let info = rig.caller.get(vfio_device_info.self, at: 0x2000)
      guard kind.hasVirtualPASIDs else {
        #expect(info.flags & VFIO_DEVICE_FLAGS_CAPS == 0 && info.cap_offset == 0)
        continue
      }
      #expect(info.flags & VFIO_DEVICE_FLAGS_CAPS != 0 && info.cap_offset == 24)
      let capability = rig.caller.get(vfio_device_info_cap_pasid.self, at: 0x2018)
      #expect(capability.header.id == 0xF005 && capability.header.version == 1)
      #expect(capability.header.next == 0)
      #expect(capability.flags == kind.flags.rawValue && capability.pasid_bits == 8)
      // Without room the chain is announced only.
      rig.caller.put(UInt32(24), at: 0x2000)
      #expect(rig.caller.ioctl(device.file, VFIO_DEVICE_GET_INFO, at: 0x2000) == 0)
      let short = rig.caller.get(vfio_device_info.self, at: 0x2000)
      #expect(short.argsz == 40 && short.cap_offset == 0)
      #expect(short.flags & VFIO_DEVICE_FLAGS_CAPS != 0)
    }
  }
}
