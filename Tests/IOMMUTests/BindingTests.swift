// SPDX-License-Identifier: Apache-2.0
//
// MODEL A1, C1 to C3, D1, D3: ids, binding, groups, attaching.

import IOMMU
import PageTables
import SystemPackage
import Testing

@Suite struct BindingTests {
  let machine = TestMachine()

  @Test("A1: ids start at 1, the lowest free one is next, and they mean nothing elsewhere")
  func ids() throws {
    let one = Context(system: machine.system)
    let other = Context(system: machine.system)
    #expect(try (1...3).map { _ in try one.allocateIOAS().rawValue } == [1, 2, 3])
    try one.destroy(ObjectID(2))
    #expect(try one.allocateIOAS() == ObjectID(2))
    #expect(errno { _ = try other.mappableRanges(of: ObjectID(1)) } == .noSuchFileOrDirectory)
    #expect(errno { try one.destroy(ObjectID(0)) } == .noSuchFileOrDirectory)
    #expect(errno { try one.destroy(ObjectID(.max)) } == .noSuchFileOrDirectory)
    one.close()
    #expect(one.objectCount == 0)
    #expect(machine.system.contextCount == 1)
  }

  @Test("C2: the first bind blocks the whole group, a second changes nothing")
  func bindBlocksGroup() throws {
    let group = machine.system.addGroup()
    let devices = try (1...2).map { try machine.device($0, group: group) }
    let context = Context(system: machine.system)
    var first: DeviceHolder? = DeviceHolder(try context.register(devices[0]))
    #expect(devices.map(machine.driver.history(of:)) == [[.blocked], [.blocked]])
    var second: DeviceHolder? = DeviceHolder(try context.register(devices[1]))
    #expect(devices.map(machine.driver.history(of:)) == [[.blocked], [.blocked]])
    withExtendedLifetime(first) {}
    first = nil
    #expect(group.isOwned)
    #expect(devices.map(machine.driver.history(of:)) == [[.blocked], [.blocked]])
    withExtendedLifetime(second) {}
    second = nil
    #expect(!group.isOwned)
    #expect(
      devices.map(machine.driver.history(of:)) == [[.blocked, .host], [.blocked, .host]])
  }

  @Test("C3: a group with a host driver that does DMA is not given away, and it is named")
  func viability() throws {
    let group = machine.system.addGroup()
    let device = try machine.device(1, group: group, hostDriver: .safe("vfio-pci"))
    _ = try machine.device(2, group: group, hostDriver: .dma("ioatdma"))
    let context = Context(system: machine.system)
    #expect {
      _ = try DeviceHolder(context.register(device))
    } throws: { error in
      let error = error as? IOMMUError
      return error?.errno == .notPermitted && error?.reason.contains("0000:00:02.0") == true
        && error?.reason.contains("ioatdma") == true
    }
    #expect(machine.driver.history(of: device).isEmpty)
    #expect(context.objectCount == 0)
  }

  @Test("C2: a group has one owner; the second context is refused")
  func ownership() throws {
    let group = machine.system.addGroup()
    let devices = try (1...2).map { try machine.device($0, group: group) }
    let owner = Context(system: machine.system)
    let other = Context(system: machine.system)
    let holder = DeviceHolder(try owner.register(devices[0]))
    defer { withExtendedLifetime(holder) {} }
    #expect(errno { _ = try DeviceHolder(other.register(devices[1])) } == .notPermitted)
    #expect(errno { _ = try DeviceHolder(owner.register(devices[0])) } == .resourceBusy)
  }

  @Test("D3: a neighbour in another space is refused and named; in the same space it joins")
  func neighbours() throws {
    let group = machine.system.addGroup()
    let devices = try (1...2).map { try machine.device($0, group: group) }
    let context = Context(system: machine.system)
    let spaces = try (1...2).map { _ in try context.allocateIOAS() }
    let first = DeviceHolder(try context.register(devices[0]))
    let second = DeviceHolder(try context.register(devices[1]))
    let table = try first.attach(to: spaces[0])
    #expect {
      try second.attach(to: spaces[1])
    } throws: { error in
      let error = error as? IOMMUError
      return error?.errno == .invalidArgument && error?.reason.contains(devices[0].name) == true
    }
    #expect(try second.attach(to: spaces[0]) == table)
    // Both went through the table once, at the first attach.
    #expect(devices.map { machine.driver.history(of: $0).count } == [2, 2])
    first.detach()
    #expect(machine.driver.history(of: devices[0]).count == 2)
    second.detach()
    #expect(devices.map { machine.driver.history(of: $0).last } == [.blocked, .blocked])
    #expect(context.objectCount == 4, "the automatic table goes with its last device")
  }

  @Test("D1: devices of one space share its automatic table; a table asked for is not shared")
  func automaticTables() throws {
    let context = Context(system: machine.system)
    let ioas = try context.allocateIOAS()
    let first = DeviceHolder(try context.register(machine.device(1)))
    let second = DeviceHolder(try context.register(machine.device(2)))
    let third = DeviceHolder(try context.register(machine.device(3)))
    let own = try context.allocateHWPT(for: third.id, from: ioas)
    #expect(try third.attach(to: own) == own)
    let table = try first.attach(to: ioas)
    #expect(try second.attach(to: ioas) == table)
    #expect(table != own)
    #expect(errno { try context.destroy(ioas) } == .resourceBusy)
    #expect(errno { try context.destroy(table) } == .resourceBusy)
    #expect(errno { try context.destroy(first.id) } == .resourceBusy)
    third.detach()
    try context.destroy(own)
  }

  @Test("D1: a replace goes from the old table to the new one with nothing in between")
  func replace() throws {
    let device = try machine.device(1)
    let context = Context(system: machine.system)
    let spaces = try (1...2).map { _ in try context.allocateIOAS() }
    let holder = DeviceHolder(try context.register(device))
    let old = try holder.attach(to: spaces[0])
    let new = try holder.attach(to: spaces[1])
    #expect(old != new || old.rawValue > 0)
    let history = machine.driver.history(of: device)
    #expect(history.count == 3 && history[0] == .blocked)
    if case .domain = history[1], case .domain = history[2] {
      #expect(history[1] != history[2])
    } else {
      Issue.record("the device left the page tables: \(history)")
    }
    #expect(errno { try context.destroy(spaces[1]) } == .resourceBusy)
    try context.destroy(spaces[0])
  }

  @Test("D1: a replace that the driver refuses leaves the old table in force")
  func refusedReplace() throws {
    let group = machine.system.addGroup()
    let devices = try (1...2).map { try machine.device($0, group: group) }
    let context = Context(system: machine.system)
    let spaces = try (1...2).map { _ in try context.allocateIOAS() }
    let holder = DeviceHolder(try context.register(devices[0]))
    try holder.attach(to: spaces[0])
    let before = devices.map { machine.driver.history(of: $0).last }
    machine.driver.refuses.withLock { $0 = [devices[1].requester] }
    #expect(errno { try holder.attach(to: spaces[1]) } == .invalidArgument)
    machine.driver.refuses.withLock { $0 = [] }
    #expect(devices.map { machine.driver.history(of: $0).last } == before)
    #expect(context.objectCount == 4)
  }

  @Test("C2: closing the fd while a device is bound keeps the context until it is unbound")
  func closeWhileBound() throws {
    let device = try machine.device(1)
    let context = Context(system: machine.system)
    let ioas = try context.allocateIOAS()
    let memory = try LocalMemory(byteCount: 4096)
    var holder: DeviceHolder? = DeviceHolder(try context.register(device))
    try holder?.attach(to: ioas)
    try context.map(memory, start: 0, length: 4096, into: ioas)
    context.close()
    #expect(context.objectCount == 3)
    #expect(machine.system.memory.usedSlots == 1)
    #expect(errno { _ = try DeviceHolder(context.register(device)) } == .resourceBusy)
    holder = nil
    #expect(context.objectCount == 0)
    #expect(machine.system.memory.usedSlots == 0)
    #expect(machine.system.contextCount == 0)
    #expect(machine.driver.history(of: device).last == .host)
  }

  @Test("B7: what an IOMMU cannot do is refused when the table is made")
  func attributes() throws {
    let context = Context(system: machine.system)
    let ioas = try context.allocateIOAS()
    let holder = DeviceHolder(try context.register(machine.device(1)))
    #expect(
      errno {
        _ = try context.allocateHWPT(for: holder.id, from: ioas, attributes: .dirtyTracking)
      }
        == .operationNotSupported)
    #expect(
      errno { _ = try context.allocateHWPT(for: holder.id, from: holder.id) }
        == .invalidArgument)
    #expect(
      errno { _ = try context.allocateHWPT(for: ioas, from: ioas) } == .noSuchFileOrDirectory)
  }

  @Test("B1: what a device reserves cannot be mapped, and what is mapped keeps it out")
  func reservedRegions() throws {
    let driver = DictionaryDriver(
      reserved: [ReservedRegion(0xfee0_0000...0xfeef_ffff, kind: .msi)])
    let machine = TestMachine(driver: driver)
    let context = Context(system: machine.system)
    let ioas = try context.allocateIOAS()
    let memory = try LocalMemory(byteCount: 4096)
    let holder = DeviceHolder(try context.register(machine.device(1)))
    try context.map(memory, start: 0, length: 4096, into: ioas, at: .fixed(IOVA(0xfee0_0000)))
    #expect(errno { try holder.attach(to: ioas) } == .addressInUse)
    #expect(context.objectCount == 2)
    try context.unmap(0...UInt64.max, from: ioas)
    try holder.attach(to: ioas)
    #expect(
      errno {
        try context.map(
          memory, start: 0, length: 4096, into: ioas, at: .fixed(IOVA(0xfeef_f000)))
      } == .invalidArgument)
    let ranges = try context.mappableRanges(of: ioas)
    #expect(ranges.ranges == [0...0xfedf_ffff, 0xfef0_0000...0xffff_ffff_ffff])
    #expect(ranges.alignment == 4096)
    holder.detach()
    #expect(try context.mappableRanges(of: ioas).ranges == [0...UInt64.max])
    #expect(try context.mappableRanges(of: ioas).alignment == 1)
  }
}
