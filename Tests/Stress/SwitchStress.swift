// SPDX-License-Identifier: Apache-2.0
//
// MODEL C2, D1: security contexts are switched from some threads while others do DMA, which
// meets the old context or the new one: never the host's memory while somebody owns the group,
// never two in one access.

import IOMMU
import PageTables
import SoftwareIOMMU
import Synchronization
import SystemPackage

/// What to run.
public struct SwitchOptions: Sendable {
  public var seed: UInt64
  /// Goes on at least as long, in seconds.
  public var seconds: Double
  /// Goes on until each kind of switch was made so often, and each lane met all that it can.
  public var rounds: Int
  /// Ends there in any case.
  public var maximumSwitches: Int
  /// What the driver does wrong.
  public var breakage: Breakage?

  public init(
    seed: UInt64, seconds: Double = 0, rounds: Int = 1, maximumSwitches: Int = .max,
    breakage: Breakage? = nil
  ) {
    self.seed = seed
    self.seconds = seconds
    self.rounds = rounds
    self.maximumSwitches = maximumSwitches
    self.breakage = breakage
  }
}

/// What came of a run.
public struct SwitchReport: Sendable {
  public var switches: [Switch: Int] = [:]
  /// DMA accesses.
  public var accesses = 0
  /// The first access that met what it must not, in a sentence.
  public var failure: String?

  /// One line for each kind of switch.
  public var lines: [String] {
    Switch.allCases.map { "\($0.rawValue): \(switches[$0] ?? 0)" } + ["DMA: \(accesses)"]
  }
}

/// The machine of a run: requesters in a pair, alone and shared, sliced and never given away.
private struct SwitchWorld {
  let system = IOMMUSystem()
  var contexts: [Context] = []
  var lanes: [SwitchLane] = []
  var movers: [any Mover] = []
  /// Holds what the host's context translates by.
  private var hostBinding: StressBinding?

  private let iommu: SoftwareIOMMU
  private let memory: SwitchMemory
  private var seeds: SplitMix

  init(_ options: SwitchOptions) throws(IOMMUError) {
    seeds = SplitMix(seed: options.seed)
    memory = try SwitchMemory(targets: 5)
    iommu = SoftwareIOMMU(
      name: "dmar0", configuration: .init(levels: 4, pasidBits: 8),
      memory: system.memory, events: system.events)
    let driver = try makeDriver(options.breakage)
    contexts += [Context(system: system), Context(system: system)]
    let first = try makeSpaces([1, 2], in: contexts[1])
    let second = try makeSpaces([3, 4], in: contexts[2])
    try addPair(driver, first)
    try addShared(driver, [first, second])
    try addSlices(driver, first)
  }

  private mutating func makeDriver(_ breakage: Breakage?) throws(IOMMUError) -> SwitchDriver {
    let context = Context(system: system)
    contexts.append(context)
    let device = try system.addDevice(
      name: "host", requester: RequesterID(bus: 0, device: 0, function: 0), driver: iommu,
      group: system.addGroup())
    let binding = StressBinding(try context.register(device))
    hostBinding = binding
    let ioas = try context.allocateIOAS()
    try map(0, in: ioas, of: context)
    let table = try context.allocateHWPT(for: binding.id, from: ioas)
    return SwitchDriver(
      base: iommu, hostMemory: try context.pagingDomain(table), breakage: breakage)
  }

  private func map(_ target: Int, in ioas: ObjectID, of context: Context) throws(IOMMUError) {
    try context.map(
      memory.arena, start: memory.start(target), length: SwitchMemory.byteCount, into: ioas,
      at: .fixed(IOVA(SwitchMemory.iova)))
  }

  private typealias Spaces = [(number: Int, ioas: ObjectID)]

  private func makeSpaces(
    _ numbers: [Int], in context: Context
  ) throws(IOMMUError) -> Spaces {
    var spaces: Spaces = []
    for number in numbers {
      let ioas = try context.allocateIOAS()
      try map(number, in: ioas, of: context)
      spaces.append((number, ioas))
    }
    return spaces
  }

  /// A table for each space that a device can use with PASIDs and without.
  private func targets(
    _ spaces: Spaces, for device: ObjectID, in context: Context
  ) throws(IOMMUError) -> SwitchTargets {
    var result: [(number: Int, ioas: ObjectID, table: ObjectID)] = []
    for space in spaces {
      let table = try context.allocateHWPT(for: device, from: space.ioas, attributes: .pasid)
      result.append((space.number, space.ioas, table))
    }
    return SwitchTargets(spaces: result)
  }

  private mutating func addDevice(
    _ driver: SwitchDriver, _ slot: UInt8, _ function: UInt8 = 0, group: DeviceGroup
  ) throws(IOMMUError) -> PhysicalDevice {
    let requester = RequesterID(bus: 1, device: slot, function: function)
    let device = try system.addDevice(
      name: "\(requester)", requester: requester, driver: driver, group: group)
    // As a host that uses the device leaves it.
    try driver.setContext(of: requester, pasid: nil, to: .host)
    return device
  }

  private mutating func addLane(
    _ device: PhysicalDevice, pasid: PASID? = nil, starting reach: Reach
  ) -> SwitchLane {
    let lane = SwitchLane(
      number: lanes.count,
      name: device.name + (pasid.map { " with PASID \($0.rawValue)" } ?? ""),
      port: iommu.port(for: device.requester, pasid: pasid), memory: memory, starting: reach,
      seed: seeds.next())
    lanes.append(lane)
    return lane
  }

  private mutating func addPair(_ driver: SwitchDriver, _ spaces: Spaces) throws(IOMMUError) {
    let group = system.addGroup()
    let devices = [
      try addDevice(driver, 1, 0, group: group), try addDevice(driver, 1, 1, group: group),
    ]
    let context = contexts[1]
    let targets: SwitchTargets
    do {
      let binding = try context.register(devices[0])
      targets = try self.targets(spaces, for: binding.id, in: context)
    }
    let own = devices.map { addLane($0, starting: .host) }
    movers.append(
      PairMover(
        context: context, devices: devices, lanes: own, targets: targets, seed: seeds.next()))
  }

  private mutating func addShared(
    _ driver: SwitchDriver, _ spaces: [Spaces]
  ) throws(IOMMUError) {
    let device = try addDevice(driver, 2, group: system.addGroup())
    let pasid = PASID(rawValue: 5)
    let targets: [SwitchTargets]
    do {
      let binding = try contexts[1].register(device)
      let shared = try binding.share(with: contexts[2])
      targets = [
        try self.targets(spaces[0], for: binding.id, in: contexts[1]),
        try self.targets(spaces[1], for: shared.id, in: contexts[2]),
      ]
    }
    let main = addLane(device, starting: .host)
    let under = addLane(device, pasid: pasid, starting: .blocked)
    movers.append(
      SharedMover(
        contexts: [contexts[1], contexts[2]], device: device, main: main, under: under,
        pasid: pasid, targets: targets, seed: seeds.next()))
  }

  private mutating func addSlices(
    _ driver: SwitchDriver, _ spaces: Spaces
  ) throws(IOMMUError) {
    let parent = try addDevice(driver, 3, group: system.addGroup())
    // Nobody touches it: its DMA stays in the host's memory.
    _ = addLane(parent, starting: .host)
    for number: UInt32 in [6, 7] {
      let pasid = PASID(rawValue: number)
      let slice = try system.addMediatedDevice(
        name: "slice \(number)", parent: parent, defaultPASID: pasid)
      let targets: SwitchTargets
      do {
        let binding = try contexts[1].register(slice)
        targets = try self.targets(spaces, for: binding.id, in: contexts[1])
      }
      let lane = addLane(parent, pasid: pasid, starting: .blocked)
      movers.append(
        SliceMover(
          context: contexts[1], slice: slice, lane: lane, targets: targets, seed: seeds.next()))
    }
  }
}

/// What all threads of a run share.
private final class SwitchState: Sendable {
  let stops = Atomic(false)
  let accesses = Atomic(0)
  private let shared = Guarded(SwitchReport())

  func note(_ kind: Switch) { shared.withLock { $0.switches[kind, default: 0] += 1 } }

  func fail(_ sentence: String) {
    shared.withLock { if $0.failure == nil { $0.failure = sentence } }
    stop()
  }

  func stop() { stops.store(true, ordering: .releasing) }
  var isStopping: Bool { stops.load(ordering: .acquiring) }

  var report: SwitchReport {
    var report = shared.withLock { $0 }
    report.accesses = accesses.load(ordering: .relaxed)
    return report
  }
}

/// Switches contexts under DMA until there is enough of it, or an access met what it must not.
/// - Parameter tell: Takes a line now and then.
public func runSwitches(
  _ options: SwitchOptions, tell: (String) -> Void = { _ in }
) throws(IOMMUError) -> SwitchReport {
  let state = SwitchState()
  let system: IOMMUSystem
  do {
    let world = try SwitchWorld(options)
    system = world.system
    run(world, options, state, tell)
    for context in world.contexts { context.close() }
  }
  // All is unbound with the last reference to the world.
  let left = [
    ("contexts", system.contextCount), ("pieces of memory", system.memory.usedSlots),
    ("groups that are owned", system.groups.count { $0.isOwned }),
  ].filter { $0.1 != 0 }
  if !left.isEmpty { state.fail("A1: there are left: \(left)") }
  return state.report
}

private func run(
  _ world: SwitchWorld, _ options: SwitchOptions, _ state: SwitchState,
  _ tell: (String) -> Void
) {
  let (lanes, movers) = (world.lanes, world.movers)
  var threads = (0..<2).map { part in
    startThread {
      let own = lanes.indices.filter { $0 % 2 == part }.map { lanes[$0] }
      while !state.isStopping {
        for lane in own {
          if let sentence = lane.probe() { state.fail(sentence) }
        }
        state.accesses.add(own.count, ordering: .relaxed)
      }
    }
  }
  threads += movers.map { mover in
    startThread {
      while !state.isStopping {
        do throws(IOMMUError) {
          if let kind = try mover.move() { state.note(kind) }
        } catch {
          state.fail("C2: a switch that must succeed met \(error)")
        }
        yieldThread()
      }
    }
  }
  let start = ContinuousClock.now
  var line = start + .seconds(10)
  while !state.isStopping {
    sleepThread(milliseconds: 10)
    let report = state.report
    let total = report.switches.values.reduce(0, +)
    let isEnough = Switch.allCases.allSatisfy { report.switches[$0] ?? 0 >= options.rounds }
    let now = ContinuousClock.now
    if isEnough, now >= start + .seconds(options.seconds) { state.stop() }
    if total >= options.maximumSwitches { state.stop() }
    if now >= line {
      line = now + .seconds(10)
      tell("\(total) switches under \(report.accesses) accesses")
    }
  }
  for thread in threads { thread.join() }
}
