// SPDX-License-Identifier: Apache-2.0
//
// MODEL C1, C3, C5, C7, D2, D3: what a registration is, who owns a group, and what an attach
// moves.

import IOMMU
import SystemPackage
import Testing

@Suite struct OwnershipTests {
  let machine = TestMachine(
    driver: DictionaryDriver(capabilities: IOMMUCapabilities(pasidBits: 8)))

  private func table(
    _ context: Context, _ device: ObjectID, _ ioas: ObjectID? = nil
  ) throws -> ObjectID {
    try context.allocateHWPT(
      for: device, from: ioas ?? context.allocateIOAS(), attributes: .pasid)
  }

  // MARK: Registration

  @Test("C1: a cookie names one device of its context")
  func cookies() throws {
    let context = Context(system: machine.system)
    let devices = try (1...2).map { try machine.device($0) }
    let binding = try context.register(devices[0], cookie: 7)
    #expect(binding.cookie == 7 && binding.device === devices[0])
    #expect(try context.device(cookie: 7) == binding.id)
    #expect(
      errno { _ = try DeviceHolder(context.register(devices[1], cookie: 7)) } == .fileExists)
    #expect(!devices[1].group.isOwned)
    #expect(errno { _ = try context.device(cookie: 8) } == .noSuchFileOrDirectory)
    let other = Context(system: machine.system)
    let second = try other.register(devices[1], cookie: 7)
    #expect(second.cookie == 7)
  }

  @Test("C1: binding a slice leaves its parent and its siblings as they are")
  func slices() throws {
    let parent = try machine.device(1, hostDriver: .dma("ioatdma"))
    let one = try machine.system.addMediatedDevice(
      name: "one", parent: parent, defaultPASID: PASID(rawValue: 5))
    let two = try machine.system.addMediatedDevice(
      name: "two", parent: parent, defaultPASID: PASID(rawValue: 6))
    #expect(machine.driver.history(of: 5) == [.blocked])
    let context = Context(system: machine.system)
    let ioas = try context.allocateIOAS()
    do {
      let binding = try context.register(one)
      #expect(binding.device.physical === parent && binding.device.defaultPASID?.rawValue == 5)
      #expect(machine.driver.history(of: 5) == [.blocked, .blocked])
      try binding.group.attach(to: ioas)
      #expect(machine.driver.history(of: 5).count == 3)
      #expect(!parent.group.isOwned && !two.group.isOwned)
    }
    #expect(machine.driver.history(of: 5).suffix(2) == [.blocked, .blocked])
    #expect(machine.driver.history(of: parent) == [], "the parent's own context never changed")
    #expect(machine.driver.history(of: 6) == [.blocked])
  }

  @Test("C1: two slices of a parent are in one space and leave it one by one")
  func slicesTogether() throws {
    let parent = try machine.device(1, hostDriver: .dma("ioatdma"))
    let slices = try (1...2).map {
      try machine.system.addMediatedDevice(
        name: "slice \($0)", parent: parent, defaultPASID: PASID(rawValue: $0))
    }
    let context = Context(system: machine.system)
    let ioas = try context.allocateIOAS()
    let before = context.snapshot
    let first = DeviceHolder(try context.register(slices[0]))
    let second = DeviceHolder(try context.register(slices[1]))
    try first.attach(to: ioas)
    let middle = context.snapshot
    try second.attach(to: ioas)
    second.detach()
    #expect(context.snapshot == middle, "the reserved ranges of the first one stay")
    first.detach()
    _ = before
  }

  @Test("D2: a slice's PASID fits its parent's IOMMU, is its own, and comes free with it")
  func slicePASIDs() throws {
    let parent = try machine.device(1)
    func make(_ pasid: UInt32) throws -> MediatedDevice {
      try machine.system.addMediatedDevice(
        name: "slice", parent: parent, defaultPASID: PASID(rawValue: pasid))
    }
    for pasid: UInt32 in [0, 256] { #expect(errno { _ = try make(pasid) } == .invalidArgument) }
    let slice = try make(255)
    #expect(errno { _ = try make(255) } == .resourceBusy)
    let context = Context(system: machine.system)
    do {
      let binding = try context.register(slice)
      #expect(errno { try machine.system.removeMediatedDevice(slice) } == .resourceBusy)
      withExtendedLifetime(binding.id) {}
    }
    try machine.system.removeMediatedDevice(slice)
    _ = try make(255)
  }

  // MARK: Groups

  @Test(
    "C5: a device that shares its group is not attached alone, and its neighbours are named")
  func alone() throws {
    let group = machine.system.addGroup()
    let devices = try (1...2).map { try machine.device($0, group: group) }
    let context = Context(system: machine.system)
    let ioas = try context.allocateIOAS()
    let binding = try context.register(devices[0])
    #expect {
      try binding.alone().attach(to: ioas)
    } throws: { error in
      let error = error as? IOMMUError
      return error?.errno == .invalidArgument
        && error?.reason.contains(devices[1].name) == true
    }
    #expect(binding.group.devices.map(\.name) == devices.map(\.name))
    try binding.group.attach(to: ioas)
    #expect(devices.map { machine.driver.history(of: $0).count } == [2, 2])
    let single = try context.register(machine.device(3))
    try single.alone().attach(to: ioas)
  }

  @Test("D3: devices that the IOMMU tells apart go where they like, in one owner's hands")
  func subgroups() throws {
    let group = machine.system.addGroup()
    let devices = try (0...1).map {
      try machine.device(UInt8($0 + 1), group: group, subgroup: $0)
    }
    let context = Context(system: machine.system)
    let first = try context.register(devices[0])
    let second = try context.register(devices[1])
    try first.alone().attach(to: context.allocateIOAS())
    try second.group.attach(to: context.allocateIOAS())
    let seen = devices.map { machine.driver.history(of: $0) }
    #expect(seen.map(\.count) == [2, 2] && seen[0] != seen[1])
    first.group.detach()
    #expect(machine.driver.history(of: devices[0]).last == .blocked)
    #expect(machine.driver.history(of: devices[1]) == seen[1])
    let other = Context(system: machine.system)
    #expect(errno { _ = try DeviceHolder(other.register(devices[1])) } == .notPermitted)
  }

  @Test("C3: a host driver that does DMA is not bound in a group that a user owns")
  func hostDrivers() throws {
    let group = machine.system.addGroup()
    let devices = try (1...2).map { try machine.device($0, group: group) }
    let context = Context(system: machine.system)
    do {
      let binding = try context.register(devices[0])
      #expect {
        try devices[1].bindHostDriver(.dma("ioatdma"))
      } throws: { error in
        let error = error as? IOMMUError
        return error?.errno == .resourceBusy && error?.reason.contains("ioatdma") == true
      }
      try devices[1].bindHostDriver(.safe("vfio-pci"))
      #expect(errno { try devices[1].bindHostDriver(.safe("pcieport")) } == .resourceBusy)
      devices[1].unbindHostDriver()
      withExtendedLifetime(binding.id) {}
    }
    try devices[1].bindHostDriver(.dma("ioatdma"))
    #expect(!group.isViable && devices[1].hostDriver == .dma("ioatdma"))
    #expect(errno { _ = try DeviceHolder(context.register(devices[0])) } == .notPermitted)
    devices[1].unbindHostDriver()
    #expect(group.isViable)
  }

  // MARK: Several contexts

  @Test("C7: who has the binding shares its PASIDs with another context, and nothing else")
  func sharing() throws {
    let device = try machine.device(1)
    let owner = Context(system: machine.system)
    let other = Context(system: machine.system)
    let pasid = PASID(rawValue: 9)
    var binding: Binding? = try owner.register(device)
    let own = try table(owner, binding?.id ?? ObjectID(0))
    try binding?.group.attach(to: own)
    let before = machine.driver.history(of: device)
    var shared: PASIDBinding? = try binding?.share(with: other, cookie: 1)
    let foreign = try table(other, shared?.id ?? ObjectID(0))
    #expect(errno { try shared?.attach(PASID(rawValue: 0), to: foreign) } == .notPermitted)
    try shared?.attach(pasid, to: foreign)
    #expect {
      try binding?.group.attach(pasid, to: own)
    } throws: { error in
      // Nothing of the other context's ids is told (A1).
      let error = error as? IOMMUError
      return error?.errno == .invalidArgument && error?.reason.contains("HWPT") == false
    }
    #expect(machine.driver.history(of: device) == before)
    binding = nil
    #expect(device.group.isOwned)
    #expect(machine.driver.history(of: device).last == .blocked)
    #expect(machine.driver.history(of: 9).count == 1, "the other context's PASID stays")
    let third = Context(system: machine.system)
    #expect(errno { _ = try DeviceHolder(third.register(device)) } == .notPermitted)
    shared = nil
    #expect(machine.driver.history(of: 9).last == .blocked)
    #expect(machine.driver.history(of: device).last == .host)
    #expect(!device.group.isOwned)
  }
}
