// SPDX-License-Identifier: Apache-2.0
//
// Binding and attaching a VFIO device behind the software IOMMU, failed at each failure point:
// the group, the address spaces and what is mapped are as before.

import CLinuxABI
import IOMMU
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct VFIOFailureTests {
  @Test("fail-nth: a device is bound, attached and moved whole or not at all")
  func attachments() throws {
    let rig = try EngineRig()
    let context = try #require(rig.iommuFile as? any ContextFile).context
    let sweep = FailureSweep { context.snapshot }
    var unbound: [String] = []
    // An unbound device cannot be bound again through the same open: two opens, then.
    sweep("BIND_IOMMUFD") {
      unbound = context.snapshot
      return rig.bind()
    } undo: {
      rig.file.close()
    }
    #expect(context.snapshot == unbound)

    let second = try EngineRig()
    try second.connect()
    let other = try #require(second.iommuFile as? any ContextFile).context
    let spaces = FailureSweep { other.snapshot }
    #expect(second.map(0x10_0000, to: 0x1000, length: 16 * 4096) == 0)
    #expect(second.detach() == 0)
    spaces("ATTACH_IOMMUFD_PT") {
      second.attach(second.ioas)
    } undo: {
      #expect(second.detach() == 0)
    }
    #expect(second.attach(second.ioas) == 0)
    let target = try other.allocateIOAS()
    try other.map(second.caller.arena, start: 0, length: 8 * 4096, into: target)
    // As on Linux a device is detached whose new table cannot be told.
    spaces("ATTACH_IOMMUFD_PT elsewhere", kept: [.copyOut]) {
      second.attach(target.rawValue)
    } undo: {
      #expect(second.detach() == 0 && second.attach(second.ioas) == 0)
    }
    #expect(
      sweep.failed.union(spaces.failed).isSuperset(of: [
        .object, .attachment, .reservation, .driverObject, .pin, .segment, .tableMemory,
        .copyIn, .copyOut,
      ]))
  }
}
