// SPDX-License-Identifier: Apache-2.0
//
// An address space that follows a VM's memory slots: what is mapped is what the slots say, and
// nobody else may map or unmap (MODEL B4).

import PageTables
import SystemPackage

/// The VM that a space follows, which does not live for that.
final class FollowedMachine: Sendable {
  weak let machine: VirtualMachine?
  /// Kept, for a reference that is taken under the space's lock may turn out to be the last.
  let name: String

  init(_ machine: VirtualMachine) {
    self.machine = machine
    name = machine.name
  }
}

extension AddressSpace: MemorySlotFollower {
  /// From now on slots alone say what is mapped.
  /// - Throws: `EBUSY` where the space has mappings or follows a VM already.
  func beginFollowing(_ machine: VirtualMachine) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      try check(state)
      try refuseNested(state, "made to follow a virtual machine; let its root follow")
      try refuseDummyRoot(state, "made to follow a virtual machine")
      guard !state.specials.contains(.following) else {
        throw IOMMUError(
          .resourceBusy,
          "IOAS \(id) follows the memory slots of \(state.followed?.name ?? "a virtual machine") already; let it stop that "
            + "first")
      }
      guard state.areas.isEmpty else {
        throw IOMMUError(
          .resourceBusy,
          "IOAS \(id) has mappings of its own; unmap all of them, then let it follow "
            + "\(machine.name)")
      }
      state.specials.insert(.following)
      state.followed = FollowedMachine(machine)
    }
  }

  /// Maps and unmaps are the user's again.
  func endFollowing() { state.withLock { Self.endFollowing(&$0) } }

  private static func endFollowing(_ state: inout State) {
    state.specials.remove(.following)
    state.followed = nil
  }

  /// The VM that the space follows.
  var followedMachine: VirtualMachine? { state.withLock { $0.followed?.machine } }

  /// Refuses what only the owner of a space's mappings may do.
  /// - Throws: `EPERM` where slots or a user's table are the owner, `ENOENT` where the space was
  ///   destroyed.
  @inline(__always)
  func checkOpen(_ state: borrowing State) throws(IOMMUError) {
    guard state.specials.isDisjoint(with: [.destroyed, .following, .userTable]) else {
      throw refusal(state)
    }
  }

  private func refusal(_ state: borrowing State) -> IOMMUError {
    do throws(IOMMUError) {
      try check(state)
    } catch {
      return error
    }
    if state.specials.contains(.userTable) {
      return IOMMUError(
        .notPermitted,
        "the table of ioasid \(id) is the user's: what it maps and unmaps itself holds; invalidate "
          + "what an IOMMU has cached of it")
    }
    return IOMMUError(
      .notPermitted,
      "IOAS \(id) follows the memory slots of \(state.followed?.name ?? "a virtual machine"), which alone say what is "
        + "mapped; change the slots, or use another IOAS")
  }

  /// Runs `body`, which makes a slot harder to move or to put back than it was, while no slot
  /// changes. Called without the space's lock; the caller holds `Context.configuration`, so that
  /// the space does not begin to follow meanwhile. For a nested space it is its root's slots.
  func whileSlotsStay<Result>(
    _ body: () throws(IOMMUError) -> Result
  ) throws(IOMMUError) -> Result {
    guard let machine = (link?.root ?? self).followedMachine else { return try body() }
    return try machine.whileSlotsStay(body)
  }

  // MARK: What a VM tells

  func prepare(_ change: MemorySlotChange) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      switch change {
      case .add(let slot): try add(slot, to: &state)
      case .remove(let slot): try checkMayGo(slot, in: state)
      case .move(let old, let new):
        try checkMayGo(old, in: state)
        if old.slot.range.overlaps(new.slot.range) {
          try moveWithinItself(old, to: new, &state)
        } else {
          try add(new, to: &state)
        }
      case .changeFlags: break
      }
    }
  }

  func commit(_ change: MemorySlotChange) {
    state.withLock { state in
      switch change {
      case .add, .changeFlags: break
      case .remove(let slot): remove(slot, from: &state)
      case .move(let old, let new):
        if old.slot.range.overlaps(new.slot.range) {
          letGo(old, in: &state)
        } else {
          remove(old, from: &state)
        }
      }
    }
  }

  func abort(_ change: MemorySlotChange) {
    state.withLock { state in
      switch change {
      case .remove, .changeFlags: break
      case .add(let slot): remove(slot, from: &state)
      case .move(let old, let new):
        remove(new, from: &state)
        if old.slot.range.overlaps(new.slot.range) { putBack(old, &state) }
      }
    }
  }

  func abandon(_ slots: [PublishedSlot]) {
    state.withLock { state in
      for slot in slots {
        do throws(IOMMUError) {
          try checkMayGo(slot, in: state)
          remove(slot, from: &state)
        } catch {
          // A hardware queue reads it, or a space that is nested on this one refuses. It stays as any mapping does, for the user to unmap later.
        }
      }
      Self.endFollowing(&state)
    }
  }

  // MARK: Slots as areas

  private func add(_ published: PublishedSlot, to state: inout State) throws(IOMMUError) {
    let slot = published.slot
    try check(state)
    try checkLength(slot.byteCount, in: state)
    try checkFree(slot.guestAddress, length: slot.byteCount, in: state)
    try insert(
      Area(
        first: slot.guestAddress, last: slot.range.upperBound, pages: published.pages, start: 0,
        permissions: slot.flags.contains(.readOnly) ? .read : .readWrite), in: &state)
    try showNew(at: slot.guestAddress, in: &state)
  }

  private func remove(_ published: PublishedSlot, from state: inout State) {
    let slot = published.slot
    guard let position = state.areas.firstOverlap(with: slot.range),
      state.areas.bounds(at: position) == (slot.guestAddress, slot.range.upperBound)
    else { return }
    take(at: position, from: &state)
  }

  private func checkMayGo(
    _ published: PublishedSlot, in state: borrowing State
  ) throws(IOMMUError) {
    let range = published.slot.range
    try checkUnlocked(first: range.lowerBound, last: range.upperBound, in: state)
    try checkChildrenAllowUnmap(range, in: state)
  }

  /// Moves a slot to where it partly is: there is no room for both. Its memory stays pinned
  /// meanwhile, and its page-table pages were there before, so that it can be put back.
  private func moveWithinItself(
    _ old: PublishedSlot, to new: PublishedSlot, _ state: inout State
  ) throws(IOMMUError) {
    // What is nested could not be put back for certain.
    try checkUnused(old.slot.range, in: state)
    try checkUnused(new.slot.range, in: state)
    if !state.domains.isEmpty {
      try old.pages.pin(start: 0, length: old.slot.byteCount, in: memory)
      state.holdsMovedSlot = true
    }
    remove(old, from: &state)
    do throws(IOMMUError) {
      try add(new, to: &state)
    } catch {
      putBack(old, &state)
      throw error
    }
  }

  private func putBack(_ old: PublishedSlot, _ state: inout State) {
    FailureCountdown.whileNothingFails {
      do throws(IOMMUError) {
        try add(old, to: &state)
      } catch {
        assertionFailure("memory slot \(old.slot.number) in IOAS \(id): \(error)")
      }
    }
    letGo(old, in: &state)
  }

  /// Ends the pin that `moveWithinItself` took.
  private func letGo(_ old: PublishedSlot, in state: inout State) {
    guard state.holdsMovedSlot else { return }
    state.holdsMovedSlot = false
    old.pages.unpin(start: 0, length: old.slot.byteCount, in: memory)
  }
}
