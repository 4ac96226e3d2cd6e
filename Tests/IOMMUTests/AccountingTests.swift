// SPDX-License-Identifier: Apache-2.0
//
// MODEL B6: what is pinned, counted once, and refused past the limit.

import PageTables
import Synchronization
import SystemPackage
import Testing

@testable import IOMMU

private let page: UInt64 = 4096

final class TestLimit: MemoryLimit {
  private let value = Atomic<UInt64>(.max)
  var bytes: UInt64 {
    get { value.load(ordering: .relaxed) }
    set { value.store(newValue, ordering: .relaxed) }
  }
}

@Suite struct AccountingTests {
  let machine = TestMachine()
  let memory: LocalMemory
  let context: Context
  let limit = TestLimit()
  let user = PinnedMemory()
  let owner: MemoryOwner

  init() throws {
    memory = try LocalMemory(byteCount: 64 * page)
    context = Context(system: machine.system)
    owner = MemoryOwner(user: user, process: ProcessMemory(), limit: limit)
  }

  private func attach(_ slot: UInt8, to ioas: ObjectID) throws -> DeviceHolder {
    let holder = DeviceHolder(try context.register(machine.device(slot)))
    try holder.attach(to: ioas)
    return holder
  }

  private func map(
    _ start: UInt64, _ count: UInt64, at iova: UInt64, in ioas: ObjectID,
    mode: MemoryAccount.Mode = .user, kind: MappedMemory = .file, by owner: MemoryOwner? = nil
  ) -> Errno? {
    errno {
      try context.map(
        memory, start: start, length: count * page, into: ioas, at: .fixed(IOVA(iova)),
        kind: kind, account: (owner ?? self.owner).account(mode))
    }
  }

  @Test(
    "B6: memory is counted when it is pinned, not when it is mapped; the limit is asked then")
  func whenPinned() throws {
    let ioas = try context.allocateIOAS()
    limit.bytes = page
    #expect(map(0, 4, at: 0x10000, in: ioas) == nil)
    #expect(user.byteCount == 0)
    let device = DeviceHolder(try context.register(machine.device(1)))
    #expect(errno { try device.attach(to: ioas) } == .noMemory)
    #expect(user.byteCount == 0 && machine.system.memory.usedSlots == 0)
    limit.bytes = 4 * page
    try device.attach(to: ioas)
    #expect(user.byteCount == 4 * page && owner.process.pinned.byteCount == 4 * page)
    #expect(owner.process.locked.byteCount == 0)
    #expect(map(0, 1, at: 0x20000, in: ioas) == .noMemory)
    device.detach()
    #expect(user.byteCount == 0)
    #expect(map(0, 1, at: 0x20000, in: ioas) == nil)
  }

  @Test("B6: a refused map leaves nothing; the limit counts whole pages down")
  func refused() throws {
    let ioas = try context.allocateIOAS()
    let device = try attach(1, to: ioas)
    defer { withExtendedLifetime(device) {} }
    limit.bytes = 4 * page + 4095
    #expect(map(0, 5, at: 0x10000, in: ioas) == .noMemory)
    #expect(map(0, 4, at: 0x10000, in: ioas) == nil)
    #expect(map(8 * page, 1, at: 0x20000, in: ioas) == .noMemory)
    #expect(machine.driver.domains.withLock { $0[0].count } == 4)
    #expect(machine.system.memory.usedSlots == 1)
    try context.unmap(0...UInt64.max, from: ioas)
    #expect(user.byteCount == 0 && owner.process.pinned.byteCount == 0)
  }

  @Test("B6: two maps of the same memory are two pins; a copy shares the first's")
  func copies() throws {
    let ioas = try context.allocateIOAS()
    let other = try context.allocateIOAS()
    let devices = (try attach(1, to: ioas), try attach(2, to: other))
    defer { withExtendedLifetime(devices) {} }
    #expect(map(0, 4, at: 0x10000, in: ioas) == nil)
    #expect(map(0, 4, at: 0x20000, in: ioas) == nil)
    #expect(user.byteCount == 8 * page)
    limit.bytes = 8 * page
    try context.copy(
      from: ioas, IOVA(0x11000), length: 2 * page, into: other, at: .fixed(IOVA(0x30000)))
    #expect(user.byteCount == 8 * page)
    // What the copy still covers stays pinned and counted.
    try context.unmap(0x10000...0x13fff, from: ioas)
    #expect(user.byteCount == 6 * page)
    #expect(map(0, 3, at: 0x10000, in: ioas) == .noMemory)
    try context.unmap(0x30000...0x31fff, from: other)
    #expect(user.byteCount == 4 * page)
    #expect(map(0, 3, at: 0x10000, in: ioas) == nil)
  }

  @Test("B6: only the part that somebody uses is pinned: a copy of a part, an accessor")
  func parts() throws {
    let ioas = try context.allocateIOAS()
    let other = try context.allocateIOAS()
    #expect(map(0, 16, at: 0x10000, in: ioas) == nil)
    try context.copy(
      from: ioas, IOVA(0x12000), length: 2 * page, into: other, at: .fixed(IOVA(0)))
    let device = try attach(1, to: other)
    #expect(user.byteCount == 2 * page)
    let accessor = try Accessor(context: context, pinsMemory: true)
    try accessor.attach(to: ioas)
    let pin = try accessor.pin(IOVA(0x11000), length: 4 * page, for: .write)
    #expect(user.byteCount == 4 * page)
    let again = try accessor.pin(IOVA(0x11000), length: page, for: .write)
    #expect(user.byteCount == 4 * page)
    limit.bytes = 4 * page
    #expect(
      errno { _ = try accessor.pin(IOVA(0x1f000), length: page, for: .read) } == .noMemory)
    // Reading pins for the moment, on nobody's account.
    #expect(try accessor.read(IOVA(0x1f000), count: 8).count == 8)
    device.detach()
    #expect(user.byteCount == 4 * page)
    try accessor.unpin(pin.id)
    #expect(user.byteCount == page)
    try accessor.unpin(again.id)
    #expect(user.byteCount == 0 && machine.system.memory.usedSlots == 0)
    accessor.close()
  }

  @Test("B6: modes: nobody, by user over all contexts, by process")
  func modes() throws {
    let second = MemoryOwner(user: user, process: ProcessMemory(), limit: limit)
    let ioas = try context.allocateIOAS()
    let device = try attach(1, to: ioas)
    defer { withExtendedLifetime(device) {} }
    limit.bytes = 2 * page
    #expect(map(0, 8, at: 0x10000, in: ioas, mode: .none) == nil)
    #expect(user.byteCount == 0 && owner.process.pinned.byteCount == 8 * page)
    #expect(map(0, 2, at: 0x20000, in: ioas, mode: .user) == nil)
    #expect(map(0, 1, at: 0x30000, in: ioas, mode: .user, by: second) == .noMemory)
    #expect(map(0, 2, at: 0x30000, in: ioas, mode: .process, by: second) == nil)
    #expect(map(0, 1, at: 0x40000, in: ioas, mode: .process, by: second) == .noMemory)
    #expect(map(0, 2, at: 0x40000, in: ioas, mode: .process) == nil)
    #expect(second.process.locked.byteCount == 2 * page && user.byteCount == 2 * page)
    #expect(owner.process.pinned.byteCount == 12 * page)
    try context.unmap(0...UInt64.max, from: ioas)
    for owner in [owner, second] {
      #expect(owner.process.pinned.byteCount == 0 && owner.process.locked.byteCount == 0)
    }
  }

  @Test("B6: a user of the library has no limit, or the one that it gives its context")
  func library() throws {
    let account = MemoryAccount(limit: 2 * page)
    let context = Context(system: machine.system, account: account)
    let space = try context.makeAddressSpace()
    let binding = try context.register(machine.device(1))
    try binding.group.attach(to: space)
    try space.map(memory, 0..<2 * page)
    #expect(account.chargedBytes == 2 * page)
    #expect(errno { try space.map(memory, 0..<page) } == .noMemory)
    try space.unmapAll()
    #expect(account.chargedBytes == 0)
  }

  @Test("B6: a change of process moves files of all spaces, once each; or nothing moves")
  func changeOwner() throws {
    let ioas = try context.allocateIOAS()
    let other = try context.allocateIOAS()
    let devices = (try attach(1, to: ioas), try attach(2, to: other))
    defer { withExtendedLifetime(devices) {} }
    #expect(map(0, 4, at: 0x10000, in: ioas) == nil)
    #expect(map(0, 4, at: 0x20000, in: ioas, mode: .process) == nil)
    #expect(map(0, 2, at: 0x30000, in: ioas, mode: .none) == nil)
    try context.copy(
      from: ioas, IOVA(0x10000), length: 4 * page, into: other, at: .fixed(IOVA(0)))
    let newLimit = TestLimit()
    let new = MemoryOwner(user: PinnedMemory(), process: ProcessMemory(), limit: newLimit)
    newLimit.bytes = 3 * page
    #expect(errno { try context.changeOwner(to: new) } == .noMemory)
    #expect(map(0, 1, at: 0x40000, in: other, kind: .process) == nil)
    newLimit.bytes = 4 * page
    #expect(errno { try context.changeOwner(to: new) } == .invalidArgument)
    #expect(new.user.byteCount == 0 && new.process.pinned.byteCount == 0)
    #expect(user.byteCount == 5 * page && owner.process.pinned.byteCount == 11 * page)
    try context.unmap(0x40000...0x40fff, from: other)
    try context.changeOwner(to: new)
    #expect(new.user.byteCount == 4 * page && new.process.locked.byteCount == 4 * page)
    #expect(new.process.pinned.byteCount == 10 * page)
    #expect(user.byteCount == 0 && owner.process.pinned.byteCount == 0)
    #expect(owner.process.locked.byteCount == 0)
    // The new one is relieved in the end.
    try context.unmap(0...UInt64.max, from: ioas)
    #expect(new.user.byteCount == 4 * page && new.process.pinned.byteCount == 4 * page)
    try context.unmap(0...UInt64.max, from: other)
    #expect(new.user.byteCount == 0 && new.process.pinned.byteCount == 0)
  }

  @Test("B6: between processes of one user the new one is charged first, as on Linux")
  func sameUser() throws {
    let ioas = try context.allocateIOAS()
    let device = try attach(1, to: ioas)
    defer { withExtendedLifetime(device) {} }
    #expect(map(0, 4, at: 0x10000, in: ioas) == nil)
    let second = MemoryOwner(user: user, process: ProcessMemory(), limit: limit)
    limit.bytes = 7 * page
    #expect(errno { try context.changeOwner(to: second) } == .noMemory)
    limit.bytes = 8 * page
    try context.changeOwner(to: second)
    #expect(user.byteCount == 4 * page)
    #expect(second.process.pinned.byteCount == 4 * page && owner.process.pinned.byteCount == 0)
    // To itself nothing is charged.
    limit.bytes = 0
    try context.changeOwner(to: second)
  }

  @Test("A4, B6: pins, unpins and moves from many threads at once add up to nothing in the end")
  func concurrency() async throws {
    let spaces = try (0..<2).map { _ in try context.allocateIOAS() }
    let devices = (try attach(1, to: spaces[0]), try attach(2, to: spaces[1]))
    let second = MemoryOwner(user: PinnedMemory(), process: ProcessMemory(), limit: limit)
    let owners = [owner, second]
    limit.bytes = 40 * page
    let shared = self.context
    let memory = self.memory
    await withTaskGroup(of: Void.self) { tasks in
      for worker in 0..<4 {
        tasks.addTask {
          var generator = SplitMix(seed: UInt64(worker) + 3)
          for _ in 0..<600 {
            let space = spaces[Int(generator.next(below: 2))]
            let iova = generator.next(below: 64) * 4096
            switch generator.next(below: 4) {
            case 0:
              let mode = MemoryAccount.Mode.allCases[Int(generator.next(below: 3))]
              _ = try? shared.map(
                memory, start: 0, length: (generator.next(below: 16) + 1) * 4096, into: space,
                at: .fixed(IOVA(iova)), kind: .file,
                account: owners[Int(generator.next(below: 2))].account(mode))
            case 1:
              _ = try? shared.unmap(iova...iova + 24 * 4096 - 1, from: space)
            case 2:
              _ = try? shared.copy(
                from: space, IOVA(iova), length: (generator.next(below: 4) + 1) * 4096,
                into: spaces[Int(generator.next(below: 2))],
                at: .fixed(IOVA(generator.next(below: 64) * 4096)))
            default:
              try? shared.changeOwner(to: owners[Int(generator.next(below: 2))])
            }
          }
        }
      }
    }
    for space in spaces { try context.unmap(0...UInt64.max, from: space) }
    withExtendedLifetime(devices) {}
    for owner in owners {
      #expect(owner.user.byteCount == 0)
      #expect(owner.process.pinned.byteCount == 0 && owner.process.locked.byteCount == 0)
    }
    #expect(machine.system.memory.usedSlots == 0)
  }
}
