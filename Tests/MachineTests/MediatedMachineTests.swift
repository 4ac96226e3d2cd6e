// SPDX-License-Identifier: Apache-2.0
//
// Mediated devices of a machine: made and removed by the files that Linux has for it, and by the
// Swift API, with all that programs find of them in /sys and /dev.

import IOMMU
import LinuxABI
import SystemPackage
import TestSupport
import Testing
import VFIO

@testable import Machine

private let shared = """
  iommus:
    - name: dmar0
      kind: intel
      pasid-bits: 4
  devices:
    - model: copy-engine
      address: 0000:e0:05.0
      group: 0
    - model: copy-engine
      address: 0000:e0:06.0
      group: 1
      host-driver: ioat-mdev
      slices: 2

  """

private let uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
private let other = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1002"

private struct SharedMachine {
  let machine: Machine
  let caller: LocalCaller
  let types = "/sys/class/mdev_bus/0000:e0:06.0/mdev_supported_types"

  init() throws {
    machine = try Machine(MachineDescription(file: "m.yaml", bytes: Array(shared.utf8)))
    caller = try LocalCaller()
  }

  func show(_ path: String) throws -> String {
    switch machine.view[path] {
    case .attribute(let attribute)?: return try attribute.show()
    case .file(let contents, _)?: return String(decoding: contents, as: UTF8.self)
    default: throw IOMMUError(.noSuchFileOrDirectory, "\(path) is no file")
    }
  }

  /// One `write(2)`.
  /// - Returns: The errno; nil where it is taken.
  func write(_ path: String, _ text: String) -> Errno? {
    guard let attribute = machine.view.attribute(at: path) else {
      return .noSuchFileOrDirectory
    }
    do throws(IOMMUError) {
      try attribute.store(text, by: caller)
      return nil
    } catch {
      return error.errno
    }
  }

  func create(_ type: String, _ text: String) -> Errno? {
    write("\(types)/ioat-mdev-\(type)/create", text)
  }

  var paths: [String] { machine.view.entries.map(\.path) }
}

@Suite("Mediated devices of a machine") struct MediatedMachineTests {
  @Test("J2: a parent shows its types as Linux does") func types() throws {
    let rig = try SharedMachine()
    let type = "\(rig.types)/ioat-mdev-pasid"
    #expect(try rig.show("\(type)/name") == "Copy engine channel, isolated by the IOMMU\n")
    #expect(try rig.show("\(type)/device_api") == "vfio-pci\n")
    #expect(try rig.show("\(type)/available_instances") == "2\n")
    #expect(try rig.show("\(rig.types)/ioat-mdev-software/available_instances") == "2\n")
    #expect(rig.machine.view["\(type)/devices"] != nil)
    #expect(
      rig.machine.view.place(of: "/sys/bus/pci/devices/0000:e0:06.0/driver")
        == "/sys/bus/pci/drivers/ioat-mdev")
    #expect(rig.machine.view["/sys/bus/pci/drivers/ioat-mdev/unbind"] == nil)
    #expect(throws: IOMMUError.self) {
      try rig.machine.drivers.unbind("0000:e0:06.0", from: .mediated)
    }
    #expect(rig.write("/sys/bus/pci/drivers/ioatdma/bind", "0000:e0:06.0") != nil)
    let standard = try Machine(.standard)
    #expect(!standard.view.entries.contains { $0.path.contains("mdev") })
  }

  @Test(
    "J2: a UUID that is written to create makes a device with its node, group and links",
    arguments: ["pasid", "software"])
  func create(type: String) throws {
    let rig = try SharedMachine()
    let (before, nodes) = (rig.paths, rig.machine.nodes.count)
    #expect(rig.create(type, uuid.uppercased() + "\n") == nil)
    let device = "/sys/bus/mdev/devices/\(uuid)"
    let home = "/sys/devices/pci0000:e0/0000:e0:06.0/\(uuid)"
    let view = rig.machine.view
    #expect(view.place(of: device) == home)
    #expect(view.place(of: "\(device)/driver") == "/sys/bus/mdev/drivers/ioat-mdev")
    #expect(
      view.place(of: "\(device)/mdev_type") == view.place(of: "\(rig.types)/ioat-mdev-\(type)"))
    #expect(view.place(of: "\(rig.types)/ioat-mdev-\(type)/devices/\(uuid)") == home)
    #expect(view.place(of: "/sys/bus/mdev/drivers/ioat-mdev/\(uuid)") == home)
    #expect(view.place(of: "\(device)/iommu_group") == "/sys/kernel/iommu_groups/2")
    #expect(view.place(of: "/sys/kernel/iommu_groups/2/devices/\(uuid)") == home)
    #expect(view.place(of: "/sys/class/vfio-dev/vfio1/device") == home)
    #expect(try rig.show("\(device)/vfio-dev/vfio1/dev") == "511:1\n")
    #expect(view.place(of: "/sys/dev/char/511:1") == "\(home)/vfio-dev/vfio1")
    #expect(view.place(of: "/sys/dev/char/510:2") == view.place(of: "/sys/class/vfio/2"))
    #expect(try rig.show("\(device)/ioat-mdev/faults") == "0\n")
    #expect(
      rig.machine.nodes.map(\.path).suffix(2) == ["/dev/vfio/devices/vfio1", "/dev/vfio/2"])
    #expect(try rig.show("\(rig.types)/ioat-mdev-\(type)/available_instances") == "1\n")
    for entry in view.entries {
      if case .link = entry.kind { #expect(view[entry.path] != nil, "\(entry.path)") }
    }

    #expect(rig.write("\(device)/remove", "0\n") == nil)
    #expect(rig.machine.view[device] != nil)
    for text in ["", "x", "-1", "1 1", "0x", "08"] {
      #expect(rig.write("\(device)/remove", text) == .invalidArgument, "'\(text)'")
    }
    #expect(rig.write("\(device)/remove", "1\n") == nil)
    #expect(Set(rig.paths).subtracting(before) == [])
    #expect(rig.machine.nodes.count == nodes)
    #expect(try rig.show("\(rig.types)/ioat-mdev-\(type)/available_instances") == "2\n")
  }

  @Test("J2: what create refuses, and with which errno") func refusals() throws {
    let rig = try SharedMachine()
    for text in [
      "", "1", String(uuid.dropLast()), uuid + "\n\n", uuid.replacing("-", with: "_"),
      uuid.replacing("8", with: "g"), "{" + uuid.dropLast(2) + "}",
    ] {
      #expect(rig.create("pasid", text) == .invalidArgument, "'\(text)'")
    }
    #expect(rig.create("pasid", uuid) == nil)
    #expect(rig.create("software", uuid) == .fileExists, "a name is taken for all types")
    #expect(rig.create("software", other) == nil)
    #expect(rig.create("software", uuid.replacing("1001", with: "1003")) == .tooManyUsers)
    #expect(rig.machine.mediated.instances.map { "\($0.uuid)" } == [uuid, other])
  }

  @Test("J2: a device in use is not removed; unbound it is, and its open file binds no more")
  func removeInUse() throws {
    let rig = try SharedMachine()
    let instance = try rig.machine.mediated.create(
      "pasid", on: RequesterID(bus: 0xe0, device: 6, function: 0), uuid: VFIO.UUID(uuid)!)
    let context = Context(system: rig.machine.system)
    let session = instance.device.open()
    try session.bind(findContext: { context }, publish: { _ in })
    #expect(rig.write("/sys/bus/mdev/devices/\(uuid)/remove", "1") == .resourceBusy)
    #expect(rig.machine.view["/sys/bus/mdev/devices/\(uuid)"] != nil)
    session.close()
    #expect(rig.write("/sys/bus/mdev/devices/\(uuid)/remove", "1") == nil)
    #expect(throws: IOMMUError.self) {
      try instance.device.open().bind(findContext: { context }, publish: { _ in })
    }
    context.close()
    #expect(rig.write("/sys/bus/mdev/devices/\(uuid)/remove", "1") == .noSuchFileOrDirectory)
    #expect(throws: IOMMUError.self) { try rig.machine.mediated.remove(VFIO.UUID(uuid)!) }
  }

  @Test("J2: what one program makes and removes, another sees whole or not at all")
  func together() async throws {
    let rig = try SharedMachine()
    let nodes = rig.machine.nodes.count
    await withTaskGroup(of: Void.self) { group in
      for name in [uuid, other] {
        group.addTask {
          for _ in 0..<30 {
            guard rig.create("software", name) == nil else { continue }
            #expect(rig.machine.view["/sys/bus/mdev/devices/\(name)/iommu_group"] != nil)
            #expect(rig.write("/sys/bus/mdev/devices/\(name)/remove", "1") == nil)
          }
        }
      }
    }
    #expect(rig.machine.nodes.count == nodes)
    #expect(!rig.paths.contains { $0.contains(uuid) || $0.contains(other) })
    #expect(rig.machine.system.groups.count == 2)
  }

  // MARK: The machine file

  @Test("a shared engine survives its own file, and is printed as one") func roundTrip() throws
  {
    let description = try MachineDescription(file: "m.yaml", bytes: Array(shared.utf8))
    #expect(description.devices.map(\.hostDriver) == [.vfio, .mediated])
    #expect(
      try MachineDescription(file: "m.yaml", bytes: Array(description.yaml.utf8)) == description
    )
    #expect(description.tree(colour: false).contains("shared by ioat-mdev: 2 slices"))
    #expect(description.json.contains("\"slices\": 2"))
    #expect(description.offeredDevices.count == 1)
  }

  @Test(
    "slices are a mediating driver's, 1 to 64 of them", arguments: ["vfio-pci", "ioat-mdev"])
  func slices(driver: String) throws {
    let text = shared.replacing("ioat-mdev", with: driver)
      .replacing("slices: 2", with: driver == "ioat-mdev" ? "slices: 65" : "slices: 2")
    let error = #expect(throws: MachineFileError.self) {
      try MachineDescription(file: "m.yaml", bytes: Array(text.utf8))
    }
    let problem = try #require(error?.problems.first)
    #expect(problem.line == 13 && problem.column == 13)
  }
}
