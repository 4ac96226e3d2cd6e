// SPDX-License-Identifier: Apache-2.0
//
// J1: the copy engine's interrupt line, as a driver without messages serves it, and its MSI.

import CLinuxABI
import IOMMU
import TestSupport
import Testing
import VFIO

@Suite(.timeLimit(.minutes(10))) struct CopyEngineLineTests {
  private static let trigger = VFIO_IRQ_SET_ACTION_TRIGGER
  private static let events = VFIO_IRQ_SET_DATA_EVENTFD
  private static let none = VFIO_IRQ_SET_DATA_NONE

  let bench: EngineBench
  let signal = CountingSignal()

  init() throws {
    bench = try EngineBench()
    bench.descriptor(size: 8, control: 1)
  }

  private func arm(index: UInt32) {
    #expect(
      bench.rig.setIRQs(
        flags: Self.events | Self.trigger, index: index, count: 1,
        data: [bench.rig.caller.add(signal)]) == 0)
  }

  private func unmask() {
    #expect(
      bench.rig.setIRQs(
        flags: Self.none | VFIO_IRQ_SET_ACTION_UNMASK, index: 0, count: 1) == 0)
  }

  /// The line, as the status register has it.
  private var isAsserted: Bool { (bench.rig.config(6, as: UInt16.self) ?? 0) & 8 != 0 }

  /// Announces descriptors, and waits for them.
  private func copies(_ count: UInt16) {
    bench.rig.write(0x86, count)
    bench.rig.wait()
  }

  @Test("J1: the engine has INTA; it stays asserted until ATTNSTATUS is read or it is re-armed")
  func level() {
    #expect(bench.rig.config(0x3D, as: UInt8.self) == 1)
    arm(index: 0)
    bench.rig.write(0x03, UInt8(1))
    bench.rig.start(bench.ring, count: 1)
    bench.rig.wait()
    while signal.count < 1 {}
    #expect(isAsserted)
    unmask()
    #expect(signal.count == 2, "nobody has served it")
    // As Linux's handler: INTRCTRL, ATTNSTATUS, INTRCTRL; later CHANCTRL.
    let control = bench.rig.read(0x03, as: UInt8.self) ?? 0
    #expect(control == 7)
    #expect(!isAsserted, "it rests until INTRCTRL is written")
    bench.rig.write(0x03, control)
    #expect(isAsserted)
    _ = bench.rig.read(0x03, as: UInt8.self)
    #expect(bench.rig.read(0x04, as: UInt32.self) == 1)
    bench.rig.write(0x03, control)
    #expect(!isAsserted)
    unmask()
    #expect(signal.count == 2)
    copies(2)
    #expect(!isAsserted, "not re-armed")
    bench.rig.write(0x80, UInt16(1))
    #expect(signal.count == 3, "what waited fires at the re-arm")
    #expect(isAsserted)
    // Whoever re-arms at once needs nothing else.
    bench.rig.write(0x80, UInt16(1))
    #expect(!isAsserted)
    unmask()
    copies(3)
    while signal.count < 4 {}
    bench.rig.write(0x03, UInt8(0))
    #expect(!isAsserted)
    bench.rig.write(0x03, UInt8(1))
    #expect(isAsserted)
  }

  @Test(
    "J1: Interrupt Disable withholds the engine's line and clearing it delivers; resets end it")
  func disable() {
    arm(index: 0)
    bench.rig.config(4, UInt16(0x0406))
    bench.rig.write(0x03, UInt8(1))
    bench.rig.start(bench.ring, count: 1)
    bench.rig.wait()
    while !isAsserted {}
    #expect(signal.count == 0)
    #expect(bench.rig.config(4, as: UInt16.self) == 0x0406)
    bench.rig.config(4, UInt16(6))
    #expect(signal.count == 1)
    bench.rig.write(0x84, UInt8(0x20))
    #expect(!isAsserted)
    unmask()
    #expect(signal.count == 1)
    bench.rig.write(0x03, UInt8(1))
    bench.rig.start(bench.ring, count: 1)
    bench.rig.wait()
    while !isAsserted {}
    #expect(bench.rig.caller.ioctl(bench.rig.file, VFIO_DEVICE_RESET, at: 0) == 0)
    #expect(!isAsserted)
    let sum = signal.count
    unmask()
    #expect(signal.count == sum)
  }

  @Test("J1: an error interrupt asserts the line too")
  func error() {
    arm(index: 0)
    bench.rig.write(0x03, UInt8(1))
    bench.descriptor(source: 0xDEAD_0000_0000)
    bench.rig.start(bench.ring, count: 1, control: 0x11)
    #expect(bench.rig.wait() & 7 == 3)
    while signal.count < 1 {}
    #expect(isAsserted)
  }

  @Test(
    "J1: by MSI the engine's completions signal as by MSI-X, and there is no line beside it")
  func message() {
    arm(index: 1)
    bench.rig.write(0x03, UInt8(1))
    bench.rig.start(bench.ring, count: 1)
    bench.rig.wait()
    while signal.count < 1 {}
    #expect(!isAsserted)
    bench.rig.write(0x80, UInt16(1))
    copies(2)
    while signal.count < 2 {}
    #expect(bench.rig.iommu.interrupts.count == 1)
    bench.rig.write(0x80, UInt16(1))
    // No IOMMU lets a detached device's messages through.
    #expect(bench.rig.detach() == 0)
    bench.rig.write(0x86, UInt16(3))
    bench.rig.wait()
    #expect(signal.count == 2)
  }
}
