// SPDX-License-Identifier: Apache-2.0
//
// /dev/vfio/N: the group-centric node (MODEL C6), and what an open of it answers. The policy is
// VFIO's; here are the numbers and the structures' checks. Facts: Linux 6.12,
// drivers/vfio/group.c.

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
  /// The open files that the group gave, by the devices' indices.
  private let deviceFiles = Guarded<[UInt32: WeakFile]>([:])

  private struct WeakFile: Sendable {
    weak let file: VFIODeviceFile?
  }

  public init(group: VFIOGroup) {
    self.group = group
    path = "/dev/vfio/\(group.group.id)"
    number = DeviceNumber(major: Self.major, minor: group.group.id)
  }

  /// - Throws: `EBUSY` where the group is open, or a device of it is bound by its own node;
  ///   `ENODEV` where VFIO has no device of it any more.
  public func open(flags: Int32, by caller: any Caller) throws(IOMMUError) -> any OpenFile {
    try group.open()
    return VFIOGroupFile(node: self)
  }

  /// The file of a device that the group gave before, or another where that is closed. All who
  /// open a device through its group share it: what one maps of the device the others map.
  fileprivate func file(of device: VFIODevice) -> VFIODeviceFile {
    deviceFiles.withLock { files in
      if let file = files[device.index]?.file, file.session.device === device { return file }
      let file = VFIODeviceFile(
        session: device.makeGroupSession(), number: VFIODeviceNode.number(of: device))
      files[device.index] = WeakFile(file: file)
      return file
    }
  }
}

/// An open group.
final class VFIOGroupFile: OpenFile {
  private let node: VFIOGroupNode

  init(node: VFIOGroupNode) { self.node = node }

  var group: VFIOGroup { node.group }
  var number: DeviceNumber { node.number }
  var name: String { "vfio-group \(group.group.id)" }

  func ioctl(
    _ command: UInt32, argument: UInt64, by caller: any Caller
  ) throws(IOMMUError) -> Int {
    switch command {
    case VFIO_GROUP_GET_STATUS: try getStatus(argument, caller)
    case VFIO_GROUP_SET_CONTAINER: try setContainer(argument, caller)
    case VFIO_GROUP_UNSET_CONTAINER: try group.unsetContainer()
    case VFIO_GROUP_GET_DEVICE_FD: return Int(try getDevice(argument, caller))
    default:
      throw IOMMUError(
        .inappropriateIOCTLForDevice, "\(name) has no command \(hex(command))")
    }
    return 0
  }

  private func getStatus(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let minimum = MemoryLayout<vfio_group_status>.size
    var structure = try caller.load(vfio_group_status(), from: argument, size: minimum)
    try checkHead(argsz: structure.argsz, atLeast: minimum)
    let status = try group.status
    structure.flags =
      (status.isViable ? VFIO_GROUP_FLAGS_VIABLE : 0)
      | (status.hasContainer ? VFIO_GROUP_FLAGS_CONTAINER_SET : 0)
    try caller.store(structure, to: argument)
  }

  private func setContainer(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) {
    let descriptor = try caller.load(Int32.self, from: argument, zero: 0)
    switch try caller.openFile(descriptor: descriptor) {
    case let file as VFIOContainerFile: try group.setContainer(.container(file.container))
    case let file as any ContextFile: try group.setContainer(.context(file.context))
    default: try group.setContainer(nil)
    }
  }

  /// The new descriptor closes on exec and is open at once. On Linux it is an anonymous inode's;
  /// here `fstat` shows the device's own node. As on Linux the descriptor comes first; where the
  /// open fails then, the caller takes it back.
  private func getDevice(_ argument: UInt64, _ caller: any Caller) throws(IOMMUError) -> Int32 {
    let file = node.file(of: try group.device(matching: caller.text(at: argument)))
    try file.session.device.checkRegistration()
    let descriptor = try caller.install(file, closeOnExec: true)
    try file.session.openThroughGroup()
    return descriptor
  }

  func close() { group.close() }
}

extension Caller {
  /// A text of the caller's that ends with a zero byte. Linux: `strndup_user`.
  /// - Throws: `EFAULT`; `EINVAL` where it has not ended after 4096 bytes.
  func text(at address: UInt64) throws(IOMMUError) -> String {
    let most = 4096
    var text: [UInt8] = []
    while text.count < most {
      // No further than the page: the text may end with its mapping.
      let here = address &+ UInt64(text.count)
      let count = min(64, 4096 - Int(here & 4095), most - text.count)
      let bytes = try self.bytes(at: here, count: count)
      if let end = bytes.firstIndex(of: 0) {
        return String(decoding: text + bytes[..<end], as: UTF8.self)
      }
      text += bytes
    }
    throw IOMMUError(.invalidArgument, "the device's name does not end within \(most) bytes")
  }
}
