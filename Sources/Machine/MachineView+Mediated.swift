// SPDX-License-Identifier: Apache-2.0
//
// sysfs's mediated devices: the types of a parent, and each device while it is there. Facts: Linux
// 6.12, drivers/vfio/mdev/mdev_sysfs.c; iommu_group_alloc for a group without an IOMMU.

import IOMMU
import LinuxABI
import VFIO

extension SysfsBuilder {
  /// What is there before any mediated device is.
  mutating func mediatedBus() {
    directory("/sys/class/mdev_bus", exclusive: true)
    directory("/sys/bus/mdev", exclusive: true)
    directory("/sys/bus/mdev/devices", exclusive: true)
    directory("/sys/bus/mdev/drivers", exclusive: true)
  }

  /// A parent and its types.
  /// - Parameter place: The parent's path in /sys/devices.
  mutating func mediatedParent(
    _ parent: MediatedParent, at place: String, devices: MediatedDevices
  ) {
    link("/sys/class/mdev_bus/\(parent.device.name)", to: place)
    directory("/sys/bus/mdev/drivers/\(parent.driver.name)")
    let address = parent.device.address
    for type in parent.types {
      let path = "\(place)/mdev_supported_types/\(parent.identifier(of: type))"
      attribute("\(path)/name", type.title)
      attribute("\(path)/description", type.summary)
      attribute("\(path)/device_api", type.deviceAPI)
      let driver = parent.driver
      attribute(
        "\(path)/available_instances",
        CommandAttribute(show: { "\(driver.availableInstances(of: type))" }))
      attribute(
        "\(path)/create",
        RawAttribute { (text) throws(IOMMUError) in
          try devices.create(type.name, on: address, text: text)
        })
      directory("\(path)/devices")
    }
  }
}

/// Takes a text as it is written, with or without its newline.
private final class RawAttribute: Attribute {
  let mode: UInt16 = 0o200
  private let body: @Sendable (String) throws(IOMMUError) -> Void

  init(_ body: @escaping @Sendable (String) throws(IOMMUError) -> Void) { self.body = body }

  func store(_ text: String, by caller: any Caller) throws(IOMMUError) { try body(text) }
}

/// The files of one mediated device.
struct MediatedView {
  private let instance: MediatedInstance
  private let parent: String
  private let devices: MediatedDevices
  private let node: VFIODeviceNode
  private let groupNode: VFIOGroupNode

  /// - Parameter parent: Its parent's path in /sys/devices.
  init(_ instance: MediatedInstance, parent: String, devices: MediatedDevices) {
    self.instance = instance
    self.parent = parent
    self.devices = devices
    node = VFIODeviceNode(device: instance.device)
    groupNode = VFIOGroupNode(group: instance.device.group)
  }

  private var name: String { "\(instance.uuid)" }
  private var path: String { "\(parent)/\(name)" }
  private var type: String {
    "\(parent)/mdev_supported_types/\(instance.parent.identifier(of: instance.type))"
  }
  private var driver: String { "/sys/bus/mdev/drivers/\(instance.parent.driver.name)" }
  private var group: String {
    "/sys/kernel/iommu_groups/\(instance.device.group.group.id)"
  }
  private var vfio: String { "vfio\(instance.device.index)" }
  private var groupDevice: String {
    "/sys/devices/virtual/vfio/\(instance.device.group.group.id)"
  }

  /// What comes with the device.
  var arrival: View.Change {
    var builder = SysfsBuilder()
    builder.device(
      path, subsystem: "/sys/bus/mdev",
      uevent: ["DRIVER=\(instance.parent.driver.name)"])
    let (uuid, devices) = (instance.uuid, devices)
    builder.attribute(
      "\(path)/remove",
      RawAttribute { (text) throws(IOMMUError) in
        try devices.remove(uuid, text: text)
      })
    let mediator = instance.parent.driver
    for (index, counter) in mediator.statistics(of: uuid).enumerated() {
      builder.attribute(
        "\(path)/\(mediator.name)/\(counter.name)",
        CommandAttribute(show: {
          let counters = mediator.statistics(of: uuid)
          return "\(counters.indices.contains(index) ? counters[index].value : 0)"
        }))
    }
    builder.link("\(path)/mdev_type", to: type)
    builder.link("\(path)/driver", to: driver)
    addGroup(&builder)
    builder.node(
      "\(path)/vfio-dev/\(vfio)", subsystem: "/sys/class/vfio-dev", number: node.number,
      name: "vfio/devices/\(vfio)")
    builder.link("\(path)/vfio-dev/\(vfio)/device", to: path)
    for (place, target) in links { builder.link(place, to: target) }
    // /sys itself is nobody's to add.
    return View.Change(
      added: builder.view.entries.filter { $0.path != "/sys" }, addedNodes: [node, groupNode])
  }

  private func addGroup(_ builder: inout SysfsBuilder) {
    builder.link("\(group)/devices/\(name)", to: path)
    if instance.device.function.device == nil {
      // No IOMMU routes it, so no range is reserved; the name is Linux's for all such groups.
      builder.bytes("\(group)/reserved_regions", [])
      builder.attribute("\(group)/type", "unknown")
      builder.attribute("\(group)/name", "vfio-noiommu")
    } else {
      builder.attribute("\(group)/reserved_regions", reservedRegions)
      builder.attribute("\(group)/type", "blocked")
    }
    builder.link("\(path)/iommu_group", to: group)
    builder.node(
      groupDevice, subsystem: "/sys/class/vfio", number: groupNode.number,
      name: "vfio/\(instance.device.group.group.id)")
  }

  private var reservedRegions: String {
    let physical = instance.parent.device
    return physical.driver.reservedRegions(for: physical.requester).map { region in
      "0x\(padded(region.range.lowerBound, 16)) 0x\(padded(region.range.upperBound, 16)) "
        + region.kind.rawValue
    }.joined(separator: "\n")
  }

  /// Links from elsewhere to what is the device's own.
  private var links: [(place: String, target: String)] {
    [
      ("/sys/bus/mdev/devices/\(name)", path),
      ("\(driver)/\(name)", path),
      ("\(type)/devices/\(name)", path),
      ("/sys/class/vfio-dev/\(vfio)", "\(path)/vfio-dev/\(vfio)"),
      ("/sys/class/vfio/\(instance.device.group.group.id)", groupDevice),
    ]
  }

  /// What goes with the device: links to a place before the place.
  var departure: View.Change {
    let numbers = [node.number, groupNode.number].map {
      "/sys/dev/char/\($0.major):\($0.minor)"
    }
    return View.Change(
      removed: links.map(\.place) + numbers + [group, groupDevice, path, node.path]
        + [groupNode.path])
  }
}
