// SPDX-License-Identifier: Apache-2.0
//
// MODEL C1, C6, D1, G2: opens, binds, switches and closes from many threads, with a transfer
// under way: one user at a time, and nothing left behind.

import CLinuxABI
import IOMMU
import TestSupport
import Testing
import VFIO

@testable import LinuxABI

@Suite(.timeLimit(.minutes(10))) struct VFIOConcurrencyTests {
  @Test("C1, C6: of many opens of device and group at once, one at most is the user")
  func oneUser() async throws {
    let rig = try EngineRig()
    let device = rig.vfio
    let group = rig.group
    let system = rig.system
    await withTaskGroup(of: Void.self) { tasks in
      for _ in 0..<3 {
        tasks.addTask {
          for _ in 0..<300 {
            let context = Context(system: system)
            let session = device.open()
            try? session.bind(
              findContext: { context },
              publish: { _ in #expect(system.groups[0].isOwned) })
            if session.hasAccess { try? session.detach() }
            session.close()
            #expect(!session.hasAccess)
            context.close()
          }
        }
      }
      tasks.addTask {
        for _ in 0..<300 where (try? group.open()) != nil {
          #expect(!device.isBound)
          group.close()
        }
      }
    }
    #expect(!device.isBound)
    #expect(!rig.group.group.isOwned)
    rig.caller.close(rig.iommufd)
    #expect(system.contextCount == 0)
  }

  @Test("D1, G2: replace, detach, map, unmap and reset under a running transfer all return")
  func switches() async throws {
    let rig = try EngineRig()
    try rig.connect()
    #expect(rig.map(0x10000, to: 0x10000, length: 0xFF0000) == 0)
    let signal = CountingSignal()
    #expect(rig.arm(signal) == 0)
    rig.write(0x03, UInt8(0x08))
    for round in 0..<60 {
      rig.config(0x04, UInt16(0x0006))
      rig.descriptor(
        at: 0x10000, size: 1 << 20, control: 0x1, source: 0x100000, destination: 0x400000,
        next: 0x10000)
      rig.start(0x10000, count: 60000)
      switch round % 6 {
      case 0:
        #expect(rig.detach() == 0)
        #expect(rig.wait([3]) & 7 == 3)
        #expect(rig.attach(rig.ioas) == 0)
      case 1:
        #expect(rig.attach(rig.ioas) == 0, "the same table again")
      case 2:
        #expect(rig.unmap(0x10000, length: 0xFF0000) == 0)
        #expect(rig.wait([3]) & 7 == 3)
        #expect(rig.map(0x10000, to: 0x10000, length: 0xFF0000) == 0)
      case 3:
        #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_RESET, at: 0) == 0)
        rig.write(0x03, UInt8(0x08))
      case 4:
        rig.config(0x04, UInt16(0x0002))
        #expect(rig.wait([3]) & 7 == 3)
      default:
        rig.config(0xE4, UInt16(3))
        rig.config(0xE4, UInt16(0))
      }
    }
    rig.caller.close(rig.devicefd)
    rig.caller.close(rig.iommufd)
    #expect(rig.system.contextCount == 0)
    #expect(rig.system.memory.usedSlots == 0)
    #expect(rig.iommu.interrupts.count == 0)
  }
}
