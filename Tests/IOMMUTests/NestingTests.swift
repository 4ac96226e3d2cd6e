// SPDX-License-Identifier: Apache-2.0
//
// MODEL B5: address spaces nested in software: what a child reaches, and what a change to its
// parent does.

import PageTables
import SystemPackage
import Testing

@testable import IOMMU

private let page: UInt64 = 4096

@Suite struct NestingTests {
  let rig: NestingRig

  init() throws { rig = try NestingRig() }

  @Test(
    "B5: a nested space's page table points at the memory itself, in pieces of the parent's")
  func oneTable() throws {
    try rig.map(8, 2, at: 0x10000)
    try rig.map(20, 2, at: 0x12000)
    let child = try rig.child(of: rig.root, .refused)
    let table = try rig.attach(1, to: child)
    try rig.nest(0x11000, 2, at: 0x80000, in: child)
    #expect(rig.memoryPages(0x80000, 3, in: table) == [9, 20, nil])
    // A space that is attached later is filled then.
    let second = try rig.child(of: child, .carriedThrough)
    try rig.nest(0x81000, at: 0, in: second)
    let deeper = try rig.attach(2, to: second)
    #expect(rig.memoryPages(0, 2, in: deeper) == [20, nil])
  }

  @Test("A1: a space does not nest on a parent of another context")
  func otherContext() throws {
    let other = Context(system: rig.machine.system)
    let foreign = try other.makeAddressSpace()
    let refusal = failure {
      _ = try rig.context.makeAddressSpace(nestedOn: foreign, parentChanges: .refused)
    }
    #expect(refusal?.errno == .noSuchFileOrDirectory)
    #expect(refusal?.sentence.contains("another context") == true)
    // By id there is no way to name it: the id is this context's own, or nobody's.
    #expect(errno { _ = try rig.child(of: ObjectID(77), .refused) } == .noSuchFileOrDirectory)
    let own = try rig.context.makeAddressSpace()
    let child = try rig.context.makeAddressSpace(nestedOn: own, parentChanges: .refused)
    #expect(try rig.context.nesting(of: child.id)?.parent == own.id)
    #expect(try rig.context.nesting(of: own.id) == nil)
  }

  @Test("B5: a child may do what both its own map and the parent's allow")
  func permissions() throws {
    try rig.map(0, at: 0x10000, permissions: .read)
    try rig.map(1, at: 0x11000, permissions: .write)
    try rig.map(2, at: 0x12000)
    for changes in [ParentChanges.refused, .carriedThrough] {
      let child = try rig.child(of: rig.root, changes)
      let table = try rig.attach(changes == .refused ? 1 : 2, to: child)
      try rig.nest(0x10000, 3, at: 0, in: child)
      try rig.nest(0x12000, at: 0x4000, in: child, permissions: .read)
      let got = table.pages.withLock { pages in pages.mapValues(\.permissions) }
      #expect(got == [0: .read, 0x1000: .write, 0x2000: .readWrite, 0x4000: .read])
      let refusal = failure {
        try rig.nest(0x10000, 2, at: 0x8000, in: child, permissions: .write)
      }
      // Nothing is left of the intersection: refused, or a hole.
      #expect(refusal?.errno == (changes == .refused ? .notPermitted : nil))
      #expect(
        rig.memoryPages(0x8000, 2, in: table) == (changes == .refused ? [nil, nil] : [nil, 1]))
      let accessor = try Accessor(context: rig.context, pinsMemory: false)
      try accessor.attach(to: child)
      #expect(errno { try accessor.write([1], to: IOVA(0)) } == .notPermitted)
      try accessor.write([7], to: IOVA(0x2000))
      #expect(rig.memory[Int(2 * page)] == 7)
      accessor.close()
    }
  }

  @Test("B5: parent changes refused: EBUSY names the child and the range; nothing has changed")
  func refused() throws {
    try rig.map(0, 4, at: 0x10000)
    try rig.map(8, 4, at: 0x20000)
    let child = try rig.child(of: rig.root, .refused)
    let table = try rig.attach(1, to: child)
    try rig.nest(0x21000, 2, at: 0x80000, in: child)
    let before = rig.context.snapshot
    for range: ClosedRange<UInt64> in [0x20000...0x23fff, 0...UInt64.max] {
      let refusal = failure { try rig.context.unmap(range, from: rig.root) }
      #expect(refusal?.errno == .resourceBusy)
      #expect(refusal?.sentence.contains("IOAS \(child)") == true)
      #expect(refusal?.sentence.contains("0x80000...0x81fff") == true)
      #expect(refusal?.sentence.contains("0x21000...0x22fff") == true)
      #expect(rig.context.snapshot == before)
    }
    // What the child does not refer to is the parent's own affair.
    #expect(try rig.unmap(0x10000, 4) == 4 * page)
    #expect(rig.memoryPages(0x80000, 2, in: table) == [9, 10])
    // The child refers to what is there, wholly.
    let hole = failure { try rig.nest(0x23000, 2, at: 0x90000, in: child) }
    #expect(hole?.errno == .noSuchFileOrDirectory)
    #expect(hole?.sentence.contains("0x24000") == true)
    try rig.unmap(0x80000, 2, in: child)
    #expect(try rig.unmap(0x20000, 4) == 4 * page)
    #expect(rig.machine.system.memory.usedSlots == 0)
  }

  @Test("B5: carried through: an unmap of the parent takes it, a map over the hole gives it")
  func carriedThrough() throws {
    let child = try rig.child(of: rig.root, .carriedThrough)
    let table = try rig.attach(1, to: child)
    // Before the parent maps anything: legal, and it faults.
    try rig.nest(0x10000, 8, at: 0x80000, in: child)
    try rig.nest(0x12000, 2, at: 0, in: child)
    #expect(table.count == 0)
    #expect(errno { try rig.nest(0x50000, at: 0x87000, in: child) } == .fileExists)
    try rig.map(0, 4, at: 0x10000)
    #expect(rig.memoryPages(0x80000, 5, in: table) == [0, 1, 2, 3, nil])
    #expect(rig.memoryPages(0, 3, in: table) == [2, 3, nil])
    try rig.map(20, 2, at: 0x16000)
    #expect(rig.memoryPages(0x84000, 4, in: table) == [nil, nil, 20, 21])
    try rig.unmap(0x10000, 4)
    #expect(rig.memoryPages(0x80000, 8, in: table) == [nil, nil, nil, nil, nil, nil, 20, 21])
    #expect(rig.memoryPage(0, in: table) == nil)
    #expect(rig.machine.system.memory.usedSlots == 1)
    // The same addresses, other memory: never what was there before.
    try rig.map(40, 3, at: 0x11000)
    #expect(rig.memoryPages(0x80000, 5, in: table) == [nil, 40, 41, 42, nil])
    #expect(rig.memoryPages(0, 3, in: table) == [41, 42, nil])
    // The child's mapping is one, however many pieces it is in.
    #expect(errno { try rig.unmap(0x80000, 4, in: child) } == .noSuchFileOrDirectory)
    #expect(try rig.unmap(0x80000, 8, in: child) == 8 * page)
    #expect(table.count == 2)
    try rig.context.unmap(0...UInt64.max, from: rig.root)
    #expect(table.count == 0 && rig.machine.system.memory.usedSlots == 0)
  }

  @Test("B5: a change of the root reaches children of children, or is refused by one of them")
  func depth() throws {
    let child = try rig.child(of: rig.root, .carriedThrough)
    let careless = try rig.child(of: child, .carriedThrough)
    let strict = try rig.child(of: child, .refused)
    let tables = try [
      rig.attach(1, to: child), rig.attach(2, to: careless), rig.attach(3, to: strict),
    ]
    try rig.nest(0x10000, 4, at: 0x20000, in: child)
    try rig.nest(0x20000, 4, at: 0x30000, in: careless)
    #expect(errno { try rig.nest(0x20000, at: 0, in: strict) } == .noSuchFileOrDirectory)
    try rig.map(5, 2, at: 0x10000)
    try rig.map(9, 2, at: 0x12000)
    #expect(rig.memoryPages(0x30000, 4, in: tables[1]) == [5, 6, 9, 10])
    try rig.nest(0x21000, at: 0, in: strict)
    let refusal = failure { try rig.unmap(0x10000, 2) }
    #expect(refusal?.errno == .resourceBusy)
    #expect(refusal?.sentence.contains("IOAS \(strict)") == true)
    #expect(errno { try rig.unmap(0x20000, 4, in: child) } == .resourceBusy)
    #expect(rig.memoryPages(0x30000, 4, in: tables[1]) == [5, 6, 9, 10])
    try rig.unmap(0x12000, 2)
    #expect(rig.memoryPages(0x20000, 4, in: tables[0]) == [5, 6, nil, nil])
    #expect(rig.memoryPages(0x30000, 4, in: tables[1]) == [5, 6, nil, nil])
    try rig.unmap(0, in: strict)
    try rig.unmap(0x20000, 4, in: child)
    #expect(tables[1].count == 0 && tables[0].count == 0)
    // What the child maps again there is the grandchild's again.
    try rig.nest(0x11000, at: 0x23000, in: child)
    #expect(rig.memoryPages(0x30000, 4, in: tables[1]) == [nil, nil, nil, 6])
    rig.expectNothingLeft()
  }

  @Test("B5: spaces nest seven levels deep, no deeper; the lock order holds at each")
  func levels() throws {
    try rig.map(3, at: 0)
    var space = rig.root
    for _ in 1...7 {
      space = try rig.child(of: space, .carriedThrough)
      try rig.nest(0, at: 0, in: space)
    }
    let table = try rig.attach(1, to: space)
    #expect(rig.memoryPage(0, in: table) == 3)
    #expect(errno { _ = try rig.child(of: space, .refused) } == .invalidArgument)
    try rig.unmap(0)
    #expect(table.count == 0)
    try rig.map(4, at: 0)
    #expect(rig.memoryPage(0, in: table) == 4)
    rig.expectNothingLeft()
  }

  @Test("B5: a parent outlives its children")
  func parentDestroyed() throws {
    let child = try rig.child(of: rig.root, .carriedThrough)
    #expect(errno { try rig.context.destroy(rig.root) } == .resourceBusy)
    try rig.map(0, at: 0)
    try rig.nest(0, at: 0, in: child)
    #expect(errno { try rig.context.destroy(rig.root) } == .resourceBusy)
    try rig.context.destroy(child)
    #expect(try rig.unmap(0) == page)
    try rig.context.destroy(rig.root)
    #expect(rig.context.objectCount == 0)
  }

  @Test("B5: a nested space takes its parent's addresses only, and no other space does")
  func wrongCalls() throws {
    let child = try rig.child(of: rig.root, .carriedThrough)
    try rig.map(0, at: 0x10000)
    try rig.nest(0x10000, at: 0x20000, in: child)
    #expect(errno { try rig.map(1, at: 0, in: child) } == .operationNotSupported)
    #expect(errno { try rig.nest(0x10000, at: 0x30000, in: rig.root) } == .invalidArgument)
    let other = try rig.context.allocateIOAS()
    for (from, iova, to) in [(rig.root, 0x10000, child), (child, 0x20000, other)] {
      #expect(
        errno {
          try rig.context.copy(from: from, IOVA(UInt64(iova)), length: page, into: to)
        } == .operationNotSupported)
    }
    func nest(_ iova: UInt64, _ length: UInt64, _ permissions: Permissions) -> Errno? {
      errno {
        try rig.context.map(
          parentIOVA: IOVA(iova), length: length, into: child, permissions: permissions)
      }
    }
    #expect(nest(0, 0, .read) == .invalidArgument)
    #expect(nest(.max, 2, .read) == .overflow)
    #expect(nest(0x1000, .max, .read) == .overflow)
    #expect(nest(0, page, []) == .invalidArgument)
    #expect(nest(0, UInt64.max, .read) == .overflow, "longer than any place")
    #expect(errno { try rig.nest(0, 2, at: UInt64.max - 4095, in: child) } == .overflow)
    // Up to the last address on both sides.
    try rig.nest(UInt64.max - 4095, at: UInt64.max - 4095, in: child)
    try rig.map(1, at: UInt64.max - 4095)
    #expect(try rig.context.unmap(0...UInt64.max, from: child) == 2 * page)
  }

  @Test("B5: a piece that a child's page tables cannot take is refused to the parent")
  func alignment() throws {
    let child = try rig.child(of: rig.root, .carriedThrough)
    try rig.nest(0x10000, 4, at: 0, in: child)
    func mapHalf(_ iova: UInt64) -> Errno? {
      errno {
        try rig.context.map(
          rig.memory, start: 0, length: 0x800, into: rig.root, at: .fixed(IOVA(iova)))
      }
    }
    // Nobody's table holds it as yet.
    #expect(mapHalf(0x10800) == nil)
    #expect(errno { _ = try rig.attach(1, to: child) } == .addressInUse)
    try rig.context.unmap(0x10800...0x10fff, from: rig.root)
    let table = try rig.attach(2, to: child)
    #expect(mapHalf(0x10800) == .invalidArgument)
    #expect(mapHalf(0x40800) == nil)
    #expect(try rig.context.unmap(0x40800...0x40fff, from: rig.root) == 0x800)
    #expect(table.count == 0)
    rig.expectNothingLeft()
  }

  @Test("D2: an accessor on a nested space: what it pinned ends with the parent's mapping")
  func accessors() throws {
    let child = try rig.child(of: rig.root, .carriedThrough)
    let accessor = try Accessor(context: rig.context, pinsMemory: true)
    try accessor.attach(to: child)
    try rig.nest(0x10000, 2, at: 0, in: child)
    #expect(errno { _ = try accessor.read(IOVA(0), count: 1) } == .noSuchFileOrDirectory)
    #expect(
      errno { _ = try accessor.pin(IOVA(0), length: 1, for: .read) } == .noSuchFileOrDirectory)
    try rig.map(6, 2, at: 0x10000)
    let pin = try accessor.pin(IOVA(0x1000), length: 8, for: .write)
    #expect(rig.machine.system.memory.usedSlots == 1)
    try rig.unmap(0x10000, 2)
    #expect(rig.machine.system.memory.usedSlots == 0)
    #expect(errno { try accessor.unpin(pin.id) } == .noSuchFileOrDirectory)
    #expect(errno { try accessor.write([1], to: IOVA(0x1000)) } == .noSuchFileOrDirectory)
    accessor.close()
    rig.expectNothingLeft()
  }

  @Test("B5: memory that hardware reads through a child stays mapped in the parent")
  func lockedPins() throws {
    let child = try rig.child(of: rig.root, .carriedThrough)
    try rig.map(0, 2, at: 0x10000)
    try rig.nest(0x10000, 2, at: 0, in: child)
    let space = try rig.context.addressSpace(child)
    let key = AccessPin.Key(accessor: ObjectIdentifier(rig.context), id: 0)
    try space.addAccessor(pinsMemory: true)
    _ = try space.pin(IOVA(0x1000), length: 16, for: .read, as: key, isLocked: true)
    #expect(errno { try rig.unmap(0x10000, 2) } == .resourceBusy)
    #expect(errno { try rig.unmap(0, 2, in: child) } == .resourceBusy)
    space.removeAccessor(key.accessor, pinsMemory: true)
    #expect(try rig.unmap(0x10000, 2) == 2 * page)
  }

  @Test("B5: a buffer that its exporter takes back is gone from children too")
  func revoked() throws {
    let child = try rig.child(of: rig.root, .carriedThrough)
    let table = try rig.attach(1, to: child)
    let buffer = try RevocableMemory(byteCount: 2 * page)
    try rig.nest(0x10000, 2, at: 0, in: child)
    try rig.context.map(
      buffer, offset: 0, length: 2 * page, into: rig.root, at: .fixed(IOVA(0x10000)))
    #expect(table.count == 2)
    buffer.revoke()
    #expect(table.count == 0)
    #expect(try rig.unmap(0x10000, 2) == 2 * page)
    rig.expectNothingLeft()
  }

  @Test("B5: type1's cuts of a parent's mapping stop at what a child refers to")
  func cuts() throws {
    try rig.context.setLargePages(false, in: rig.root)
    try rig.map(0, 4, at: 0x10000)
    let child = try rig.child(of: rig.root, .carriedThrough)
    let table = try rig.attach(1, to: child)
    try rig.nest(0x10000, 2, at: 0, in: child)
    func cut(_ iova: UInt64) -> Errno? {
      errno {
        _ = try rig.context.unmapAsFarAsPossible(IOVA(iova), length: page, from: rig.root)
      }
    }
    #expect(cut(0x11000) == .resourceBusy)
    #expect(cut(0x10000) == .resourceBusy)
    #expect(cut(0x12000) == nil)
    #expect(rig.memoryPages(0, 2, in: table) == [0, 1])
    let (unmapped, end) = try rig.context.unmapAllAsFarAsPossible(from: rig.root)
    #expect(unmapped == 3 * page && end == nil && table.count == 0)
    #expect(try rig.context.unmapAllAsFarAsPossible(from: child).unmapped == 2 * page)
    rig.expectNothingLeft()
  }
}
