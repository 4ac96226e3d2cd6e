// SPDX-License-Identifier: Apache-2.0
//
// A machine whose one copy engine is shared out, and programs that use its slices.

import CLinuxABI
import IOMMU
import SoftDevices
import SoftwareIOMMU
import TestSupport
import Testing
import VFIO

/// A machine with one engine that is shared out.
final class MediatedRig {
  let system = IOMMUSystem()
  let iommu: SoftwareIOMMU
  let physical: PhysicalDevice
  let bus = MediatedBus(indices: DeviceIndices())
  let parent: MediatedParent

  init(pasidBits: UInt8 = 4, capacity: Int = 8) throws {
    iommu = SoftwareIOMMU(
      name: "dmar0", configuration: .init(pasidBits: pasidBits), memory: system.memory,
      events: system.events)
    let requester = RequesterID(bus: 0xE0, device: 6, function: 0)
    physical = try system.addDevice(
      name: "\(requester)", requester: requester, driver: iommu, group: system.addGroup(),
      hostDriver: .dma(MediatedCopyEngine.driverName))
    parent = try bus.register(
      physical,
      driver: MediatedCopyEngine(
        parent: physical, iommu: iommu, system: system, capacity: capacity))
  }

  static func uuid(_ number: Int) -> VFIO.UUID {
    VFIO.UUID("6d9f5c4e-0000-4000-8000-00000000000\(number)")!
  }

  func create(_ type: String, _ number: Int) throws -> MediatedInstance {
    try bus.create(type, on: parent, uuid: Self.uuid(number))
  }

  /// A program that has made itself a slice, and mapped its memory from 0x10000 up.
  func user(_ type: String, _ number: Int) throws -> EngineRig {
    let rig = try EngineRig(device: create(type, number).device, system: system, iommu: iommu)
    try rig.connect()
    #expect(rig.map(0x10000, to: 0x10000, length: 0xFF0000) == 0)
    return rig
  }

  func count(_ name: String, of number: Int) -> UInt64 {
    parent.driver.statistics(of: Self.uuid(number)).first { $0.name == name }?.value ?? .max
  }
}

extension EngineRig {
  func fill(_ address: UInt64, _ value: UInt64, length: UInt64 = 4096) {
    for offset in stride(from: 0, to: length, by: 8) { caller.put(value, at: address + offset) }
  }

  /// One descriptor at 0x10000 that is linked to itself, and a doorbell.
  func copy(
    from source: UInt64, to destination: UInt64, size: UInt32 = 4096, control: UInt32 = 0,
    count: UInt16 = 1, pasid: UInt32? = nil
  ) {
    descriptor(
      at: 0x10000, size: size, control: control | (pasid == nil ? 0 : 1 << 11), source: source,
      destination: destination, next: 0x10000)
    if let pasid { caller.put(pasid, at: 0x10020) }
    write(0x84, UInt8(0x20))
    wait([3])
    write(0x98, UInt64(0x20000))
    write(0x90, UInt64(0x10000))
    write(0x80, UInt16(0x9))
    write(0x86, count)
  }

  func word(_ address: UInt64) -> UInt64 { caller.get(UInt64.self, at: address) }
}

/// A second space of a user, in which addresses are 4 MiB further up in its memory, and PASIDs
/// that go there. The default space moves to a table that allows PASIDs.
struct PASIDSpace {
  let user: EngineRig
  let table: UInt32

  init(_ user: EngineRig) throws {
    self.user = user
    #expect(user.attach(try Self.table(user, user.ioas)) == 0)
    var space = iommu_ioas_alloc()
    space.size = 12
    #expect(user.caller.ioctl(user.iommuFile, IOMMU_IOAS_ALLOC, &space) == 0)
    var map = iommu_ioas_map()
    map.size = 40
    map.flags =
      IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE
    map.ioas_id = space.out_ioas_id
    map.user_va = 0x50_0000
    map.iova = 0x10_0000
    map.length = 0x20_0000
    #expect(user.caller.ioctl(user.iommuFile, IOMMU_IOAS_MAP, &map) == 0)
    table = try Self.table(user, space.out_ioas_id)
  }

  /// A page table that allows PASIDs.
  private static func table(_ user: EngineRig, _ ioas: UInt32) throws -> UInt32 {
    var alloc = iommu_hwpt_alloc()
    alloc.size = UInt32(MemoryLayout<iommu_hwpt_alloc>.size)
    alloc.flags = IOMMU_HWPT_ALLOC_PASID
    alloc.dev_id = user.deviceID
    alloc.pt_id = ioas
    #expect(user.caller.ioctl(user.iommuFile, IOMMU_HWPT_ALLOC, &alloc) == 0)
    return alloc.out_hwpt_id
  }

  func attach(_ pasid: UInt32) -> Int32 {
    var attach = vfio_device_attach_iommufd_pt()
    attach.argsz = 16
    attach.flags = VFIO_DEVICE_ATTACH_PASID
    attach.pt_id = table
    attach.pasid = pasid
    return user.caller.ioctl(user.file, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach)
  }

  func detach(_ pasid: UInt32) -> Int32 {
    var detach = vfio_device_detach_iommufd_pt()
    detach.argsz = 12
    detach.flags = VFIO_DEVICE_DETACH_PASID
    detach.pasid = pasid
    return user.caller.ioctl(user.file, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach)
  }
}
