// SPDX-License-Identifier: Apache-2.0
//
// What must hold while every worker stands still.

import IOMMU
import PageTables

extension StressWorld {
  /// Checks everything that can be counted or looked at.
  func audit(_ state: StressState) {
    for slot in slots.joined() {
      let live = slot.isMapped ? slot.extent(slot.begun.load(ordering: .acquiring)) : nil
      for extent in slot.extents where extent != live {
        if let (offset, word) = arena.firstUnpoisoned(slot, extent: extent) {
          state.fail("G2: \(word) was written to unmapped memory, byte \(offset) of the arena")
        }
      }
    }
    let mapped = countMapped(state)
    if system.memory.usedSlots != mapped {
      state.fail(
        "B6: \(mapped) slots are mapped, and \(system.memory.usedSlots) pieces of memory pinned"
      )
    }
    let automatic = Set(
      groups.compactMap { group in
        group.model.withLock { $0.isAutomatic ? $0.space : nil }
      }
    ).count
    // Every churner keeps an accessor.
    let expected = steadyObjects + automatic + spareDevices.count
    if context.objectCount != expected, !state.isStopping {
      state.fail(
        "A1: the context has \(context.objectCount) objects; \(expected) are in use: "
          + "\(context.snapshot.filter { $0.hasPrefix("object") })")
    }
  }

  /// How many slots are mapped. Each is mapped wholly and to the right memory, or not at all.
  private func countMapped(_ state: StressState) -> Int {
    var mapped = 0
    for (space, table) in zip(slots, tables) {
      guard let domain = try? context.pagingDomain(table) else {
        state.fail("A1: table \(table) is gone")
        return 0
      }
      for slot in space {
        let found = slot.usedPages.map { page in
          domain.translate(IOVA(slot.iova + page)).flatMap { system.memory.identity(of: $0) }
        }
        guard let first = found[0] else {
          if found.contains(where: { $0 != nil }) {
            state.fail("B1: slot \(slot.number) is mapped in part")
          }
          continue
        }
        mapped += 1
        let extent = slot.extent(slot.begun.load(ordering: .acquiring))
        let isRight = zip(slot.usedPages, found).allSatisfy { page, identity in
          identity?.object == first.object && identity?.offset == extent + page
        }
        if !isRight || !slot.isMapped {
          state.fail("B1: slot \(slot.number) is mapped to other memory than it should be")
        }
      }
    }
    return mapped
  }
}
