// SPDX-License-Identifier: Apache-2.0
//
// The names of a machine's nodes in /dev, so that the printed machine, sysfs and the nodes
// themselves agree.

import IOMMU

extension MachineDescription {
  /// The devices that programs may open, in the order of the file: the position is N in
  /// `/dev/vfio/devices/vfioN`.
  public var offeredDevices: [DeviceDescription] {
    devices.filter { $0.hostDriver == .vfio }
  }

  /// The groups with a device that programs may open: each has a `/dev/vfio/N`.
  public var offeredGroups: [GroupDescription] {
    let offered = Set(offeredDevices.map(\.group))
    return groups.filter { offered.contains($0.number) }
  }

  /// N in `/dev/vfio/devices/vfioN`; nil where the device is not offered.
  public func vfioIndex(of device: DeviceDescription) -> Int? {
    offeredDevices.firstIndex { $0.address == device.address }
  }

  /// `/dev/vfio/devices/vfio0`; nil where the device is not offered.
  public func devicePath(of device: DeviceDescription) -> String? {
    vfioIndex(of: device).map { "/dev/vfio/devices/vfio\($0)" }
  }

  /// `/dev/vfio/0`; nil where no device of the group is offered.
  public func groupPath(of group: GroupDescription) -> String? {
    offeredGroups.contains(group) ? "/dev/vfio/\(group.number)" : nil
  }
}
