// SPDX-License-Identifier: Apache-2.0
//
// Binding and unbinding the host's drivers while the machine runs, by the Swift API and by the
// attributes of /sys.

import IOMMU
import LinuxABI
import SystemPackage
import TestSupport
import Testing

@testable import Machine

/// Three engines: one alone, two in a group. The second of those has no driver.
private let threeEngines = """
  iommus: [{name: dmar0, kind: intel}]
  devices:
    - {model: copy-engine, address: "0000:e0:04.0", group: 0}
    - {model: copy-engine, address: "0000:e0:05.0", group: 1}
    - {model: copy-engine, address: "0000:e0:05.1", group: 1, host-driver: none}
  """

@Suite("Host drivers") struct HostDriverTests {
  private let machine: Machine
  private let caller: LocalCaller
  private let alone = "0000:e0:04.0"
  private let first = "0000:e0:05.0"
  private let second = "0000:e0:05.1"

  init() throws {
    machine = try Machine(MachineTests.machine(threeEngines))
    caller = try LocalCaller()
  }

  /// Writes an attribute, as `echo` does.
  /// - Returns: The errno; nil where it went well.
  private func echo(_ text: String, _ path: String) throws -> Errno? {
    let attribute = try #require(machine.view.attribute(at: path), "no \(path)")
    do throws(IOMMUError) {
      try attribute.store(text + "\n", by: caller)
      return nil
    } catch {
      return error.errno
    }
  }

  private func driver(of name: String) -> String? {
    machine.view.place(of: "/sys/bus/pci/devices/\(name)/driver")
      .map { String($0.split(separator: "/").last ?? "") }
  }

  private var nodes: [String] { machine.nodes.map(\.path).sorted() }

  private func text(_ path: String) throws -> String {
    switch try #require(machine.view[path], "no \(path)") {
    case .file(let contents, _): return String(decoding: contents, as: UTF8.self)
    case .attribute(let attribute): return try attribute.show()
    default: return ""
    }
  }

  private let drivers = "/sys/bus/pci/drivers"
  private let devices = "/sys/bus/pci/devices"

  @Test(
    "a device that is unbound from vfio-pci has no nodes, and gets them back when it is bound")
  func unbindAndBind() throws {
    #expect(nodes.contains("/dev/vfio/devices/vfio0") && nodes.contains("/dev/vfio/0"))
    #expect(try echo(alone, "\(devices)/\(alone)/driver/unbind") == nil)
    #expect(driver(of: alone) == nil)
    #expect(
      nodes.filter { $0.hasPrefix("/dev/vfio") }
        == ["/dev/vfio/1", "/dev/vfio/devices/vfio1", "/dev/vfio/vfio"])
    for gone in [
      "/sys/class/vfio-dev/vfio0", "/sys/class/vfio/0", "/sys/devices/virtual/vfio/0",
      "/sys/dev/char/511:0", "/sys/dev/char/510:0", "\(devices)/\(alone)/vfio-dev",
      "\(drivers)/vfio-pci/\(alone)",
    ] { #expect(machine.view[gone] == nil, "\(gone)") }
    #expect(!(try text("\(devices)/\(alone)/uevent").contains("DRIVER")))

    #expect(try echo(alone, "\(drivers)/vfio-pci/bind") == nil)
    #expect(driver(of: alone) == "vfio-pci")
    #expect(nodes.contains("/dev/vfio/devices/vfio0") && nodes.contains("/dev/vfio/0"))
    #expect(
      machine.view.place(of: "/sys/class/vfio-dev/vfio0/device")
        == "/sys/devices/pci0000:e0/\(alone)")
    #expect(try text("\(devices)/\(alone)/vfio-dev/vfio0/dev") == "511:0\n")
    #expect(try text("\(devices)/\(alone)/uevent").hasPrefix("DRIVER=vfio-pci\n"))
  }

  @Test("a group's node comes with its first offered device and goes with its last")
  func groupNode() throws {
    #expect(try echo("vfio-pci", "\(devices)/\(second)/driver_override") == nil)
    #expect(try echo(second, "\(drivers)/vfio-pci/bind") == nil)
    #expect(nodes.contains("/dev/vfio/devices/vfio2"))
    #expect(try echo(first, "\(drivers)/vfio-pci/unbind") == nil)
    #expect(nodes.contains("/dev/vfio/1"))
    #expect(try echo(second, "\(drivers)/vfio-pci/unbind") == nil)
    #expect(!nodes.contains("/dev/vfio/1"))
    // The lowest free number is given again.
    #expect(try echo(second, "\(drivers)/vfio-pci/bind") == nil)
    #expect(machine.view.place(of: "\(devices)/\(second)/vfio-dev/vfio1") != nil)
  }

  @Test("what cannot be bound is refused with Linux's errno")
  func refusals() throws {
    #expect(try echo("0000:00:00.0", "\(drivers)/vfio-pci/bind") == .noSuchDevice)
    #expect(try echo("", "\(drivers)/vfio-pci/bind") == .noSuchDevice)
    // Without an override vfio-pci matches nothing.
    #expect(try echo(second, "\(drivers)/vfio-pci/bind") == .noSuchDevice)
    #expect(try echo(alone, "\(drivers)/vfio-pci/bind") == .resourceBusy)
    // The override keeps others away.
    #expect(try echo(alone, "\(drivers)/ioatdma/bind") == .noSuchDevice)
    #expect(try echo(alone, "\(drivers)/ioatdma/unbind") == .noSuchDevice)
    #expect(try echo(second, "\(drivers)/vfio-pci/unbind") == .noSuchDevice)
    #expect(try echo("nothing", "/sys/bus/pci/drivers_probe") == .noSuchDevice)
    #expect(machine.view[drivers + "/vfio-pci/" + second] == nil)
  }

  @Test("driver_override is shown as written, and a newline clears it") func override() throws {
    let path = "\(devices)/\(second)/driver_override"
    #expect(try text(path) == "(null)\n")
    #expect(try echo("some-driver", path) == nil)
    #expect(try text(path) == "some-driver\n")
    #expect(try echo(second, "/sys/bus/pci/drivers_probe") == nil)
    #expect(driver(of: second) == nil)
    #expect(try echo("", path) == nil)
    #expect(try text(path) == "(null)\n")
    #expect(try echo(String(repeating: "x", count: 4095), path) == .invalidArgument)
  }

  @Test("drivers_probe finds the driver by override, by id, or none") func probe() throws {
    #expect(try echo(second, "/sys/bus/pci/drivers_probe") == nil)
    #expect(driver(of: second) == "ioatdma")
    #expect(try echo(second, "\(drivers)/ioatdma/unbind") == nil)
    #expect(try echo("vfio-pci", "\(devices)/\(second)/driver_override") == nil)
    #expect(try echo(second, "/sys/bus/pci/drivers_probe") == nil)
    #expect(driver(of: second) == "vfio-pci")
    // Of a device with a driver nothing is asked.
    #expect(try echo(second, "/sys/bus/pci/drivers_probe") == nil)
  }

  @Test("new_id binds what has no driver; remove_id lets it be") func dynamicIDs() throws {
    let config = ConfigurationSpace(bytes: machine.functions[2].config.contents)
    let id = "\(padded(config.vendor, 4)) \(padded(config.device, 4))"
    #expect(try echo("8086", "\(drivers)/vfio-pci/new_id") == .invalidArgument)
    #expect(try echo(id, "\(drivers)/ioatdma/new_id") == .fileExists)
    #expect(try echo("1234 5678", "\(drivers)/vfio-pci/new_id") == nil)
    #expect(driver(of: second) == nil)
    #expect(try echo(id, "\(drivers)/vfio-pci/new_id") == nil)
    #expect(driver(of: second) == "vfio-pci")
    #expect(try echo(id, "\(drivers)/vfio-pci/new_id") == .fileExists)
    #expect(try echo(second, "\(drivers)/vfio-pci/unbind") == nil)
    #expect(try echo(id, "\(drivers)/vfio-pci/remove_id") == nil)
    #expect(try echo(id, "\(drivers)/vfio-pci/remove_id") == .noSuchDevice)
    #expect(try echo(second, "\(drivers)/vfio-pci/bind") == .noSuchDevice)
  }

  @Test(
    "C3: a driver that does DMA is not bound in an owned group, and keeps its own from users")
  func denial() throws {
    let context = Context(system: machine.system)
    let binding = try context.register(#require(machine.functions[1].device).physical)
    #expect(try echo(second, "\(drivers)/ioatdma/bind") == .resourceBusy)
    #expect(try echo(second, "/sys/bus/pci/drivers_probe") == .invalidArgument)
    #expect(driver(of: second) == nil)
    #expect(try #require(machine.functions[2].device).physical.hostDriver == .none)
    // vfio-pci does no DMA of its own.
    #expect(try echo("vfio-pci", "\(devices)/\(second)/driver_override") == nil)
    #expect(try echo(second, "\(drivers)/vfio-pci/bind") == nil)
    #expect(try echo(second, "\(drivers)/vfio-pci/unbind") == nil)
    #expect(try echo("", "\(devices)/\(second)/driver_override") == nil)
    _ = consume binding
    #expect(try echo(second, "\(drivers)/ioatdma/bind") == nil)
    #expect(driver(of: second) == "ioatdma")
    #expect(throws: IOMMUError.self) {
      _ = try context.register(#require(machine.functions[1].device).physical)
    }
  }

  @Test(
    "an open device stays with vfio-pci; once it is closed it goes, and its node opens no more")
  func openDevice() throws {
    let node = try #require(machine.nodes.first { $0.path == "/dev/vfio/devices/vfio0" })
    let file = try node.open(flags: 2, by: caller)
    #expect(try echo(alone, "\(drivers)/vfio-pci/unbind") == .resourceBusy)
    #expect(driver(of: alone) == "vfio-pci")
    file.close()
    #expect(try echo(alone, "\(drivers)/vfio-pci/unbind") == nil)
    #expect(throws: IOMMUError.self) { try node.open(flags: 2, by: caller) }
  }

  @Test("a program cannot bring drivers and nodes out of step by asking for much at once")
  func concurrency() async throws {
    let machine = machine
    let name = second
    try machine.drivers.setOverride("vfio-pci", of: name)
    await withTaskGroup(of: Void.self) { group in
      for _ in 0..<4 {
        group.addTask {
          for _ in 0..<50 {
            try? machine.drivers.bind(name, to: .vfio)
            try? machine.drivers.unbind(name, from: .vfio)
          }
        }
      }
    }
    let isBound = machine.drivers.driver(of: name) == .vfio
    #expect(nodes.contains("/dev/vfio/devices/vfio2") == isBound)
    #expect((driver(of: name) == "vfio-pci") == isBound)
  }
}
