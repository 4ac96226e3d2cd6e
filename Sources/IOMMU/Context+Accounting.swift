// SPDX-License-Identifier: Apache-2.0
//
// Handing the pinned memory of a context to another process (MODEL B6; Linux:
// IOMMU_IOAS_CHANGE_PROCESS, `ioas.c`), all of it or none.

import SystemPackage

extension Context {
  /// Moves the accounting of all that the context maps to another process.
  ///
  /// Linux: `IOMMU_IOAS_CHANGE_PROCESS`, which a program calls after it handed its context to
  /// its successor. Each mapping keeps its mode: what is counted per user stays so. As on Linux
  /// the new owner is charged before the old one is relieved, so a user at its limit cannot move
  /// memory between its own processes. Maps made meanwhile by other threads stay with whom they
  /// were made for.
  /// - Throws: `EINVAL` where anything is mapped that is no file: then, as with `ENOMEM` where
  ///   the new owner's limit would be passed, nothing has changed.
  public func changeOwner(to owner: MemoryOwner) throws(IOMMUError) {
    try configuration.withLock { (_) throws(IOMMUError) in
      var moves: [Pages.Move] = []
      var seen: Set<ObjectIdentifier> = []
      do throws(IOMMUError) {
        for space in addressSpaces {
          for pages in try space.filePages() where seen.insert(ObjectIdentifier(pages)).inserted
          {
            if let move = try pages.prepareMove(to: owner) { moves.append(move) }
          }
        }
      } catch {
        for move in moves { move.cancel() }
        throw error
      }
      for move in moves { move.commit() }
    }
  }

  /// All address spaces, lowest id first.
  private var addressSpaces: [AddressSpace] {
    objects.withLock { objects in
      objects.table.ids.compactMap { objects.table.addressSpace($0) }
    }
  }
}

extension AddressSpace {
  /// What the areas map, with repeats.
  /// - Throws: `EINVAL` where one maps anything else than a file.
  fileprivate func filePages() throws(IOMMUError) -> [Pages] {
    try state.withLock { (state) throws(IOMMUError) in
      var pages: [Pages] = []
      try state.areas.visit { (area) throws(IOMMUError) in
        guard area.pages.kind == .file else {
          throw IOMMUError(
            .invalidArgument,
            "the mapping \(hex(area.first))...\(hex(area.last)) of IOAS \(id) is of a process's "
              + "own memory or a DMA-buf, and stays with it; only files (IOAS_MAP_FILE) can "
              + "change hands")
        }
        pages.append(area.pages)
      }
      return pages
    }
  }
}

extension Pages {
  /// A change of account that has been charged to the new one.
  struct Move {
    fileprivate let pages: Pages
    fileprivate let account: MemoryAccount
    /// Whether the sums differ; else there is nothing to charge.
    fileprivate let changesSums: Bool
    fileprivate let charged: UInt64

    func cancel() {
      if changesSums { account.uncharge(charged) }
    }

    /// What was pinned or unpinned since is settled too.
    func commit() {
      pages.pins.withLock { pins in
        let old = pins.account
        pins.account = account
        guard changesSums else { return }
        account.chargeAnyway(pins.byteCount)
        account.uncharge(charged)
        old?.uncharge(pins.byteCount)
      }
    }
  }

  /// Charges an owner with what is pinned, in the mode that the memory has.
  /// - Returns: Nil where the memory is on nobody's account.
  /// - Throws: `ENOMEM`.
  fileprivate func prepareMove(to owner: MemoryOwner) throws(IOMMUError) -> Move? {
    // The account asks for the process's limit under this lock: what is charged is what is
    // pinned.
    try pins.withLock { (pins) throws(IOMMUError) in
      guard let old = pins.account else { return nil }
      let account = owner.account(old.mode)
      let changesSums = !old.isSame(as: account)
      let bytes = pins.byteCount
      if changesSums { try account.charge(bytes) }
      return Move(pages: self, account: account, changesSums: changesSums, charged: bytes)
    }
  }
}
