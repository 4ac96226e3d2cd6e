// SPDX-License-Identifier: Apache-2.0
//
// MODEL H1 and H3: page requests in groups, delivered whole, answered once.

import IOMMU
import PageTables
import Synchronization
import SystemPackage
import Testing

@Suite struct FaultQueueTests {
  let rig: FaultRig
  let device: PhysicalDevice

  init() throws {
    rig = try FaultRig()
    device = try rig.device(1)
  }

  private func bind(_ device: PhysicalDevice? = nil, cookie: UInt64? = nil) throws
    -> DeviceHolder
  {
    DeviceHolder(try rig.context.register(device ?? self.device, cookie: cookie))
  }

  @Test("H1: requests wait for the last of their group, which is delivered whole and in order")
  func groups() throws {
    let holder = try bind(cookie: 77)
    let table = try rig.table(for: holder, queue: rig.queue)
    try holder.attach(to: table)
    rig.request(5, at: 0x1000, isLast: false, by: device)
    rig.request(6, at: 0x9000, isLast: false, by: device)
    rig.request(5, at: 0x2000, isLast: false, by: device)
    #expect(!rig.queue.readiness.isReadable)
    #expect(try rig.read().isEmpty)
    rig.request(5, at: 0x3000, by: device)
    #expect(rig.queue.readiness.isReadable)
    #expect(try rig.queue.read(atMost: 2) { _ in } == .tooLarge)
    let first = try #require(try rig.read().first)
    #expect(!rig.queue.readiness.isReadable)
    #expect(first.requests.map(\.address) == [0x1000, 0x2000, 0x3000].map { IOVA($0) })
    #expect(first.requests.map(\.isLast) == [false, false, true])
    #expect(first.device == holder.id && first.deviceCookie == 77 && first.table == table)
    rig.request(6, at: 0xa000, by: device)
    let second = try #require(try rig.read().first)
    #expect(second.requests.map(\.address) == [0x9000, 0xa000].map { IOVA($0) })
    try rig.queue.respond(to: second.cookie, with: .invalid)
    try rig.queue.respond(to: first.cookie, with: .success)
    #expect(rig.answers(to: device) == ["6 invalid", "5 success"])
    withExtendedLifetime(holder) {}
  }

  @Test("H1: cookies are the lowest free numbers from 1; an answer is taken once")
  func cookies() throws {
    let holder = try bind()
    try holder.attach(to: try rig.table(for: holder, queue: rig.queue))
    for group in 1...3 { rig.request(UInt32(group), by: device) }
    #expect(errno { try rig.queue.respond(to: 1, with: .success) } == .invalidArgument)
    #expect(try rig.read().map(\.cookie) == [1, 2, 3])
    try rig.queue.respond(to: 2, with: .success)
    #expect(errno { try rig.queue.respond(to: 2, with: .success) } == .invalidArgument)
    #expect(errno { try rig.queue.respond(to: 0, with: .success) } == .invalidArgument)
    rig.request(4, by: device)
    rig.request(5, by: device)
    #expect(try rig.read().map(\.cookie) == [2, 4])
    #expect(rig.answers(to: device) == ["2 success"])
    withExtendedLifetime(holder) {}
  }

  @Test("H1: a group that could not be handed over is the oldest again, its cookie free")
  func handover() throws {
    let holder = try bind()
    try holder.attach(to: try rig.table(for: holder, queue: rig.queue))
    rig.request(1, by: device)
    rig.request(2, by: device)
    let failed = errno {
      _ = try rig.queue.read(atMost: 1) { (_) throws(IOMMUError) in
        throw IOMMUError(.badAddress, "no room")
      }
    }
    #expect(failed == .badAddress)
    #expect(rig.queue.readiness.isReadable)
    #expect(try rig.read().map { "\($0.cookie) \($0.requests[0].group)" } == ["1 1", "2 2"])
    // One that ended while it was handed over does not come back.
    rig.request(3, by: device)
    _ = errno {
      _ = try rig.queue.read(atMost: 1) { (_) throws(IOMMUError) in
        holder.detach()
        throw IOMMUError(.badAddress, "no room")
      }
    }
    #expect(try rig.read().isEmpty)
    #expect(rig.answers(to: device) == ["1 invalid", "2 invalid", "3 invalid"])
  }

  @Test("H3: detach answers what was read and what was not, and nothing comes after it")
  func detach() throws {
    let holder = try bind()
    let table = try rig.table(for: holder, queue: rig.queue)
    try holder.attach(to: table)
    let port = try #require(rig.driver.port(of: device))
    rig.request(1, by: device)
    let read = try rig.read()
    rig.request(2, by: device)
    rig.request(3, isLast: false, by: device)
    holder.detach()
    #expect(rig.answers(to: device) == ["1 invalid", "2 invalid"])
    #expect(rig.queue.counts == (0, 0))
    #expect(!rig.queue.readiness.isReadable)
    #expect(
      errno { try rig.queue.respond(to: read[0].cookie, with: .success) } == .invalidArgument)
    // A device that had the port in its hand is answered there and then.
    let late = PageRequest(group: 4, access: .read, address: IOVA(0))
    #expect(port.report(late) == .invalid)
    #expect(rig.driver.port(of: device) == nil)
    // Half a group ends too: its last request comes alone.
    try holder.attach(to: table)
    rig.request(3, by: device)
    #expect(try rig.read().map(\.requests.count) == [1])
  }
  @Test("H3: unbinding, and closing the context's last holder, answer too")
  func unbind() throws {
    var holder: DeviceHolder? = try bind()
    let table = try rig.table(for: try #require(holder), queue: rig.queue)
    try holder?.attach(to: table)
    rig.request(1, by: device)
    rig.context.close()
    #expect(rig.answers(to: device) == [], "the open queue keeps the context")
    holder = nil
    #expect(rig.answers(to: device) == ["1 invalid"])
    #expect(rig.system.contextCount == 1)
    rig.context.close(rig.queue)
    #expect(rig.system.contextCount == 0)
    #expect(rig.context.objectCount == 0)
  }

  @Test("H3: replace answers what came through the old table, wherever the new one reports")
  func replace() throws {
    let holder = try bind()
    let other = try rig.context.makeFaultQueue()
    let tables = [
      try rig.table(for: holder, queue: rig.queue),
      try rig.table(for: holder, queue: rig.queue),
      try rig.table(for: holder, queue: other), try rig.table(for: holder, queue: nil),
    ]
    try holder.attach(to: tables[0])
    rig.request(1, by: device)
    try holder.attach(to: tables[1])
    #expect(rig.answers(to: device) == ["1 invalid"])
    rig.request(2, by: device)
    #expect(try rig.read().map(\.table) == [tables[1]])
    try holder.attach(to: tables[2])
    #expect(rig.answers(to: device) == ["2 invalid"])
    rig.request(3, by: device)
    #expect(try rig.read().isEmpty)
    #expect(try rig.read(other).map(\.table) == [tables[2]])
    try holder.attach(to: tables[3])
    #expect(rig.answers(to: device) == ["3 invalid"])
    rig.request(4, by: device)
    #expect(rig.answers(to: device) == ["4 invalid"], "no queue: refused at once")
    try holder.attach(to: tables[0])
    rig.request(5, by: device)
    #expect(try rig.read().map(\.requests[0].group) == [5])
    // The same table again changes nothing.
    try holder.attach(to: tables[0])
    #expect(rig.answers(to: device) == [])
  }

  @Test("H3: a replace that is refused leaves the requests where they are")
  func refusedReplace() throws {
    let holder = try bind()
    let tables = try (0..<2).map { _ in try rig.table(for: holder, queue: rig.queue) }
    try holder.attach(to: tables[0])
    rig.request(1, by: device)
    rig.driver.refuses.withLock { $0 = true }
    #expect(errno { try holder.attach(to: tables[1]) } == .invalidArgument)
    rig.driver.refuses.withLock { $0 = false }
    rig.request(2, by: device)
    #expect(try rig.read().map(\.table) == [tables[0], tables[0]])
    #expect(rig.answers(to: device) == [])
    withExtendedLifetime(holder) {}
  }

  @Test("H3: once nobody can answer, requests are refused and what waited is answered")
  func close() throws {
    let holder = try bind()
    let table = try rig.table(for: holder, queue: rig.queue)
    try holder.attach(to: table)
    rig.request(1, by: device)
    _ = try rig.read()
    rig.request(2, by: device)
    #expect(errno { try rig.context.destroy(rig.queue.id) } == .resourceBusy)
    rig.context.close(rig.queue)
    #expect(rig.answers(to: device) == ["1 invalid", "2 invalid"])
    rig.request(3, by: device)
    #expect(rig.answers(to: device) == ["3 invalid"])
    #expect(errno { try rig.context.destroy(rig.queue.id) } == .resourceBusy)
    holder.detach()
    #expect(errno { try rig.context.destroy(rig.queue.id) } == .resourceBusy)
    try rig.context.destroy(table)
    try rig.context.destroy(rig.queue.id)
    #expect(errno { try rig.context.destroy(rig.queue.id) } == .noSuchFileOrDirectory)
  }

  @Test("H1: a table asks for its queue after all else; a nest parent has none")
  func allocation() throws {
    let holder = try bind()
    func allocate(
      _ queue: ObjectID, attributes: PagingAttributes = [], from parent: ObjectID? = nil
    ) -> Errno? {
      errno {
        _ = try rig.context.allocateHWPT(
          for: holder.id, from: parent ?? rig.space, attributes: attributes, faultQueue: queue)
      }
    }
    let objects = rig.context.objectCount
    #expect(allocate(ObjectID(99)) == .noSuchFileOrDirectory)
    #expect(allocate(rig.space) == .noSuchFileOrDirectory)
    #expect(allocate(ObjectID(99), attributes: .nestParent) == .operationNotSupported)
    #expect(allocate(ObjectID(99), from: ObjectID(99)) == .invalidArgument)
    #expect(allocate(ObjectID(99), attributes: .dirtyTracking) == .operationNotSupported)
    #expect(rig.context.objectCount == objects)
    #expect(allocate(rig.queue.id) == nil)
    #expect(rig.context.objectCount == objects + 1)
  }

  @Test("H1: an IOMMU without page requests takes no table with a queue, and nothing changed")
  func incapable() throws {
    let machine = TestMachine()
    let context = Context(system: machine.system)
    let space = try context.allocateIOAS()
    let queue = try context.makeFaultQueue()
    let device = try machine.device(1)
    let holder = DeviceHolder(try context.register(device))
    let table = try context.allocateHWPT(for: holder.id, from: space, faultQueue: queue.id)
    let before = context.snapshot
    #expect(errno { try holder.attach(to: table) } == .noSuchDevice)
    #expect(context.snapshot == before)
    #expect(machine.driver.history(of: device) == [.blocked])
  }

  @Test("H1: each device of a group reports as itself, and ends with itself")
  func neighbours() throws {
    let group = rig.system.addGroup()
    let devices = try (2...4).map { try rig.device($0, group: group) }
    let first = try bind(devices[0])
    let second = try bind(devices[1])
    let table = try rig.table(for: first, queue: rig.queue)
    try first.attach(to: table)
    rig.request(1, by: devices[1])
    #expect(rig.answers(to: devices[1]) == ["1 invalid"], "moved along, but not attached")
    try second.attach(to: table)
    for device in devices { rig.request(2, by: device) }
    #expect(try rig.read().map(\.device) == [first.id, second.id])
    #expect(rig.answers(to: devices[2]) == ["2 invalid"], "nobody has bound it")
    first.detach()
    #expect(rig.answers(to: devices[0]) == ["2 invalid"])
    #expect(rig.answers(to: devices[1]) == [])
    for device in devices { rig.request(3, by: device) }
    #expect(try rig.read().map(\.device) == [second.id])
    let other = try rig.table(for: second, queue: rig.queue)
    try second.attach(to: other)
    rig.request(4, by: devices[1])
    #expect(try rig.read().map(\.table) == [other])
    #expect(rig.answers(to: devices[1]) == ["2 invalid", "3 invalid"])
  }

  @Test("H1: a PASID's requests go where the PASID is attached, and end with it")
  func pasids() throws {
    let holder = try bind()
    let tables = try (0..<2).map { _ in try rig.table(for: holder, queue: rig.queue) }
    try holder.attach(to: tables[0])
    rig.request(1, pasid: 7, by: device)
    #expect(rig.answers(to: device) == ["1 invalid"])
    try holder.attach(7, to: tables[1])
    rig.request(2, pasid: 7, by: device)
    rig.request(2, by: device)
    let read = try rig.read()
    #expect(read.map(\.table) == [tables[1], tables[0]])
    #expect(read.map(\.requests[0].pasid) == [PASID(rawValue: 7), nil])
    holder.detach(7)
    #expect(
      rig.driver.takeAnswers(to: device)
        == [PageResponse(pasid: PASID(rawValue: 7), group: 2, code: .invalid)])
    try rig.queue.respond(to: read[1].cookie, with: .success)
    #expect(
      rig.driver.takeAnswers(to: device) == [PageResponse(group: 2, code: .success)])
  }
}
