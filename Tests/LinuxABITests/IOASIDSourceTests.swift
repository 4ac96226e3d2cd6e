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
  let rig: EngineRig
  let file: any OpenFile
  let fd: Int32
  static let cookie: UInt64 = 0xC00C1E

  init() throws { try self.init(pasidBits: 8) }

  private init(pasidBits: Int) throws {
    rig = try EngineRig(iommu: .init(pasidBits: UInt8(pasidBits)))
    file = try IOASIDNode(system: rig.system).open(flags: 2, by: rig.caller)
    fd = rig.caller.add(file)
    var cmd = vfio_device_bind_iommu_fd(
      argsz: 24, flags: 0, iommu_fd: fd, reserved: 0, cookie: Self.cookie)
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_BIND_IOMMU_FD, &cmd) == 0)
  }

  // MARK: Calls

  private func alloc(
    _ type: UInt32, _ table: UInt64, flags: UInt32 = 0, width: UInt32 = 0, parent: UInt32 = 0
  ) -> Int32 {
    var cmd = ioasid_alloc(
      argsz: 32, flags: flags, type: type, addr_width: width, parent: parent, reserved: 0,
      table: table)
    return rig.caller.ioctl(file, IOASID_ALLOC, &cmd)
  }

  private func process(
    _ cookie: UInt64 = cookie, flags: UInt32 = 0, width: UInt32 = 0, parent: UInt32 = 0
  ) -> Int32 {
    alloc(
      IOASID_TYPE_PROCESS_PAGE_TABLE, cookie, flags: flags, width: width, parent: parent)
  }

  private func follow(_ descriptor: Int32, flags: UInt32 = 0, parent: UInt32 = 0) -> Int32 {
    alloc(
      IOASID_TYPE_VM_MEMORY, UInt64(bitPattern: Int64(descriptor)), flags: flags, parent: parent
    )
  }

  private func change(_ command: UInt32, _ ioasid: Int32, pasid: UInt32? = nil) -> Int32 {
    var cmd = vfio_device_attach_ioasid(
      argsz: 20, flags: pasid == nil ? 0 : VFIO_DEVICE_IOASID_VPASID, iommu_fd: fd,
      ioasid: UInt32(bitPattern: ioasid), vpasid: pasid ?? 0)
    return rig.caller.ioctl(rig.file, command, &cmd)
  }

  private func attach(_ ioasid: Int32, pasid: UInt32? = nil) -> Int32 {
    change(VFIO_DEVICE_ATTACH_IOASID, ioasid, pasid: pasid)
  }

  private func detach(_ ioasid: Int32, pasid: UInt32? = nil) -> Int32 {
    change(VFIO_DEVICE_DETACH_IOASID, ioasid, pasid: pasid)
  }

  private func free(_ ioasid: Int32) -> Int32 {
    rig.caller.ioctl(file, IOASID_FREE, at: UInt64(UInt32(bitPattern: ioasid)))
  }

  private func map(_ ioasid: Int32) -> Int32 {
    var cmd = ioasid_dma_map()
    cmd.argsz = 48
    cmd.ioasid = UInt32(bitPattern: ioasid)
    cmd.map = vfio_iommu_type1_dma_map(
      argsz: 32, flags: 3, vaddr: 0x8000, iova: 0x10_0000_0000, size: 0x1000)
    return rig.caller.ioctl(file, IOASID_MAP_DMA, &cmd)
  }

  private func unmap(_ ioasid: Int32) -> Int32 {
    var cmd = ioasid_dma_unmap()
    cmd.argsz = 40
    cmd.unmap_argsz = 24
    cmd.ioasid = UInt32(bitPattern: ioasid)
    cmd.size = 0x1000
    return rig.caller.ioctl(file, IOASID_UNMAP_DMA, &cmd)
  }

  private func invalidate(_ ioasid: Int32) -> Int32 {
    var cmd = ioasid_invalidate_cache()
    cmd.argsz = 48
    cmd.ioasid = UInt32(bitPattern: ioasid)
    cmd.granularity = IOASID_INVALIDATE_DEVICE
    cmd.caches = IOASID_CACHE_IOTLB
    return rig.caller.ioctl(file, IOASID_INVALIDATE_CACHE, &cmd)
  }

  /// What a word of DMA at an IOVA reads; nil where it faults.
  private func word(_ iova: UInt64, pasid: UInt32? = nil) -> UInt32? {
    let port = rig.iommu.port(for: rig.requester, pasid: pasid.map { PASID(rawValue: $0) })
    return try? port.load(IOVA(iova), as: UInt32.self)
  }

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
    #expect(ioasid > 0 && word(0x9004) == nil)
    #expect(attach(ioasid, pasid: 5) == 0)
    #expect(word(0x9004, pasid: 5) == 0xABCD && word(0x9004) == nil)
    #expect(attach(ioasid) == 0 && word(0x9004) == 0xABCD)
    #expect(word(0x10) == nil, "nothing is mapped there")
    #expect(free(ioasid) == -EBUSY)
    #expect(detach(ioasid) == 0 && detach(ioasid, pasid: 5) == 0)
    #expect(detach(ioasid) == -EINVAL, "it is not attached")
    #expect(word(0x9004) == nil && word(0x9004, pasid: 5) == nil)
    #expect(free(ioasid) == 0 && free(ioasid) == -ENOENT)
    #expect(rig.system.memory.usedSlots == 0, "nothing was ever pinned")
  }

  @Test("B3, K1: a process's page table takes no map, no fields of others, and needs PASIDs")
  func processTableRefusals() throws {
    let ioasid = process()
    #expect(map(ioasid) == -EPERM && unmap(ioasid) == -EPERM && invalidate(ioasid) == -EINVAL)
    #expect(process(5) == -ENOENT, "no device has the cookie")
    #expect(process(flags: IOASID_ALLOC_ENFORCE_SNOOP) == -EINVAL)
    #expect(process(width: 48) == -EINVAL && process(parent: 1) == -EINVAL)
    #expect(process(flags: IOASID_ALLOC_PARENT, parent: 1) == -EINVAL)
    #expect(process(flags: IOASID_ALLOC_USER_PAGE_TABLE) == -EINVAL)
    #expect(
      alloc(1, 0, flags: IOASID_ALLOC_PARENT, parent: UInt32(ioasid)) == -ENOENT,
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
    #expect(ioasid > 0 && attach(ioasid) == 0)
    rig.caller.put(UInt32(1), at: 0x9000)
    rig.caller.put(UInt32(2), at: 0xA000)
    #expect(word(0x10_0000) == 1 && word(0x20_0000) == nil)
    #expect(try setSlot(vm, 1, at: 0x20_0000, 0xA000) == 0)
    #expect(word(0x20_0000) == 2)
    #expect(try setSlot(vm, 1, at: 0x30_0000, 0xA000) == 0)
    #expect(word(0x20_0000) == nil && word(0x30_0000) == 2, "the slot moved")
    #expect(try setSlot(vm, 0, at: 0x10_0000, 0x9000, size: 0) == 0)
    #expect(word(0x10_0000) == nil)
    #expect(map(ioasid) == -EPERM && unmap(ioasid) == -EPERM)
    let second = follow(vm)
    #expect(second > 0, "several may follow one VM")
    rig.caller.close(vm)
    #expect(word(0x30_0000) == nil)
    #expect(map(ioasid) == 0, "it is the caller's again")
    #expect(free(ioasid) == -EBUSY && detach(ioasid) == 0)
    #expect(free(ioasid) == 0 && free(second) == 0)
    #expect(rig.system.memory.usedSlots == 0)
  }

  @Test(
    "B4, K1: only a VM's own descriptor is followed; what a slot meets undoes the allocation")
  func machineMemoryRefusals() throws {
    let vm = try makeVM()
    let kvm = rig.caller.add(try VirtualMachineNode().open(flags: 2, by: rig.caller))
    #expect(follow(999) == -EBADF && follow(-1) == -EBADF)
    #expect(alloc(IOASID_TYPE_VM_MEMORY, 1 << 32 | UInt64(vm)) == -EBADF)
    #expect(follow(kvm) == -EINVAL && follow(fd) == -EINVAL && follow(rig.devicefd) == -EINVAL)
    // Some other program's file, as a real KVM's is: nothing of it is touched.
    let foreign = rig.caller.add(try LocalMemory(byteCount: 4096))
    #expect(follow(foreign) == -EINVAL)
    #expect(follow(vm, flags: IOASID_ALLOC_PARENT, parent: 1) == -EINVAL)
    #expect(follow(vm, parent: 1) == -EINVAL)
    #expect(alloc(IOASID_TYPE_VM_MEMORY, UInt64(vm), width: 11) == -EINVAL)
    // A slot past what 32 bits reach.
    #expect(try setSlot(vm, 0, at: 1 << 32, 0x9000) == 0)
    #expect(alloc(IOASID_TYPE_VM_MEMORY, UInt64(vm), width: 32) == -EINVAL)
    let ioasid = follow(vm, flags: IOASID_ALLOC_ENFORCE_SNOOP)
    #expect(ioasid > 0)
    // Nested on it: the guest's own addresses, over memory that follows.
    let child = alloc(1, 0, flags: IOASID_ALLOC_PARENT, parent: UInt32(ioasid))
    #expect(child == ioasid + 1, "what was refused left no id behind")
  }

  @Test("K1: CHECK_EXTENSION knows both by the number of their type")
  func extensions() {
    for number in [IOASID_EXT_PROCESS_PAGE_TABLE, IOASID_EXT_VM_MEMORY] {
      #expect(rig.caller.ioctl(file, IOASID_CHECK_EXTENSION, at: UInt64(number)) == 1)
    }
    #expect(rig.caller.ioctl(file, IOASID_CHECK_EXTENSION, at: 0x103) == 0)
    #expect(alloc(0x103, 0) == -EINVAL)
  }
}
