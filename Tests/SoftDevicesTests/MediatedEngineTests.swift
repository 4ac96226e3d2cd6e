// SPDX-License-Identifier: Apache-2.0
//
// The mediated copy engine: several users of one engine, each in its own space (MODEL D2). Each
// user is a program with /dev/iommu and the node of its slice.

import CLinuxABI
import IOMMU
import SoftDevices
import SoftwareIOMMU
import SystemPackage
import TestSupport
import Testing
import VFIO

/// The errno that a call throws; nil where it throws none.
private func errno(_ body: () throws -> Void) -> Errno? {
  do {
    try body()
    return nil
  } catch {
    return (error as? IOMMUError)?.errno
  }
}

@Suite(.timeLimit(.minutes(10))) struct MediatedEngineTests {
  @Test(
    "D2: users of one engine copy in their own spaces, where equal IOVAs are other memory",
    arguments: [["pasid", "pasid"], ["software", "software"], ["pasid", "software"]])
  func isolation(types: [String]) throws {
    let rig = try MediatedRig()
    let users = try types.indices.map { try rig.user(types[$0], $0) }
    let signals = users.map { _ in CountingSignal() }
    for (index, user) in users.enumerated() {
      user.fill(0x10_0000, UInt64(0xA0 + index))
      user.write(0x03, UInt8(0x08))
      #expect(user.arm(signals[index]) == 0)
      user.caller.put(UInt64(0), at: 0x20000)
      user.copy(from: 0x10_0000, to: 0x20_0000, control: 0x9)
    }
    for (index, user) in users.enumerated() {
      #expect(user.wait() == 0x10001)
      #expect(user.errors == 0)
      #expect(user.word(0x20_0000) == UInt64(0xA0 + index))
      #expect(user.word(0x20_0FF8) == UInt64(0xA0 + index))
      #expect(user.word(0x20000) == 0x10001, "CHANSTS came to CHANCMP")
      user.write(0x84, UInt8(0x20))
      user.wait([3])
      #expect(signals[index].count == 1)
      #expect(rig.count("bytes", of: index) == 4096)
      #expect(rig.count("faults", of: index) == 0)
      user.caller.closeAll()
    }
    #expect(rig.iommu.faults.count == 0)
    #expect(!rig.physical.group.isOwned, "the parent's context is nobody's business")
    #expect(rig.system.contextCount == 0)
  }

  @Test(
    "D2: what only a neighbour has mapped is out of reach, and counted against who tried",
    arguments: ["pasid", "software"])
  func hostileAddresses(type: String) throws {
    let rig = try MediatedRig()
    let (mine, theirs) = (try rig.user(type, 0), try rig.user(type, 1))
    // Only the neighbour has anything here.
    #expect(theirs.map(0x4000_0000, to: 0x30_0000, length: 0x1000) == 0)
    theirs.fill(0x30_0000, 0x5EC2E7)
    mine.copy(from: 0x4000_0000, to: 0x20_0000)
    #expect(mine.wait() & 7 == 3)
    #expect(mine.errors == 0x01, "source address")
    #expect(mine.word(0x20_0000) == 0)
    mine.write(0xA8, UInt32.max)
    mine.copy(from: 0x10_0000, to: 0x4000_0000)
    #expect(mine.wait() & 7 == 3)
    #expect(mine.errors == 0x02, "destination address")
    #expect(theirs.word(0x30_0000) == 0x5EC2E7)
    // An interrupt of anybody's, by DMA.
    let signal = CountingSignal()
    theirs.write(0x03, UInt8(0x08))
    #expect(theirs.arm(signal) == 0)
    mine.write(0xA8, UInt32.max)
    mine.copy(from: 0x10_0000, to: 0xFEE0_0010, size: 4)
    #expect(mine.wait() & 7 == 3)
    #expect(mine.errors == 0x02)
    #expect(signal.count == 0)
    #expect(rig.count("faults", of: 0) == 3)
    #expect(rig.count("faults", of: 1) == 0)
    #expect(rig.iommu.faults[rig.physical.requester].count == 0, "the parent has none")
    // The engine goes on for who behaves, and for who learns to.
    for user in [theirs, mine] {
      user.write(0xA8, UInt32.max)
      user.copy(from: 0x10_0000, to: 0x20_0000)
      #expect(user.wait() == 0x10001)
      user.caller.closeAll()
    }
  }

  @Test("D2: an endless ring of long copies does not keep a neighbour waiting")
  func endlessRing() throws {
    let rig = try MediatedRig()
    let (greedy, modest) = (try rig.user("pasid", 0), try rig.user("pasid", 1))
    greedy.copy(from: 0x10_0000, to: 0x40_0000, size: 1 << 20, count: .max)
    for round in UInt64(1)...4 {
      modest.fill(0x10_0000, round)
      modest.copy(from: 0x10_0000, to: 0x20_0000, count: 8)
      #expect(modest.wait() == 0x10001)
      #expect(modest.word(0x20_0000) == round)
    }
    #expect(greedy.status & 7 == 0, "64 GiB take longer than this")
    #expect(rig.count("bytes", of: 1) == 4 * 8 * 4096)
    // Its end is not waited for either.
    greedy.caller.closeAll()
    modest.caller.closeAll()
  }

  @Test("D2: the reset and the close of a slice end its DMA and leave its neighbours at work")
  func resetAndClose() throws {
    let rig = try MediatedRig()
    let users = try (0..<3).map { try rig.user($0 == 1 ? "software" : "pasid", $0) }
    for user in users { user.copy(from: 0x10_0000, to: 0x40_0000, size: 1 << 20, count: .max) }
    #expect(users[0].caller.ioctl(users[0].file, 0x3B6F, at: 0) == 0)  // VFIO_DEVICE_RESET
    users[1].caller.closeAll()
    // What the engine had in hand is counted once it comes round.
    func neighbourGoesOn() {
      let before = rig.count("descriptors", of: 2)
      while rig.count("descriptors", of: 2) < before + 4 {}
    }
    neighbourGoesOn()
    let (done, closed) = (rig.count("descriptors", of: 0), rig.count("descriptors", of: 1))
    neighbourGoesOn()
    #expect(rig.count("descriptors", of: 0) == done)
    #expect(rig.count("descriptors", of: 1) == closed)
    #expect(users[0].status == 3, "as after power-on")
    for user in users { user.caller.closeAll() }
  }

  @Test("A3: a descriptor's PASID that was not attached is refused before the IOMMU sees it")
  func descriptorPASIDs() throws {
    let rig = try MediatedRig()
    let users = try (0..<2).map { try rig.user("pasid", $0) }
    #expect(users[0].read(0x10, as: UInt32.self) == 0x8000_0000)
    for (index, user) in users.enumerated() {
      // Its own PASID 2 is another space, with other memory at the same addresses.
      let pasids = try PASIDSpace(user)
      #expect(pasids.attach(2) == 0)
      user.fill(0x10_0000, UInt64(0xA0 + index))
      user.fill(0x50_0000, UInt64(0xB0 + index))
      user.copy(from: 0x10_0000, to: 0x20_0000, pasid: 2)
      #expect(user.wait() == 0x10001)
      #expect(user.word(0x60_0000) == UInt64(0xB0 + index), "in the space of the PASID")
      #expect(user.word(0x20_0000) == 0)
      // 1 is the default PASID of somebody here, 3 may be a physical one: neither is attached.
      for pasid: UInt32 in [0, 1, 3, 0xF_FFFF] {
        user.copy(from: 0x10_0000, to: 0x20_0000, pasid: pasid)
        #expect(user.wait() & 7 == 3)
        #expect(user.errors == 0x400, "descriptor control")
        user.write(0xA8, UInt32.max)
      }
      #expect(pasids.detach(2) == 0)
      user.copy(from: 0x10_0000, to: 0x20_0000, pasid: 2)
      #expect(user.wait() & 7 == 3)
      #expect(rig.count("refused_pasids", of: index) == 5)
      #expect(rig.count("faults", of: index) == 0)
    }
    #expect(rig.iommu.faults.count == 0)
    for user in users { user.caller.closeAll() }
  }

  @Test("C6: slices of all kinds share a container, and are open by their groups' nodes")
  func containers() throws {
    let rig = try MediatedRig()
    let slices = try [rig.create("pasid", 0), rig.create("software", 1)]
    let program = try GroupRig(
      devices: slices.map(\.device), system: rig.system, iommu: rig.iommu)
    let (container, groups) = try program.connect([0, 1])
    #expect(program.map(container, 0x40_0000, to: 0x10_0000, size: 0x20_0000) == 0)
    for (index, group) in groups.enumerated() {
      #expect(program.status(group) == VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_CONTAINER_SET)
      let device = program.getDevice(group, "\(slices[index].uuid)")
      #expect(device > 0)
      #expect(errno { try rig.bus.remove(MediatedRig.uuid(index)) } == .resourceBusy)
      #expect(program.unsetContainer(group) == -16)
      program.caller.put(UInt64(0xA0 + index), at: 0x12_0000)
      #expect(
        program.copy(
          device, ring: 0x10_0000, at: 0x40_0000, from: 0x42_0000, to: 0x43_0000) == 1)
      #expect(program.caller.get(UInt64.self, at: 0x13_0000) == UInt64(0xA0 + index))
      #expect(
        program.copy(
          device, ring: 0x10_0000, at: 0x40_0000, from: 0x42_0000, to: 0x90_0000) == 3)
      program.caller.close(device)
    }
    #expect((0..<2).map { rig.count("faults", of: $0) } == [1, 1])
    #expect(program.leftovers() == [])
    for index in 0..<2 { try rig.bus.remove(MediatedRig.uuid(index)) }
  }

  // MARK: Coming and going

  @Test("J2: types, instances and their errors are as Linux's mdev has them")
  func creation() throws {
    let rig = try MediatedRig(pasidBits: 1, capacity: 3)
    let driver = rig.parent.driver
    #expect(
      rig.parent.types.map { rig.parent.identifier(of: $0) } == [
        "ioat-mdev-pasid", "ioat-mdev-fixed", "ioat-mdev-software",
      ])
    func available() -> [Int] { rig.parent.types.map { driver.availableInstances(of: $0) } }
    #expect(available() == [1, 1, 3])
    _ = try rig.create("pasid", 0)
    #expect(available() == [0, 0, 2])
    #expect(errno { _ = try rig.create("pasid", 1) } == .tooManyUsers, "one PASID in one bit")
    #expect(errno { _ = try rig.create("software", 0) } == .fileExists)
    #expect(errno { _ = try rig.create("gpu", 1) } == .invalidArgument)
    _ = try rig.create("software", 1)
    _ = try rig.create("software", 2)
    #expect(errno { _ = try rig.create("software", 3) } == .tooManyUsers)
    #expect(available() == [0, 0, 0])
    #expect(rig.bus.instances.map(\.device.index) == [0, 1, 2])
    try rig.bus.remove(MediatedRig.uuid(1))
    #expect(errno { try rig.bus.remove(MediatedRig.uuid(1)) } == Errno(rawValue: 19))
    #expect(try rig.create("software", 4).device.index == 1, "the lowest number that is free")
    try rig.bus.unregister(rig.parent)
    #expect(rig.bus.instances.isEmpty && rig.system.groups.count == 1)
    #expect(errno { _ = try rig.create("software", 5) } == Errno(rawValue: 19))
    #expect(rig.system.groups.count == 1)
  }

  @Test("J2: without PASIDs in the IOMMU, slices are of software only")
  func withoutPASIDs() throws {
    let rig = try MediatedRig(pasidBits: 0)
    #expect(rig.parent.types == [MediatedCopyEngine.softwareType])
    #expect(errno { _ = try rig.create("pasid", 0) } == .invalidArgument)
  }

  @Test(
    "J2: a slice in use is not removed: its user is asked, and gone it leaves nothing",
    arguments: ["pasid", "software"])
  func removal(type: String) throws {
    let rig = try MediatedRig(pasidBits: 1)
    let user = try rig.user(type, 0)
    let request = CountingSignal()
    #expect(
      user.setIRQs(flags: 0x24, index: 4, count: 1, data: [user.caller.add(request)]) == 0)
    #expect(errno { try rig.bus.remove(MediatedRig.uuid(0)) } == .resourceBusy)
    #expect(request.count == 1)
    user.copy(from: 0x10_0000, to: 0x20_0000)
    #expect(user.wait() == 0x10001, "it works on")
    user.caller.close(user.devicefd)
    // A file that is open but not bound does not hold it.
    let late = user.vfio.open()
    try rig.bus.remove(MediatedRig.uuid(0))
    let context = Context(system: rig.system)
    #expect(
      errno { try late.bind(findContext: { context }, publish: { _ in }) }
        == Errno(rawValue: 19))
    context.close()
    user.caller.closeAll()

    // The next one has the PASID and nothing of the memory.
    let next = try EngineRig(
      device: rig.create(type, 1).device, system: rig.system, iommu: rig.iommu)
    #expect(next.bind() == 0)
    next.config(0x04, UInt16(0x0006))
    next.start(0x10000, count: 1)
    #expect(next.wait() & 7 == 3)
    #expect(next.errors == 0x10, "chain address")
    #expect(rig.count("faults", of: 1) == 1)
    next.caller.closeAll()
    try rig.bus.remove(MediatedRig.uuid(1))
    #expect(rig.system.contextCount == 0)
  }
}
