// SPDX-License-Identifier: Apache-2.0
//
// The worker that makes and destroys objects beside the others: spaces, tables, accessors, a
// device of its own; copies mappings, and unmaps those of others.

import IOMMU
import PageTables
import SystemPackage

/// Ends each step as it began: nothing of its own is left but an accessor.
final class Churner: StressWorker, @unchecked Sendable {
  var tally = Tally()
  private let world: StressWorld
  private let state: StressState
  private let device: PhysicalDevice
  private let index: Int
  private let accessor: Accessor
  private var random: SplitMix
  /// A pin of the accessor that may have ended.
  private var held: UInt32?

  init(
    world: StressWorld, state: StressState, device: PhysicalDevice, index: Int, seed: UInt64
  ) throws(IOMMUError) {
    self.world = world
    self.state = state
    self.device = device
    self.index = index
    random = SplitMix(seed: seed)
    accessor = try Accessor(context: world.context, pinsMemory: true)
    try accessor.attach(to: world.spaces[0])
  }

  func end() { accessor.close() }

  func step() {
    do throws(IOMMUError) {
      switch random.below(8) {
      case 0: try strayUnmap()
      case 1: try copy()
      case 2: try access()
      case 3: try pin()
      case 4: try makeSpace()
      case 5: try bind()
      case 6: try makeTable()
      default: try refuseDestroy()
      }
    } catch {
      state.fail("A1: a worker on its own objects met \(error)")
    }
  }

  private func anySlot() -> (slot: Slot, space: Int) {
    let space = random.below(world.spaces.count)
    return (world.slots[space][random.below(world.slots[space].count)], space)
  }

  /// Takes away what a mapper has mapped: it finds that out.
  private func strayUnmap() throws(IOMMUError) {
    let slot = anySlot().slot
    do throws(IOMMUError) {
      try world.context.unmap(slot.range, from: slot.space)
      tally.add(.strayUnmap)
    } catch  where error.errno == .noSuchFileOrDirectory {
    }
  }

  /// Where this worker maps: nobody else's, nobody's DMA.
  private var ownIOVA: UInt64 {
    StressWorld.otherIOVA + UInt64(index) * StressWorld.Plan.extentSize
  }

  /// Maps elsewhere what a slot has mapped: the memory stays pinned beyond the slot's unmap.
  private func copy() throws(IOMMUError) {
    let slot = anySlot().slot
    let target = world.spaces[random.below(world.spaces.count)]
    do throws(IOMMUError) {
      try world.context.copy(
        from: slot.space, IOVA(slot.iova), length: slot.length, into: target,
        at: .fixed(IOVA(ownIOVA)))
    } catch  where error.errno == .noSuchFileOrDirectory {
      return
    }
    let bytes = try world.context.unmap(ownIOVA...ownIOVA + (slot.length - 1), from: target)
    if bytes != slot.length { state.fail("B1: a copy of slot \(slot.number) lost bytes") }
    tally.add(.copy)
  }

  private func access() throws(IOMMUError) {
    let (slot, space) = anySlot()
    try accessor.attach(to: world.spaces[space])
    let ended = slot.ended.load(ordering: .sequentiallyConsistent)
    let bytes: [UInt8]
    do throws(IOMMUError) {
      bytes = try accessor.read(IOVA(slot.iova), count: 8)
    } catch  where error.errno == .noSuchFileOrDirectory {
      return
    }
    let begun = slot.begun.load(ordering: .sequentiallyConsistent)
    tally.add(.access)
    let word = Word(bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) })
    guard case .stamp(slot.number, let generation) = word, generation > ended,
      generation <= begun
    else {
      state.fail(
        "D2: an accessor saw \(word) in slot \(slot.number), mappings \(ended + 1) to \(begun)")
      return
    }
  }

  /// Pins a slot until the next time: an unmap or a move to another space ends it before.
  private func pin() throws(IOMMUError) {
    let (slot, space) = anySlot()
    do throws(IOMMUError) {
      if let held { try accessor.unpin(held) }
    } catch  where error.errno == .noSuchFileOrDirectory {
    }
    held = nil
    try accessor.attach(to: world.spaces[space])
    do throws(IOMMUError) {
      held = try accessor.pin(IOVA(slot.iova), length: slot.length, for: .write).id
      tally.add(.pin)
    } catch  where error.errno == .noSuchFileOrDirectory {
    }
  }

  private func makeSpace() throws(IOMMUError) {
    let space = try world.context.makeAddressSpace()
    let (slot, _) = anySlot()
    try space.map(world.arena, slot.extents[0]..<slot.extents[0] + slot.length)
    tally.add(.space)
  }

  /// A device comes, goes through a space, and goes.
  private func bind() throws(IOMMUError) {
    let binding = try world.context.register(device)
    try binding.group.attach(to: world.spaces[random.below(world.spaces.count)])
    try binding.group.attach(to: world.tables[random.below(world.tables.count)])
    tally.add(.bind)
  }

  /// A table that is filled with all that is mapped just now, and kept in step until it goes.
  private func makeTable() throws(IOMMUError) {
    let device = world.groups[0].bindings[0].id
    let table = try world.context.allocateHWPT(
      for: device, from: world.spaces[random.below(world.spaces.count)])
    tally.add(.table)
    try world.context.destroy(table)
  }

  private func refuseDestroy() throws(IOMMUError) {
    do throws(IOMMUError) {
      try world.context.destroy(world.spaces[random.below(world.spaces.count)])
      state.fail("A1: a space was destroyed under its tables")
    } catch  where error.errno == .resourceBusy {
      tally.add(.busy)
    }
  }
}
