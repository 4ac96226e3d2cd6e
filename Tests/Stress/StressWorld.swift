// SPDX-License-Identifier: Apache-2.0
//
// The machine and the context of a run: spaces with a table each, devices in groups, slots of
// memory; the checks while everything stands still, and those at the end.

import IOMMU
import PageTables
import SoftwareIOMMU
import Synchronization
import SystemPackage

/// One machine, one context.
final class StressWorld: Sendable {
  let system = IOMMUSystem()
  let iommu: SoftwareIOMMU
  let context: Context
  let arena: LocalMemory
  let spaces: [ObjectID]
  /// For each space a table that every device can use, with PASIDs too.
  let tables: [ObjectID]
  /// By space, then by place.
  let slots: [[Slot]]
  let groups: [StressGroup]
  /// Devices that workers bind and unbind.
  let spareDevices: [PhysicalDevice]
  let pageRequests: PageRequestWorld
  /// Objects that are there all the time.
  let steadyObjects: Int

  static let spaceCount = 3
  /// Where the slots begin: below the interrupt window, clear of what workers map beside them.
  private static let firstIOVA: UInt64 = 0x1000_0000
  /// What a worker may map beside the slots, and how much of it each has.
  static let otherIOVA: UInt64 = 0x8000_0000

  init(_ options: StressOptions) throws(IOMMUError) {
    let plan = Plan(threads: options.threads)
    iommu = SoftwareIOMMU(
      name: "dmar0",
      configuration: .init(levels: 4, pasidBits: 8),
      memory: system.memory, events: system.events)
    context = Context(system: system)
    let context = context
    let perSpace = plan.mappers * Plan.slotsPerMapper
    arena = try LocalMemory(
      byteCount: UInt64(Self.spaceCount * perSpace) * 2 * Plan.extentSize,
      alignment: 2 << 20)
    var spaces: [ObjectID] = []
    var slots: [[Slot]] = []
    for space in 0..<Self.spaceCount {
      let id = try context.allocateIOAS()
      spaces.append(id)
      slots.append(
        (0..<perSpace).map { place in
          let number = space * perSpace + place
          let isLarge = place % Plan.slotsPerMapper == 0
          return Slot(
            number: number, space: id,
            iova: Self.firstIOVA + UInt64(place) * Plan.extentSize,
            pages: isLarge ? 512 : 1 + place % 16, step: isLarge ? 64 : 1,
            extents: (0..<2).map { UInt64(number * 2 + $0) * Plan.extentSize })
        })
    }
    self.spaces = spaces
    self.slots = slots
    (groups, tables) = try Self.makeGroups(
      system: system, iommu: iommu, context: context, spaces: spaces)
    var spare: [PhysicalDevice] = []
    for index in 0..<plan.churners {
      spare.append(
        try system.addDevice(
          name: "spare\(index)",
          requester: RequesterID(bus: 2, device: UInt8(index & 31), function: 0),
          driver: iommu, group: system.addGroup()))
    }
    spareDevices = spare
    pageRequests = try PageRequestWorld(system, context)
    steadyObjects = context.objectCount
    for slot in slots.joined() {
      for extent in slot.extents { arena.fill(slot, extent: extent, with: .poison) }
    }
  }

  /// A pair that shares a group, and two devices that are alone; one uses a PASID too.
  private static func makeGroups(
    system: IOMMUSystem, iommu: SoftwareIOMMU, context: Context, spaces: [ObjectID]
  ) throws(IOMMUError) -> ([StressGroup], [ObjectID]) {
    var groups: [StressGroup] = []
    var tables: [ObjectID] = []
    var lane = 0
    for (index, members) in [2, 1, 1].enumerated() {
      let group = system.addGroup()
      var bindings: [StressBinding] = []
      var ports: [StressPort] = []
      for member in 0..<members {
        let requester = RequesterID(bus: 1, device: UInt8(index), function: UInt8(member))
        let device = try system.addDevice(
          name: requester.description, requester: requester, driver: iommu, group: group)
        let binding = StressBinding(try context.register(device))
        bindings.append(binding)
        ports.append(StressPort(lane: lane, port: iommu.port(for: requester)))
        lane += 1
      }
      if tables.isEmpty {
        for space in spaces {
          tables.append(
            try context.allocateHWPT(for: bindings[0].id, from: space, attributes: .pasid))
        }
      }
      let usesPASID = index == 2
      groups.append(
        StressGroup(
          name: "group \(group.id)", pasid: nil, bindings: bindings, ports: ports,
          takesAutomatic: !usesPASID))
      guard usesPASID else { continue }
      let pasid = PASID(rawValue: 5)
      let port = iommu.port(
        for: RequesterID(bus: 1, device: UInt8(index), function: 0), pasid: pasid)
      groups.append(
        StressGroup(
          name: "group \(group.id) with a PASID", pasid: pasid, bindings: bindings,
          ports: [StressPort(lane: lane, port: port)], takesAutomatic: false))
    }
    return (groups, tables)
  }

  /// What workers there are.
  struct Plan {
    let mappers: Int
    let devices: Int
    let attachers: Int
    let churners: Int
    let requesters: Int
    static let slotsPerMapper = 4
    /// Room for the largest slot, in bytes.
    static let extentSize: UInt64 = 2 << 20

    init(threads: Int) {
      attachers = max(1, threads / 6)
      churners = max(1, threads / 6)
      requesters = max(1, threads / 4)
      devices = max(1, (threads - attachers - churners - requesters) / 2)
      mappers = max(1, threads - attachers - churners - requesters - devices)
    }
  }

  func workers(
    _ options: StressOptions, _ state: StressState
  ) throws(IOMMUError) -> [any StressWorker] {
    let plan = Plan(threads: options.threads)
    var workers: [any StressWorker] = []
    var seed = SplitMix(seed: options.seed)
    for index in 0..<plan.mappers {
      let own = slots.flatMap {
        $0[index * Plan.slotsPerMapper..<(index + 1) * Plan.slotsPerMapper]
      }
      workers.append(Mapper(world: self, state: state, slots: own, seed: seed.next()))
    }
    // A port is one thread's: the lanes are dealt out.
    var lanes = [[Lane]](repeating: [], count: plan.devices)
    var next = 0
    for group in groups {
      for port in group.ports {
        lanes[next % plan.devices].append(Lane(group: group, port: port))
        next += 1
      }
    }
    for lanes in lanes where !lanes.isEmpty {
      workers.append(DeviceWorker(world: self, state: state, lanes: lanes, seed: seed.next()))
    }
    for _ in 0..<plan.attachers {
      workers.append(Attacher(world: self, state: state, seed: seed.next()))
    }
    for _ in 0..<plan.requesters {
      workers.append(Requester(world: self, state: state, seed: seed.next()))
    }
    for index in 0..<plan.churners {
      workers.append(
        try Churner(
          world: self, state: state, device: spareDevices[index], index: index,
          seed: seed.next()))
    }
    return workers
  }
}
