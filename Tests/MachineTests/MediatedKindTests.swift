// SPDX-License-Identifier: Apache-2.0
//
// MODEL E2: the kinds of device that are mediated can be made on a machine by its file and /sys.

import CLinuxABI
import IOMMU
import LinuxABI
import SystemPackage
import TestSupport
import Testing
import VFIO

@testable import Machine

@Suite("Kinds of mediated device on a machine") struct MediatedKindTests {
  private static let text = """
    iommus:
      - name: dmar0
        kind: intel
        pasid-bits: 4
    devices:
      - model: copy-engine
        address: 0000:e0:06.0
        host-driver: ioat-mdev
      - model: work-queue
        address: 0000:e0:07.0
        host-driver: wq-mdev
        depth: 4
        slices: 2

    """

  private static let uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"

  private func description(_ text: String = text) throws -> MachineDescription {
    try MachineDescription(file: "m.yaml", bytes: Array(text.utf8))
  }

  @Test(
    "E2: each kind of mediated device is made by a write to /sys, and is what it says",
    arguments: [
      ("06", "ioat-mdev-software", DeviceKind.softwareMediated, nil),
      ("06", "ioat-mdev-fixed", .mediatedWithoutPASIDs, nil),
      ("06", "ioat-mdev-pasid", .mediated, 0), ("07", "wq-mdev-dedicated", .mediated, 0),
      ("07", "wq-mdev-shared", .mediatedWithWorkQueue, 6),
    ] as [(String, String, DeviceKind, UInt32?)])
  func kinds(slot: String, type: String, kind: DeviceKind, flags: UInt32?) throws {
    let machine = try Machine(description())
    let caller = try LocalCaller()
    let types = "/sys/class/mdev_bus/0000:e0:\(slot).0/mdev_supported_types"
    let create = try #require(machine.view.attribute(at: "\(types)/\(type)/create"))
    try create.store(Self.uuid, by: caller)
    let instance = try #require(machine.mediated.instances.first)
    let function = instance.device.function
    #expect(function.device?.kind ?? .softwareMediated == kind)

    let node = try #require(
      machine.nodes.first { $0.path == "/dev/vfio/devices/vfio\(instance.device.index)" })
    let file = try node.open(flags: 2, by: caller)
    let context = try IOMMUNode(system: machine.system).open(flags: 2, by: caller)
    var bind = vfio_device_bind_iommufd()
    bind.argsz = 16
    bind.iommufd = caller.add(context)
    #expect(caller.ioctl(file, VFIO_DEVICE_BIND_IOMMUFD, &bind) == 0)
    caller.put(
      vfio_device_info(
        argsz: 64, flags: 0, num_regions: 0, num_irqs: 0, cap_offset: 0, pad: 0), at: 0x8000)
    #expect(caller.ioctl(file, VFIO_DEVICE_GET_INFO, at: 0x8000) == 0)
    let info = caller.get(vfio_device_info.self, at: 0x8000)
    if let flags {
      #expect(info.cap_offset > 0)
      let capability = 0x8000 + UInt64(info.cap_offset)
      #expect(caller.get(UInt16.self, at: capability) == 0xF005)
      #expect(caller.get(UInt32.self, at: capability + 8) == flags)
    } else {
      #expect(info.cap_offset == 0)
    }
    file.close()
    context.close()
    try machine.mediated.remove(instance.uuid)
  }

  @Test("E2: a slice with a shared queue has its portal, closed; the count of slices is kept")
  func sharedQueue() throws {
    let machine = try Machine(description())
    let parent = RequesterID(bus: 0xE0, device: 7, function: 0)
    let names = ["1", "2", "3"].map { String(Self.uuid.dropLast()) + $0 }.compactMap(UUID.init)
    let instance = try machine.mediated.create("shared", on: parent, uuid: names[0])
    #expect(instance.device.function.portal != nil)
    try machine.mediated.create("dedicated", on: parent, uuid: names[1])
    do {
      try machine.mediated.create("shared", on: parent, uuid: names[2])
      Issue.record("a third of two queues")
    } catch {
      #expect(error.errno == .tooManyUsers)
    }
    for name in names.dropLast() { try machine.mediated.remove(name) }
    #expect(machine.system.groups.count == 2)
  }

  @Test("E2: a shared work queue survives its file; a driver that does not fit is reported")
  func file() throws {
    let description = try description()
    #expect(try self.description(description.yaml) == description)
    #expect(description.tree(colour: false).contains("shared by wq-mdev: 2 slices"))
    #expect(description.json.contains("\"slices\": 2"))
    let swapped = Self.text.replacing("ioat-mdev", with: "wq-mdev")
    let error = #expect(throws: MachineFileError.self) { try self.description(swapped) }
    #expect(error?.problems.first?.line == 8)
  }
}
