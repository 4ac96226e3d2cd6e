// SPDX-License-Identifier: Apache-2.0
//
// MODEL B5: calls on a tree of address spaces that fail in the middle leave it as it was.

import PageTables
import SystemPackage
import Testing

@testable import IOMMU

private let page: UInt64 = 4096

/// Memory of which some pages are not there.
private final class PatchyMemory: MemorySource {
  let memory: LocalMemory
  let missing: Set<UInt64>

  init(_ memory: LocalMemory, missing: Set<UInt64>) {
    self.memory = memory
    self.missing = missing
  }

  func pin(
    address: UInt64, length: UInt64, writable: Bool,
    place: (consuming PinnedRun) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    for offset in stride(from: address, to: address + length, by: Int(page)) {
      guard !missing.contains(offset / page) else {
        throw IOMMUError(.badAddress, "page \(offset / page) is not there")
      }
      try memory.pin(address: offset, length: page, writable: writable, place: place)
    }
  }
}

@Suite struct NestingFailureTests {
  let rig: NestingRig

  init() throws { rig = try NestingRig() }

  @Test("B5: a parent's map whose memory a child cannot pin is not made, in any space")
  func parentMap() throws {
    let first = try rig.child(of: rig.root, .carriedThrough)
    let second = try rig.child(of: rig.root, .carriedThrough)
    try rig.nest(0x10000, 2, at: 0, in: first)
    try rig.nest(0x12000, 2, at: 0, in: second)
    let tables = try (rig.attach(1, to: first), rig.attach(2, to: second))
    let before = rig.context.snapshot
    let patchy = PatchyMemory(rig.memory, missing: [3])
    func map(_ start: UInt64, _ count: UInt64, at iova: UInt64) -> Errno? {
      errno {
        try rig.context.map(
          patchy, start: start, length: count * page, into: rig.root, at: .fixed(IOVA(iova)))
      }
    }
    // The first child had its two pages already.
    #expect(map(0, 4, at: 0x10000) == .badAddress)
    #expect(rig.context.snapshot == before)
    #expect(tables.0.count == 0 && tables.1.count == 0)
    // Nobody pins the page that is not there.
    #expect(map(0, 3, at: 0x10000) == nil)
    #expect(map(3 * page, 1, at: 0x20000) == nil)
    #expect(tables.0.count == 2 && tables.1.count == 1)
    try rig.context.unmap(0...UInt64.max, from: rig.root)
    #expect(rig.context.snapshot == before)
  }

  @Test("B5: a child's map that meets memory which is not there leaves the child as it was")
  func childMap() throws {
    let child = try rig.child(of: rig.root, .refused)
    let below = try rig.child(of: child, .carriedThrough)
    try rig.map(0, 2, at: 0x10000)
    try rig.context.map(
      PatchyMemory(rig.memory, missing: [4]), start: 4 * page, length: 4 * page, into: rig.root,
      at: .fixed(IOVA(0x12000)))
    try rig.nest(0, 8, at: 0x40000, in: below)
    let table = try rig.attach(1, to: below)
    let before = rig.context.snapshot
    // The grandchild is filled as the child maps: it is there that the page is missing.
    #expect(errno { try rig.nest(0x10000, 4, at: 0, in: child) } == .badAddress)
    #expect(rig.context.snapshot == before && table.count == 0)
    #expect(errno { try rig.nest(0x10000, 3, at: 0, in: child) } == .badAddress)
    #expect(rig.context.snapshot == before)
    try rig.nest(0x10000, 2, at: 0, in: child)
    #expect(rig.memoryPages(0x40000, 3, in: table) == [0, 1, nil])
  }

  @Test("B5: each place where a call on a tree can fail, in turn: nothing has changed after it")
  func sweep() throws {
    let child = try rig.child(of: rig.root, .carriedThrough)
    let strict = try rig.child(of: child, .refused)
    let below = try rig.child(of: child, .carriedThrough)
    _ = try (
      rig.attach(1, to: rig.root), rig.attach(2, to: child), rig.attach(3, to: strict),
      rig.attach(4, to: below)
    )
    try rig.nest(0x20000, 6, at: 0x40000, in: below)
    var failed: Set<FailurePoint> = []
    func sweep(_ name: String, _ call: () throws -> Void) throws {
      let before = rig.context.snapshot
      for nth in 1... {
        let countdown = FailureCountdown(nth)
        let result = countdown.run { errno { try call() } }
        guard let point = countdown.failed else {
          #expect(result == nil, "\(name)")
          return
        }
        failed.insert(point)
        #expect(result == .noMemory, "\(name), \(nth): \(point)")
        #expect(rig.context.snapshot == before, "\(name), \(nth): \(point)")
      }
    }
    try sweep("map of the root") { try rig.map(0, 3, at: 0x10000) }
    try sweep("map of the child, in pieces") {
      try rig.nest(0x10000, 6, at: 0x20000, in: child)
    }
    try sweep("map of the root into the hole") {
      try rig.map(
        8, 3, at: 0x13000,
        account: MemoryOwner(
          user: PinnedMemory(), process: ProcessMemory(), limit: TestLimit()
        ).account(.user))
    }
    try sweep("map of the strict grandchild") { try rig.nest(0x21000, 3, at: 0, in: strict) }
    try sweep("a child more") { _ = try rig.child(of: below, .refused) }
    try sweep("a dummy root") { _ = try rig.context.allocateDummyRoot() }
    #expect(failed.isSuperset(of: [.scratch, .area, .pin, .segment, .account, .object]))
    // Unmaps have nothing that can fail.
    let countdown = FailureCountdown(1)
    try countdown.run {
      try rig.unmap(0, 3, in: strict)
      try rig.context.unmap(0...UInt64.max, from: rig.root)
    }
    #expect(countdown.failed == nil)
    rig.expectNothingLeft()
  }

  @Test("B5: a space that nests on a VM's slots keeps them, or follows them too")
  func slots() throws {
    let machine = VirtualMachine(name: "VM 1")
    try rig.context.follow(machine, in: rig.root)
    let child = try rig.child(of: rig.root, .carriedThrough)
    let strict = try rig.child(of: rig.root, .refused)
    #expect(errno { try rig.context.follow(machine, in: child) } == .operationNotSupported)
    let tables = try (rig.attach(1, to: child), rig.attach(2, to: strict))
    try rig.nest(0x10000, 4, at: 0, in: child)
    func set(_ number: UInt32, at address: UInt64, _ count: UInt64, from page: UInt64) -> Errno?
    {
      errno {
        try machine.setMemorySlot(
          MemorySlot(
            number: number, guestAddress: address, byteCount: count * 4096,
            userAddress: page * 4096), of: rig.memory)
      }
    }
    #expect(set(0, at: 0x10000, 2, from: 4) == nil)
    #expect(set(1, at: 0x12000, 2, from: 30) == nil)
    #expect(rig.memoryPages(0, 5, in: tables.0) == [4, 5, 30, 31, nil])
    #expect(errno { try rig.unmap(0x10000, 2) } == .notPermitted)
    try rig.nest(0x13000, at: 0, in: strict)
    #expect(set(1, at: 0, 0, from: 30) == .resourceBusy)
    #expect(set(1, at: 0x50000, 2, from: 30) == .resourceBusy)
    #expect(rig.memoryPages(0, 5, in: tables.0) == [4, 5, 30, 31, nil])
    // Away, back, and not to where it partly is.
    #expect(set(0, at: 0x60000, 2, from: 4) == nil)
    #expect(rig.memoryPages(0, 5, in: tables.0) == [nil, nil, 30, 31, nil])
    #expect(set(0, at: 0x61000, 2, from: 4) == nil)
    #expect(set(0, at: 0x10000, 2, from: 4) == nil)
    #expect(set(0, at: 0x11000, 2, from: 4) == .fileExists)
    #expect(set(0, at: 0xf000, 2, from: 4) == .resourceBusy)
    #expect(rig.memoryPages(0, 5, in: tables.0) == [4, 5, 30, 31, nil])
    #expect(errno { try rig.context.stopFollowing(in: rig.root) } == .resourceBusy)
    machine.close()
    // What the strict one refers to stays until it lets go.
    #expect(rig.memoryPages(0, 5, in: tables.0) == [nil, nil, 30, 31, nil])
    #expect(rig.memoryPages(0, 1, in: tables.1) == [31])
    try rig.unmap(0, in: strict)
    #expect(try rig.unmap(0x12000, 2) == 2 * page)
    #expect(tables.0.count == 0)
    rig.expectNothingLeft()
  }
}
