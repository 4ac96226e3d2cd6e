// SPDX-License-Identifier: Apache-2.0
//
// Functions of the three kinds, and the list of PASIDs that each function keeps (MODEL A3, D2).

import IOMMU
import PageTables
import SoftwareIOMMU
import Synchronization
import SystemPackage
import Testing
import VFIO

/// A software device that is offered, and a context with memory in a space.
private struct SoftwareRig {
  let system = IOMMUSystem()
  let model = TestModel()
  let notice = Counter()
  let bus: AccessorBus
  let device: VFIODevice
  let context: Context
  let memory: LocalMemory
  let ioas: ObjectID

  init() throws {
    bus = AccessorBus(notice: notice)
    device = VFIODevice(
      index: 0, function: PCIFunction(name: "soft", model: model, memory: bus),
      group: VFIOGroup(group: system.addGroup()))
    context = Context(system: system)
    memory = try LocalMemory(byteCount: 256 << 10)
    ioas = try context.allocateIOAS()
    _ = try context.map(
      memory, start: 0, length: 256 << 10, into: ioas, at: .fixed(IOVA(0x10_0000)))
  }

  /// - Returns: The id that the bind gives.
  func bind(_ session: DeviceSession) throws -> ObjectID {
    var id: ObjectID?
    let context = context
    try session.bind(findContext: { context }, publish: { id = $0 })
    return try #require(id)
  }

  /// Bus mastering and memory decoding on.
  func enableMaster() throws {
    _ = try withUnsafeBytes(of: UInt16(6)) {
      try device.function.write(.config, at: 4, from: $0)
    }
  }
}

@Suite struct MediationTests {
  @Test("D2: a software device is bound by an accessor, and attached by address space only")
  func emulatedBind() throws {
    let rig = try SoftwareRig()
    let before = rig.context.snapshot
    let session = rig.device.open()
    #expect(errno { try session.checkAccess() } == .invalidArgument)
    let id = try rig.bind(session)
    #expect(errno { try rig.context.destroy(id) } == .resourceBusy)
    #expect(errno { _ = try rig.context.hardwareInformation(of: id) } == .noSuchFileOrDirectory)

    var table: ObjectID?
    try session.attach(to: rig.ioas, publish: { table = $0 })
    #expect(table == rig.ioas, "there is no page table to tell of")
    #expect(errno { try rig.context.destroy(rig.ioas) } == .resourceBusy)
    let other = try rig.context.allocateIOAS()
    try session.attach(to: other, publish: { table = $0 })
    #expect(table == other, "a second attach replaces")
    #expect(
      errno { try session.attach(to: id, publish: { _ in }) } == .noSuchFileOrDirectory,
      "what is no address space is not there")
    #expect(
      errno {
        try session.attach(pasid: PASID(rawValue: 1), to: other, publish: { _ in })
      } == Errno(rawValue: 95))
    try session.detach()
    try rig.context.destroy(other)
    session.close()
    #expect(rig.context.snapshot == before)
  }

  @Test("D2: an attach that cannot be told to its user is undone")
  func attachUndone() throws {
    let rig = try SoftwareRig()
    let session = rig.device.open()
    _ = try rig.bind(session)
    #expect(
      errno {
        try session.attach(
          to: rig.ioas,
          publish: { (_) throws(IOMMUError) in throw IOMMUError(.badAddress, "no room") })
      } == .badAddress)
    #expect(throws: BusError.self) {
      _ = try rig.model.port.makePort().load(IOVA(0x10_0000), as: UInt32.self)
    }
    session.close()
  }

  @Test(
    "D2: the driver of a software device reads, writes, copies and fills in its user's space")
  func emulatedAccess() throws {
    let rig = try SoftwareRig()
    let session = rig.device.open()
    _ = try rig.bind(session)
    try rig.enableMaster()
    let port = rig.model.port.makePort()
    #expect(throws: BusError.self) { _ = try port.load(IOVA(0x10_0000), as: UInt32.self) }
    #expect(rig.bus.faultCount == 1, "on no address space")

    try session.attach(to: rig.ioas, publish: { _ in })
    for index in stride(from: 0, to: 0x14000, by: 251) {
      rig.memory[index] = UInt8(index % 253)
    }
    try port.store(0x0102_0304_0506_0708, at: IOVA(0x10_0008))
    #expect(try port.load(IOVA(0x10_0008), as: UInt64.self) == 0x0102_0304_0506_0708)
    #expect(rig.memory[8] == 8)
    // More than is copied at a time.
    try port.copy(from: IOVA(0x10_0000), to: IOVA(0x11_8000), length: 0x14000)
    #expect(
      stride(from: 251, to: 0x14000, by: 251).allSatisfy {
        rig.memory[0x1_8000 + $0] == UInt8($0 % 253)
      })
    try port.fill(IOVA(0x10_F000), pattern: 0x1122_3344_5566_7788, length: 12)
    #expect((7..<13).map { rig.memory[0xF000 + $0] } == [0x11, 0x88, 0x77, 0x66, 0x55, 0])

    let error = #expect(throws: BusError.self) {
      try port.copy(from: IOVA(0x10_0000), to: IOVA(0xFEE0_0000), length: 4)
    }
    #expect(error?.access == .write && error?.address == IOVA(0xFEE0_0000))
    #expect(rig.bus.faultCount == 2)
    session.close()
    #expect(throws: BusError.self) { _ = try port.load(IOVA(0x10_0000), as: UInt32.self) }
  }

  @Test("D2: a pin ends before its memory goes away, and the driver is told; others stay")
  func pins() throws {
    let rig = try SoftwareRig()
    let session = rig.device.open()
    _ = try rig.bind(session)
    try session.attach(to: rig.ioas, publish: { _ in })
    let second = try rig.context.map(
      rig.memory, start: 0, length: 4096, into: rig.ioas, at: .fixed(IOVA(0x40_0000)))
    let accessor = try #require(rig.bus.accessor)
    let pins = try [IOVA(0x10_0000), second].map {
      try accessor.pin($0, length: 4096, for: .write).id
    }
    _ = try rig.context.unmap(0x40_0000...0x40_0FFF, from: rig.ioas)
    #expect(rig.notice.count == 1)
    #expect(pins.map { accessor.isPinned($0) } == [true, false])
    #expect(errno { try accessor.unpin(pins[1]) } == .noSuchFileOrDirectory)
    session.close()
    #expect(!accessor.isPinned(pins[0]))
    #expect(rig.notice.count == 1, "what the driver ends itself is no news to it")
  }

  @Test("D2: a software device signals its user's events, and none that came to an end")
  func emulatedInterrupts() throws {
    let rig = try SoftwareRig()
    let session = rig.device.open()
    _ = try rig.bind(session)
    try rig.enableMaster()
    let (first, second) = (Counter(), Counter())
    let interrupts = rig.device.function.interrupts
    try interrupts.set(
      .msix, action: .trigger, start: 0,
      arguments: .events([.signal(first), .signal(second)]), count: 2)
    rig.model.port.raise(vector: 1)
    #expect(first.count == 0 && second.count == 1)
    try interrupts.set(.msix, action: .trigger, start: 0, arguments: .none, count: 0)
    rig.model.port.raise(vector: 1)
    #expect(second.count == 1)
    session.close()
  }

  // MARK: Slices

  @Test(
    "D2: a slice's own requests are no interrupts, its neighbour's least; its parent sends them"
  )
  func sliceInterrupts() throws {
    let system = IOMMUSystem()
    let iommu = SoftwareIOMMU(
      name: "dmar0", configuration: .init(pasidBits: 4), memory: system.memory,
      events: system.events)
    let requester = RequesterID(bus: 0, device: 5, function: 0)
    let parent = try system.addDevice(
      name: "parent", requester: requester, driver: iommu, group: system.addGroup(),
      hostDriver: .dma("mediator"))
    let context = Context(system: system)
    let ioas = try context.allocateIOAS()
    var sessions: [DeviceSession] = []
    var models: [TestModel] = []
    for number in UInt32(1)...2 {
      let slice = try system.addMediatedDevice(
        name: "slice \(number)", parent: parent, defaultPASID: PASID(rawValue: number))
      let model = TestModel()
      let function = PCIFunction(
        device: slice, model: model,
        upstream: SoftwareIOMMUBus(
          iommu: iommu, requester: requester, pasid: PASID(rawValue: number)))
      let session = VFIODevice(
        index: number, function: function, group: VFIOGroup(group: slice.group)
      ).open()
      try session.bind(findContext: { context }, publish: { _ in })
      try session.attach(to: ioas, publish: { _ in })
      _ = try withUnsafeBytes(of: UInt16(6)) { try function.write(.config, at: 4, from: $0) }
      models.append(model)
      sessions.append(session)
    }
    let counters = [Counter(), Counter()]
    for (session, counter) in zip(sessions, counters) {
      try session.device.function.interrupts.set(
        .msix, action: .trigger, start: 0, arguments: .events([.signal(counter)]), count: 1)
    }
    models[0].port.raise(vector: 0)
    #expect(counters.map(\.count) == [1, 0])
    // All messages that there can be, by DMA.
    for handle in UInt64(0)..<4 {
      #expect(throws: BusError.self) {
        try models[0].port.makePort().store(
          UInt32(0), at: IOVA(0xFEE0_0010 | handle << 5))
      }
    }
    #expect(counters.map(\.count) == [1, 0])
    #expect(iommu.faults[requester, pasid: PASID(rawValue: 1)].count == 4)
    #expect(iommu.faults[requester, pasid: PASID(rawValue: 2)].count == 0)
    #expect(iommu.faults[requester].count == 0, "the parent has no fault")
    for session in sessions { session.close() }
    context.close()
  }

  @Test(
    "A3: a slice's user names PASIDs of its own; none of them is its neighbour's or parent's")
  func slicePASIDs() throws {
    let system = IOMMUSystem()
    let iommu = SoftwareIOMMU(
      name: "dmar0", configuration: .init(pasidBits: 4), memory: system.memory,
      events: system.events)
    let requester = RequesterID(bus: 0, device: 5, function: 0)
    let parent = try system.addDevice(
      name: "parent", requester: requester, driver: iommu, group: system.addGroup())
    let slices = try (1...2).map {
      try system.addMediatedDevice(
        name: "slice \($0)", parent: parent, defaultPASID: PASID(rawValue: $0))
    }
    let function = PCIFunction(
      device: slices[0], model: TestModel(),
      upstream: SoftwareIOMMUBus(iommu: iommu, requester: requester, pasid: PASID(rawValue: 1)))
    let context = Context(system: system)
    let session = VFIODevice(
      index: 0, function: function, group: VFIOGroup(group: slices[0].group)
    ).open()
    var device: ObjectID?
    try session.bind(findContext: { context }, publish: { device = $0 })
    let table = try context.allocateHWPT(
      for: try #require(device), from: context.allocateIOAS(), attributes: .pasid)
    let (neighbours, own) = (PASID(rawValue: 2), PASID(rawValue: 7))
    for pasid in [neighbours, own] {
      try session.attach(pasid: pasid, to: table, publish: { _ in })
    }
    let physical = try [neighbours, own].map { try function.allowedPASIDs.check($0).rawValue }
    #expect(Set(physical).count == 2 && Set(physical).isDisjoint(with: [0, 1, 2]))
    try session.attach(pasid: PASID(rawValue: 0), to: table, publish: { _ in })
    #expect(function.allowedPASIDs.virtual == [neighbours, own], "0 is no PASID")
    session.close()
    #expect(function.allowedPASIDs.virtual.isEmpty)
    context.close()
  }

  // MARK: A3

  @Test("A3: a device's list has the PASIDs that were attached, and no others")
  func allowedPASIDs() throws {
    let system = IOMMUSystem()
    let iommu = SoftwareIOMMU(
      name: "dmar0", configuration: .init(pasidBits: 4), memory: system.memory,
      events: system.events)
    let requester = RequesterID(bus: 0, device: 5, function: 0)
    let physical = try system.addDevice(
      name: "0000:00:05.0", requester: requester, driver: iommu, group: system.addGroup())
    let model = TestModel()
    let function = PCIFunction(
      device: physical, model: model,
      upstream: SoftwareIOMMUBus(iommu: iommu, requester: requester))
    let context = Context(system: system)
    let session = VFIODevice(
      index: 0, function: function, group: VFIOGroup(group: physical.group)
    ).open()
    var device: ObjectID?
    try session.bind(findContext: { context }, publish: { device = $0 })
    let ioas = try context.allocateIOAS()
    let table = try context.allocateHWPT(
      for: try #require(device), from: ioas, attributes: .pasid)
    let list = model.port.allowedPASIDs
    let (three, four) = (PASID(rawValue: 3), PASID(rawValue: 4))
    #expect(errno { _ = try list.check(three) } == .notPermitted)
    try session.attach(pasid: three, to: table, publish: { _ in })
    #expect(try list.check(three) == three)
    #expect(errno { _ = try list.check(four) } == .notPermitted)

    // One that fails, and one that cannot be told to the user.
    #expect(
      errno {
        try session.attach(pasid: PASID(rawValue: 16), to: table, publish: { _ in })
      } == .invalidArgument)
    #expect(
      errno {
        try session.attach(
          pasid: four, to: table,
          publish: { (_) throws(IOMMUError) in throw IOMMUError(.badAddress, "no room") })
      } == .badAddress)
    #expect(list.virtual == [three])
    try session.attach(pasid: four, to: table, publish: { _ in })
    try session.detach(pasid: three)
    #expect(list.virtual == [four])
    session.close()
    #expect(list.virtual.isEmpty)
    context.close()
  }
}
