// SPDX-License-Identifier: Apache-2.0
//
// A dummy root (MODEL B6): an address space that maps memory at its own address, to which
// nothing is attached. It holds the pins and their accounting for the spaces nested on it.

import PageTables

extension Context {
  /// Makes a dummy root: an address space in which each piece of memory is mapped at its own
  /// address (HVA to HVA), and pinned and accounted for as long as it is mapped.
  ///
  /// Several address spaces that are nested on it use the memory without pinning it again: it is
  /// counted once. Nothing can be attached to the dummy root itself.
  ///
  /// Map with `Context.map`, at `.anywhere` or at the memory's own address, in whole host pages.
  /// - Throws: `ENOMEM`.
  public func allocateDummyRoot() throws(IOMMUError) -> ObjectID {
    let id = try reserveID()
    let space = AddressSpace(id: id, memory: system.memory, events: system.events)
    do throws(IOMMUError) {
      try space.makeDummyRoot()
    } catch {
      giveBack(id)
      throw error
    }
    objects.withLock { $0.table.publish(.ioas(space), as: id) }
    return id
  }

  /// Makes a dummy root that its owner destroys. As by id.
  public func makeDummyRoot() throws(IOMMUError) -> IOAS {
    let id = try allocateDummyRoot()
    return IOAS(context: self, space: try addressSpace(id))
  }
}

extension AddressSpace {
  fileprivate func makeDummyRoot() throws(IOMMUError) {
    try add(PinsOnly())
    state.withLock { $0.specials.formUnion(.dummyRoot) }
  }
}

/// What stands for a page table in a dummy root: memory is pinned for it, and it maps nothing.
private final class PinsOnly: PagingDomain {
  let geometry = DomainGeometry(
    aperture: 0...UInt64.max, pageSizes: .size4KiB, enforcesSnoop: true)

  func map(
    _ iova: IOVA, to physical: PhysicalAddress, length: UInt64, permissions: Permissions
  ) throws(IOMMUError) {}

  func unmap(_ iova: IOVA, length: UInt64) {}

  func translate(_ iova: IOVA) -> PhysicalAddress? { nil }
}
