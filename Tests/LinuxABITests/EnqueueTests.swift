// SPDX-License-Identifier: Apache-2.0
//
// MODEL J1, E4: what ENQCMD to a mapped work portal comes to: whose PASID it carries, and who takes it.

import CLinuxABI
import IOMMU
import SoftDevices
import TestSupport
import Testing

@testable import LinuxABI

@Suite("ENQCMD to mapped registers") struct EnqueueTests {
  let rig: PortalRig
  private static let portal = UInt64(1) << 45 | WorkQueueEngine.portalOffset

  init() throws { rig = try PortalRig() }

  private func enqueue(
    _ device: PortalRig.Device, at offset: UInt64 = portal, _ command: WorkCommand = nothing
  ) throws -> DeferrableWrite {
    try #require(device.file as? any RegisterFile).enqueue(command, at: offset)
  }

  /// A command that does nothing, without a PASID.
  private static let nothing = WorkCommand(words: InlineArray(repeating: 0))

  @Test(
    "J1: ENQCMD carries the PASID that the device is attached by: of none or several, none is")
  func pasid() throws {
    let device = try rig.device(.physicalWithWorkQueue)
    func refusal() throws -> IOMMUError {
      try #require(throws: IOMMUError.self) { try enqueue(device) }
    }
    #expect(try refusal().errno == .notPermitted)
    let table = rig.table(device, rig.space(0x10_0000))
    #expect(rig.attach(device, 5, table) == 0)
    var command = Self.nothing
    command.words[0] = 1 << 40
    command.words[1] = 0x8_0000
    #expect(try enqueue(device, command) == .accepted)
    rig.settle(device)
    #expect(rig.completion(0x10_0000) == 1)
    #expect(rig.attach(device, 6, table) == 0)
    #expect(try refusal().reason.contains("it is attached by 2"))
    #expect(rig.detach(device, 5) == 0)
    #expect(try enqueue(device) == .accepted)
  }

  @Test("J1: registers that are no portal put ENQCMD off; those that do not answer fail it")
  func elsewhere() throws {
    let device = try rig.device(.physicalWithWorkQueue)
    #expect(rig.attach(device, 5, rig.table(device, rig.space(0x10_0000))) == 0)
    #expect(try enqueue(device, at: 1 << 45) == .retry)
    let dedicated = try rig.device(.physical)
    #expect(try enqueue(dedicated) == .retry)
    #expect(rig.write(device, at: 1 << 45 | 7 << 40 | 4, [4, 0]) == 2)
    let error = try #require(throws: IOMMUError.self) { try enqueue(device) }
    #expect(error.errno == .ioError)
  }
}
