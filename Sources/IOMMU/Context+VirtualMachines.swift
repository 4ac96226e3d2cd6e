// SPDX-License-Identifier: Apache-2.0
//
// Connecting an address space with a VM: who has both may do it (MODEL A2, B4).

import SystemPackage

extension Context {
  /// Lets an address space follow a VM's memory slots: it has them all when this returns, and is
  /// kept in step with no map calls. Map and unmap calls on it are refused with `EPERM`.
  ///
  /// MODEL B4. Ends with `stopFollowing(in:)`, with the space, or with the VM: then the space is
  /// empty, and may be mapped into again.
  /// - Throws: `ENOENT`; `EBUSY` where the space has mappings or follows a VM already; `EBADF`
  ///   where the VM was closed; what a slot meets in the space: `EINVAL` on a reserved range,
  ///   `EFAULT`, `ENOMEM`. Then it has no slot and does not follow.
  public func follow(_ machine: VirtualMachine, in ioas: ObjectID) throws(IOMMUError) {
    try configuration.withLock { (_) throws(IOMMUError) in
      let space = try addressSpace(ioas)
      try space.beginFollowing(machine)
      do throws(IOMMUError) {
        try machine.add(space)
      } catch {
        space.endFollowing()
        throw error
      }
    }
  }

  /// Empties an address space that follows a VM and gives it back to map and unmap calls. When
  /// it returns, no DMA uses a slot (MODEL G2). Nothing where it follows none.
  /// - Throws: `ENOENT`; `EBUSY` where a hardware queue is in a slot.
  public func stopFollowing(in ioas: ObjectID) throws(IOMMUError) {
    try configuration.withLock { (_) throws(IOMMUError) in
      try stopFollowing(addressSpace(ioas))
    }
  }

  /// The caller holds `configuration`.
  func stopFollowing(_ space: AddressSpace) throws(IOMMUError) {
    guard let machine = space.followedMachine else { return }
    try machine.remove(space)
    space.endFollowing()
  }

  /// The VM whose slots an address space follows; nil where it follows none, or that is gone.
  /// - Throws: `ENOENT`.
  public func followedMachine(of ioas: ObjectID) throws(IOMMUError) -> VirtualMachine? {
    try addressSpace(ioas).followedMachine
  }
}

extension IOAS {
  /// As `Context.follow(_:in:)`.
  public func follow(_ machine: VirtualMachine) throws(IOMMUError) {
    try context.follow(machine, in: id)
  }

  /// As `Context.stopFollowing(in:)`.
  public func stopFollowing() throws(IOMMUError) { try context.stopFollowing(in: id) }
}
