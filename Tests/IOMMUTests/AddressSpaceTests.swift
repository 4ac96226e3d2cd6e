// SPDX-License-Identifier: Apache-2.0
//
// MODEL B1, B6: mapping, unmapping, copying, ranges; with and without a page table.

import IOMMU
import PageTables
import SystemPackage
import Testing

private let page: UInt64 = 4096

@Suite struct AddressSpaceTests {
  let machine = TestMachine()

  /// A context with a space, and the device that has it in a table where asked.
  private func space(
    attached: Bool
  ) throws -> (context: Context, ioas: ObjectID, device: DeviceHolder?) {
    let context = Context(system: machine.system)
    let ioas = try context.allocateIOAS()
    guard attached else { return (context, ioas, nil) }
    let holder = DeviceHolder(try context.register(machine.device(1)))
    try holder.attach(to: ioas)
    return (context, ioas, holder)
  }

  @Test("B1: a mapping never replaces another", arguments: [false, true])
  func overlap(attached: Bool) throws {
    let (context, ioas, device) = try space(attached: attached)
    defer { withExtendedLifetime(device) {} }
    let memory = try LocalMemory(byteCount: 64 * page)
    try context.map(
      memory, start: 0, length: 2 * page, into: ioas, at: .fixed(IOVA(16 * page)))
    for (start, length) in [(16, 2), (16, 1), (17, 1), (15, 2), (15, 3)] as [(UInt64, UInt64)] {
      #expect(
        errno {
          try context.map(
            memory, start: 0, length: length * page, into: ioas, at: .fixed(IOVA(start * page)))
        } == .fileExists)
    }
    try context.map(memory, start: 0, length: page, into: ioas, at: .fixed(IOVA(15 * page)))
    try context.map(memory, start: 0, length: page, into: ioas, at: .fixed(IOVA(18 * page)))
  }

  @Test("B1: an unmap that would split an area is refused and changes nothing")
  func split() throws {
    let (context, ioas, device) = try space(attached: true)
    defer { withExtendedLifetime(device) {} }
    let memory = try LocalMemory(byteCount: 4 * page)
    try context.map(memory, start: 0, length: 4 * page, into: ioas, at: .fixed(IOVA(0x10000)))
    for range in [0x10000...0x10fff, 0x11000...0x13fff, 0xf000...0x11fff]
      as [ClosedRange<UInt64>]
    {
      #expect(errno { try context.unmap(range, from: ioas) } == .noSuchFileOrDirectory)
    }
    #expect(machine.driver.domains.withLock { $0[0].count } == 4)
    #expect(try context.unmap(0x8000...0x20000, from: ioas) == 4 * page)
    #expect(machine.driver.domains.withLock { $0[0].count } == 0)
    #expect(machine.system.memory.usedSlots == 0)
  }

  @Test("B1: an unmap of nothing is ENOENT, but an empty space may be unmapped whole")
  func unmapNothing() throws {
    let (context, ioas, _) = try space(attached: false)
    #expect(errno { try context.unmap(0...0xfff, from: ioas) } == .noSuchFileOrDirectory)
    #expect(try context.unmap(0...UInt64.max, from: ioas) == 0)
  }

  @Test("B1: automatic placement fills the lowest hole, never IOVA 0")
  func placement() throws {
    let (context, ioas, _) = try space(attached: false)
    let memory = try LocalMemory(byteCount: 64 * page)
    let first = try context.map(memory, start: page, length: page, into: ioas)
    #expect(first == IOVA(page))
    let second = try context.map(memory, start: page, length: page, into: ioas)
    #expect(second == IOVA(2 * page))
    try context.unmap(page...2 * page - 1, from: ioas)
    #expect(try context.map(memory, start: page, length: page, into: ioas) == IOVA(page))
  }

  @Test("B1: automatic placement keeps to allowed ranges, and they may not be reserved")
  func allowed() throws {
    let (context, ioas, _) = try space(attached: false)
    let memory = try LocalMemory(byteCount: 64 * page)
    try context.allow([0x100000...0x101fff], in: ioas)
    #expect(try context.map(memory, start: page, length: page, into: ioas) == IOVA(0x100000))
    #expect(try context.map(memory, start: page, length: page, into: ioas) == IOVA(0x101000))
    #expect(
      errno { try context.map(memory, start: page, length: page, into: ioas) } == .noSpace)
    #expect(errno { try context.reserve(0x100000...0x100fff, in: ioas) } == .addressInUse)
    try context.reserve(0x200000...0x200fff, in: ioas)
    #expect(errno { try context.allow([0x1ff000...0x200000], in: ioas) } == .addressInUse)
    #expect(errno { try context.allow([0...9, 5...12], in: ioas) } == .invalidArgument)
    try context.allow([], in: ioas)
    _ = try context.map(memory, start: page, length: page, into: ioas)
  }

  @Test("B1: ranges that overlap the last addresses are refused, not wrapped")
  func overflow() throws {
    let (context, ioas, _) = try space(attached: false)
    let memory = try LocalMemory(byteCount: page)
    #expect(
      errno {
        try context.map(
          memory, start: .max - page, length: 2 * page, into: ioas, at: .fixed(IOVA(0)))
      } == .overflow)
    #expect(
      errno {
        try context.map(
          memory, start: 0, length: 2 * page, into: ioas, at: .fixed(IOVA(0 &- page)))
      } == .overflow)
    #expect(
      errno {
        try context.map(memory, start: 0, length: .max - 1, into: ioas)
      } == .invalidArgument)
    // The last page itself can be mapped.
    try context.map(memory, start: 0, length: page, into: ioas, at: .fixed(IOVA(0 &- page)))
    #expect(try context.unmap((0 &- page)...UInt64.max, from: ioas) == page)
  }

  @Test("B1: memory that is not there is found when a table needs it, and nothing stays")
  func badMemory() throws {
    let (context, ioas, _) = try space(attached: false)
    let memory = try LocalMemory(byteCount: page)
    // No table: Linux does not look at the memory yet.
    try context.map(memory, start: 0, length: 2 * page, into: ioas, at: .fixed(IOVA(0x4000)))
    let holder = DeviceHolder(try context.register(machine.device(1)))
    #expect(errno { try holder.attach(to: ioas) } == .badAddress)
    #expect(machine.system.memory.usedSlots == 0)
    try context.unmap(0...UInt64.max, from: ioas)
    try holder.attach(to: ioas)
    #expect(
      errno {
        try context.map(
          memory, start: 0, length: 2 * page, into: ioas, at: .fixed(IOVA(0x4000)))
      } == .badAddress)
    #expect(machine.system.memory.usedSlots == 0)
    #expect(errno { try context.unmap(0x4000...0x5fff, from: ioas) } == .noSuchFileOrDirectory)
  }

  @Test("B6: a copy shares the pins and keeps the memory when the source goes")
  func copy() throws {
    let (context, ioas, device) = try space(attached: true)
    defer { withExtendedLifetime(device) {} }
    let other = try context.allocateIOAS()
    let memory = try LocalMemory(byteCount: 4 * page)
    try context.map(memory, start: 0, length: 4 * page, into: ioas, at: .fixed(IOVA(0x10000)))
    #expect(machine.system.memory.usedSlots == 1)
    try context.copy(
      from: ioas, IOVA(0x11000), length: 2 * page, into: other, at: .fixed(IOVA(0x40000)))
    try context.copy(
      from: other, IOVA(0x40000), length: 2 * page, into: ioas, at: .fixed(IOVA(0x80000)))
    #expect(machine.system.memory.usedSlots == 1)
    let domain = machine.driver.domains.withLock { $0[0] }
    #expect(domain.translate(IOVA(0x80000)) == domain.translate(IOVA(0x11000)))
    try context.unmap(0x10000...0x13fff, from: ioas)
    #expect(domain.translate(IOVA(0x80000)) != nil)
    #expect(machine.system.memory.usedSlots == 1)
    try context.unmap(0...UInt64.max, from: ioas)
    #expect(machine.system.memory.usedSlots == 0)
    #expect(
      errno {
        try context.copy(from: other, IOVA(0x41000), length: 2 * page, into: ioas)
      } == .noSuchFileOrDirectory)
  }

  @Test("B1: a copy cannot gain write access")
  func copyPermission() throws {
    let (context, ioas, _) = try space(attached: false)
    let memory = try LocalMemory(byteCount: page)
    try context.map(
      memory, start: 0, length: page, into: ioas, permissions: .read, at: .fixed(IOVA(page)))
    #expect(
      errno { try context.copy(from: ioas, IOVA(page), length: page, into: ioas) }
        == .notPermitted)
    try context.copy(from: ioas, IOVA(page), length: page, into: ioas, permissions: .read)
  }

  @Test("B1: every failure point of a map leaves tables, pins and areas as they were")
  func failNth() throws {
    let context = Context(system: machine.system)
    let ioas = try context.allocateIOAS()
    let devices = try (1...2).map { DeviceHolder(try context.register(machine.device($0))) }
    for device in devices {
      let table = try context.allocateHWPT(for: device.id, from: ioas)
      try device.attach(to: table)
    }
    let memory = try LocalMemory(byteCount: 8 * page)
    try context.setLargePages(false, in: ioas)
    let domains = machine.driver.domains.withLock { $0 }
    #expect(domains.count == 2)
    for (index, domain) in domains.enumerated() {
      for step in 0..<8 {
        domain.failAfter.withLock { $0 = step }
        #expect(
          errno {
            try context.map(
              memory, start: 0, length: 8 * page, into: ioas, at: .fixed(IOVA(0x10000)))
          } == .noMemory, "domain \(index), page \(step)")
        domain.failAfter.withLock { $0 = nil }
        #expect(domains.allSatisfy { $0.count == 0 })
        #expect(machine.system.memory.usedSlots == 0)
      }
    }
    try context.map(memory, start: 0, length: 8 * page, into: ioas, at: .fixed(IOVA(0x10000)))
    #expect(domains.allSatisfy { $0.count == 8 })
  }

  @Test("B1: random maps and unmaps agree with a dictionary of pages")
  func randomOperations() throws {
    let (context, ioas, device) = try space(attached: true)
    defer { withExtendedLifetime(device) {} }
    let memory = try LocalMemory(byteCount: 64 * page)
    var generator = SplitMix(seed: 7)
    var model: [(range: ClosedRange<UInt64>, start: UInt64)] = []
    for _ in 0..<20_000 {
      let first = generator.next(below: 4096) * page
      let length = (generator.next(below: 16) + 1) * page
      let range = first...first + length - 1
      if generator.next(below: 2) == 0 {
        let start = generator.next(below: 48) * page
        let expected: Errno? =
          model.contains { $0.range.overlaps(range) } ? .fileExists : nil
        #expect(
          errno {
            try context.map(
              memory, start: start, length: length, into: ioas, at: .fixed(IOVA(first)))
          } == expected)
        if expected == nil { model.append((range, start)) }
      } else {
        let hit = model.filter { $0.range.overlaps(range) }
        let splits = hit.contains { $0.range.clamped(to: range) != $0.range }
        let before = hit.filter { $0.range.clamped(to: range) == $0.range }
        let result = errno { try context.unmap(range, from: ioas) }
        #expect(result == (hit.isEmpty || splits ? .noSuchFileOrDirectory : nil))
        // Areas before the first one that would be split are gone, as on Linux.
        let barrier =
          hit.filter { $0.range.clamped(to: range) != $0.range }
          .map(\.range.lowerBound).min() ?? .max
        model.removeAll { area in
          before.contains { $0.range == area.range } && area.range.lowerBound < barrier
        }
      }
    }
    let domain = machine.driver.domains.withLock { $0[0] }
    #expect(domain.count == model.reduce(0) { $0 + $1.range.count / 4096 })
    for (range, _) in model {
      #expect(domain.translate(IOVA(range.lowerBound)) != nil)
    }
    #expect(!model.isEmpty)
  }
}

struct SplitMix {
  private var state: UInt64
  init(seed: UInt64) { state = seed }
  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }
  mutating func next(below bound: UInt64) -> UInt64 { next() % bound }
}

/// A binding in a box, as tests keep several.
final class DeviceHolder: Sendable {
  private let binding: Binding
  init(_ binding: consuming Binding) { self.binding = binding }
  var id: ObjectID { binding.id }
  @discardableResult func attach(
    to target: ObjectID, snoop hint: SnoopHint = .none
  ) throws -> ObjectID {
    try binding.group.attach(to: target, snoop: hint)
  }
  func detach() { binding.group.detach() }
  @discardableResult func attach(
    _ pasid: UInt32, to target: ObjectID
  ) throws -> ObjectID {
    try binding.group.attach(PASID(rawValue: pasid), to: target)
  }
  @discardableResult func replace(
    _ pasid: UInt32, with target: ObjectID
  ) throws -> ObjectID {
    try binding.group.replace(PASID(rawValue: pasid), with: target)
  }
  func detach(_ pasid: UInt32) { binding.group.detach(PASID(rawValue: pasid)) }
}
