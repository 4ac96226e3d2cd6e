// SPDX-License-Identifier: Apache-2.0
//
// Copy engines in several groups, and a program that reaches them through groups and containers
// by the calls of Linux.

import CLinuxABI
import IOMMU
import LinuxABI
import SoftDevices
import SoftwareIOMMU
import SystemPackage
import VFIO

/// Groups 0, 1 and on, with as many copy engines each as asked for: function F of device G is
/// 0000:e0:0G.F.
public final class GroupRig {
  public let system: IOMMUSystem
  /// One for each group.
  public let iommus: [SoftwareIOMMU]
  public let groups: [VFIOGroup]
  /// In order of group and function.
  public let devices: [VFIODevice]
  public let caller: LocalCaller
  private let containerNode: VFIOContainerNode
  private let groupNodes: [VFIOGroupNode]

  /// - Parameters:
  ///   - sizes: Engines in each group.
  ///   - iommus: What each group is behind; the last stands for those after it too.
  public init(
    _ sizes: [Int] = [1, 2], iommus configurations: [SoftwareIOMMU.Configuration] = [.init()],
    byteCount: UInt64 = 4 << 20
  ) throws {
    system = IOMMUSystem()
    caller = try LocalCaller(byteCount: byteCount)
    containerNode = VFIOContainerNode(system: system)
    var iommus: [SoftwareIOMMU] = []
    var groups: [VFIOGroup] = []
    var devices: [VFIODevice] = []
    for (number, size) in sizes.enumerated() {
      let iommu = SoftwareIOMMU(
        name: "dmar\(number)",
        configuration: configurations[min(number, configurations.count - 1)],
        memory: system.memory, events: system.events)
      let group = VFIOGroup(group: try system.addGroup(UInt32(number)))
      for function in 0..<size {
        let requester = RequesterID(bus: 0xE0, device: UInt8(number), function: UInt8(function))
        let physical = try system.addDevice(
          name: "\(requester)", requester: requester, driver: iommu, group: group.group,
          hostDriver: .safe("vfio-pci"))
        devices.append(
          VFIODevice(
            index: UInt32(devices.count),
            function: PCIFunction(
              device: physical, model: CopyEngine(configuration: .init()),
              upstream: SoftwareIOMMUBus(iommu: iommu, requester: requester)), group: group))
      }
      iommus.append(iommu)
      groups.append(group)
    }
    self.iommus = iommus
    self.groups = groups
    groupNodes = groups.map { VFIOGroupNode(group: $0) }
    self.devices = devices
  }

  /// A program on a machine that is there already, with one device in each group.
  public init(
    devices: [VFIODevice], system: IOMMUSystem, iommu: SoftwareIOMMU,
    byteCount: UInt64 = 4 << 20
  ) throws {
    self.system = system
    self.devices = devices
    caller = try LocalCaller(byteCount: byteCount)
    containerNode = VFIOContainerNode(system: system)
    groups = devices.map(\.group)
    iommus = devices.map { _ in iommu }
    groupNodes = groups.map { VFIOGroupNode(group: $0) }
  }

  // MARK: Files of the caller; negative errnos where an open fails

  private func open(_ node: any DeviceNode) -> Int32 {
    do throws(IOMMUError) {
      return caller.add(try node.open(flags: 2, by: caller))
    } catch {
      return -error.errno.rawValue
    }
  }

  public func openContainer() -> Int32 { open(containerNode) }
  public func openGroup(_ number: Int) -> Int32 { open(groupNodes[number]) }
  public func openIOMMU() -> Int32 { open(IOMMUNode(system: system)) }
  public func openDevice(_ index: Int) -> Int32 { open(VFIODeviceNode(device: devices[index])) }

  /// One ioctl on a descriptor.
  public func call(_ fd: Int32, _ command: UInt32, _ argument: UInt64 = 0) -> Int32 {
    guard let file = (try? caller.openFile(descriptor: fd)) ?? nil else { return -9 }
    return caller.ioctl(file, command, at: argument)
  }

  /// One ioctl with a structure.
  public func call<T>(_ fd: Int32, _ command: UInt32, _ structure: inout T) -> Int32 {
    guard let file = (try? caller.openFile(descriptor: fd)) ?? nil else { return -9 }
    return caller.ioctl(file, command, &structure)
  }

  // MARK: Groups

  public func setContainer(_ group: Int32, _ container: Int32) -> Int32 {
    var fd = container
    return call(group, VFIO_GROUP_SET_CONTAINER, &fd)
  }

  public func unsetContainer(_ group: Int32) -> Int32 {
    call(group, VFIO_GROUP_UNSET_CONTAINER)
  }

  /// GET_STATUS's flags; nil where it fails.
  public func status(_ group: Int32) -> UInt32? {
    var status = vfio_group_status(argsz: 8, flags: 0)
    return call(group, VFIO_GROUP_GET_STATUS, &status) == 0 ? status.flags : nil
  }

  public func getDevice(_ group: Int32, _ name: String) -> Int32 {
    for (offset, byte) in zip(UInt64(0)..., Array(name.utf8) + [0]) {
      caller.put(byte, at: 0x3000 + offset)
    }
    return call(group, VFIO_GROUP_GET_DEVICE_FD, 0x3000)
  }

  /// What most tests start from: a container with groups and a model.
  /// - Returns: The container's descriptor, then those of the groups.
  public func connect(_ numbers: [Int] = [0], model: UInt32 = VFIO_TYPE1v2_IOMMU) throws
    -> (container: Int32, groups: [Int32])
  {
    let container = openContainer()
    let groups = numbers.map { openGroup($0) }
    for group in groups {
      let result = setContainer(group, container)
      guard result == 0 else { throw Failure(step: "SET_CONTAINER", result: result) }
    }
    let result = call(container, VFIO_SET_IOMMU, UInt64(model))
    guard result == 0 else { throw Failure(step: "SET_IOMMU", result: result) }
    return (container, groups)
  }

  public struct Failure: Error { public let step: String, result: Int32 }

  // MARK: Mappings

  public func map(
    _ container: Int32, _ iova: UInt64, to address: UInt64, size: UInt64, flags: UInt32 = 3
  ) -> Int32 {
    var map = vfio_iommu_type1_dma_map(
      argsz: 32, flags: flags, vaddr: address, iova: iova, size: size)
    return call(container, VFIO_IOMMU_MAP_DMA, &map)
  }

  /// - Returns: The errno, and the bytes that the structure says.
  public func unmap(
    _ container: Int32, _ iova: UInt64, size: UInt64, flags: UInt32 = 0
  ) -> (result: Int32, size: UInt64) {
    caller.put(UInt32(24), at: 0x2000)
    caller.put(flags, at: 0x2004)
    caller.put(iova, at: 0x2008)
    caller.put(size, at: 0x2010)
    let result = call(container, VFIO_IOMMU_UNMAP_DMA, 0x2000)
    return (result, caller.get(UInt64.self, at: 0x2010))
  }

  // MARK: DMA

  private static let bar: UInt64 = 1 << 45
  private static let config: UInt64 = 1 << 45 | 7 << 40

  public func write<T: FixedWidthInteger>(_ fd: Int32, _ offset: UInt64, _ value: T) -> Int {
    guard let file = (try? caller.openFile(descriptor: fd)) ?? nil else { return -9 }
    return withUnsafeBytes(of: value) { bytes in
      do throws(IOMMUError) {
        return try file.write(at: offset, from: bytes)
      } catch {
        return -Int(error.errno.rawValue)
      }
    }
  }

  public func read<T: FixedWidthInteger>(_ fd: Int32, _ offset: UInt64, as: T.Type) -> T? {
    guard let file = (try? caller.openFile(descriptor: fd)) ?? nil else { return nil }
    var value: T = 0
    let count = withUnsafeMutableBytes(of: &value) { try? file.read(at: offset, into: $0) }
    return count == MemoryLayout<T>.size ? value : nil
  }

  /// Lets an engine copy 4 KiB, all addresses as the device sees them; the descriptor is put at
  /// `ring` in the arena, which `iova` names.
  /// - Returns: The low bits of CHANSTS when it is done: 1 idle, 3 halted by an error.
  public func copy(
    _ fd: Int32, ring: UInt64, at iova: UInt64, from source: UInt64, to destination: UInt64
  ) -> UInt64? {
    caller.put(UInt32(4096), at: ring)
    caller.put(UInt32(0), at: ring + 4)
    caller.put(source, at: ring + 8)
    caller.put(destination, at: ring + 16)
    caller.put(iova, at: ring + 24)
    guard write(fd, Self.config + 4, UInt16(6)) == 2,
      write(fd, Self.bar + 0x84, UInt8(0x20)) == 1
    else { return nil }
    guard wait(fd, [3]) == 3 else { return nil }
    _ = write(fd, Self.bar + 0x90, iova)
    _ = write(fd, Self.bar + 0x80, UInt16(0x9))
    _ = write(fd, Self.bar + 0x86, UInt16(1))
    return wait(fd, [1, 3])
  }

  private func wait(_ fd: Int32, _ wanted: Set<UInt64>) -> UInt64? {
    while true {
      guard let status = read(fd, Self.bar + 0x88, as: UInt64.self) else { return nil }
      if status == .max || wanted.contains(status & 7) { return status & 7 }
    }
  }

  /// Closes every descriptor, and says what is left that should not be.
  public func leftovers() -> [String] {
    caller.closeAll()
    var left: [String] = []
    if system.contextCount != 0 { left.append("\(system.contextCount) contexts") }
    if system.memory.usedSlots != 0 {
      left.append("\(system.memory.usedSlots) pinned segments")
    }
    for group in groups where group.group.isOwned {
      left.append("group \(group.group.id) owned")
    }
    for device in devices where device.isBound { left.append("\(device.function.name) open") }
    for group in groups where (try? group.status.hasContainer) == true {
      left.append("a container")
    }
    return left
  }
}
