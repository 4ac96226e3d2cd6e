// SPDX-License-Identifier: Apache-2.0
//
// MODEL C2, C3, C7 as a table: what the host has bound to a device and to its neighbour, who
// owns the group, and what a bind comes to. As `iommu_device_claim_dma_owner` of Linux 6.12
// and the drivers that declare `driver_managed_dma`.

import IOMMU
import SystemPackage
import Testing

/// What the host has bound to a device.
enum HostUse: CaseIterable {
  case driverless, safe, unsafe

  var driver: HostDriver {
    switch self {
    case .driverless: .none
    case .safe: .safe("pcieport")
    case .unsafe: .dma("ioatdma")
    }
  }
}

/// Who owns the group when the bind is tried.
enum PriorOwner: CaseIterable {
  case nobody
  /// The context that binds.
  case same
  /// Another context, which has shared PASIDs with the one that binds.
  case sharer
  /// Another context.
  case other
}

/// One row: the device, its neighbour (nil: it is alone) and the owner.
struct ViabilityCase: CustomStringConvertible {
  let device: HostUse
  let neighbour: HostUse?
  let owner: PriorOwner

  var description: String {
    "\(device) " + (neighbour.map { "beside \($0)" } ?? "alone") + ", owner: \(owner)"
  }

  static let all = HostUse.allCases.flatMap { device in
    (HostUse.allCases.map { $0 as HostUse? } + [nil]).flatMap { neighbour in
      PriorOwner.allCases.map {
        ViabilityCase(device: device, neighbour: neighbour, owner: $0)
      }
    }
  }

  var isViable: Bool { device != .unsafe && neighbour != .unsafe }

  /// What the bind throws.
  var expected: Errno? {
    // Nobody can own a group that is not viable, so whoever tries later meets the same.
    if !isViable { return .notPermitted }
    switch owner {
    case .nobody: return nil
    // Alone, the owner has bound this very device.
    case .same: return neighbour == nil ? .resourceBusy : nil
    case .sharer: return neighbour == nil ? .resourceBusy : .notPermitted
    case .other: return .notPermitted
    }
  }
}

@Suite("Viability") struct ViabilityTests {
  let machine = TestMachine(
    driver: DictionaryDriver(capabilities: IOMMUCapabilities(pasidBits: 8)))

  @Test(
    "C3, C7: who may bind what, beside whom, whoever owns the group",
    arguments: ViabilityCase.all
  )
  func bind(row: ViabilityCase) throws {
    let group = machine.system.addGroup()
    let device = try machine.device(1, group: group, hostDriver: row.device.driver)
    let neighbour = try row.neighbour.map {
      try machine.device(2, group: group, hostDriver: $0.driver)
    }
    let context = Context(system: machine.system)
    let other = Context(system: machine.system)
    // The owner is bound to the neighbour where there is one.
    let first = neighbour ?? device
    var owner: Binding?
    var shared: PASIDBinding?
    do {
      switch row.owner {
      case .nobody: break
      case .same: owner = try context.register(first)
      case .sharer:
        owner = try other.register(first)
        shared = try owner?.share(with: context)
      case .other: owner = try other.register(first)
      }
      #expect(row.isViable || row.owner == .nobody)
    } catch {
      #expect(!row.isViable, "the owner's own bind: \(error)")
    }
    let before = [device, first].map(machine.driver.history(of:))
    let result = Result { () throws(IOMMUError) -> DeviceHolder in
      try DeviceHolder(context.register(device))
    }
    switch result {
    case .success(let holder):
      #expect(row.expected == nil)
      #expect(group.isOwned && !group.isViable)
      for member in [device, first] {
        #expect(machine.driver.history(of: member) == [.blocked], "the whole group is blocked")
      }
      withExtendedLifetime(holder) {}
    case .failure(let error):
      #expect(error.errno == row.expected, "\(error)")
      #expect(
        [device, first].map(machine.driver.history(of:)) == before, "a refusal changes nothing")
      // Who is in the way.
      let culprit =
        if row.isViable { first } else { row.device == .unsafe ? device : first }
      #expect(error.reason.contains(culprit.name), "\(error)")
      #expect(row.isViable || error.reason.contains("ioatdma"), "\(error)")
    }
    withExtendedLifetime((owner?.id, shared?.id)) {}
  }

  @Test(
    "C3: a host driver that does DMA does not come to a group that a user has, others do",
    arguments: HostUse.allCases, [true, false])
  func probe(use: HostUse, isOwned: Bool) throws {
    let group = machine.system.addGroup()
    let devices = try (1...2).map { try machine.device($0, group: group) }
    let context = Context(system: machine.system)
    var owner: DeviceHolder? = isOwned ? DeviceHolder(try context.register(devices[0])) : nil
    // The bound device, its neighbour, and one that joins now.
    for device in devices {
      let result = Result { () throws(IOMMUError) in try device.bindHostDriver(use.driver) }
      check(result, use: use, isOwned: isOwned, holder: devices[0])
      if case .success = result, use != .driverless {
        #expect(device.hostDriver == use.driver)
        device.unbindHostDriver()
      }
    }
    let joins = Result { () throws(IOMMUError) in
      _ = try machine.system.addDevice(
        name: "late", requester: RequesterID(bus: 0, device: 3, function: 0),
        driver: machine.driver, group: group, hostDriver: use.driver)
    }
    check(joins, use: use, isOwned: isOwned, holder: devices[0])
    #expect(group.devices.count == (use == .unsafe && isOwned ? 2 : 3))
    withExtendedLifetime(owner) {}
    owner = nil
    // Once the user is gone, so is the obstacle.
    devices[0].unbindHostDriver()
    try devices[0].bindHostDriver(.dma("ioatdma"))
    #expect(!group.isViable)
  }

  private func check(
    _ result: Result<Void, IOMMUError>, use: HostUse, isOwned: Bool, holder: PhysicalDevice
  ) {
    guard use == .unsafe, isOwned else {
      #expect(throws: Never.self) { try result.get() }
      return
    }
    guard case .failure(let error) = result else {
      Issue.record("a host driver that does DMA was bound in an owned group")
      return
    }
    #expect(error.errno == .resourceBusy)
    #expect(error.reason.contains(holder.name) && error.reason.contains("ioatdma"), "\(error)")
  }

  @Test("C2: a device that joins an owned group is where its neighbours are, from the start")
  func joining() throws {
    let group = machine.system.addGroup()
    let context = Context(system: machine.system)
    let binding = try context.register(machine.device(1, group: group))
    let blocked = try machine.device(2, group: group)
    #expect(machine.driver.history(of: blocked) == [.blocked])
    let ioas = try context.allocateIOAS()
    func table() throws -> ObjectID {
      try context.allocateHWPT(for: binding.id, from: ioas, attributes: .pasid)
    }
    try binding.group.attach(to: table())
    try binding.group.attach(PASID(rawValue: 7), to: table())
    let space = try #require(machine.driver.history(of: blocked).last)
    let late = try machine.device(3, group: group)
    #expect(machine.driver.history(of: late) == [space])
    #expect(machine.driver.history(of: 7).count == 3, "its PASIDs go with it")
    // Of another sub-group it is nobody's yet, and blocked.
    let apart = try machine.device(4, group: group, subgroup: 1)
    #expect(machine.driver.history(of: apart) == [.blocked])
    // One that the driver refuses is not half in.
    machine.driver.refuses.withLock {
      $0 = [RequesterID(bus: 0, device: 5, function: 0)]
    }
    #expect(errno { _ = try machine.device(5, group: group) } == .invalidArgument)
    #expect(group.devices.count == 4)
    binding.group.detach()
    #expect(machine.driver.history(of: late).last == .blocked)
  }

  @Test(
    "C2: from the first bind to the last unbind no device of the group is in the host's context",
    arguments: [1, 2, 3, 4, 5] as [UInt64])
  func neverHost(seed: UInt64) throws {
    var random = SmallRandom(state: seed)
    let group = machine.system.addGroup()
    let devices = try (1...3).map { try machine.device($0, group: group) }
    let context = Context(system: machine.system)
    let spaces = try (1...2).map { _ in try context.allocateIOAS() }
    var bound: [Int: DeviceHolder] = [:]
    var releases = 0
    for _ in 0..<400 {
      let index = random.below(devices.count)
      switch random.below(4) {
      case 0 where bound[index] == nil:
        bound[index] = DeviceHolder(try context.register(devices[index]))
      case 1:
        // A neighbour may be in the other space.
        _ = errno { try bound[index]?.attach(to: spaces[random.below(2)]) }
      case 2: bound[index]?.detach()
      default:
        bound[index] = nil
        if bound.isEmpty, devices[0].group.isOwned { Issue.record("the group is left owned") }
      }
      for device in devices {
        let history = machine.driver.history(of: device)
        #expect(bound.isEmpty == (history.last ?? .host == .host))
      }
      releases += bound.isEmpty ? 1 : 0
    }
    bound = [:]
    #expect(releases > 0)
    for device in devices {
      // Where it left the host's context it was blocked first.
      let history = machine.driver.history(of: device)
      for (old, new) in zip([.host] + history, history) where old == .host {
        #expect(new == .blocked || new == .host)
      }
    }
  }
}

/// Numbers that a seed repeats.
struct SmallRandom {
  var state: UInt64

  mutating func below(_ bound: Int) -> Int {
    state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
    return Int(state >> 33) % bound
  }
}
