// SPDX-License-Identifier: Apache-2.0
//
// What of a machine's /sys takes what is written, and does it: resets, settings. Everything else is
// read-only.

import IOMMU
import LinuxABI
import SystemPackage
import TestSupport
import Testing

@testable import Machine

@Suite("What of /sys takes what is written") struct WritableViewTests {
  private let caller: LocalCaller
  private let device = "/sys/bus/pci/devices/0000:e0:04.0"

  init() throws { caller = try LocalCaller() }

  private func echo(_ text: String, _ path: String, _ machine: Machine) throws -> Errno? {
    let attribute = try #require(machine.view.attribute(at: path), "no \(path)")
    do throws(IOMMUError) {
      try attribute.store(text + "\n", by: caller)
      return nil
    } catch {
      return error.errno
    }
  }

  @Test("a file that can be written takes commands: none keeps them to no effect")
  func modes() throws {
    for entry in try Machine(.standard).view.entries {
      guard case .file(_, let mode) = entry.kind else { continue }
      #expect(mode & 0o222 == 0, "\(entry.path)")
    }
  }

  @Test("reset resets the function: what it does, not what its user has set up")
  func reset() throws {
    let machine = try Machine(.standard)
    let function = try #require(machine.functions.first { $0.name == "0000:e0:04.0" })
    let doorbell = function.config.contents
    #expect(try #require(machine.view.attribute(at: "\(device)/reset")).mode == 0o200)
    for text in ["0", "2", "", "on", "-1"] {
      #expect(try echo(text, "\(device)/reset", machine) == .invalidArgument)
    }
    for text in ["1", "0x1", "01"] {
      #expect(try echo(text, "\(device)/reset", machine) == nil)
    }
    #expect(function.config.contents == doorbell)
  }

  @Test("D2: a device that a mediating driver shares out is not reset under its users")
  func mediatedParent() throws {
    let machine = try Machine(
      MachineTests.machine(
        """
        iommus: [{name: dmar0, kind: intel}]
        devices:
          - {model: copy-engine, address: "0000:e0:04.0", group: 0, host-driver: ioat-mdev}
        """))
    #expect(try echo("1", "\(device)/reset", machine) == .resourceBusy)
  }

  @Test("settings that nothing hangs on are kept, and checked as Linux does")
  func settings() throws {
    let machine = try Machine(.standard, selfTestDriver: true)
    let control = "\(device)/power/control"
    #expect(try echo("on", control, machine) == nil)
    #expect(try #require(machine.view.attribute(at: control)).show() == "on\n")
    for text in ["off", "", "on on"] {
      #expect(try echo(text, control, machine) == .invalidArgument)
    }
    let slab = "/sys/kernel/debug/failslab"
    #expect(try echo("Y", "\(slab)/ignore-gfp-wait", machine) == nil)
    #expect(try #require(machine.view.attribute(at: "\(slab)/ignore-gfp-wait")).show() == "Y\n")
    #expect(try echo("what", "\(slab)/ignore-gfp-wait", machine) == .invalidArgument)
    for (text, shown) in [("100", "100\n"), ("0x10", "16\n"), ("-1", "-1\n")] {
      #expect(try echo(text, "\(slab)/times", machine) == nil)
      #expect(try #require(machine.view.attribute(at: "\(slab)/times")).show() == shown)
    }
    #expect(try echo("many", "\(slab)/probability", machine) == .invalidArgument)
  }
}
