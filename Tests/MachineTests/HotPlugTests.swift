// SPDX-License-Identifier: Apache-2.0
//
// J1, C4: devices that leave a running machine and come back, asked for or torn out, and errors
// that are put into one: what their user sees, and what is left in /sys and /dev.

import CLinuxABI
import Foundation
import IOMMU
import LinuxABI
import SystemPackage
import TestSupport
import Testing
import VFIO

@testable import Machine

@Suite("Devices that come and go", .timeLimit(.minutes(10))) struct HotPlugTests {
  private let machine: Machine
  private let alone = "0000:e0:04.0"
  private let pair = ("0000:e1:00.0", "0000:e1:00.1")

  init() throws { machine = try Machine(.standard) }

  private func rig(_ name: String) throws -> EngineRig {
    let device = try #require(machine.drivers.offered(name))
    return try EngineRig(device: device, system: machine.system, iommu: machine.iommus[0])
  }

  private var paths: Set<String> {
    Set(machine.view.entries.map(\.path) + machine.nodes.map(\.path))
  }

  private func errno(_ body: () throws -> Void) -> Errno? {
    do {
      try body()
      return nil
    } catch {
      return (error as? IOMMUError)?.errno
    }
  }

  @Test("J1: a removed device is gone from /sys, /dev and its group; added, it is there again")
  func comesBack() throws {
    let before = paths
    try machine.hotPlug.remove(alone)
    let left = paths
    #expect(!left.contains { $0.contains(alone) })
    #expect(!left.contains("/dev/vfio/devices/vfio0"))
    #expect(!left.contains("/dev/vfio/0"))
    #expect(!left.contains("/sys/kernel/iommu_groups/0"))
    #expect(!machine.system.groups.contains { $0.id == 0 })
    #expect(left.contains("/dev/vfio/1"))
    #expect(errno { try machine.hotPlug.remove(alone) } == .noSuchDevice)
    try machine.hotPlug.add(alone)
    #expect(paths == before)
    #expect(errno { try machine.hotPlug.add(alone) } == .fileExists)
    let rig = try rig(alone)
    try rig.connect()
    #expect(rig.map(0x10_0000, to: 0x10_0000, length: 0x10_0000) == 0)
    rig.descriptor(
      at: 0x10_0000, size: 8, source: 0x10_1000, destination: 0x10_2000, next: 0x10_0000)
    rig.start(0x10_0000, count: 1)
    #expect(rig.wait() == 0x10_0001, "it is a device like any other")
  }

  @Test("J1: a device of two leaves the group to the other one, and comes back to it")
  func oneOfTwo() throws {
    let before = paths
    try machine.hotPlug.remove(pair.0)
    #expect(paths.contains("/sys/kernel/iommu_groups/1/devices/\(pair.1)"))
    #expect(paths.contains("/dev/vfio/1"))
    let rig = try rig(pair.1)
    try rig.connect()
    #expect(
      errno { try machine.hotPlug.remove(pair.1, isWanted: { false }) } == .canceled)
    rig.caller.closeAll()
    try machine.hotPlug.remove(pair.1)
    #expect(!paths.contains("/sys/kernel/iommu_groups/1"))
    try machine.hotPlug.rescan()
    // The nodes' numbers are as they come.
    #expect(
      Set(before.filter { !$0.contains("vfio") && !$0.contains("/char/") })
        == Set(paths.filter { !$0.contains("vfio") && !$0.contains("/char/") }))
  }

  @Test("C4: the request interrupt asks the user; the device stays until its last close")
  func request() throws {
    let rig = try rig(alone)
    try rig.connect()
    let signal = CountingSignal()
    #expect(
      rig.setIRQs(
        flags: VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, index: 4, count: 1,
        data: [rig.caller.add(signal)]) == 0)
    // Given up: it works on, and can be opened again.
    var told: [String] = []
    #expect(
      errno {
        try machine.hotPlug.remove(alone, isWanted: { false }, tell: { told.append($0) })
      } == .canceled)
    #expect(signal.count == 1)
    #expect(told.count == 1)
    #expect(rig.read(0x08, as: UInt8.self) == 0x33)
    try rig.node.open(flags: 2, by: rig.caller).close()
    // The user lets go.
    var isOpen = true
    try machine.hotPlug.remove(
      alone,
      isWanted: {
        #expect(throws: IOMMUError.self) { try rig.node.open(flags: 2, by: rig.caller) }
        if isOpen {
          #expect(rig.read(0x08, as: UInt8.self) == 0x33, "who has it keeps it")
          rig.caller.close(rig.devicefd)
          isOpen = false
        }
        return true
      })
    #expect(signal.count == 2)
    #expect(!paths.contains { $0.contains(alone) })
  }

  /// A user of the device that is alone: connected, with memory, listening for errors.
  private func listener() throws -> (rig: EngineRig, error: CountingSignal) {
    let rig = try rig(alone)
    try rig.connect()
    #expect(rig.map(0x10_0000, to: 0x10_0000, length: 0x10_0000) == 0)
    let error = CountingSignal()
    #expect(
      rig.setIRQs(
        flags: VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, index: 3, count: 1,
        data: [rig.caller.add(error)]) == 0)
    return (rig, error)
  }

  @Test(
    "C4: torn out, registers read as ones, commands are ENODEV, DMA has ended; then it goes")
  func surprise() throws {
    let (rig, error) = try listener()
    #expect(
      errno {
        try machine.hotPlug.remove(alone, surprise: true, isWanted: { false })
      } == .canceled)
    #expect(error.count == 1)
    #expect(rig.read(0x88, as: UInt64.self) == .max)
    #expect(rig.config(0, as: UInt32.self) == .max)
    #expect(rig.write(0x84, UInt8(1)) == 1, "it goes nowhere")
    var info = vfio_device_info()
    info.argsz = 16
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_GET_INFO, &info) == -ENODEV)
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_RESET, at: 0) == -ENODEV)
    #expect(rig.detach() == 0, "what gives it up works")
    rig.caller.closeAll()
    try machine.hotPlug.remove(alone)
    try machine.hotPlug.add(alone)
    #expect(machine.drivers.offered(alone) != nil)
  }

  @Test("J1: remove and rescan in /sys: EBUSY while somebody has the device, who is asked")
  func sysfs() throws {
    let caller = try LocalCaller()
    func store(_ path: String, _ text: String) -> Errno? {
      guard let entry = machine.view.entries.first(where: { $0.path == path }),
        case .attribute(let attribute) = entry.kind
      else { return .noSuchFileOrDirectory }
      return errno { try attribute.store(text, by: caller) }
    }
    let path = try #require(
      machine.view.entries.map(\.path).first { $0.hasSuffix("/\(alone)/remove") })
    let rig = try rig(alone)
    try rig.connect()
    #expect(store(path, "1\n") == .resourceBusy)
    #expect(store(path, "x") == .invalidArgument)
    rig.caller.closeAll()
    #expect(store(path, "0") == nil)
    #expect(paths.contains(path))
    #expect(store(path, "1") == nil)
    #expect(!paths.contains(path))
    #expect(store("/sys/bus/pci/rescan", "1") == nil)
    #expect(paths.contains(path))
  }

  @Test(
    "J1: errors put in: ERR unless masked or corrected, DMA that fails, a queue that stands")
  func faults() throws {
    let control = MachineControl(machine)
    machine.system.events.startRecording()
    let (rig, error) = try listener()
    /// What the log says of errors that were put in since it was last asked.
    func said() -> [String] {
      machine.system.events.drain().entries.compactMap {
        if case .injectedFault(alone, let what) = $0.event { what } else { nil }
      }
    }
    func list() -> String? {
      (try? control.perform(["list"]))?.first { $0.hasPrefix(alone) }?
        .components(separatedBy: "  ").last
    }
    func fault(_ words: String...) -> Errno? {
      errno { _ = try control.perform(["fault", alone] + words) }
    }
    #expect(fault("completion-timeout") == nil)
    #expect(error.count == 1)
    #expect(rig.config(0x104, as: UInt32.self) == 1 << 14)
    rig.config(0x104, UInt32(1 << 14))
    #expect(rig.config(0x104, as: UInt32.self) == 0, "writing 1 clears it")
    #expect(fault("corrected") == nil)
    #expect(rig.config(0x110, as: UInt32.self) == 1)
    rig.config(0x108, UInt32(1 << 18))
    #expect(fault("malformed") == nil)
    #expect(rig.config(0x104, as: UInt32.self) == 1 << 18)
    #expect(error.count == 1, "neither what was corrected nor what is masked")
    #expect(said() == ["reports completion-timeout", "reports corrected", "reports malformed"])

    rig.descriptor(
      at: 0x10_0000, size: 8, source: 0x10_1000, destination: 0x10_2000, next: 0x10_0000)
    #expect(fault("dma") == nil)
    rig.start(0x10_0000, count: 1)
    #expect(rig.wait() & 7 == 3)
    #expect(rig.errors != 0)
    rig.start(0x10_0000, count: 1)
    #expect(rig.wait() == 0x10_0001, "one access only")

    #expect(fault("stuck") == nil)
    rig.write(0x86, UInt16(2))
    #expect(rig.status & 7 == 0)
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_RESET, at: 0) == 0)
    rig.config(4, UInt16(6))
    rig.start(0x10_0000, count: 1)
    #expect(rig.wait() == 0x10_0001, "a reset helps")

    #expect(fault("link-down") == nil)
    #expect(rig.read(0x88, as: UInt64.self) == .max)
    #expect(error.count == 2)
    #expect(list() == "in use, link down")
    #expect(fault("link-up") == nil)
    #expect(list() == "in use")
    #expect(
      said() == [
        "dma: the next access fails",
        "stuck: it takes no more work in hand, until it is reset",
        "link-down", "link-up: it was reset",
      ])
    #expect(rig.read(0x08, as: UInt8.self) == 0x33)

    #expect(fault("foo") == .invalidArgument)
    #expect(fault("stuck", "1") == .invalidArgument)
    #expect(fault("dma", "0") == .invalidArgument)
    #expect(fault("dma", "x") == .invalidArgument)
    #expect(said() == [], "what is refused was not put in")
    for words in [
      [], ["list", "x"], ["remove"], ["add"], ["remove", alone, "softly"], ["fault"],
    ] {
      #expect(errno { _ = try control.perform(words) } == .invalidArgument)
    }
    #expect(errno { _ = try control.perform(["add", "0000:00:00.0"]) } == .noSuchDevice)
    rig.caller.closeAll()
    #expect(fault("link-down") == nil)
    #expect(list() == "link down")
  }

  @Test("J1: what is shared out, and what can have virtual functions, stays: EOPNOTSUPP")
  func stays() throws {
    let text = """
      iommus: [{name: dmar0, kind: intel, pasid-bits: 4}]
      devices:
        - {model: copy-engine, address: "0000:e0:06.0", group: 2, virtual-functions: 4}
        - {model: copy-engine, address: "0000:e0:07.0", group: 3, host-driver: ioat-mdev, slices: 2}
        - {model: copy-engine, address: "0000:e0:08.0", group: 4, host-driver: none}
      """
    let machine = try Machine(MachineDescription(file: "m.yaml", bytes: Array(text.utf8)))
    for name in ["0000:e0:06.0", "0000:e0:07.0"] {
      #expect(errno { try machine.hotPlug.remove(name) } == .operationNotSupported)
    }
    try machine.hotPlug.remove("0000:e0:08.0")
    try machine.hotPlug.add("0000:e0:08.0")
    let standard = try Machine(.standard)
    let port = try #require(MachineDescription.standard.rootPorts.first?.address)
    #expect(errno { try standard.hotPlug.remove("\(port)") } == .operationNotSupported)
  }
}
