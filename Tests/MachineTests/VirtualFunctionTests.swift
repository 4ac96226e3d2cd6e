// SPDX-License-Identifier: Apache-2.0
//
// J1: SR-IOV of a machine: what the capability says, what a write to sriov_numvfs makes and
// removes, where virtual functions are and who may open them.

import Foundation
import IOMMU
import LinuxABI
import SystemPackage
import TestSupport
import Testing
import VFIO

@testable import Machine

private func makeMachine(_ device: String = "virtual-functions: 4") throws -> Machine {
  let text = """
    iommus: [{name: dmar0, kind: intel}]
    devices:
      - {model: copy-engine, address: "e1:00.0", group: 0, root-port: "e0:05.0", \(device)}
      - {model: copy-engine, address: "e0:04.0", group: 1}
    """
  return try Machine(MachineDescription(file: "m.yaml", bytes: Array(text.utf8)))
}

private let home = "/sys/bus/pci/devices/0000:e1:00.0"

@Suite("Virtual functions", .timeLimit(.minutes(10))) struct VirtualFunctionTests {
  let caller: LocalCaller

  init() throws { caller = try LocalCaller() }

  /// What a write to the file gives; nil where it is taken.
  private func write(_ text: String, to machine: Machine) throws -> Errno? {
    let attribute = try #require(machine.view.attribute(at: "\(home)/sriov_numvfs"))
    do throws(IOMMUError) {
      try attribute.store(text, by: caller)
      return nil
    } catch {
      return error.errno
    }
  }

  private func text(_ path: String, of machine: Machine) throws -> String {
    switch machine.view[path] {
    case .file(let contents, _)?: return String(decoding: contents, as: UTF8.self)
    case .attribute(let attribute)?: return try attribute.show()
    default:
      Issue.record("there is no file \(path)")
      return ""
    }
  }

  private func bytes(_ path: String, of machine: Machine) throws -> [UInt8] {
    switch machine.view[path] {
    case .file(let contents, _)?: return contents
    case .attribute(let attribute as any BinaryAttribute)?: return try attribute.read()
    default: throw IOMMUError(.noSuchFileOrDirectory, path)
    }
  }

  @Test("J1: a physical function says in its capability what it can make of itself")
  func capability() throws {
    let machine = try makeMachine()
    let config = machine.functions[0].config
    #expect(config.value(at: 0x100) >> 20 == 0x200, "the list goes on from error reporting")
    #expect(config.value(at: 0x200) == 0x0001_0010)
    #expect(config.value(at: 0x208) == 0)
    #expect(config.value(at: 0x20C) == 0x0004_0004, "InitialVFs, TotalVFs")
    #expect(config.value(at: 0x210) == 0, "NumVFs")
    #expect(config.value(at: 0x214) == 0x0001_0080, "First VF Offset, VF Stride")
    #expect(config.value(at: 0x218) >> 16 == 0x2021)
    #expect(config.value(at: 0x220) == 1)
    #expect(config.value(at: 0x224) & 0xF == 4, "VF BAR 0: memory, 64 bits")
    #expect(try write("2", to: machine) == nil)
    #expect(config.value(at: 0x208) & 0xFFFF == 9, "VF Enable, VF MSE")
    #expect(config.value(at: 0x210) & 0xFFFF == 2)
    machine.functions[0].reset()
    #expect(config.value(at: 0x210) & 0xFFFF == 2, "put back after a reset")
    #expect(try write("0", to: machine) == nil)
    #expect(config.value(at: 0x208) == 0)
    let other = machine.functions[1].config
    #expect(other.value(at: 0x200) == 0 && other.value(at: 0x100) >> 20 == 0)
  }

  @Test("J1: sriov_numvfs makes all or removes all: ERANGE, EBUSY, EINVAL, ENOENT")
  func numbers() throws {
    let made = try makeMachine()
    #expect(try text("\(home)/sriov_totalvfs", of: made) == "4\n")
    #expect(try text("\(home)/sriov_numvfs", of: made) == "0\n")
    for wrong in ["", "x", "-1", "65536", "1 2"] {
      #expect(try write(wrong, to: made) == .invalidArgument, "'\(wrong)'")
    }
    #expect(try write("5", to: made) == .outOfRange)
    #expect(try write("0\n", to: made) == nil)
    #expect(try write("0x3\n", to: made) == nil)
    #expect(try text("\(home)/sriov_numvfs", of: made) == "3\n")
    #expect(try write("3", to: made) == nil, "what is so already")
    #expect(try write("2", to: made) == .resourceBusy)
    #expect(try write("0", to: made) == nil)
    #expect(made.virtualFunctions[0].devices.isEmpty)
    #expect(try write("4", to: made) == nil)
    let hosted = try makeMachine(
      "virtual-functions: 2, host-driver: ioatdma, enabled-functions: 1")
    #expect(try write("1", to: hosted) == nil)
    #expect(try write("0", to: hosted) == .noSuchFileOrDirectory)
    #expect(hosted.virtualFunctions[0].devices.count == 1)
    let without = try makeMachine("fill: true")
    #expect(without.view.place(of: "\(home)/sriov_numvfs") == nil)
  }

  @Test("J1: a virtual function has a requester id, a group, BARs and nodes of its own")
  func places() throws {
    let machine = try makeMachine("virtual-functions: 4, local-memory: 64KiB")
    let before = Set(machine.view.entries.map(\.path))
    let nodes = machine.nodes.count
    #expect(try write("2", to: machine) == nil)
    let devices = machine.virtualFunctions[0].devices
    #expect(devices.map(\.function.name) == ["0000:e1:10.0", "0000:e1:10.1"])
    #expect(devices.map(\.group.group.id) == [2, 3])
    #expect(
      machine.nodes.map(\.path).suffix(4) == [
        "/dev/vfio/devices/vfio2", "/dev/vfio/2", "/dev/vfio/devices/vfio3", "/dev/vfio/3",
      ])
    let place = "/sys/bus/pci/devices/0000:e1:10.1"
    let real = "/sys/devices/pci0000:e0/0000:e0:05.0/0000:e1:10.1"
    #expect(machine.view.place(of: place) == real)
    #expect(machine.view.place(of: "\(place)/physfn") == machine.view.place(of: home))
    #expect(machine.view.place(of: "\(home)/virtfn1") == real)
    #expect(machine.view.place(of: "\(place)/iommu_group") == "/sys/kernel/iommu_groups/3")
    #expect(
      machine.view.place(of: "/sys/kernel/iommu_groups/3/devices/0000:e1:10.1") == real)
    #expect(machine.view.place(of: "\(place)/driver") == "/sys/bus/pci/drivers/vfio-pci")
    #expect(try text("\(place)/vfio-dev/vfio3/dev", of: machine) == "511:3\n")
    #expect(try text("\(place)/vendor", of: machine) == "0x8086\n")
    #expect(try text("\(place)/device", of: machine) == "0x2021\n")
    // Its own configuration space has no ids; VFIO fills them in.
    #expect(try bytes("\(place)/config", of: machine)[..<4] == [255, 255, 255, 255])
    #expect(devices[1].function.config.value(at: 0) == 0x2021_8086)
    #expect(
      devices[1].function.config.value(at: 0x10) == 4, "no address until its user writes one")
    let physical = try text("\(home)/resource", of: machine).split(separator: "\n")
    let virtual = try text("\(place)/resource", of: machine).split(separator: "\n")
    func first(_ line: Substring) -> UInt64 {
      UInt64(line.dropFirst(2).prefix(16), radix: 16) ?? 0
    }
    func last(_ line: Substring) -> UInt64 {
      UInt64(line.dropFirst(21).prefix(16), radix: 16) ?? 0
    }
    #expect(last(physical[7]) - first(physical[7]) + 1 == 4 * 16 << 10, "of all four together")
    #expect(first(virtual[0]) == first(physical[7]) + 16 << 10)
    #expect(first(virtual[2]) == first(physical[9]) + 64 << 10)
    #expect(try write("0", to: machine) == nil)
    #expect(Set(machine.view.entries.map(\.path)) == before)
    #expect(machine.nodes.count == nodes)
    #expect(try write("1", to: machine) == nil, "and again, at the same numbers")
    #expect(machine.virtualFunctions[0].devices.map(\.index) == [2])
  }

  @Test("J1: requester ids of virtual functions pass over other devices; no room is an error")
  func offsets() throws {
    func read(_ devices: String) throws -> MachineDescription {
      let text = "iommus: [{name: dmar0, kind: intel}]\ndevices:\n\(devices)"
      return try MachineDescription(file: "m.yaml", bytes: Array(text.utf8))
    }
    func line(_ address: String, _ functions: Int) -> String {
      "  - {model: copy-engine, address: \"\(address)\", group: 0, virtual-functions: \(functions)}\n"
    }
    let two = try read(line("e0:00.0", 4) + line("e0:00.1", 4) + line("e0:10.3", 0))
    #expect(two.firstVirtualOffset(of: two.devices[0]) == 0x84)
    #expect(two.firstVirtualOffset(of: two.devices[1]) == 0x87)
    #expect(two.firstVirtualOffset(of: two.devices[2]) == nil)
    let high = try read(line("e0:1f.0", 7))
    #expect(high.firstVirtualOffset(of: high.devices[0]) == 1)
    #expect(throws: MachineFileError.self) { try read(line("e0:1f.0", 8)) }
    #expect(throws: MachineFileError.self) { try read(line("e0:00.0", 65)) }
    #expect(
      try read(high.yaml.components(separatedBy: "devices:\n")[1]).devices == high.devices)
  }

  @Test(
    "J1: a virtual function that is in use is not removed: EBUSY; then its old file is ENODEV")
  func inUse() throws {
    let machine = try makeMachine(
      "virtual-functions: 2, host-driver: none, enabled-functions: 2")
    let device = machine.virtualFunctions[0].devices[1]
    let context = Context(system: machine.system)
    let session = device.open()
    try session.bind(findContext: { context }, publish: { _ in })
    #expect(throws: IOMMUError.self) { try machine.virtualFunctions[0].start(0) }
    #expect(machine.virtualFunctions[0].devices.count == 2, "all or none")
    let neighbour = machine.virtualFunctions[0].devices[0].open()
    try neighbour.bind(findContext: { context }, publish: { _ in })
    neighbour.close()
    session.close()
    let late = device.open()
    try machine.virtualFunctions[0].start(0)
    do throws(IOMMUError) {
      try late.bind(findContext: { context }, publish: { _ in })
      Issue.record("a function that is gone was bound")
    } catch {
      #expect(error.errno == .noSuchDevice)
    }
  }

  @Test("J1: a reset of the physical function is one of its virtual ones")
  func resets() throws {
    let machine = try makeMachine("virtual-functions: 1, local-memory: 64KiB")
    #expect(try write("1", to: machine) == nil)
    let function = machine.virtualFunctions[0].devices[0].function
    let value: [UInt8] = [1, 2, 3, 4]
    _ = try value.withUnsafeBytes { try function.write(.config, at: 0x48, from: $0) }
    #expect(function.config.value(at: 0x48) == 0x0403_0201)
    machine.functions[0].reset()
    #expect(function.config.value(at: 0x48) == 0)
  }

  @Test("J1: a physical function has power as long as there are virtual ones")
  func power() throws {
    let machine = try makeMachine()
    let function = machine.functions[0]
    func setPower(_ state: UInt8) throws {
      _ = try [state].withUnsafeBytes { try function.write(.config, at: 0xE4, from: $0) }
    }
    try setPower(3)
    #expect(function.config.value(at: 0xE4) & 3 == 3)
    #expect(try write("1", to: machine) == nil)
    #expect(function.config.value(at: 0xE4) & 3 == 0)
    try setPower(3)
    #expect(function.config.value(at: 0xE4) & 3 == 0)
    #expect(try write("0", to: machine) == nil)
    try setPower(3)
    #expect(function.config.value(at: 0xE4) & 3 == 3)
  }

  @Test("J1: virtual functions are on the bus of a hot reset, and rule it out")
  func hotReset() throws {
    let machine = try makeMachine()
    let context = Context(system: machine.system)
    let node = try #require(machine.nodes.lazy.compactMap { $0 as? VFIODeviceNode }.first)
    let session = node.device.open()
    try session.bind(findContext: { context }, publish: { _ in })
    #expect(try session.resetNeighbours().count == 1)
    try session.hotReset(by: .context)
    #expect(try write("2", to: machine) == nil)
    let neighbours = try session.resetNeighbours()
    #expect(neighbours.map(\.holding).dropFirst() == [.foreign, .foreign])
    #expect(throws: IOMMUError.self) { try session.hotReset(by: .context) }
    #expect(try write("0", to: machine) == nil)
    try session.hotReset(by: .context)
  }

  @Test("J1: a virtual function decodes memory whatever its command register says")
  func alwaysDecodes() throws {
    let machine = try makeMachine(
      "virtual-functions: 1, host-driver: none, enabled-functions: 1")
    let context = Context(system: machine.system)
    let device = machine.virtualFunctions[0].devices[0]
    let session = device.open()
    try session.bind(findContext: { context }, publish: { _ in })
    let off: [UInt8] = [0, 0]
    _ = try off.withUnsafeBytes { try device.function.write(.config, at: 4, from: $0) }
    var version: UInt8 = 0
    _ = try withUnsafeMutableBytes(of: &version) {
      try device.function.read(.bar(0), at: 8, into: $0)
    }
    #expect(version == 0x33)
    #expect(device.function.interrupts.count(of: .line) == 0)
  }
}
