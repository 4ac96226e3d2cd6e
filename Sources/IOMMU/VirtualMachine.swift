// SPDX-License-Identifier: Apache-2.0
//
// A virtual machine as far as DMA cares: its memory slots, and the address spaces that follow
// them with no map calls (MODEL B4; Linux: `struct kvm`). What its CPU does with PASIDs is beside.

import SystemPackage

/// A VM's guest-physical memory. Thread-safe.
///
/// Its owner publishes slots, by KVM's rules (`KVM_SET_USER_MEMORY_REGION`); whoever follows is
/// filled with them at once and kept in step. Who has both the VM and a context may connect them
/// (MODEL A2). It ends with `close()` or with its last reference; followers do not keep it.
public final class VirtualMachine: Sendable {
  /// With its article, for sentences: "VM 3".
  public let name: String

  private struct State: Sendable {
    var slots = MemorySlotTable()
    var followers: [any MemorySlotFollower] = []
    var isClosed = false
  }

  /// Held through a change of a slot, while followers pin memory and fill page tables: a change
  /// happens everywhere or nowhere.
  private let state = RankedMutex(.virtualMachine, State())

  /// The devices that were given to the VM, and its CPU's table of PASIDs (MODEL E4).
  let translation = Guarded(PASIDTranslation())

  /// Slots that a VM may have. Linux on x86: `KVM_USER_MEM_SLOTS`.
  public static let slotLimit: UInt32 = 32764
  /// Bytes that a slot may have. Linux: `KVM_MEM_MAX_NR_PAGES`.
  public static let slotByteLimit: UInt64 = ((1 << 31) - 1) * Pages.hostPage

  public init(name: String) { self.name = name }

  deinit { close() }

  /// Ends the VM: whoever follows it lets go of all slots. When it returns, no DMA uses them,
  /// but for what a hardware queue reads: that stays mapped until the queue is destroyed.
  /// Calling it again does nothing.
  public func close() {
    state.withLock { state in
      state.isClosed = true
      for follower in state.followers { follower.abandon(state.slots.sorted) }
      state.followers = []
      state.slots = MemorySlotTable()
    }
    endTranslation()
  }

  /// The slots, by guest-physical address.
  public var slots: [MemorySlot] { state.withLock { $0.slots.sorted.map(\.slot) } }

  /// Adds, moves or deletes a slot, or changes its flags, here and in all that follow.
  ///
  /// Linux: `KVM_SET_USER_MEMORY_REGION`. MODEL B4, G2: when it returns, no DMA of a space that
  /// follows uses the slot as it was before.
  /// - Parameters:
  ///   - slot: A number that is free adds a slot; one of a slot moves it or changes its flags. No
  ///     bytes delete it.
  ///   - memory: What `userAddress` is an address in.
  ///   - account: Who answers for what is pinned of it (MODEL B6); nil is nobody.
  /// - Throws: `EINVAL` for a number, flags or addresses that no slot can have, for a slot that is
  ///   to be deleted and is not there, and where size, memory or write protection of a slot
  ///   would change; `EEXIST` where another slot is in the way; `EBADF` once the VM is closed;
  ///   what a follower cannot do: `EFAULT`, `ENOMEM`, `EINVAL` on a range that is reserved there,
  ///   `EBUSY` where a hardware queue is in a slot that is to go. Then nothing has changed.
  public func setMemorySlot(
    _ slot: MemorySlot, of memory: any MemorySource, account: MemoryAccount? = nil
  ) throws(IOMMUError) {
    try check(slot)
    try state.withLock { (state) throws(IOMMUError) in
      try check(state)
      let old = state.slots[slot.number]
      guard slot.byteCount > 0 else {
        guard let old else {
          throw IOMMUError(
            .invalidArgument, "\(name) has no memory slot \(slot.number) to delete")
        }
        try apply(.remove(old), to: state.followers)
        state.slots.remove(slot.number)
        return
      }
      if let old { try check(slot, changes: old, memory) }
      if old?.slot == slot { return }
      if let other = state.slots.overlap(with: slot.range, except: slot.number) {
        throw IOMMUError(
          .fileExists,
          "memory slot \(slot.number), \(Self.describe(slot)), would overlap slot "
            + "\(other.number) of \(name), \(Self.describe(other)); delete or move that first")
      }
      let pages = if let old { old.pages } else { try makePages(slot, memory, account) }
      let new = PublishedSlot(slot: slot, pages: pages)
      try apply(change(of: old, to: new), to: state.followers)
      state.slots.remove(slot.number)
      state.slots.insert(new)
    }
  }

  private func makePages(
    _ slot: MemorySlot, _ memory: any MemorySource, _ account: MemoryAccount?
  ) throws(IOMMUError) -> Pages {
    try Pages(
      source: memory, start: slot.userAddress, length: slot.byteCount,
      isWritable: !slot.flags.contains(.readOnly), account: account)
  }

  private func change(of old: PublishedSlot?, to new: PublishedSlot) -> MemorySlotChange {
    guard let old else { return .add(new) }
    return old.slot.guestAddress == new.slot.guestAddress
      ? .changeFlags(from: old, to: new) : .move(from: old, to: new)
  }

  private func apply(
    _ change: MemorySlotChange, to followers: [any MemorySlotFollower]
  ) throws(IOMMUError) {
    var prepared = 0
    do throws(IOMMUError) {
      for follower in followers {
        try follower.prepare(change)
        prepared += 1
      }
    } catch {
      for follower in followers[..<prepared] { follower.abort(change) }
      throw error
    }
    for follower in followers { follower.commit(change) }
  }

  // MARK: Following

  /// Fills a follower with all slots and keeps it in step from now on.
  /// - Throws: `EBADF` once the VM is closed; what the follower cannot do: then it has no slot.
  public func add(_ follower: any MemorySlotFollower) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      try check(state)
      try Self.prepareAll(state.slots.sorted.map { .add($0) }, in: follower)
      for slot in state.slots.sorted { follower.commit(.add(slot)) }
      state.followers.append(follower)
    }
  }

  /// Empties a follower, which is told nothing more. Nothing where it does not follow.
  /// - Throws: `EBUSY` where a hardware queue is in a slot; then it still follows.
  public func remove(_ follower: any MemorySlotFollower) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      guard let index = state.followers.firstIndex(where: { $0 === follower }) else { return }
      try Self.prepareAll(state.slots.sorted.map { .remove($0) }, in: follower)
      for slot in state.slots.sorted { follower.commit(.remove(slot)) }
      state.followers.remove(at: index)
    }
  }

  private static func prepareAll(
    _ changes: [MemorySlotChange], in follower: any MemorySlotFollower
  ) throws(IOMMUError) {
    for (index, change) in changes.enumerated() {
      do throws(IOMMUError) {
        try follower.prepare(change)
      } catch {
        for change in changes[..<index] { follower.abort(change) }
        throw error
      }
    }
  }

  /// Runs `body` while no slot changes: what is prepared in a follower can be taken back as long
  /// as nobody comes between.
  func whileSlotsStay<Result>(
    _ body: () throws(IOMMUError) -> Result
  ) throws(IOMMUError) -> Result {
    try state.withLock { (_) throws(IOMMUError) in try body() }
  }

  // MARK: KVM's rules

  func checkOpen() throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in try check(state) }
  }

  private func check(_ state: borrowing State) throws(IOMMUError) {
    guard !state.isClosed else {
      throw IOMMUError(.badFileDescriptor, "\(name) was closed")
    }
  }

  /// What no slot can be, whatever the VM has.
  private func check(_ slot: MemorySlot) throws(IOMMUError) {
    let known: MemorySlot.Flags = [.logsDirtyPages, .readOnly]
    guard slot.flags.isSubset(of: known) else {
      throw IOMMUError(
        .invalidArgument,
        "a memory slot has no flags \(hex(slot.flags.subtracting(known).rawValue))")
    }
    guard slot.number < Self.slotLimit else {
      throw IOMMUError(
        .invalidArgument,
        "memory slots have numbers below \(Self.slotLimit), not \(slot.number)")
    }
    let mask = Pages.hostPage - 1
    guard (slot.guestAddress | slot.byteCount | slot.userAddress) & mask == 0 else {
      throw IOMMUError(
        .invalidArgument,
        "memory slot \(slot.number): guest address \(hex(slot.guestAddress)), size "
          + "\(hex(slot.byteCount)) and user address \(hex(slot.userAddress)) must be multiples "
          + "of \(hex(Pages.hostPage)) bytes")
    }
    guard slot.byteCount <= Self.slotByteLimit,
      !slot.guestAddress.addingReportingOverflow(slot.byteCount).overflow,
      !slot.userAddress.addingReportingOverflow(slot.byteCount).overflow
    else {
      throw IOMMUError(
        .invalidArgument,
        "memory slot \(slot.number), \(hex(slot.byteCount)) bytes at guest address "
          + "\(hex(slot.guestAddress)) and user address \(hex(slot.userAddress)), is larger than "
          + "\(hex(Self.slotByteLimit)) bytes or passes the last address")
    }
  }

  /// What of a slot may not change.
  private func check(
    _ slot: MemorySlot, changes old: PublishedSlot, _ memory: any MemorySource
  ) throws(IOMMUError) {
    guard slot.byteCount == old.slot.byteCount, slot.userAddress == old.slot.userAddress,
      memory === old.memory,
      slot.flags.symmetricDifference(old.slot.flags).isDisjoint(with: .readOnly)
    else {
      throw IOMMUError(
        .invalidArgument,
        "memory slot \(slot.number) of \(name), \(Self.describe(old.slot)), keeps its size, its "
          + "memory and its write protection; delete it and add another")
    }
  }

  private static func describe(_ slot: MemorySlot) -> String {
    "\(hex(slot.guestAddress))...\(hex(slot.range.upperBound))"
  }
}
