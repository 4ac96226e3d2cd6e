// SPDX-License-Identifier: Apache-2.0
//
// MODEL E1, E2, E3: the kinds of device, where their physical PASIDs come from, and that nobody
// is told one.

import IOMMU
import PageTables
import SystemPackage
import Testing

@Suite struct VirtualPASIDTests {
  let machine = TestMachine(
    driver: DictionaryDriver(capabilities: IOMMUCapabilities(pasidBits: 8)))
  let context: Context
  let ioas: ObjectID

  init() throws {
    context = Context(system: machine.system)
    ioas = try context.allocateIOAS()
  }

  private func pasid(_ number: UInt32) -> PASID { PASID(rawValue: number) }

  private func device(_ slot: UInt8, kind: DeviceKind) throws -> PhysicalDevice {
    let requester = RequesterID(bus: 0, device: slot, function: 0)
    return try machine.system.addDevice(
      name: "\(requester)", requester: requester, driver: machine.driver,
      group: machine.system.addGroup(), kind: kind)
  }

  private func slice(
    _ name: String, of parent: PhysicalDevice, kind: DeviceKind = .mediated,
    defaultPASID: UInt32? = nil
  ) throws -> MediatedDevice {
    try machine.system.addMediatedDevice(
      name: name, parent: parent, defaultPASID: defaultPASID.map(pasid), kind: kind)
  }

  private func bind(_ device: any BindableDevice, _ context: Context? = nil) throws
    -> DeviceHolder
  {
    DeviceHolder(try (context ?? self.context).register(device))
  }

  private func table(_ device: DeviceHolder, _ ioas: ObjectID? = nil) throws -> ObjectID {
    try context.allocateHWPT(for: device.id, from: ioas ?? self.ioas, attributes: .pasid)
  }

  // MARK: E1

  @Test("E1: a slice's PASIDs are found in its parent's space, apart from its siblings'")
  func perRequester() throws {
    let parent = try machine.device(1)
    let slices = try ["one", "two"].map { try slice($0, of: parent) }
    let holders = try slices.map { try bind($0) }
    for holder in holders { try holder.attach(5, to: try table(holder)) }
    let used = slices.flatMap { [$0.defaultPASID, $0.physicalPASID(for: pasid(5))] }
    #expect(Set(used).count == 4 && !used.contains(nil))
    for physical in used.compactMap({ $0 }) {
      #expect(
        machine.driver.history(of: physical.rawValue).first == .blocked
          || machine.driver.history(of: physical.rawValue).count == 1)
    }
    #expect(machine.driver.history(of: parent).isEmpty)
  }

  @Test("E1: two requesters have the same numbers for themselves")
  func twoRequesters() throws {
    let slices = try (1...2).map { try slice("slice", of: machine.device($0)) }
    #expect(slices[0].defaultPASID == slices[1].defaultPASID)
  }

  @Test("E1: PASIDs come free with a detach, an unbind and a slice, and run out with ENOSPC")
  func exhaustion() throws {
    let machine = TestMachine(
      driver: DictionaryDriver(capabilities: IOMMUCapabilities(pasidBits: 2)))
    let parent = try machine.device(1)
    let one = try machine.system.addMediatedDevice(name: "one", parent: parent)
    let two = try machine.system.addMediatedDevice(name: "two", parent: parent)
    let context = Context(system: machine.system)
    var holder: DeviceHolder? = DeviceHolder(try context.register(one))
    let table = try context.allocateHWPT(
      for: holder?.id ?? ObjectID(0), from: context.allocateIOAS(), attributes: .pasid)
    try holder?.attach(1, to: table)
    #expect {
      try holder?.attach(2, to: table)
    } throws: { error in
      let error = error as? IOMMUError
      return error?.errno == .noSpace && error?.reason.contains("2 bits") == true
    }
    #expect(
      errno { _ = try machine.system.addMediatedDevice(name: "three", parent: parent) }
        == .noSpace)
    holder?.detach(1)
    try holder?.attach(2, to: table)
    withExtendedLifetime(holder) {}
    holder = nil
    let three = try machine.system.addMediatedDevice(name: "three", parent: parent)
    #expect(three.defaultPASID != one.defaultPASID && three.defaultPASID != two.defaultPASID)
    try machine.system.removeMediatedDevice(two)
    _ = try machine.system.addMediatedDevice(name: "four", parent: parent)
  }

  @Test("E1: a PASID that is not attached any more routes nothing and stays blocked")
  func blockedAfterwards() throws {
    let one = try slice("one", of: machine.device(1))
    let holder = try bind(one)
    try holder.attach(7, to: try table(holder))
    let physical = try #require(one.physicalPASID(for: pasid(7)))
    holder.detach(7)
    #expect(one.physicalPASID(for: pasid(7)) == nil)
    #expect(machine.driver.history(of: physical.rawValue).last == .blocked)
    try holder.attach(7, to: try table(holder))
    #expect(one.physicalPASID(for: pasid(7)) != physical, "the next in turn")
  }

  @Test("E1: where the attach fails the PASID is free again")
  func failedAttach() throws {
    let machine = TestMachine(
      driver: DictionaryDriver(capabilities: IOMMUCapabilities(pasidBits: 2)))
    let parent = try machine.device(1)
    let one = try machine.system.addMediatedDevice(name: "one", parent: parent)
    let context = Context(system: machine.system)
    let holder = DeviceHolder(try context.register(one))
    let table = try context.allocateHWPT(
      for: holder.id, from: context.allocateIOAS(), attributes: .pasid)
    machine.driver.refuses.withLock { _ = $0.insert(parent.requester) }
    for _ in 0..<5 {
      #expect(errno { try holder.attach(1, to: table) } == .invalidArgument)
    }
    machine.driver.refuses.withLock { $0 = [] }
    for number: UInt32 in 1...2 { try holder.attach(number, to: table) }
  }

  @Test("E1: all kind-8 devices of a context have one physical PASID for a virtual one")
  func shared() throws {
    let parents = try (1...2).map { try machine.device($0) }
    let slices = try parents.map {
      try slice("of \($0.name)", of: $0, kind: .mediatedWithWorkQueue)
    }
    let holders = try slices.map { try bind($0) }
    for holder in holders { try holder.attach(5, to: try table(holder)) }
    let physical = try #require(slices[0].physicalPASID(for: pasid(5)))
    #expect(slices[1].physicalPASID(for: pasid(5)) == physical)
    #expect(!slices.contains { $0.defaultPASID == physical })
    // Nobody else gets it, on any requester.
    for number in 0..<200 {
      let other = try slice("\(number)", of: parents[number % 2])
      #expect(other.defaultPASID != physical)
    }
    let stranger = Context(system: machine.system)
    let other = try slice("stranger", of: parents[0], kind: .mediatedWithWorkQueue)
    let holder = try bind(other, stranger)
    let table = try stranger.allocateHWPT(
      for: holder.id, from: stranger.allocateIOAS(), attributes: .pasid)
    try holder.attach(5, to: table)
    #expect(other.physicalPASID(for: pasid(5)) != physical)
  }

  @Test(
    "E1: slices of one parent that share a PASID go through one table until the last leaves")
  func sharedRoute() throws {
    let parent = try machine.device(1)
    let slices = try ["one", "two"].map {
      try slice($0, of: parent, kind: .mediatedWithWorkQueue)
    }
    let holders = try slices.map { try bind($0) }
    let tables = try [table(holders[0]), table(holders[1], context.allocateIOAS())]
    try holders[0].attach(5, to: tables[0])
    let physical = try #require(slices[0].physicalPASID(for: pasid(5)))
    func history() -> [DictionaryDriver.Seen] { machine.driver.history(of: physical.rawValue) }
    #expect {
      try holders[1].attach(5, to: tables[1])
    } throws: { error in
      let error = error as? IOMMUError
      return error?.errno == .invalidArgument && error?.reason.contains("one") == true
    }
    #expect(slices[1].physicalPASID(for: pasid(5)) == nil)
    try holders[1].attach(5, to: tables[0])
    #expect(errno { try holders[0].replace(5, with: tables[1]) } == .invalidArgument)
    #expect(history().count == 1)
    holders[0].detach(5)
    #expect(history().last != .blocked, "its sibling still uses it")
    try holders[1].replace(5, with: tables[1])
    #expect(slices[1].physicalPASID(for: pasid(5)) == physical)
    holders[1].detach(5)
    #expect(history().last == .blocked)
  }

  @Test("E1: what a slice has of its parent's space the parent's user cannot attach")
  func identityAndSlices() throws {
    let parent = try machine.device(1)
    let one = try slice("one", of: parent, defaultPASID: 9)
    let holder = try bind(parent)
    try holder.attach(to: try table(holder))
    #expect {
      try holder.attach(9, to: try table(holder))
    } throws: { error in
      let error = error as? IOMMUError
      return error?.errno == .resourceBusy && error?.reason.contains("one") == true
    }
    try holder.attach(10, to: try table(holder))
    #expect(errno { _ = try slice("two", of: parent, defaultPASID: 10) } == .resourceBusy)
    try machine.system.removeMediatedDevice(one)
    try holder.attach(9, to: try table(holder))
  }

  // MARK: E2, E3

  @Test("E2: which kinds take a virtual PASID, and what their DMA then carries")
  func kinds() throws {
    for (index, kind) in DeviceKind.allCases.enumerated() where kind != .softwareMediated {
      let slot = UInt8(index + 1)
      let endpoint: any BindableDevice =
        kind.isMediated
        ? try slice("\(kind.rawValue)", of: machine.device(slot), kind: kind)
        : try device(slot, kind: kind)
      let holder = try bind(endpoint)
      let expected: Errno? =
        switch kind {
        case .physicalWithoutPASIDs, .mediatedWithoutPASIDs: .invalidArgument
        case .physicalDelegated: .operationNotSupported
        default: nil
        }
      #expect(
        errno { try holder.attach(200, to: try table(holder)) } == expected, "\(kind)")
      let physical = endpoint.physicalPASID(for: pasid(200))
      switch kind {
      case .physical, .physicalWithWorkQueue: #expect(physical == pasid(200), "\(kind)")
      case .mediated, .mediatedWithWorkQueue:
        #expect(physical != nil && physical != pasid(200), "\(kind)")
      default: #expect(physical == nil, "\(kind)")
      }
      #expect(endpoint.pasids.all == (expected == nil ? [pasid(200)] : []))
      #expect(
        try context.hardwareInformation(of: holder.id).capabilities.pasidBits
          == (kind.hasVirtualPASIDs ? 8 : 0))
      if expected != .invalidArgument {
        #expect(errno { try holder.attach(256, to: try table(holder)) } != nil)
      }
    }
  }

  @Test("E2: a device is not registered as a kind that it cannot be")
  func impossibleKinds() throws {
    #expect(errno { _ = try device(1, kind: .mediated) } == .invalidArgument)
    let parent = try machine.device(2)
    for kind in DeviceKind.allCases where !kind.isMediated || kind == .softwareMediated {
      #expect(errno { _ = try slice("one", of: parent, kind: kind) } == .invalidArgument)
    }
    let plain = TestMachine()
    #expect(try plain.device(1).kind == .physicalWithoutPASIDs)
    #expect(try machine.device(3).kind == .physical)
    for kind in [DeviceKind.physical, .physicalDelegated, .physicalWithWorkQueue] {
      #expect(
        errno {
          _ = try plain.system.addDevice(
            name: "x", requester: RequesterID(rawValue: 9), driver: plain.driver,
            group: plain.system.addGroup(), kind: kind)
        } == .invalidArgument)
    }
  }

  @Test("E3: each kind says by three flags who manages its PASIDs and who translates them")
  func flags() {
    let flags = DeviceKind.allCases.map(\.flags.rawValue)
    #expect(flags == [0, 0, 0, 1, 0, 0, 2, 6])
    #expect(
      DeviceKind.allCases.filter(\.hasVirtualPASIDs).map(\.rawValue) == [4, 5, 6, 7, 8])
  }

  // MARK: E4

  @Test("E4: a user's errors and page requests name virtual PASIDs only", arguments: [6, 8])
  func hidden(kind: UInt8) throws {
    let rig = try FaultRig()
    let parent = try rig.device(1)
    // So that the physical PASIDs are others.
    for number in 0..<50 {
      _ = try rig.system.addMediatedDevice(name: "\(number)", parent: parent)
    }
    let one = try rig.system.addMediatedDevice(
      name: "one", parent: parent, kind: try #require(DeviceKind(rawValue: kind)))
    let holder = DeviceHolder(try rig.context.register(one))
    let table = try rig.table(for: holder, queue: rig.queue)
    try holder.attach(to: table)
    try holder.attach(5, to: table)
    let physical = try #require(one.physicalPASID(for: pasid(5))?.rawValue)
    let own = try #require(one.defaultPASID?.rawValue)
    #expect(physical != 5 && own != 5)
    rig.request(1, pasid: physical, by: parent)
    rig.request(2, pasid: own, by: parent)
    let deliveries = try rig.read()
    #expect(deliveries.map { $0.requests.map(\.pasid) } == [[pasid(5)], [nil]])
    for delivery in deliveries { try rig.queue.respond(to: delivery.cookie, with: .success) }
    #expect(
      rig.driver.takeAnswers(to: parent)
        == [
          PageResponse(pasid: pasid(physical), group: 1, code: .success),
          PageResponse(pasid: pasid(own), group: 2, code: .success),
        ], "the device hears of the PASID that it asked with")
    #expect {
      try holder.attach(5, to: table)
    } throws: { error in
      (error as? IOMMUError)?.reason.contains("PASID 5 ") == true
    }
  }
}
