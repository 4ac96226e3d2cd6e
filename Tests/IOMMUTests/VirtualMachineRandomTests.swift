// SPDX-License-Identifier: Apache-2.0
//
// MODEL B4: long random sequences of slot changes against a dictionary of guest pages, with
// failures on the way; and the same from many threads.

import PageTables
import SystemPackage
import Testing

@testable import IOMMU

private let page: UInt64 = 4096

/// What KVM's rules make of a sequence of calls, page by page.
private struct SlotModel {
  struct Page: Equatable {
    var user: UInt64
    var isWritable: Bool
  }

  private(set) var slots: [UInt32: MemorySlot] = [:]

  /// Every guest page that is there, by its number.
  var pages: [UInt64: Page] { slots.values.reduce(into: [:]) { Self.add($1, to: &$0) } }

  private static func add(_ slot: MemorySlot, to pages: inout [UInt64: Page]) {
    for index in 0..<slot.byteCount / page {
      pages[slot.guestAddress / page + index] = Page(
        user: slot.userAddress + index * page, isWritable: !slot.flags.contains(.readOnly))
    }
  }

  /// What the VM's own rules say of a change: nil where there is nothing against it.
  func refusal(_ slot: MemorySlot) -> Errno? {
    let old = slots[slot.number]
    if slot.byteCount == 0 { return old == nil ? .invalidArgument : nil }
    if let old {
      if old.byteCount != slot.byteCount || old.userAddress != slot.userAddress
        || old.flags.contains(.readOnly) != slot.flags.contains(.readOnly)
      {
        return .invalidArgument
      }
      if old.guestAddress == slot.guestAddress { return nil }
    }
    var others = self
    others.slots[slot.number] = nil
    var own: [UInt64: Page] = [:]
    Self.add(slot, to: &own)
    return others.pages.keys.contains { own[$0] != nil } ? .fileExists : nil
  }

  /// Whether a change puts a page where there was none of the slot.
  func moves(_ slot: MemorySlot) -> Bool {
    slot.byteCount > 0 && slots[slot.number]?.guestAddress != slot.guestAddress
  }

  mutating func apply(_ slot: MemorySlot) {
    slots[slot.number] = slot.byteCount == 0 ? nil : slot
  }
}

@Suite struct VirtualMachineRandomTests {
  @Test(
    "B4: random changes leave every follower with the pages of a dictionary", arguments: 1...6)
  func sequence(seed: UInt64) throws {
    var generator = SplitMix(seed: seed)
    let machine = TestMachine()
    let memory = try LocalMemory(byteCount: 64 * page)
    let guest = VirtualMachine(name: "VM 1")
    let contexts = (0..<3).map { _ in Context(system: machine.system) }
    var devices: [DeviceHolder] = []
    var spaces: [ObjectID] = []
    for (index, context) in contexts.enumerated() {
      let holder = DeviceHolder(try context.register(machine.device(UInt8(index + 1))))
      spaces.append(try context.allocateIOAS())
      try holder.attach(to: spaces[index])
      devices.append(holder)
    }
    let domains = machine.driver.domains.withLock { $0 }
    // Pages 40 to 43 are reserved in the last space.
    try contexts[2].reserve(40 * page...44 * page - 1, in: spaces[2])
    var follows = [false, false, false]
    var model = SlotModel()

    for step in 0..<1500 {
      let what = "seed \(seed), step \(step)"
      let touchesReserved = { (pages: Dictionary<UInt64, SlotModel.Page>.Keys) in
        pages.contains { 40...43 ~= $0 }
      }
      if generator.next(below: 12) == 0 {
        let index = Int(generator.next(below: 3))
        if follows[index] {
          try contexts[index].stopFollowing(in: spaces[index])
          follows[index] = false
        } else {
          let refused = index == 2 && touchesReserved(model.pages.keys)
          #expect(
            errno { try contexts[index].follow(guest, in: spaces[index]) }
              == (refused ? .invalidArgument : nil), "\(what)")
          follows[index] = !refused
        }
      } else {
        var slot = MemorySlot(
          number: UInt32(generator.next(below: 8)),
          guestAddress: generator.next(below: 60) * page,
          byteCount: generator.next(below: 8) * page,
          userAddress: generator.next(below: 60) * page,
          flags: MemorySlot.Flags(rawValue: UInt32(generator.next(below: 4))))
        if let old = model.slots[slot.number], generator.next(below: 4) != 0 {
          // Most changes of a slot are to be good ones.
          let address =
            generator.next(below: 2) == 0 ? slot.guestAddress : old.guestAddress + page
          slot = old
          slot.guestAddress = generator.next(below: 4) == 0 ? old.guestAddress : address
          if generator.next(below: 3) == 0 {
            slot.flags.formSymmetricDifference(.logsDirtyPages)
          }
        }
        var expected = model.refusal(slot)
        if expected == nil, model.moves(slot) {
          var next = SlotModel()
          next.apply(slot)
          let isThere = slot.userAddress + slot.byteCount <= memory.byteCount
          for (index, follows) in follows.enumerated() where follows && expected == nil {
            if index == 2, touchesReserved(next.pages.keys) {
              expected = .invalidArgument
            } else if !isThere {
              expected = .badAddress
            }
          }
        }
        let countdown = FailureCountdown(Int(generator.next(below: 12)))
        let result = countdown.run {
          errno { try guest.setMemorySlot(slot, of: memory) }
        }
        if countdown.failed == nil || result != .noMemory {
          #expect(result == expected, "\(what): \(slot)")
        }
        if result == nil { model.apply(slot) }
      }
      #expect(guest.slots == model.slots.values.sorted { $0.guestAddress < $1.guestAddress })
      for (index, domain) in domains.enumerated() {
        let seen = domain.pages.withLock { pages in
          pages.reduce(into: [UInt64: SlotModel.Page]()) { seen, entry in
            let identity = machine.system.memory.identity(
              of: PhysicalAddress(entry.value.physical))
            seen[entry.key / page] = SlotModel.Page(
              user: identity?.offset ?? .max,
              isWritable: entry.value.permissions.contains(.write))
          }
        }
        try #require(seen == (follows[index] ? model.pages : [:]), "\(what), space \(index)")
      }
    }
    guest.close()
    #expect(domains.allSatisfy { $0.count == 0 })
    #expect(machine.system.memory.usedSlots == 0)
    withExtendedLifetime(devices) {}
  }

  @Test(
    "A4, B4: slots, followers, attaches and the VM's end from many threads leave nothing behind"
  )
  func manyThreads() async throws {
    let machine = TestMachine()
    let context = Context(system: machine.system)
    let spaces = try (0..<3).map { _ in try context.allocateIOAS() }
    let devices = try (1...2).map { try machine.device($0) }
    let memory = try LocalMemory(byteCount: 64 * page)
    let guests = (0..<2).map { VirtualMachine(name: "VM \($0)") }
    await withTaskGroup(of: Void.self) { tasks in
      for worker in 0..<3 {
        tasks.addTask {
          var generator = SplitMix(seed: UInt64(worker) + 1)
          for _ in 0..<1200 {
            let guest = guests[Int(generator.next(below: 2))]
            let space = spaces[Int(generator.next(below: 3))]
            switch generator.next(below: 8) {
            case 0: try? context.follow(guest, in: space)
            case 1: try? context.stopFollowing(in: space)
            case 2:
              _ = try? context.map(memory, start: 0, length: page, into: space)
              _ = try? context.unmap(0...UInt64.max, from: space)
            case 3:
              // One that ends while a space follows it.
              let short = VirtualMachine(name: "VM 9")
              try? short.set(0, at: 0, pages: 4, of: memory)
              try? context.follow(short, in: space)
            default:
              try? guest.set(
                UInt32(generator.next(below: 6)), at: generator.next(below: 64) * page,
                pages: generator.next(below: 3) * 2, of: memory)
            }
          }
        }
      }
      for (index, device) in devices.enumerated() {
        tasks.addTask {
          var generator = SplitMix(seed: UInt64(index) + 100)
          for _ in 0..<150 {
            guard let holder = try? DeviceHolder(context.register(device)) else { continue }
            for _ in 0..<4 {
              _ = try? holder.attach(to: spaces[Int(generator.next(below: 3))])
              if generator.next(below: 3) == 0 { holder.detach() }
            }
          }
        }
      }
    }
    for guest in guests { guest.close() }
    for space in spaces { #expect(try context.followedMachine(of: space) == nil) }
    context.close()
    #expect(context.objectCount == 0)
    #expect(machine.system.memory.usedSlots == 0)
    #expect(machine.driver.domains.withLock { $0.allSatisfy { $0.count == 0 } })
  }
}
