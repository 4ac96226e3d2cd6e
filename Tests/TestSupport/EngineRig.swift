// SPDX-License-Identifier: Apache-2.0
//
// A machine with one copy engine behind one IOMMU, and a program that drives it through
// /dev/iommu and /dev/vfio/devices/vfio0 only.

import CLinuxABI
import IOMMU
import LinuxABI
import SoftDevices
import SoftwareIOMMU
import SystemPackage
import VFIO

public final class EngineRig {
  public let system: IOMMUSystem
  public let iommu: SoftwareIOMMU
  public let engine: CopyEngine
  public let vfio: VFIODevice
  public let node: VFIODeviceNode
  public let group: VFIOGroup
  public let caller: LocalCaller
  public let requester: RequesterID

  /// Descriptors of the caller.
  public let iommufd: Int32
  public let devicefd: Int32
  public let iommuFile: any OpenFile
  public let file: any OpenFile
  public private(set) var ioas: UInt32 = 0
  /// The bound device as an object of the context.
  public private(set) var deviceID: UInt32 = 0

  public static let regionBase: UInt64 = 1 << 45
  public static let configBase: UInt64 = 1 << 45 | 7 << 40

  public init(
    configuration: CopyEngine.Configuration = .init(), byteCount: UInt64 = 16 << 20,
    iommu iommuConfiguration: SoftwareIOMMU.Configuration = .init(),
    driver: (SoftwareIOMMU) -> any IOMMUDriver = { $0 }
  ) throws {
    system = IOMMUSystem()
    requester = RequesterID(bus: 0xE0, device: 4, function: 0)
    iommu = SoftwareIOMMU(
      name: "dmar0", configuration: iommuConfiguration, memory: system.memory,
      events: system.events)
    caller = try LocalCaller(byteCount: byteCount)
    engine = CopyEngine(configuration: configuration)
    let iommuGroup = system.addGroup()
    let device = try system.addDevice(
      name: requester.description, requester: requester, driver: driver(iommu),
      group: iommuGroup)
    let function = PCIFunction(
      device: device, model: engine,
      upstream: SoftwareIOMMUBus(iommu: iommu, requester: requester))
    group = VFIOGroup(group: iommuGroup)
    vfio = VFIODevice(index: 0, function: function, group: group)
    node = VFIODeviceNode(device: vfio)
    iommuFile = try IOMMUNode(system: system).open(flags: 2, by: caller)
    iommufd = caller.add(iommuFile)
    file = try node.open(flags: 2, by: caller)
    devicefd = caller.add(file)
  }

  /// A program that uses a device of a machine that is there already.
  public init(
    device: VFIODevice, system: IOMMUSystem, iommu: SoftwareIOMMU, byteCount: UInt64 = 16 << 20
  ) throws {
    guard let engine = device.function.model as? CopyEngine else {
      throw Failure(step: "no copy engine", result: 0)
    }
    self.system = system
    self.iommu = iommu
    self.engine = engine
    requester = device.function.device?.physical.requester ?? RequesterID(rawValue: 0)
    caller = try LocalCaller(byteCount: byteCount)
    group = device.group
    vfio = device
    node = VFIODeviceNode(device: device)
    iommuFile = try IOMMUNode(system: system).open(flags: 2, by: caller)
    iommufd = caller.add(iommuFile)
    file = try node.open(flags: 2, by: caller)
    devicefd = caller.add(file)
  }

  // MARK: The usual steps

  /// Bind, a new space, attach, memory decoding and bus mastering on.
  public func connect() throws {
    try expect(bind(), "bind")
    var alloc = iommu_ioas_alloc()
    alloc.size = 12
    try expect(caller.ioctl(iommuFile, IOMMU_IOAS_ALLOC, &alloc), "IOAS_ALLOC")
    ioas = alloc.out_ioas_id
    try expect(attach(ioas), "attach")
    config(0x04, UInt16(0x0006))
  }

  @discardableResult
  public func bind() -> Int32 {
    var bind = vfio_device_bind_iommufd()
    bind.argsz = 16
    bind.iommufd = iommufd
    let result = caller.ioctl(file, VFIO_DEVICE_BIND_IOMMUFD, &bind)
    deviceID = bind.out_devid
    return result
  }

  public func attach(_ id: UInt32) -> Int32 {
    var attach = vfio_device_attach_iommufd_pt()
    attach.argsz = 12
    attach.pt_id = id
    return caller.ioctl(file, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach)
  }

  public func detach() -> Int32 {
    var detach = vfio_device_detach_iommufd_pt()
    detach.argsz = 8
    return caller.ioctl(file, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach)
  }

  /// Maps arena memory: readable, and writable too unless told otherwise.
  public func map(
    _ iova: UInt64, to address: UInt64, length: UInt64, writable: Bool = true
  ) -> Int32 {
    var map = iommu_ioas_map()
    map.size = 40
    map.flags =
      IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE
      | (writable ? IOMMU_IOAS_MAP_WRITEABLE : 0)
    map.ioas_id = ioas
    map.user_va = address
    map.iova = iova
    map.length = length
    return caller.ioctl(iommuFile, IOMMU_IOAS_MAP, &map)
  }

  public func unmap(_ iova: UInt64, length: UInt64) -> Int32 {
    var unmap = iommu_ioas_unmap(size: 24, ioas_id: ioas, iova: iova, length: length)
    return caller.ioctl(iommuFile, IOMMU_IOAS_UNMAP, &unmap)
  }

  /// Gives an MSI-X vector an eventfd.
  public func arm(_ signal: CountingSignal, vector: UInt32 = 0) -> Int32 {
    setIRQs(
      flags: VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, index: 2, start: vector,
      count: 1, data: [caller.add(signal)])
  }

  public func setIRQs(
    flags: UInt32, index: UInt32, start: UInt32 = 0, count: UInt32, data: [Int32] = [],
    argsz: UInt32? = nil
  ) -> Int32 {
    let size = UInt32(20 + data.count * 4)
    for (offset, value) in zip(0..., [argsz ?? size, flags, index, start, count]) {
      caller.put(value, at: 0x2800 + UInt64(offset) * 4)
    }
    for (offset, value) in zip(0..., data) {
      caller.put(value, at: 0x2814 + UInt64(offset) * 4)
    }
    return caller.ioctl(file, VFIO_DEVICE_SET_IRQS, at: 0x2800)
  }

  public struct Failure: Error { public let step: String, result: Int32 }

  private func expect(_ result: Int32, _ step: String) throws {
    if result != 0 { throw Failure(step: step, result: result) }
  }

  // MARK: Registers

  /// Where BAR 0 is in the file: after all memory, where the engine has some.
  public var registerBase: UInt64 {
    engine.bars.contains(where: \.isMemory) ? Self.regionBase | 16 << 40 : Self.regionBase
  }

  /// Reads a register of BAR 0; nil where the read fails.
  public func read<T: FixedWidthInteger>(_ offset: UInt64, as type: T.Type = T.self) -> T? {
    pread(registerBase + offset)
  }

  @discardableResult
  public func write<T: FixedWidthInteger>(_ offset: UInt64, _ value: T) -> Int {
    pwrite(registerBase + offset, value)
  }

  public func config<T: FixedWidthInteger>(_ offset: UInt64, as type: T.Type = T.self) -> T? {
    pread(Self.configBase + offset)
  }

  @discardableResult
  public func config<T: FixedWidthInteger>(_ offset: UInt64, _ value: T) -> Int {
    pwrite(Self.configBase + offset, value)
  }

  public func pread<T: FixedWidthInteger>(_ offset: UInt64) -> T? {
    var value: T = 0
    let count = withUnsafeMutableBytes(of: &value) { try? file.read(at: offset, into: $0) }
    return count == MemoryLayout<T>.size ? value : nil
  }

  /// - Returns: Bytes written, or a negative errno.
  @discardableResult
  public func pwrite<T: FixedWidthInteger>(_ offset: UInt64, _ value: T) -> Int {
    withUnsafeBytes(of: value) { bytes in
      do throws(IOMMUError) {
        return try file.write(at: offset, from: bytes)
      } catch {
        return -Int(error.errno.rawValue)
      }
    }
  }

  // MARK: The engine

  /// Puts a descriptor into the arena.
  public func descriptor(
    at address: UInt64, size: UInt32, control: UInt32 = 0, source: UInt64,
    destination: UInt64, next: UInt64
  ) {
    caller.put(size, at: address)
    caller.put(control, at: address + 4)
    caller.put(source, at: address + 8)
    caller.put(destination, at: address + 16)
    caller.put(next, at: address + 24)
  }

  public var status: UInt64 { read(0x88, as: UInt64.self) ?? .max }
  public var errors: UInt32 { read(0xA8, as: UInt32.self) ?? .max }

  /// Polls until CHANSTS has one of the given low bits, for as long as it takes.
  @discardableResult
  public func wait(_ wanted: Set<UInt64> = [1, 3]) -> UInt64 {
    while true {
      let status = self.status
      if status == .max || wanted.contains(status & 7) { return status }
    }
  }

  /// Resets the channel and starts a chain.
  public func start(_ chain: UInt64, count: UInt16, control: UInt16 = 0x9) {
    write(0x84, UInt8(0x20))
    wait([3])
    write(0x90, chain)
    write(0x80, control)
    write(0x86, count)
  }
}
