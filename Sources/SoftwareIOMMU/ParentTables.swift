// SPDX-License-Identifier: Apache-2.0
//
// A guest's memory as hardware reads its tables of contexts there: by guest-physical addresses,
// each translated by the parent.

import IOMMU
import PageTables

/// The addresses that a parent translates, as the memory of tables. Trivial to copy; used inside a
/// port's transaction.
struct ParentTables<Format: PageTableFormat>: TableMemory {
  let parent: PageTableRoot<Format>
  let physical: PhysicalTables

  @inline(__always)
  init(_ parent: PageTableRoot<Format>, in memory: PhysicalMemory) {
    self.parent = parent
    physical = PhysicalTables(memory)
  }

  private func place(
    _ address: UInt64, _ access: Permissions
  ) throws(TableMemoryFault) -> UInt64 {
    do throws(WalkFault) {
      return parent.isMarking
        ? try parent.walk(IOVA(address), marking: access).physical.rawValue
        : try parent.walk(IOVA(address), for: access).physical.rawValue
    } catch {
      var fault = error
      fault.stage = .second
      fault.ipa = address
      throw .secondStage(fault)
    }
  }

  func load(_ address: UInt64) throws(TableMemoryFault) -> UInt64 {
    try physical.load(place(address, .read))
  }

  func compareExchange(
    _ address: UInt64, expected: UInt64, desired: UInt64
  ) throws(TableMemoryFault) -> Bool {
    try physical.compareExchange(
      place(address, .readWrite), expected: expected, desired: desired)
  }
}
