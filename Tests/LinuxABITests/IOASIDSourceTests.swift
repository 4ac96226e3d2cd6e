// SPDX-License-Identifier: Apache-2.0
//
// MODEL B3, B4, K1: ioasids that are a process's own page table or a VM's memory, by the calls of
// /dev/ioasid.

import CLinuxABI
import Foundation
import IOMMU
import PageTables
import SoftwareIOMMU
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct IOASIDSourceTests {
  let rig: IOASIDRig

  init() throws { try self.init(pasidBits: 8) }

  private init(pasidBits: Int) throws {
    rig = try IOASIDRig(EngineRig(iommu: .init(pasidBits: UInt8(pasidBits))))
    #expect(rig.bind() == 0)
  }

  // MARK: Calls

  private func process(
    _ cookie: UInt64 = IOASIDRig.cookie, flags: UInt32 = 0, width: UInt32 = 0,
    parent: Int32 = 0
  ) -> Int32 {
    rig.alloc(
      flags, type: IOASID_TYPE_PROCESS_PAGE_TABLE, width: width, parent: parent, table: cookie)
  }

  private func follow(
    _ descriptor: Int32, flags: UInt32 = 0, width: UInt32 = 0, parent: Int32 = 0
  ) -> Int32 {
    rig.alloc(
      flags, type: IOASID_TYPE_VM_MEMORY, width: width, parent: parent,
      table: UInt64(bitPattern: Int64(descriptor)))
  }

  private func map(_ ioasid: Int32) -> Int32 { rig.map(ioasid, 0x10_0000_0000, to: 0x8000) }

  private func makeVM() throws -> Int32 {
    let kvm = try VirtualMachineNode().open(flags: 2, by: rig.caller)
    let vm = rig.caller.ioctl(kvm, KVM_CREATE_VM, at: 0)
    try #require(vm > 0)
    return vm
  }

  private func setSlot(
    _ vm: Int32, _ slot: UInt32, at guest: UInt64, _ address: UInt64, size: UInt64 = 0x1000
  ) throws -> Int32 {
    var region = kvm_userspace_memory_region(
      slot: slot, flags: 0, guest_phys_addr: guest, memory_size: size, userspace_addr: address)
    let file = try #require(try rig.caller.openFile(descriptor: vm))
    return rig.caller.ioctl(file, KVM_SET_USER_MEMORY_REGION, &region)
  }

  // MARK: A process's page table

  @Test("B3: an ioasid is the caller's own page table, by PASID and without, and is freed")
  func processTable() {
    rig.caller.put(UInt32(0xABCD), at: 0x9004)
    let ioasid = process()
    #expect(ioasid > 0 && rig.word(0x9004) == nil)
    #expect(rig.attach(ioasid, pasid: 5) == 0)
    #expect(rig.word(0x9004, pasid: 5) == 0xABCD && rig.word(0x9004) == nil)
    #expect(rig.attach(ioasid) == 0 && rig.word(0x9004) == 0xABCD)
    #expect(rig.word(0x10) == nil, "nothing is mapped there")
    #expect(rig.free(ioasid) == -EBUSY)
    #expect(rig.detach(ioasid) == 0 && rig.detach(ioasid, pasid: 5) == 0)
    #expect(rig.detach(ioasid) == -EINVAL, "it is not attached")
    #expect(rig.word(0x9004) == nil && rig.word(0x9004, pasid: 5) == nil)
    #expect(rig.free(ioasid) == 0 && rig.free(ioasid) == -ENOENT)
    #expect(rig.engine.system.memory.usedSlots == 0, "nothing was ever pinned")
  }

  @Test("B3, K1: a process's page table takes no map, no fields of others, and needs PASIDs")
  func processTableRefusals() throws {
    let ioasid = process()
    #expect(
      map(ioasid) == -EPERM && rig.unmap(ioasid, 0) == -EPERM
        && rig.invalidate(ioasid, IOASID_INVALIDATE_DEVICE, IOASID_CACHE_IOTLB) == -EINVAL)
    #expect(process(5) == -ENOENT, "no device has the cookie")
    #expect(process(flags: IOASID_ALLOC_ENFORCE_SNOOP) == -EINVAL)
    #expect(process(width: 48) == -EINVAL && process(parent: 1) == -EINVAL)
    #expect(process(flags: IOASID_ALLOC_PARENT, parent: 1) == -EINVAL)
    #expect(process(flags: IOASID_ALLOC_USER_PAGE_TABLE) == -EINVAL)
    #expect(
      rig.alloc(IOASID_ALLOC_PARENT, parent: ioasid) == -ENOENT,
      "nothing nests on it")
    let without = try Self(pasidBits: 0)
    #expect(without.process() == -EOPNOTSUPP)
    // What was refused left no id behind.
    #expect(process() == ioasid + 1)
  }

  // MARK: A VM's memory

  @Test("B4: an ioasid follows a VM's memory slots with no map call, until the VM ends")
  func machineMemory() throws {
    let vm = try makeVM()
    #expect(try setSlot(vm, 0, at: 0x10_0000, 0x9000) == 0)
    let ioasid = follow(vm)
    #expect(ioasid > 0 && rig.attach(ioasid) == 0)
    rig.caller.put(UInt32(1), at: 0x9000)
    rig.caller.put(UInt32(2), at: 0xA000)
    #expect(rig.word(0x10_0000) == 1 && rig.word(0x20_0000) == nil)
    #expect(try setSlot(vm, 1, at: 0x20_0000, 0xA000) == 0)
    #expect(rig.word(0x20_0000) == 2)
    #expect(try setSlot(vm, 1, at: 0x30_0000, 0xA000) == 0)
    #expect(rig.word(0x20_0000) == nil && rig.word(0x30_0000) == 2, "the slot moved")
    #expect(try setSlot(vm, 0, at: 0x10_0000, 0x9000, size: 0) == 0)
    #expect(rig.word(0x10_0000) == nil)
    #expect(map(ioasid) == -EPERM && rig.unmap(ioasid, 0) == -EPERM)
    let second = follow(vm)
    #expect(second > 0, "several may follow one VM")
    rig.caller.close(vm)
    #expect(rig.word(0x30_0000) == nil)
    #expect(map(ioasid) == 0, "it is the caller's again")
    #expect(rig.free(ioasid) == -EBUSY && rig.detach(ioasid) == 0)
    #expect(rig.free(ioasid) == 0 && rig.free(second) == 0)
    #expect(rig.engine.system.memory.usedSlots == 0)
  }

  @Test(
    "B4, K1: only a VM's own descriptor is followed; what a slot meets undoes the allocation")
  func machineMemoryRefusals() throws {
    let vm = try makeVM()
    let kvm = rig.caller.add(try VirtualMachineNode().open(flags: 2, by: rig.caller))
    #expect(follow(999) == -EBADF && follow(-1) == -EBADF)
    #expect(rig.alloc(type: IOASID_TYPE_VM_MEMORY, table: 1 << 32 | UInt64(vm)) == -EBADF)
    #expect(
      follow(kvm) == -EINVAL && follow(rig.fd) == -EINVAL
        && follow(rig.engine.devicefd) == -EINVAL)
    // Some other program's file, as a real KVM's is: nothing of it is touched.
    let foreign = rig.caller.add(try LocalMemory(byteCount: 4096))
    #expect(follow(foreign) == -EINVAL)
    #expect(follow(vm, flags: IOASID_ALLOC_PARENT, parent: 1) == -EINVAL)
    #expect(follow(vm, parent: 1) == -EINVAL)
    #expect(follow(vm, width: 11) == -EINVAL)
    // A slot past what 32 bits reach.
    #expect(try setSlot(vm, 0, at: 1 << 32, 0x9000) == 0)
    #expect(follow(vm, width: 32) == -EINVAL)
    let ioasid = follow(vm, flags: IOASID_ALLOC_ENFORCE_SNOOP)
    #expect(ioasid > 0)
    // Nested on it: the guest's own addresses, over memory that follows.
    let child = rig.alloc(IOASID_ALLOC_PARENT, parent: ioasid)
    #expect(child == ioasid + 1, "what was refused left no id behind")
  }

  @Test("K1: CHECK_EXTENSION knows both by the number of their type")
  func extensions() {
    for number in [IOASID_EXT_PROCESS_PAGE_TABLE, IOASID_EXT_VM_MEMORY] {
      #expect(rig.caller.ioctl(rig.file, IOASID_CHECK_EXTENSION, at: UInt64(number)) == 1)
    }
    #expect(rig.caller.ioctl(rig.file, IOASID_CHECK_EXTENSION, at: 0x103) == 0)
    #expect(rig.alloc(type: 0x103) == -EINVAL)
  }
}
