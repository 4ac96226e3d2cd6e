// SPDX-License-Identifier: Apache-2.0
//
// Virtual IOMMUs and what belongs to them, failed at each failure point: what was there before
// the failed call is there after it.

import CLinuxABI
import IOMMU
import SelfTestDriver
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct VirtualFailureTests {
  let guest: Guest
  let sweep: FailureSweep
  var door: BackDoor { guest.door }

  init() throws {
    guest = try Guest()
    sweep = FailureSweep(guest.door)
    #expect(guest.door.map(0x1000, 4096, at: 0x100_0000) == 0)
  }

  private func destroy(_ id: UInt32) { #expect(door.destroy(id) == 0) }

  @Test("fail-nth: a virtual IOMMU, a name in it and a table on it are made or nothing is")
  func objects() {
    var made: UInt32 = 0
    let data = guest.buffer
    sweep("VIOMMU_ALLOC") {
      door.poke([7, 0, 0, 0, 0, 0], at: data)
      let (result, id) = door.makeVIOMMU(
        for: guest.device.device, on: guest.parent, length: 24, data: data)
      made = id
      return result
    } undo: {
      destroy(made)
    }
    sweep("VDEVICE_ALLOC") {
      let (result, id) = door.makeVDevice(guest.device.device, in: guest.viommu, as: 9)
      made = id
      return result
    } undo: {
      destroy(made)
    }
    sweep("HWPT_ALLOC on a virtual IOMMU") {
      let (result, id) = guest.nest()
      made = id
      return result
    } undo: {
      destroy(made)
    }
    #expect(sweep.failed.isSuperset(of: [.driverObject, .object, .copyIn, .copyOut]))
  }

  @Test("fail-nth: an event queue comes with its descriptor, a hardware queue with its memory")
  func queues() {
    var made: UInt32 = 0
    var descriptor: Int32 = 0
    sweep("VEVENTQ_ALLOC") {
      let result: Int32
      (result, made, descriptor) = door.makeEventQueue(in: guest.viommu)
      return result
    } undo: {
      door.caller.close(descriptor)
      destroy(made)
    }
    sweep("HW_QUEUE_ALLOC") {
      let (result, id) = door.makeHardwareQueue(in: guest.viommu, 0, at: 0x100_0000, 4096)
      made = id
      return result
    } undo: {
      destroy(made)
    }
    #expect(sweep.failed.isSuperset(of: [.descriptor, .object, .accessorPin, .driverObject]))
  }
}
