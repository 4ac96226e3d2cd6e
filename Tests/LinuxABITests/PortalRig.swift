// SPDX-License-Identifier: Apache-2.0
//
// A machine with work-queue engines, whole and in slices, and a VMM that has them by
// descriptors only.

import CLinuxABI
import IOMMU
import PageTables
import SoftDevices
import SoftwareIOMMU
import SystemPackage
import TestSupport
import Testing
import VFIO

@testable import LinuxABI

final class PortalRig {
  let system = IOMMUSystem()
  let iommu: SoftwareIOMMU
  let caller: LocalCaller
  let iommuFile: any OpenFile
  let iommufd: Int32
  private let pageRequests: Bool
  let node = VirtualMachineNode()
  static let region: UInt64 = 1 << 45
  static let config: UInt64 = 1 << 45 | 7 << 40
  private var slot: UInt8 = 1
  private var devices: [Device] = []

  /// A device that is bound, with memory decoding and bus mastering on.
  struct Device {
    let descriptor: Int32
    let file: any OpenFile
    let function: PCIFunction
    let id: UInt32
    var endpoint: any BindableDevice { function.device! }
  }

  /// - Parameter pageRequests: Whether its devices ask for pages that they miss.
  init(pageRequests: Bool = false) throws {
    iommu = SoftwareIOMMU(
      name: "dmar0", configuration: .init(pasidBits: 8, pageRequests: pageRequests),
      memory: system.memory, events: system.events)
    self.pageRequests = pageRequests
    caller = try LocalCaller(byteCount: 8 << 20)
    iommuFile = try IOMMUNode(system: system).open(flags: 2, by: caller)
    iommufd = caller.add(iommuFile)
  }

  deinit {
    caller.closeAll()
    for device in devices { device.function.remove() }
  }

  func parent(kind: DeviceKind? = nil) throws -> PhysicalDevice {
    defer { slot += 1 }
    let requester = RequesterID(bus: 0xE0, device: slot, function: 0)
    iommu.setFeatures(.init(pageRequests: pageRequests), of: requester)
    return try system.addDevice(
      name: "\(requester)", requester: requester, driver: iommu, group: system.addGroup(),
      kind: kind)
  }

  /// A device that nobody has opened.
  func offer(_ kind: DeviceKind, of parent: PhysicalDevice? = nil) throws -> VFIODevice {
    let endpoint: any BindableDevice =
      kind.isMediated
      ? try system.addMediatedDevice(
        name: "slice \(slot)", parent: parent ?? self.parent(), kind: kind)
      : try self.parent(kind: kind)
    let isShared = kind == .physicalWithWorkQueue || kind == .mediatedWithWorkQueue
    let function = PCIFunction(
      device: endpoint,
      model: WorkQueueEngine(configuration: .init(isShared: isShared, depth: 2)),
      upstream: SoftwareIOMMUBus(iommu: iommu, requester: endpoint.physical.requester))
    return VFIODevice(
      index: UInt32(devices.count), function: function, group: VFIOGroup(group: endpoint.group))
  }

  /// A device's group, open and with `/dev/iommu` in a container's place.
  func openGroup(of device: VFIODevice) throws -> Int32 {
    let group = try VFIOGroupNode(group: device.group).open(flags: 2, by: caller)
    caller.put(iommufd, at: 0x1800)
    #expect(caller.ioctl(group, VFIO_GROUP_SET_CONTAINER, at: 0x1800) == 0)
    return caller.add(group)
  }

  /// - Returns: The device's descriptor, or a negative errno.
  func open(_ device: VFIODevice, through group: Int32) throws -> Int32 {
    for (offset, byte) in zip(UInt64(0)..., Array(device.function.name.utf8) + [0]) {
      caller.put(byte, at: 0x1800 + offset)
    }
    let file = try #require(try caller.openFile(descriptor: group))
    return caller.ioctl(file, VFIO_GROUP_GET_DEVICE_FD, at: 0x1800)
  }

  func device(_ kind: DeviceKind, of parent: PhysicalDevice? = nil) throws -> Device {
    let offered = try offer(kind, of: parent)
    let function = offered.function
    let file = try VFIODeviceNode(device: offered).open(flags: 2, by: caller)
    let descriptor = caller.add(file)
    var bind = vfio_device_bind_iommufd()
    bind.argsz = 16
    bind.iommufd = iommufd
    #expect(caller.ioctl(file, VFIO_DEVICE_BIND_IOMMUFD, &bind) == 0)
    let device = Device(
      descriptor: descriptor, file: file, function: function, id: bind.out_devid)
    devices.append(device)
    #expect(write(device, at: 1 << 45 | 7 << 40 | 4, [6, 0]) == 2)
    return device
  }

  // MARK: Spaces

  func space(_ address: UInt64) -> UInt32 {
    var alloc = iommu_ioas_alloc(size: 12, flags: 0, out_ioas_id: 0)
    #expect(caller.ioctl(iommuFile, IOMMU_IOAS_ALLOC, &alloc) == 0)
    var map = iommu_ioas_map(
      size: 40, flags: 7, ioas_id: alloc.out_ioas_id, __reserved: 0, user_va: address,
      length: 0x10_0000, iova: 0)
    #expect(caller.ioctl(iommuFile, IOMMU_IOAS_MAP, &map) == 0)
    return alloc.out_ioas_id
  }

  func table(_ device: Device, _ space: UInt32, faultQueue: UInt32? = nil) -> UInt32 {
    var cmd = iommu_hwpt_alloc()
    cmd.size = 48
    cmd.flags = IOMMU_HWPT_ALLOC_PASID | (faultQueue == nil ? 0 : IOMMU_HWPT_FAULT_ID_VALID)
    cmd.fault_id = faultQueue ?? 0
    cmd.dev_id = device.id
    cmd.pt_id = space
    #expect(caller.ioctl(iommuFile, IOMMU_HWPT_ALLOC, &cmd) == 0)
    return cmd.out_hwpt_id
  }

  func attach(_ device: Device, _ pasid: UInt32, _ table: UInt32) -> Int32 {
    var cmd = vfio_device_attach_iommufd_pt(
      argsz: 16, flags: VFIO_DEVICE_ATTACH_PASID, pt_id: table, pasid: pasid)
    return caller.ioctl(device.file, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &cmd)
  }

  func detach(_ device: Device, _ pasid: UInt32) -> Int32 {
    var cmd = vfio_device_detach_iommufd_pt(
      argsz: 12, flags: VFIO_DEVICE_DETACH_PASID, pasid: pasid)
    return caller.ioctl(device.file, VFIO_DEVICE_DETACH_IOMMUFD_PT, &cmd)
  }

  // MARK: KVM

  func makeVM() throws -> any OpenFile {
    let kvm = try node.open(flags: 2, by: caller)
    let result = try kvm.ioctl(KVM_CREATE_VM, argument: 0, by: caller)
    return try #require(try caller.openFile(descriptor: Int32(result)))
  }

  func makeVFIO(_ vm: any OpenFile) throws -> any OpenFile {
    var cmd = kvm_create_device(type: KVM_DEV_TYPE_VFIO, fd: 0, flags: 0)
    #expect(caller.ioctl(vm, KVM_CREATE_DEVICE, &cmd) == 0)
    return try #require(try caller.openFile(descriptor: Int32(bitPattern: cmd.fd)))
  }

  func attribute(
    _ file: any OpenFile, _ attribute: UInt32, _ descriptor: Int32,
    _ command: UInt32 = KVM_SET_DEVICE_ATTR, group: UInt32 = KVM_DEV_VFIO_FILE
  ) -> Int32 {
    caller.put(descriptor, at: 0x1800)
    var cmd = kvm_device_attr(
      flags: 0, group: group, attr: UInt64(attribute), addr: 0x1800)
    return caller.ioctl(file, command, &cmd)
  }

  func pasidCall(
    _ vm: any OpenFile, _ command: UInt32, _ pasid: UInt32, _ target: UInt32 = 0,
    fd: Int32? = nil, argsz: UInt32 = 20, flags: UInt32 = 0
  ) -> Int32 {
    var cmd = kvm_pasid(
      argsz: argsz, flags: flags, iommu_fd: fd ?? iommufd, ioasid: target, vpasid: pasid)
    return caller.ioctl(vm, command, &cmd)
  }

  func translate(_ vm: any OpenFile, _ value: UInt64) -> Int32 {
    var cmd = kvm_enable_cap()
    cmd.cap = KVM_CAP_PASID_TRANSLATION
    cmd.args.0 = value
    return caller.ioctl(vm, KVM_ENABLE_CAP, &cmd)
  }

  // MARK: The portal

  /// - Returns: Bytes written, or a negative errno.
  func write(_ device: Device, at offset: UInt64, _ bytes: [UInt8]) -> Int {
    bytes.withUnsafeBytes { bytes in
      do throws(IOMMUError) {
        return try device.file.write(at: offset, from: bytes)
      } catch {
        return -Int(error.errno.rawValue)
      }
    }
  }

  func read(_ device: Device, at register: UInt64) -> UInt32 {
    var value: UInt32 = 0
    _ = withUnsafeMutableBytes(of: &value) {
      try? device.file.read(at: 1 << 45 | register, into: $0)
    }
    return value
  }

  static func copy(
    _ pasid: UInt32, from source: UInt64, to destination: UInt64, length: UInt64,
    completion: UInt64 = 0x8_0000
  ) -> [UInt8] {
    let words: [UInt64] = [
      UInt64(pasid) | 1 << 32 | 1 << 40, completion, source, destination, length, 0, 0, 0,
    ]
    return words.littleEndianBytes
  }

  /// One ENQCMD of a copy from IOVA 0 to 0x1000.
  func submit(_ device: Device, _ pasid: UInt32) -> Int {
    write(
      device, at: 1 << 45 | WorkQueueEngine.portalOffset,
      Self.copy(pasid, from: 0, to: 0x1000, length: 16))
  }

  func hold(_ device: Device, _ value: UInt8) {
    #expect(
      write(device, at: 1 << 45 | WorkQueueEngine.Register.control, [value, 0, 0, 0]) == 4)
  }

  /// Waits until nothing is in the queue.
  func settle(_ device: Device) {
    while read(device, at: WorkQueueEngine.Register.occupancy) != 0 {}
  }

  /// The completion that a copy in the space at `address` wrote, which is cleared.
  func completion(_ address: UInt64) -> UInt64 {
    defer { caller.put(UInt64(0), at: address + 0x8_0000) }
    return caller.get(UInt64.self, at: address + 0x8_0000)
  }
}
