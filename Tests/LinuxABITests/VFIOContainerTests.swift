// SPDX-License-Identifier: Apache-2.0
//
// MODEL C6, J1, B6, I1: containers: groups that share mappings, what reserved ranges and other
// IOMMUs do to them, the limit, accounting, dirty bitmaps. The calls one by one are in
// Conformance/cases/containers.c.

import CLinuxABI
import IOMMU
import SoftwareIOMMU
import TestSupport
import Testing
import VFIO

@testable import LinuxABI

private typealias IOMMUConfiguration = SoftwareIOMMU.Configuration

@Suite(.timeLimit(.minutes(10))) struct VFIOContainerTests {
  @Test(
    "C6: a group that comes later reaches what is mapped; one whose devices must not is refused"
  )
  func replay() throws {
    let reserved = IOMMUConfiguration(
      reservedRegions: [ReservedRegion(0x20_0000...0x20_0fff, kind: .reserved)])
    let rig = try GroupRig([1, 1, 1], iommus: [.init(), .init(architecture: .amd), reserved])
    let (container, groups) = try rig.connect([0])
    #expect(rig.map(container, 0x10_0000, to: 0x10_0000, size: 0x20_0000) == 0)
    let late = rig.openGroup(1)
    #expect(rig.setContainer(late, container) == 0)
    let device = rig.getDevice(late, "0000:e0:01.0")
    rig.caller.put(UInt64(0x5555), at: 0x11_0000)
    #expect(
      rig.copy(device, ring: 0x10_0000, at: 0x10_0000, from: 0x11_0000, to: 0x12_0000) == 1)
    #expect(rig.caller.get(UInt64.self, at: 0x12_0000) == 0x5555)

    let refused = rig.openGroup(2)
    #expect(rig.setContainer(refused, container) == -22)
    let error = #expect(throws: IOMMUError.self) {
      let file = try #require(
        try rig.caller.openFile(descriptor: container) as? VFIOContainerFile)
      try rig.groups[2].setContainer(.container(file.container))
    }
    #expect(error?.reason.contains("0x200000...0x200fff") == true)
    #expect(!rig.groups[2].group.isOwned)
    // It goes in once that is unmapped, and then nobody maps there.
    #expect(rig.unmap(container, 0x10_0000, size: 0x20_0000) == (0, 0x20_0000))
    #expect(rig.setContainer(refused, container) == 0)
    #expect(rig.map(container, 0x10_0000, to: 0x10_0000, size: 0x20_0000) == -22)
    #expect(rig.map(container, 0x10_0000, to: 0x10_0000, size: 0x10_0000) == 0)
    #expect(rig.unsetContainer(refused) == 0)
    #expect(rig.map(container, 0x20_0000, to: 0x20_0000, size: 0x1000) == 0)
    _ = groups
    #expect(rig.leftovers() == [])
  }

  @Test("C6: new addresses for mappings are not offered: their flags are EINVAL")
  func newAddresses() throws {
    let rig = try GroupRig([1])
    let (container, _) = try rig.connect()
    #expect(rig.call(container, VFIO_CHECK_EXTENSION, UInt64(VFIO_UPDATE_VADDR)) == 0)
    #expect(rig.map(container, 0x10_0000, to: 0x10_0000, size: 0x1000) == 0)
    #expect(rig.unmap(container, 0x10_0000, size: 0x1000, flags: 4).result == -22)
    #expect(rig.unmap(container, 0, size: 0, flags: 6).result == -22)
    #expect(rig.map(container, 0x10_0000, to: 0x20_0000, size: 0x1000, flags: 4) == -22)
    #expect(rig.unmap(container, 0x10_0000, size: 0x1000) == (0, 0x1000), "still there")
    #expect(rig.leftovers() == [])
  }

  @Test("C6: of a container coherent DMA is what all of its groups have")
  func coherence() throws {
    let rig = try GroupRig([1, 1], iommus: [.init(), .init(snoopControl: false)])
    let (container, _) = try rig.connect([0])
    #expect(rig.call(container, VFIO_CHECK_EXTENSION, 4) == 1)
    let late = rig.openGroup(1)
    #expect(rig.setContainer(late, container) == 0)
    #expect(rig.call(container, VFIO_CHECK_EXTENSION, 4) == 0)
    #expect(rig.unsetContainer(late) == 0)
    #expect(rig.call(container, VFIO_CHECK_EXTENSION, 4) == 1)
    #expect(rig.leftovers() == [])
  }

  @Test("C2: a container has its whole group: devices that nobody opens reach the same memory")
  func wholeGroup() throws {
    let rig = try GroupRig([2])
    let (container, groups) = try rig.connect([0])
    #expect(rig.map(container, 0x10_0000, to: 0x10_0000, size: 0x10_0000) == 0)
    let first = rig.getDevice(groups[0], "0000:e0:00.0")
    let second = rig.getDevice(groups[0], "0000:e0:00.1")
    for device in [first, second] {
      rig.caller.put(UInt64(device), at: 0x11_0000)
      #expect(
        rig.copy(device, ring: 0x10_0000, at: 0x10_0000, from: 0x11_0000, to: 0x12_0000) == 1)
      #expect(rig.caller.get(UInt64.self, at: 0x12_0000) == UInt64(device))
    }
    // What is not mapped any more faults at once (G2).
    #expect(rig.unmap(container, 0x10_0000, size: 0x10_0000) == (0, 0x10_0000))
    #expect(
      rig.copy(first, ring: 0x10_0000, at: 0x10_0000, from: 0x11_0000, to: 0x12_0000) == 3)
    #expect(rig.leftovers() == [])
  }

  @Test("C6: a container whose descriptor is closed goes on; the last group takes the mappings")
  func lastGroup() throws {
    let rig = try GroupRig()
    let (container, groups) = try rig.connect([0, 1])
    #expect(rig.map(container, 0x10_0000, to: 0x10_0000, size: 0x10_0000) == 0)
    rig.caller.close(container)
    rig.caller.close(groups[0])
    #expect(rig.system.memory.usedSlots > 0)
    let device = rig.getDevice(groups[1], "0000:e0:01.0")
    #expect(
      rig.copy(device, ring: 0x10_0000, at: 0x10_0000, from: 0x11_0000, to: 0x12_0000) == 1)
    rig.caller.close(device)
    rig.caller.close(groups[1])
    #expect(rig.system.memory.usedSlots == 0)
    #expect(rig.system.contextCount == 0)
  }

  @Test("C6: a model that does not fit is not set, and the container takes another try")
  func failedModel() throws {
    let rig = try GroupRig([1, 1])
    let container = rig.openContainer()
    let groups = [rig.openGroup(0), rig.openGroup(1)]
    for group in groups { #expect(rig.setContainer(group, container) == 0) }
    for nth in 1... {
      let countdown = FailureCountdown(nth)
      let result = countdown.run { rig.call(container, VFIO_SET_IOMMU, 3) }
      guard let point = countdown.failed else {
        #expect(result == 0)
        break
      }
      #expect(result == -12, "\(point)")
      #expect(rig.call(container, VFIO_IOMMU_GET_INFO, 0x2000) == -22, "no model")
      guard nth < 100 else { break }
    }
    #expect(rig.map(container, 0x10_0000, to: 0x10_0000, size: 0x1000) == 0)
    #expect(rig.leftovers() == [])
  }

  @Test("fail-nth: SET_CONTAINER, GET_DEVICE_FD and MAP_DMA leave nothing where they fail")
  func failures() throws {
    for step in 0..<3 {
      for nth in 1... {
        let rig = try GroupRig()
        let container = rig.openContainer()
        let group = rig.openGroup(1)
        if step > 0 { #expect(rig.setContainer(group, container) == 0) }
        if step > 0 { #expect(rig.call(container, VFIO_SET_IOMMU, 3) == 0) }
        let countdown = FailureCountdown(nth)
        let result = countdown.run {
          switch step {
          case 0: rig.setContainer(group, container)
          case 1: rig.getDevice(group, "0000:e0:01.1")
          default: rig.map(container, 0x10_0000, to: 0x10_0000, size: 0x10_0000)
          }
        }
        let point = countdown.failed
        if let point {
          #expect([-12, -14, -24].contains(result), "step \(step), \(point): \(result)")
          if step == 0 { #expect(!rig.groups[1].group.isOwned) }
          if step == 1 { #expect(!rig.devices[2].isBound) }
          if step == 2 { #expect(rig.system.memory.usedSlots == 0) }
        } else {
          #expect(result >= 0)
        }
        #expect(rig.leftovers() == [], "step \(step), point \(nth)")
        guard point != nil, nth < 100 else { break }
      }
    }
  }

  @Test("J1: mappings end at 65535, and each that goes makes room for one")
  func limit() throws {
    let rig = try GroupRig([1])
    let (container, _) = try rig.connect()
    let limit: UInt64 = 65_535
    for index in 0..<limit {
      guard rig.map(container, 0x1_0000_0000 + index * 0x2000, to: 0x1000, size: 0x1000) == 0
      else {
        Issue.record("mapping \(index)")
        return
      }
    }
    let next = 0x1_0000_0000 + limit * 0x2000
    #expect(rig.map(container, next, to: 0x1000, size: 0x1000) == -28)
    #expect(
      rig.map(container, 0x1_0000_0000, to: 0x1000, size: 0x1000) == -17, "EEXIST is first")
    #expect(rig.map(container, 0xFEE0_0000, to: 0x1000, size: 0x1000) == -28, "EINVAL is later")
    #expect(rig.unmap(container, 0x1_0000_0000, size: 0x4000) == (0, 0x2000))
    #expect(rig.map(container, next, to: 0x1000, size: 0x1000) == 0)
    #expect(rig.map(container, next + 0x2000, to: 0x1000, size: 0x1000) == 0)
    #expect(rig.map(container, next + 0x4000, to: 0x1000, size: 0x1000) == -28)
    #expect(rig.unmap(container, 0, size: 0, flags: 2) == (0, limit * 0x1000))
    #expect(rig.leftovers() == [])
  }

  @Test(
    "B6: mappings count for the process up to its RLIMIT_MEMLOCK: ENOMEM, and all come back")
  func accounting() throws {
    let rig = try GroupRig([1, 1])
    rig.caller.right = .limited
    rig.caller.limit.bytes = 0x8000
    let (container, _) = try rig.connect([0])
    #expect(rig.map(container, 0x10_0000, to: 0x10_0000, size: 0x6000) == 0)
    #expect(rig.caller.owner.process.locked.byteCount == 0x6000)
    #expect(rig.caller.owner.user.byteCount == 0)
    #expect(rig.map(container, 0x20_0000, to: 0x10_0000, size: 0x3000) == -12)
    #expect(rig.map(container, 0x20_0000, to: 0x10_0000, size: 0x2000) == 0, "counted twice")
    // Another group's page table pins nothing twice.
    let late = rig.openGroup(1)
    #expect(rig.setContainer(late, container) == 0)
    #expect(rig.caller.owner.process.locked.byteCount == 0x8000)
    #expect(rig.unmap(container, 0x10_0000, size: 0x6000) == (0, 0x6000))
    #expect(rig.caller.owner.process.locked.byteCount == 0x2000)
    #expect(rig.caller.owner.process.pinned.byteCount == 0, "locked, not pinned")
    // With CAP_IPC_LOCK it counts too, and leaves nothing for who has it not.
    rig.caller.right = .unlimited
    #expect(rig.map(container, 0x40_0000, to: 0x10_0000, size: 0x10_0000) == 0)
    #expect(rig.caller.owner.process.locked.byteCount == 0x10_2000)
    rig.caller.right = .limited
    #expect(rig.map(container, 0x80_0000, to: 0x10_0000, size: 0x1000) == -12)
    #expect(rig.leftovers() == [])
    #expect(rig.caller.owner.process.locked.byteCount == 0)
  }

  @Test("I1: a container's bitmap is written in words; what is below a mapping's bits stays")
  func bitmap() throws {
    let rig = try GroupRig([1])
    let (container, _) = try rig.connect()
    let base: UInt64 = 0x1000_0000
    // Pages 3 to 66 and 130 to 199 of a range of 256; the bitmap has 0x5a everywhere.
    #expect(rig.map(container, base + 3 << 12, to: 0x10_0000, size: 64 << 12) == 0)
    #expect(rig.map(container, base + 130 << 12, to: 0x10_0000, size: 70 << 12) == 0)
    var start = vfio_iommu_type1_dirty_bitmap()
    start.argsz = 8
    start.flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_START
    #expect(rig.call(container, VFIO_IOMMU_DIRTY_PAGES, &start) == 0)
    for word in UInt64(0)..<4 {
      rig.caller.put(UInt64(0x5a5a_5a5a_5a5a_5a5a), at: 0x3000 + word * 8)
    }
    let get: [UInt64] = [
      48 | UInt64(VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP) << 32, base, 256 << 12, 4096, 32,
      0x3000,
    ]
    for (index, word) in zip(UInt64(0)..., get) { rig.caller.put(word, at: 0x2000 + index * 8) }
    #expect(rig.call(container, VFIO_IOMMU_DIRTY_PAGES, 0x2000) == 0)
    let words = (UInt64(0)..<4).map { rig.caller.get(UInt64.self, at: 0x3000 + $0 * 8) }
    #expect(words[0] == ~UInt64(0b111) | 0x5a & 0b111, "three bits below are the caller's")
    #expect(words[1] == 0b111, "what follows a mapping in its word is 0")
    #expect(words[2] == ~UInt64(0b11) | 0x5a & 0b11)
    #expect(words[3] == 0xff)
    // The same range with a hole that no mapping touches: its word stays.
    #expect(rig.unmap(container, base + 130 << 12, size: 70 << 12).result == 0)
    for word in UInt64(0)..<4 { rig.caller.put(UInt64(0x5a), at: 0x3000 + word * 8) }
    for (index, word) in zip(UInt64(0)..., get) { rig.caller.put(word, at: 0x2000 + index * 8) }
    #expect(rig.call(container, VFIO_IOMMU_DIRTY_PAGES, 0x2000) == 0)
    #expect(rig.caller.get(UInt64.self, at: 0x3018) == 0x5a)
    #expect(rig.leftovers() == [])
  }

  @Test("C6: groups, devices and mappings come and go on many threads, and nothing is left")
  func threads() async throws {
    let rig = try GroupRig([1, 2])
    let system = rig.system
    let groups = rig.groups
    let container = VFIOContainer(system: system)
    let source = rig.caller.arena
    await withTaskGroup(of: Void.self) { tasks in
      for group in groups {
        tasks.addTask {
          for round in 0..<200 {
            guard (try? group.open()) != nil else { continue }
            if (try? group.setContainer(.container(container))) != nil {
              try? container.setIOMMU(round % 2 == 0 ? 3 : 1)
              for device in group.devices {
                let session = device.makeGroupSession()
                try? session.openThroughGroup()
                #expect(session.hasAccess, "the model stays as long as a group")
                session.close()
              }
              if round % 3 == 0 { try? group.unsetContainer() }
            }
            group.close()
          }
        }
      }
      tasks.addTask {
        for round in UInt64(0)..<600 {
          let iova = round % 8 << 20
          try? container.map(
            VFIOContainer.Request(
              source: source, address: 0x10_0000, iova: iova, size: 0x1000,
              permissions: .readWrite))
          _ = try? container.information
          _ = try? container.unmap(iova: iova, size: 0x1000)
        }
      }
    }
    #expect(rig.leftovers() == [])
  }
}
