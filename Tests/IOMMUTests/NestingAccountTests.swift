// SPDX-License-Identifier: Apache-2.0
//
// MODEL B6: pages that several address spaces use through a parent or a dummy root are counted
// once, on the root.

import PageTables
import SystemPackage
import Testing

@testable import IOMMU

private let page: UInt64 = 4096

@Suite struct NestingAccountTests {
  let rig: NestingRig
  let limit = TestLimit()
  let owner: MemoryOwner

  init() throws {
    rig = try NestingRig()
    owner = MemoryOwner(user: PinnedMemory(), process: ProcessMemory(), limit: limit)
  }

  /// Checks all three sums, in pages.
  private func expect(
    _ count: UInt64, _ mode: MemoryAccount.Mode, _ comment: Comment? = nil,
    _ location: SourceLocation = #_sourceLocation
  ) {
    let sums = [owner.process.pinned, owner.user, owner.process.locked].map(\.byteCount)
    // A container counts locked pages only.
    let counted: [Bool] =
      switch mode {
      case .none: [true, false, false]
      case .user: [true, true, false]
      case .process: [true, false, true]
      case .container, .unlimitedContainer: [false, false, true]
      }
    let wanted = counted.map { $0 ? count * page : 0 }
    #expect(sums == wanted, comment, sourceLocation: location)
  }

  @Test(
    "B6: a page that a parent, its children and theirs use is counted once, for who mapped it",
    arguments: MemoryAccount.Mode.allCases)
  func once(mode: MemoryAccount.Mode) throws {
    try rig.map(0, 8, at: 0x10000, account: owner.account(mode))
    let part = try rig.child(of: rig.root, .carriedThrough)
    let whole = try rig.child(of: rig.root, .carriedThrough)
    let below = try rig.child(of: whole, .refused)
    try rig.nest(0x12000, 2, at: 0, in: part)
    try rig.nest(0x13000, 2, at: 0x8000, in: part)
    try rig.nest(0x10000, 8, at: 0, in: whole)
    try rig.nest(0x4000, 4, at: 0, in: below)
    expect(0, mode, "nothing is pinned before a table needs it")
    let devices = try (1...4).map {
      DeviceHolder(try rig.context.register(rig.machine.device(UInt8($0))))
    }
    try devices[0].attach(to: part)
    expect(3, mode, "pages 2 to 4, the middle one twice")
    try devices[1].attach(to: below)
    expect(6, mode, "pages 2 to 7")
    try devices[2].attach(to: rig.root)
    expect(8, mode)
    try devices[3].attach(to: whole)
    expect(8, mode)
    devices[2].detach()
    expect(8, mode, "the child holds them")
    devices[3].detach()
    expect(6, mode)
    devices[1].detach()
    expect(3, mode)
    try rig.unmap(0, 2, in: part)
    expect(2, mode)
    try rig.unmap(0, 4, in: below)
    try rig.unmap(0x10000, 8)
    expect(0, mode)
    #expect(rig.machine.system.memory.usedSlots == 0)
  }

  @Test(
    "B6: a dummy root pins and counts what several roots use, once, for as long as it maps it",
    arguments: MemoryAccount.Mode.allCases)
  func dummyRoot(mode: MemoryAccount.Mode) throws {
    let dummy = try rig.context.allocateDummyRoot()
    let account = owner.account(mode)
    let address = try rig.context.map(
      rig.memory, start: 4 * page, length: 16 * page, into: dummy, account: account)
    #expect(address == IOVA(4 * page), "at its own address")
    expect(16, mode, "when it is mapped, not when it is used")
    let roots = try (0..<3).map { _ in try rig.child(of: dummy, .refused) }
    let tables = try roots.indices.map { try rig.attach(UInt8($0 + 1), to: roots[$0]) }
    for (index, root) in roots.enumerated() {
      try rig.nest(6 * page, 4, at: UInt64(index) << 30, in: root)
      try rig.nest(4 * page, 16, at: 1 << 40, in: root)
    }
    for (index, table) in tables.enumerated() {
      #expect(rig.memoryPages(UInt64(index) << 30, 5, in: table) == [6, 7, 8, 9, nil])
    }
    expect(16, mode)
    #expect(errno { try rig.context.unmap(0...UInt64.max, from: dummy) } == .resourceBusy)
    for root in roots { try rig.context.unmap(0...UInt64.max, from: root) }
    expect(16, mode, "the dummy root holds them")
    #expect(try rig.context.unmap(0...UInt64.max, from: dummy) == 16 * page)
    expect(0, mode)
    rig.expectNothingLeft()
  }

  @Test("B6: the limit is met by the dummy root; what nests on it needs no more")
  func limits() throws {
    let dummy = try rig.context.allocateDummyRoot()
    func map(_ first: UInt64, _ count: UInt64) -> Errno? {
      errno {
        try rig.context.map(
          rig.memory, start: first * page, length: count * page, into: dummy,
          account: owner.account(.user))
      }
    }
    limit.bytes = 4 * page
    #expect(map(0, 5) == .noMemory)
    expect(0, .user)
    #expect(map(0, 4) == nil)
    let root = try rig.child(of: dummy, .carriedThrough)
    let table = try rig.attach(1, to: root)
    try rig.nest(0, 8, at: 0x10000, in: root)
    #expect(rig.memoryPages(0x10000, 5, in: table) == [0, 1, 2, 3, nil])
    #expect(map(4, 1) == .noMemory)
    limit.bytes = 8 * page
    #expect(map(4, 4) == nil)
    #expect(rig.memoryPages(0x10000, 8, in: table) == [0, 1, 2, 3, 4, 5, 6, 7])
    expect(8, .user)
    try rig.context.unmap(0...4 * page - 1, from: dummy)
    #expect(rig.memoryPages(0x10000, 5, in: table) == [nil, nil, nil, nil, 4])
    expect(4, .user)
    rig.expectNothingLeft()
    expect(0, .user)
  }

  @Test(
    "B6: a dummy root maps memory at its own address in whole pages; nothing attaches to it")
  func identity() throws {
    let dummy = try rig.context.makeDummyRoot()
    #expect(
      errno { try rig.map(1, at: 0x10000, in: dummy.id) } == .invalidArgument, "elsewhere")
    try rig.map(1, at: page, in: dummy.id)
    #expect(errno { try rig.map(1, at: page, in: dummy.id) } == .fileExists)
    #expect(
      errno {
        try rig.context.map(rig.memory, start: 0x5800, length: 0x800, into: dummy.id)
      } == .invalidArgument)
    #expect(errno { _ = try rig.attach(1, to: dummy.id) } == .operationNotSupported)
    let accessor = try Accessor(context: rig.context, pinsMemory: true)
    #expect(errno { try accessor.attach(to: dummy.id) } == .operationNotSupported)
    accessor.close()
    try rig.map(2, at: 0)
    #expect(
      errno {
        try rig.context.copy(from: rig.root, IOVA(0), length: page, into: dummy.id)
      } == .operationNotSupported)
    #expect(rig.machine.system.memory.usedSlots == 1)
    _ = consume dummy
    #expect(rig.machine.system.memory.usedSlots == 0)
  }

  @Test("B6: a change of process moves what is nested with its root, once")
  func changeOwner() throws {
    let dummy = try rig.context.allocateDummyRoot()
    try rig.context.map(
      rig.memory, start: 0, length: 4 * page, into: dummy, kind: .file,
      account: owner.account(.process))
    let root = try rig.child(of: dummy, .carriedThrough)
    let table = try rig.attach(1, to: root)
    try rig.nest(0, 8, at: 0x10000, in: root)
    let new = MemoryOwner(user: PinnedMemory(), process: ProcessMemory(), limit: TestLimit())
    try rig.context.changeOwner(to: new)
    expect(0, .process)
    #expect(new.process.locked.byteCount == 4 * page)
    #expect(table.count == 4)
    rig.expectNothingLeft()
    #expect(new.process.locked.byteCount == 0 && new.process.pinned.byteCount == 0)
  }
}
