// SPDX-License-Identifier: Apache-2.0
//
// /dev/vfio/N and /dev/vfio/vfio: the group-centric nodes (MODEL C6). What is here is complete
// on its own: opening, exclusion against device nodes, status, and Linux's checks. Using a
// device through a group needs a container that has it; there is none yet, so what depends on
// one is refused, and CHECK_EXTENSION promises nothing.

import CLinuxABI
import IOMMU
import SystemPackage
import VFIO

/// The node of one group.
public final class VFIOGroupNode: DeviceNode {
  /// Linux gives "vfio" a dynamic major, from 511 down; here it is always this one.
  public static let major: UInt32 = 510

  public let path: String
  public let number: DeviceNumber
  public let group: VFIOGroup

  public init(group: VFIOGroup) {
    self.group = group
    path = "/dev/vfio/\(group.group.id)"
    number = DeviceNumber(major: Self.major, minor: group.group.id)
  }

  /// - Throws: `EBUSY` where the group is open, or a device of it is bound by its own node.
  public func open(flags: Int32, by caller: any Caller) throws(IOMMUError) -> any OpenFile {
    try group.open()
    return VFIOGroupFile(group: group, number: number)
  }
}

/// An open group.
final class VFIOGroupFile: OpenFile {
  let group: VFIOGroup
  let number: DeviceNumber

  init(group: VFIOGroup, number: DeviceNumber) {
    self.group = group
    self.number = number
  }

  var name: String { "vfio-group \(group.group.id)" }

  func ioctl(
    _ command: UInt32, argument: UInt64, by caller: any Caller
  ) throws(IOMMUError) -> Int {
    switch command {
    case VFIO_GROUP_GET_STATUS: try getStatus(argument, caller)
    case VFIO_GROUP_SET_CONTAINER:
      let descriptor = try caller.load(Int32.self, from: argument, zero: 0)
      switch try caller.openFile(descriptor: descriptor) {
      case is VFIOContainerFile, is any ContextFile:
        throw IOMMUError(
          .operationNotSupported,
          "devices cannot be used through their group here; open /dev/vfio/devices/vfioN")
      default:
        throw IOMMUError(
          .badDescriptorState, "descriptor \(descriptor) is no container and no /dev/iommu")
      }
    case VFIO_GROUP_UNSET_CONTAINER: throw noContainer()
    case VFIO_GROUP_GET_DEVICE_FD:
      let wanted = try caller.text(at: argument)
      guard group.group.devices.contains(where: { Self.names(wanted, $0.name) }) else {
        throw IOMMUError(
          .noSuchDevice, "group \(group.group.id) has no device \(wanted)")
      }
      throw noContainer()
    default:
      throw IOMMUError(
        .inappropriateIOCTLForDevice, "\(name) has no command \(hex(command))")
    }
    return 0
  }

  /// Whether a text names a device: its address, and options after a space.
  private static func names(_ text: String, _ name: String) -> Bool {
    text == name || text.hasPrefix(name + " ")
  }

  private func noContainer() -> IOMMUError {
    IOMMUError(.invalidArgument, "group \(group.group.id) has no container")
  }

  private func getStatus(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let minimum = MemoryLayout<vfio_group_status>.size
    var status = try caller.load(vfio_group_status(), from: argument, size: minimum)
    guard Int(status.argsz) >= minimum else {
      throw IOMMUError(
        .invalidArgument, "argsz is \(status.argsz); \(minimum) bytes are needed")
    }
    status.flags = group.isViable ? VFIO_GROUP_FLAGS_VIABLE : 0
    try caller.store(status, to: argument)
  }

  func close() { group.close() }
}

/// The node `/dev/vfio/vfio`.
public final class VFIOContainerNode: DeviceNode {
  public let path = "/dev/vfio/vfio"
  public let number = DeviceNumber(major: 10, minor: 196)

  public init() {}

  public func open(flags: Int32, by caller: any Caller) throws(IOMMUError) -> any OpenFile {
    VFIOContainerFile(number: number)
  }
}

/// An open container. No group can be put into it yet, so it never gets an IOMMU.
final class VFIOContainerFile: OpenFile {
  let name = "vfio-container"
  let number: DeviceNumber

  init(number: DeviceNumber) { self.number = number }

  func ioctl(
    _ command: UInt32, argument: UInt64, by caller: any Caller
  ) throws(IOMMUError) -> Int {
    switch command {
    case VFIO_GET_API_VERSION: return Int(VFIO_API_VERSION)
    case VFIO_CHECK_EXTENSION: return 0
    default:
      throw IOMMUError(.invalidArgument, "the container has no group and no IOMMU type set")
    }
  }

  func close() {}
}

// What neither of them has. Linux's file operations lack read, write and mmap: `EINVAL` and
// `ENODEV`.
extension OpenFile where Self: VFIOFileWithoutRegions {
  func checkMap(_ request: MapRequest) throws(IOMMUError) {
    throw IOMMUError(.noSuchDevice, "\(name) cannot be mapped")
  }
}

extension Caller {
  /// A text of the caller's that ends with a zero byte. Linux: `strndup_user`.
  /// - Throws: `EFAULT`; `EINVAL` where it has not ended after 4096 bytes.
  fileprivate func text(at address: UInt64) throws(IOMMUError) -> String {
    var bytes: [UInt8] = []
    while bytes.count < 4096 {
      let byte = try load(UInt8.self, from: address &+ UInt64(bytes.count), zero: 0)
      if byte == 0 { return String(decoding: bytes, as: UTF8.self) }
      bytes.append(byte)
    }
    throw IOMMUError(.invalidArgument, "the device's name does not end within 4096 bytes")
  }
}

protocol VFIOFileWithoutRegions {}
extension VFIOGroupFile: VFIOFileWithoutRegions {}
extension VFIOContainerFile: VFIOFileWithoutRegions {}
