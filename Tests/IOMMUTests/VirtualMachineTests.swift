// SPDX-License-Identifier: Apache-2.0
//
// MODEL B4: a VM's memory slots by KVM's rules, and address spaces that follow them.

import PageTables
import SystemPackage
import Testing

@testable import IOMMU

private let page: UInt64 = 4096

extension VirtualMachine {
  /// Sets a slot in pages.
  func set(
    _ number: UInt32, at guest: UInt64, pages count: UInt64, of memory: any MemorySource,
    from user: UInt64 = 0, flags: MemorySlot.Flags = [], account: MemoryAccount? = nil
  ) throws(IOMMUError) {
    try setMemorySlot(
      MemorySlot(
        number: number, guestAddress: guest, byteCount: count * page, userAddress: user * page,
        flags: flags), of: memory, account: account)
  }
}

@Suite struct VirtualMachineTests {
  let machine = TestMachine()
  let context: Context
  let memory: LocalMemory
  let guest = VirtualMachine(name: "VM 1")

  init() throws {
    context = Context(system: machine.system)
    memory = try LocalMemory(byteCount: 64 * page)
  }

  private func attach(_ slot: UInt8, to ioas: ObjectID) throws -> DeviceHolder {
    let holder = DeviceHolder(try context.register(machine.device(slot)))
    try holder.attach(to: ioas)
    return holder
  }

  private func set(
    _ number: UInt32, at address: UInt64, pages: UInt64, from user: UInt64 = 0,
    flags: MemorySlot.Flags = []
  ) -> Errno? {
    errno {
      try guest.set(number, at: address, pages: pages, of: memory, from: user, flags: flags)
    }
  }

  /// Guest-physical pages that a table maps.
  private func mapped(_ domain: Int) -> [UInt64] {
    machine.driver.domains.withLock { $0[domain].pages.withLock { $0.keys.sorted() } }
  }

  @Test(
    "B4: slots keep KVM's rules: number, flags, alignment, overlap, deletion, what may change")
  func rules() throws {
    func raw(
      _ number: UInt32, _ address: UInt64, _ size: UInt64, _ user: UInt64, _ flags: UInt32 = 0
    ) -> Errno? {
      errno {
        try guest.setMemorySlot(
          MemorySlot(
            number: number, guestAddress: address, byteCount: size, userAddress: user,
            flags: MemorySlot.Flags(rawValue: flags)), of: memory)
      }
    }
    #expect(raw(32764, 0, page, 0) == .invalidArgument)
    #expect(raw(0x1_0000, 0, page, 0) == .invalidArgument)
    #expect(raw(0, 0, page, 0, 4) == .invalidArgument, "a flag that is not there")
    #expect(raw(0, 1, page, 0) == .invalidArgument)
    #expect(raw(0, 0, page + 1, 0) == .invalidArgument)
    #expect(raw(0, 0, page, 8) == .invalidArgument)
    #expect(raw(0, 0 &- page, 2 * page, 0) == .invalidArgument, "past the last address")
    #expect(raw(0, 0, 2 * page, 0 &- page) == .invalidArgument)
    #expect(raw(0, 0, 1 << 43, 0) == .invalidArgument, "more than 2³¹ - 1 pages")
    #expect(raw(0, 0, 0, 0) == .invalidArgument, "deleting what is not there")
    #expect(guest.slots.isEmpty)

    #expect(raw(0, 0x10000, 4 * page, 0) == nil)
    #expect(raw(0, 0x10000, 4 * page, 0) == nil, "the same again is nothing")
    #expect(raw(1, 0x13000, page, 0) == .fileExists)
    #expect(raw(1, 0xf000, 2 * page, 0) == .fileExists)
    #expect(raw(1, 0x8000, 64 * page, 0) == .fileExists)
    #expect(raw(1, 0x14000, page, 0) == nil, "side by side")
    #expect(raw(0, 0x10000, 3 * page, 0) == .invalidArgument, "the size")
    #expect(raw(0, 0x10000, 4 * page, page) == .invalidArgument, "the memory")
    #expect(raw(0, 0x10000, 4 * page, 0, 2) == .invalidArgument, "write protection")
    let other = try LocalMemory(byteCount: 4 * page)
    #expect(
      errno { try guest.set(0, at: 0x10000, pages: 4, of: other) } == .invalidArgument)
    #expect(raw(0, 0x10000, 4 * page, 0, 1) == nil, "logging may")
    #expect(raw(0, 0x11000, 4 * page, 0, 1) == .fileExists, "a move onto another slot")
    #expect(raw(0, 0xe000, 4 * page, 0) == nil, "a move over itself")
    #expect(raw(1, 0x15000, page, page) == .invalidArgument)
    #expect(raw(0, 0x40000, 4 * page, 0, 3) == .invalidArgument)
    #expect(guest.slots.map(\.guestAddress) == [0xe000, 0x14000])
    #expect(guest.slots.map(\.flags) == [[], []])
    #expect(raw(1, 0x1, 0, 0) == .invalidArgument, "a deletion's other fields are looked at")
    #expect(raw(1, 0, 0, 0) == nil)
    #expect(raw(1, 0, 0, 0) == .invalidArgument)
    #expect(raw(32763, 0x14000, page, 0, 3) == nil)
    guest.close()
    #expect(guest.slots.isEmpty)
    #expect(raw(0, 0, page, 0) == .badFileDescriptor)
    #expect(
      errno { try context.follow(guest, in: context.allocateIOAS()) } == .badFileDescriptor)
  }

  @Test(
    "B4: a space has all slots at once and follows adding, moving and deleting with no map call"
  )
  func following() throws {
    #expect(set(0, at: 0x10000, pages: 2) == nil)
    let ioas = try context.allocateIOAS()
    let device = try attach(1, to: ioas)
    try context.follow(guest, in: ioas)
    #expect(try context.followedMachine(of: ioas) === guest)
    #expect(mapped(0) == [0x10000, 0x11000])
    #expect(set(1, at: 0x80000, pages: 1, from: 8, flags: .readOnly) == nil)
    #expect(mapped(0) == [0x10000, 0x11000, 0x80000])
    machine.driver.domains.withLock { domains in
      domains[0].pages.withLock {
        #expect($0[0x80000]?.permissions == .read)
        #expect($0[0x10000]?.permissions == .readWrite)
      }
    }
    #expect(set(1, at: 0x80000, pages: 1, from: 8, flags: [.readOnly, .logsDirtyPages]) == nil)
    #expect(guest.slots.map(\.flags.rawValue) == [0, 3])
    #expect(set(0, at: 0x20000, pages: 2) == nil)
    #expect(mapped(0) == [0x20000, 0x21000, 0x80000])
    #expect(set(0, at: 0x21000, pages: 2) == nil)
    #expect(mapped(0) == [0x21000, 0x22000, 0x80000])
    // A table that comes later has what is there then.
    let late = try context.allocateHWPT(for: device.id, from: ioas)
    #expect(mapped(1) == [0x21000, 0x22000, 0x80000])
    #expect(set(0, at: 0, pages: 0) == nil)
    #expect(mapped(0) == [0x80000])
    #expect(mapped(1) == [0x80000])
    try context.destroy(late)
    #expect(set(1, at: 0, pages: 0) == nil)
    #expect(machine.system.memory.usedSlots == 0)
  }

  @Test(
    "B4: map, unmap and copy calls on a space that follows are EPERM, and say what to change")
  func refused() throws {
    let ioas = try context.allocateIOAS()
    let plain = try context.allocateIOAS()
    #expect(set(0, at: 0x10000, pages: 1) == nil)
    try context.follow(guest, in: ioas)
    let calls: [() throws -> Void] = [
      { try context.map(memory, start: 0, length: page, into: ioas) },
      {
        try context.map(memory, start: 0, length: page, into: ioas, at: .fixed(IOVA(0x50000)))
      },
      { try context.unmap(0x10000...0x10fff, from: ioas) },
      { try context.unmap(0...UInt64.max, from: ioas) },
      { _ = try context.unmapAsFarAsPossible(IOVA(0x10000), length: page, from: ioas) },
      { _ = try context.unmapAllAsFarAsPossible(from: ioas) },
      { try context.copy(from: ioas, IOVA(0x10000), length: page, into: plain) },
    ]
    for call in calls { #expect(errno(of: call) == .notPermitted) }
    do {
      try context.unmap(0...UInt64.max, from: ioas)
    } catch {
      #expect(error.description.contains("VM 1"))
    }
    try context.map(memory, start: 0, length: page, into: plain, at: .fixed(IOVA(0)))
    #expect(
      errno { try context.copy(from: plain, IOVA(0), length: page, into: ioas) }
        == .notPermitted)
    // A space is a follower or it has mappings of its own; and it follows one VM.
    #expect(errno { try context.follow(guest, in: plain) } == .resourceBusy)
    #expect(
      errno { try context.follow(VirtualMachine(name: "VM 2"), in: ioas) } == .resourceBusy)
    try context.stopFollowing(in: ioas)
    #expect(try context.followedMachine(of: ioas) == nil)
    try context.map(memory, start: 0, length: page, into: ioas, at: .fixed(IOVA(0x10000)))
    #expect(guest.slots.count == 1)
  }

  @Test("B4: what one follower cannot take changes nothing in any, nor in the VM")
  func allOrNothing() throws {
    let spaces = try (0..<3).map { _ in try context.allocateIOAS() }
    let devices = try spaces.enumerated().map {
      try attach(UInt8($0.offset + 1), to: $0.element)
    }
    try context.reserve(0x80000...0x8ffff, in: spaces[2])
    #expect(set(0, at: 0x10000, pages: 4) == nil)
    for ioas in spaces { try context.follow(guest, in: ioas) }
    let before = context.snapshot
    // A reserved range of the third.
    #expect(set(1, at: 0x7f000, pages: 2, from: 8) == .invalidArgument)
    #expect(context.snapshot == before)
    #expect(set(0, at: 0x80000, pages: 4) == .invalidArgument)
    #expect(context.snapshot == before)
    // Memory that is not there.
    #expect(set(1, at: 0x30000, pages: 2, from: 63) == .badAddress)
    #expect(context.snapshot == before)
    // A table that takes no more: of an addition, of a move away, of a move over itself.
    for (number, guest, user) in [(1, 0x40000, 8), (0, 0x50000, 0), (0, 0x11000, 0)]
      as [(UInt32, UInt64, UInt64)]
    {
      for domain in 0..<3 {
        machine.driver.domains.withLock { $0[domain].failAfter.withLock { $0 = 0 } }
        #expect(set(number, at: guest, pages: 4, from: user) == .noMemory)
        #expect(context.snapshot == before, "slot \(number), table \(domain)")
      }
    }
    #expect(guest.slots.map(\.guestAddress) == [0x10000])
    #expect(set(0, at: 0x11000, pages: 4) == nil)
    withExtendedLifetime(devices) {}
  }

  @Test(
    "B4: a space that cannot take all slots does not follow; a device that reserves one is refused"
  )
  func joining() throws {
    let ioas = try context.allocateIOAS()
    try context.reserve(0x80000...0x80fff, in: ioas)
    #expect(set(0, at: 0x10000, pages: 4) == nil)
    #expect(set(1, at: 0x80000, pages: 1) == nil)
    let before = context.snapshot
    #expect(errno { try context.follow(guest, in: ioas) } == .invalidArgument)
    #expect(context.snapshot == before)
    #expect(set(2, at: 0x90000, pages: 1) == nil)
    #expect(context.snapshot == before, "it is told nothing")
    #expect(set(1, at: 0, pages: 0) == nil)
    try context.follow(guest, in: ioas)
    // A slot where a device's reserved range is.
    let other = TestMachine(
      driver: DictionaryDriver(reserved: [ReservedRegion(0x90000...0x90fff, kind: .msi)]))
    let holder = DeviceHolder(try context.register(other.device(1)))
    #expect(errno { try holder.attach(to: ioas) } == .addressInUse)
    #expect(set(2, at: 0, pages: 0) == nil)
    try holder.attach(to: ioas)
    #expect(set(2, at: 0x90000, pages: 1) == .invalidArgument)
    holder.detach()
    #expect(set(2, at: 0x90000, pages: 1) == nil)
  }

  @Test(
    "B4: when the VM is gone, by close or by its last reference, its spaces are empty and free")
  func gone() throws {
    let ioas = try context.allocateIOAS()
    let device = try attach(1, to: ioas)
    do {
      let short = VirtualMachine(name: "VM 2")
      try short.set(0, at: 0x10000, pages: 2, of: memory)
      try context.follow(short, in: ioas)
      #expect(mapped(0).count == 2)
    }
    #expect(mapped(0) == [])
    #expect(try context.followedMachine(of: ioas) == nil)
    try context.map(memory, start: 0, length: page, into: ioas, at: .fixed(IOVA(0)))
    try context.unmap(0...0xfff, from: ioas)

    #expect(set(0, at: 0x10000, pages: 2) == nil)
    try context.follow(guest, in: ioas)
    guest.close()
    #expect(mapped(0) == [])
    guest.close()
    try context.stopFollowing(in: ioas)
    withExtendedLifetime(device) {}
  }

  @Test("B4: a space that is destroyed, or whose context closes, is told nothing more")
  func spaceGone() throws {
    let ioas = try context.allocateIOAS()
    try context.follow(guest, in: ioas)
    #expect(set(0, at: 0x10000, pages: 2) == nil)
    try context.destroy(ioas)
    #expect(set(0, at: 0x20000, pages: 2) == nil)
    let other = Context(system: machine.system)
    try other.follow(guest, in: other.allocateIOAS())
    other.close()
    #expect(other.objectCount == 0)
    #expect(set(0, at: 0, pages: 0) == nil)
    #expect(machine.system.memory.usedSlots == 0)
  }

  @Test("B4, A2: spaces of several contexts follow one VM; its memory is accounted once (B6)")
  func shared() throws {
    let user = PinnedMemory()
    let owner = MemoryOwner(user: user, process: ProcessMemory(), limit: TestLimit())
    let other = Context(system: machine.system)
    let spaces = [(context, try context.allocateIOAS()), (other, try other.allocateIOAS())]
    var devices: [DeviceHolder] = []
    for (index, (context, ioas)) in spaces.enumerated() {
      let holder = DeviceHolder(try context.register(machine.device(UInt8(index + 1))))
      try holder.attach(to: ioas)
      try context.follow(guest, in: ioas)
      devices.append(holder)
    }
    try guest.set(0, at: 0x10000, pages: 4, of: memory, account: owner.account(.user))
    #expect(mapped(0) == mapped(1))
    #expect(user.byteCount == 4 * page)
    #expect(machine.system.memory.usedSlots == 1)
    try guest.set(0, at: 0x12000, pages: 4, of: memory)
    #expect(user.byteCount == 4 * page)
    try context.stopFollowing(in: spaces[0].1)
    #expect(user.byteCount == 4 * page)
    try other.stopFollowing(in: spaces[1].1)
    #expect(user.byteCount == 0)
    withExtendedLifetime(devices) {}
  }

  @Test("B4: every failure on the way of a change takes all of it back")
  func failures() throws {
    let spaces = try (0..<2).map { _ in try context.allocateIOAS() }
    let devices = try spaces.enumerated().map {
      try attach(UInt8($0.offset + 1), to: $0.element)
    }
    for ioas in spaces { try context.follow(guest, in: ioas) }
    #expect(set(0, at: 0x10000, pages: 4) == nil)
    var points: Set<FailurePoint> = []
    func sweep(_ name: String, _ call: () -> Errno?) {
      let before = context.snapshot + guest.slots.map { "\($0)" }
      for nth in 1...100 {
        let countdown = FailureCountdown(nth)
        let result = countdown.run { call() }
        guard let point = countdown.failed else {
          #expect(result == nil, "\(name) fails by itself")
          return
        }
        points.insert(point)
        #expect(result == .noMemory, "\(name): \(point)")
        #expect(context.snapshot + guest.slots.map { "\($0)" } == before, "\(name): \(point)")
      }
      Issue.record("\(name) never runs out of failures")
    }
    sweep("add") { set(1, at: 0x80000, pages: 2, from: 8) }
    sweep("move") { set(1, at: 0x90000, pages: 2, from: 8) }
    sweep("move over itself") { set(0, at: 0xf000, pages: 4) }
    sweep("flags") { set(0, at: 0xf000, pages: 4, flags: .logsDirtyPages) }
    let third = try context.allocateIOAS()
    sweep("follow") { errno { try context.follow(guest, in: third) } }
    sweep("delete") { set(1, at: 0, pages: 0) }
    #expect(points.isSuperset(of: [.area, .pin, .segment]))
    withExtendedLifetime(devices) {}
  }

  @Test("B4: an accessor's pins end with the slot that they are in, and its reads follow moves")
  func accessors() throws {
    let ioas = try context.allocateIOAS()
    try context.follow(guest, in: ioas)
    let accessor = try Accessor(context: context, pinsMemory: true)
    defer { accessor.close() }
    try accessor.attach(to: ioas)
    #expect(set(0, at: 0x10000, pages: 4) == nil)
    memory[0] = 42
    let pin = try accessor.pin(IOVA(0x10000), length: page, for: .read)
    #expect(set(0, at: 0x20000, pages: 4) == nil)
    #expect(errno { try accessor.unpin(pin.id) } == .noSuchFileOrDirectory)
    #expect(try accessor.read(IOVA(0x20000), count: 1) == [42])
    #expect(errno { _ = try accessor.read(IOVA(0x10000), count: 1) } == .noSuchFileOrDirectory)
  }
}
