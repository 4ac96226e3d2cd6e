// SPDX-License-Identifier: Apache-2.0
//
// The workers that map and unmap, and those that change what devices are attached to.

import IOMMU
import PageTables
import SystemPackage

/// What one thread does again and again.
protocol StressWorker: AnyObject, Sendable {
  var tally: Tally { get set }
  /// One operation or a few; after it the worker holds nothing.
  func step()
  /// After the last step.
  func end()
}

/// Counts of one worker since they were last added to the run's.
struct Tally {
  private(set) var counts: [Operation: Int] = [:]
  private(set) var total = 0

  mutating func add(_ operation: Operation) {
    counts[operation, default: 0] += 1
    total += 1
  }
}

extension StressWorker {
  func end() {}

  func flush(to state: StressState, every count: Int) {
    guard tally.total >= count else { return }
    state.add(tally.counts)
    tally = Tally()
  }
}

/// Maps and unmaps its own slots.
final class Mapper: StressWorker, @unchecked Sendable {
  // Unchecked, as all workers: one thread steps it.
  var tally = Tally()
  private let world: StressWorld
  private let state: StressState
  private let slots: [Slot]
  private var random: SplitMix

  init(world: StressWorld, state: StressState, slots: [Slot], seed: UInt64) {
    self.world = world
    self.state = state
    self.slots = slots
    random = SplitMix(seed: seed)
  }

  func step() {
    let slot = slots[random.below(slots.count)]
    if slot.isMapped { unmap(slot) } else { map(slot) }
  }

  private func map(_ slot: Slot) {
    let generation = slot.begun.load(ordering: .relaxed) + 1
    let extent = slot.extent(generation)
    if let (offset, word) = world.arena.firstUnpoisoned(slot, extent: extent) {
      state.fail(
        "G2: \(word) was written to unmapped memory, byte \(offset) of the arena, slot "
          + "\(slot.number), before mapping \(generation)")
      return
    }
    world.arena.fill(
      slot, extent: extent, with: .stamp(slot: slot.number, generation: generation))
    slot.begun.store(generation, ordering: .sequentiallyConsistent)
    do throws(IOMMUError) {
      try world.context.map(
        world.arena, start: extent, length: slot.length, into: slot.space,
        at: .fixed(IOVA(slot.iova)))
      tally.add(.map)
    } catch {
      state.fail("B1: slot \(slot.number) cannot be mapped: \(error)")
    }
  }

  private func unmap(_ slot: Slot) {
    let generation = slot.begun.load(ordering: .relaxed)
    do throws(IOMMUError) {
      let bytes = try world.context.unmap(slot.range, from: slot.space)
      if bytes != slot.length {
        state.fail("B1: unmapping slot \(slot.number) took out \(bytes) bytes")
      }
      tally.add(.unmap)
    } catch {
      // Somebody else may have unmapped it.
      if error.errno != .noSuchFileOrDirectory {
        state.fail("B1: slot \(slot.number) cannot be unmapped: \(error)")
      }
    }
    slot.ended.store(generation, ordering: .sequentiallyConsistent)
    world.arena.fill(slot, extent: slot.extent(generation), with: .poison)
  }
}

/// Attaches, replaces and detaches.
final class Attacher: StressWorker, @unchecked Sendable {
  var tally = Tally()
  private let world: StressWorld
  private let state: StressState
  private var random: SplitMix

  init(world: StressWorld, state: StressState, seed: UInt64) {
    self.world = world
    self.state = state
    random = SplitMix(seed: seed)
  }

  func step() {
    let group = world.groups[random.below(world.groups.count)]
    let member = random.below(group.bindings.count)
    let space = random.below(world.spaces.count)
    let isAutomatic = group.takesAutomatic && random.below(2) == 0
    let detaches = random.below(4) == 0
    group.model.withLock { model in
      group.beginChange()
      if detaches {
        detach(group, member, &model)
      } else {
        attach(group, member, to: space, isAutomatic: isAutomatic, &model)
      }
      group.endChange(space: model.space)
    }
  }

  private func detach(_ group: StressGroup, _ member: Int, _ model: inout StressGroup.Model) {
    group.bindings[member].detach(group.pasid)
    guard model.attached.remove(member) != nil else { return }
    if model.attached.isEmpty {
      model.space = nil
      model.isAutomatic = false
    }
    tally.add(group.pasid == nil ? .detach : .pasidDetach)
  }

  private func attach(
    _ group: StressGroup, _ member: Int, to space: Int, isAutomatic: Bool,
    _ model: inout StressGroup.Model
  ) {
    let replaces = model.attached.contains(member)
    let fits =
      replaces || model.space == nil
      || model.space == space && model.isAutomatic == isAutomatic
    do throws(IOMMUError) {
      _ = try group.bindings[member].attach(
        group.pasid, to: isAutomatic ? world.spaces[space] : world.tables[space])
      if !fits {
        state.fail("D3: \(group.name) was taken to two tables, the second in space \(space)")
      }
      model.attached.insert(member)
      model.space = space
      model.isAutomatic = isAutomatic
      switch (group.pasid, replaces) {
      case (nil, false): tally.add(.attach)
      case (nil, true): tally.add(.replace)
      case (_, false): tally.add(.pasidAttach)
      case (_, true): tally.add(.pasidReplace)
      }
    } catch {
      if fits || error.errno != .invalidArgument {
        state.fail("D1: \(group.name) cannot be attached to space \(space): \(error)")
      }
      tally.add(.refused)
    }
  }
}
