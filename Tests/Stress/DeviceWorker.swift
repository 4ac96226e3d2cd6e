// SPDX-License-Identifier: Apache-2.0
//
// The workers that do DMA, and hold what it sees against what is mapped and attached.

import IOMMU
import PageTables
import SoftwareIOMMU

/// One requester's port.
struct Lane: Sendable {
  let group: StressGroup
  let port: StressPort

  var number: Int { port.lane }
}

/// Drives some ports.
final class DeviceWorker: StressWorker, @unchecked Sendable {
  var tally = Tally()
  private let world: StressWorld
  private let state: StressState
  private let lanes: [Lane]
  private var random: SplitMix
  private var count: UInt64 = 0

  init(world: StressWorld, state: StressState, lanes: [Lane], seed: UInt64) {
    self.world = world
    self.state = state
    self.lanes = lanes
    random = SplitMix(seed: seed)
  }

  func step() {
    for _ in 0..<16 {
      let lane = lanes[random.below(lanes.count)]
      let place = random.below(world.slots[0].count)
      let slot = world.slots[0][place]
      let page = UInt64(random.below(slot.pages / slot.step)) * UInt64(slot.step)
      let iova = slot.iova + page * PageLayout.size
      switch random.below(8) {
      case 0...2: readStamp(lane, place, iova)
      case 3: readStamps(lane, place, iova)
      case 4...5: writeOwn(lane, iova)
      default: copyStamp(lane, place, iova)
      }
    }
  }

  /// What is known before an access.
  private struct Before {
    let phase: StressGroup.Phase?
    /// By space: the latest mapping of the place whose unmap has returned.
    let ended: [UInt64]
  }

  private func before(_ lane: Lane, _ place: Int) -> Before {
    Before(
      phase: lane.group.stablePhase,
      ended: world.slots.map { $0[place].ended.load(ordering: .sequentiallyConsistent) })
  }

  /// Whether the group stood on one table all the time; and on which space.
  private func stable(_ lane: Lane, since before: Before) -> StressGroup.Phase? {
    let after = lane.group.stablePhase
    return after == before.phase ? after : nil
  }

  /// An access that succeeded: not while the group was blocked all the time.
  private func checkAllowed(_ lane: Lane, _ before: Before, _ iova: UInt64) {
    if let phase = stable(lane, since: before), phase.space == nil {
      state.fail(
        "C2: lane \(lane.number) of \(lane.group.name) reached \(IOVA(iova)) while blocked")
    }
  }

  /// A stamp: of the place, of the space that the group is on, of a mapping that had not been
  /// unmapped before the access began.
  private func check(
    _ value: UInt64, _ lane: Lane, _ place: Int, _ before: Before, _ iova: UInt64
  ) {
    let who = "lane \(lane.number) of \(lane.group.name) at \(IOVA(iova))"
    guard case .stamp(let number, let generation) = Word(value) else {
      state.fail("G2: \(who) saw \(Word(value)) where a stamp must be")
      return
    }
    let perSpace = world.slots[0].count
    let space = number / perSpace
    guard number % perSpace == place else {
      state.fail("B1: \(who) saw the memory of slot \(number), not of place \(place)")
      return
    }
    if let phase = stable(lane, since: before), phase.space != space {
      state.fail(
        "D1: \(who) saw space \(space) while attached to "
          + (phase.space.map { "space \($0)" } ?? "nothing"))
    }
    let begun = world.slots[space][place].begun.load(ordering: .sequentiallyConsistent)
    if generation <= before.ended[space] || generation > begun {
      state.fail(
        "G2: \(who) saw mapping \(generation) of slot \(number) when \(before.ended[space]) was "
          + "unmapped already, and \(begun) is the latest")
    }
  }

  private func readStamp(_ lane: Lane, _ place: Int, _ iova: UInt64) {
    let before = before(lane, place)
    do throws(DMAFault) {
      let offset = UInt64(random.below(PageLayout.stamps)) * 8
      let value = try lane.port.port.load(IOVA(iova + offset), as: UInt64.self)
      tally.add(.read)
      check(value, lane, place, before, iova)
    } catch {
      tally.add(.fault)
    }
  }

  private func readStamps(_ lane: Lane, _ place: Int, _ iova: UInt64) {
    let before = before(lane, place)
    do throws(DMAFault) {
      var values = InlineArray<8, UInt64>(repeating: 0)
      try withUnsafeMutableBytes(of: &values) { bytes throws(DMAFault) in
        try lane.port.port.read(IOVA(iova), into: bytes)
      }
      tally.add(.read)
      for index in values.indices { check(values[index], lane, place, before, iova) }
    } catch {
      tally.add(.fault)
    }
  }

  private func writeOwn(_ lane: Lane, _ iova: UInt64) {
    let before = before(lane, 0)
    count += 1
    do throws(DMAFault) {
      let at = IOVA(iova + PageLayout.offset(lane: lane.number))
      try lane.port.port.store(Word.lane(lane.number, count).value, at: at)
      tally.add(.write)
      checkAllowed(lane, before, iova)
      // What is there now is ours, or of a mapping that came since; never poison.
      let value = try lane.port.port.load(at, as: UInt64.self)
      switch Word(value) {
      case .poison, .unknown:
        state.fail("G2: lane \(lane.number) read \(Word(value)) at \(at)")
      case .lane(let other, _) where other != lane.number:
        state.fail("G2: lane \(lane.number) read a word of lane \(other) at \(at)")
      default: break
      }
    } catch {
      tally.add(.fault)
    }
  }

  /// Copies two stamps to the lane's own words in another place.
  private func copyStamp(_ lane: Lane, _ place: Int, _ iova: UInt64) {
    let before = before(lane, place)
    let target = world.slots[0][random.below(world.slots[0].count)]
    let to = IOVA(target.iova + PageLayout.offset(lane: lane.number))
    do throws(DMAFault) {
      try lane.port.port.copy(from: IOVA(iova), to: to, length: 16)
      tally.add(.transfer)
      checkAllowed(lane, before, iova)
      let value = try lane.port.port.load(to, as: UInt64.self)
      if case .poison = Word(value) {
        state.fail("G2: lane \(lane.number) copied poison from \(IOVA(iova)) to \(to)")
      }
    } catch {
      tally.add(.fault)
    }
  }
}
