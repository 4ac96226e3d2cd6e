// SPDX-License-Identifier: Apache-2.0
//
// A tree of address spaces over a dictionary IOMMU: each has a device, so that what its page
// table holds can be read.

import PageTables
import SystemPackage
import Testing

@testable import IOMMU

private let page: UInt64 = 4096

final class NestingRig {
  let machine = TestMachine()
  let memory: LocalMemory
  let context: Context
  let root: ObjectID
  private var devices: [DeviceHolder] = []

  init() throws {
    memory = try LocalMemory(byteCount: 64 * page)
    context = Context(system: machine.system)
    root = try context.allocateIOAS()
  }

  func child(of parent: ObjectID, _ changes: ParentChanges) throws -> ObjectID {
    try context.allocateIOAS(nestedOn: parent, parentChanges: changes)
  }

  /// Attaches a device of its own and returns the page table that it goes through.
  func attach(_ slot: UInt8, to ioas: ObjectID) throws -> DictionaryDomain {
    let holder = DeviceHolder(try context.register(machine.device(slot)))
    try holder.attach(to: ioas)
    devices.append(holder)
    return machine.driver.domains.withLock { $0[$0.count - 1] }
  }

  /// Maps pages of the memory, by number, into a space that maps memory itself.
  func map(
    _ first: UInt64, _ count: UInt64 = 1, at iova: UInt64, in ioas: ObjectID? = nil,
    permissions: Permissions = .readWrite, account: MemoryAccount? = nil
  ) throws {
    try context.map(
      memory, start: first * page, length: count * page, into: ioas ?? root,
      permissions: permissions, at: .fixed(IOVA(iova)), kind: .file, account: account)
  }

  /// Maps pages at a parent's IOVA into a nested space.
  func nest(
    _ parentIOVA: UInt64, _ count: UInt64 = 1, at iova: UInt64, in child: ObjectID,
    permissions: Permissions = .readWrite
  ) throws {
    try context.map(
      parentIOVA: IOVA(parentIOVA), length: count * page, into: child,
      permissions: permissions, at: .fixed(IOVA(iova)))
  }

  @discardableResult
  func unmap(_ iova: UInt64, _ count: UInt64 = 1, in ioas: ObjectID? = nil) throws -> UInt64 {
    try context.unmap(iova...iova + count * page - 1, from: ioas ?? root)
  }

  /// Which page of the memory a table has at an IOVA; nil where DMA faults.
  func memoryPage(_ iova: UInt64, in domain: DictionaryDomain) -> UInt64? {
    domain.translate(IOVA(iova)).flatMap { machine.system.memory.identity(of: $0) }.map {
      $0.offset / page
    }
  }

  /// As `memoryPage`, of consecutive pages.
  func memoryPages(
    _ iova: UInt64, _ count: UInt64, in domain: DictionaryDomain
  ) -> [UInt64?] {
    (0..<count).map { memoryPage(iova + $0 * page, in: domain) }
  }

  /// Checks that nothing is left once all is unbound and closed.
  func expectNothingLeft() {
    devices = []
    context.close()
    #expect(context.objectCount == 0)
    #expect(machine.system.memory.usedSlots == 0)
    #expect(machine.driver.domains.withLock { $0.allSatisfy { $0.count == 0 } })
  }
}

/// The error that a call throws, as errno and sentence; nil where it succeeds.
func failure(of body: () throws -> Void) -> (errno: Errno, sentence: String)? {
  do {
    try body()
    return nil
  } catch {
    return (error as? IOMMUError).map { ($0.errno, "\($0)") }
  }
}
