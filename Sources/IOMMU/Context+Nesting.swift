// SPDX-License-Identifier: Apache-2.0
//
// Address spaces that nest in software on another of their context, by id and by owner (MODEL
// A1, B5). The proposal of 2021 has them: a MAP_DMA whose vaddr is an address of the parent's.

import PageTables
import SystemPackage

extension Context {
  /// Makes an address space that maps nothing but what a parent has mapped.
  ///
  /// It is attached and used as any other; its page tables point at the memory itself, so that
  /// DMA walks one table. The parent cannot be destroyed before it.
  /// - Parameters:
  ///   - parent: An address space of this context (MODEL A1); nested itself, it may be, seven
  ///     levels deep.
  ///   - parentChanges: What becomes of later changes to the parent.
  ///   - attributes: Of the space itself; the parent's has nothing to do with it (MODEL B7).
  /// - Throws: `ENOENT` where `parent` names no address space of this context, `EINVAL` where
  ///   it is nested too deep or no space can have the attributes, `ENOMEM`.
  public func allocateIOAS(
    nestedOn parent: ObjectID, parentChanges: ParentChanges,
    attributes: AddressSpaceAttributes = AddressSpaceAttributes()
  ) throws(IOMMUError) -> ObjectID {
    try configuration.withLock { (configuration) throws(IOMMUError) in
      try makeChild(
        of: parent, changes: parentChanges, attributes: attributes, ownedBy: .calls,
        configuration
      ).id
    }
  }

  /// Who says what is mapped in a nested space.
  enum Filling { case calls, user }

  /// The caller holds `configuration`, so that the parent is not destroyed meanwhile.
  func makeChild(
    of parent: ObjectID, changes: ParentChanges, attributes: AddressSpaceAttributes,
    ownedBy filling: Filling, _ configuration: Configuration
  ) throws(IOMMUError) -> AddressSpace {
    try attributes.check()
    let space = try addressSpace(parent)
    try checkParent(space, configuration)
    let link = try ParentLink(parent: space, changes: changes)
    let id = try reserveID()
    let child = AddressSpace(
      id: id, memory: system.memory, events: system.events, attributes: attributes,
      link: link)
    // It is empty.
    if filling == .user { try? child.beginUserTable() }
    // Before anybody can map: no change of the parent may be missed.
    space.adopt(child)
    objects.withLock { objects in
      objects.table.publish(.ioas(child), as: id)
      objects.table.addUser(of: parent)
    }
    return child
  }

  /// Maps a range of its parent's IOVA into a nested address space. All or nothing.
  ///
  /// What is allowed is what both `permissions` and the parent's mapping allow. The memory stays
  /// pinned once and on the account that it is mapped with at the root (MODEL B6).
  /// - Parameters:
  ///   - parentIOVA: First address in the parent, in bytes.
  ///   - length: In bytes.
  ///   - child: The nested space.
  /// - Returns: The IOVA in `child`.
  /// - Throws: `EINVAL` where `child` is not nested, or off the alignment of its page tables;
  ///   `ENOENT` where the parent does not map all of it, `EPERM` where it allows nothing of
  ///   `permissions` (with parent changes carried through neither: such addresses fault until
  ///   the parent maps them so); `EEXIST`, `EOVERFLOW`, `ENOSPC`, `EFAULT`, `ENOMEM`.
  @discardableResult
  public func map(
    parentIOVA: IOVA, length: UInt64, into child: ObjectID,
    permissions: Permissions = .readWrite, at placement: Placement = .anywhere
  ) throws(IOMMUError) -> IOVA {
    try map(
      parentIOVA: parentIOVA, length: length, into: addressSpace(child),
      permissions: permissions, at: placement)
  }

  func map(
    parentIOVA: IOVA, length: UInt64, into child: AddressSpace, permissions: Permissions,
    at placement: Placement
  ) throws(IOMMUError) -> IOVA {
    let permissions = permissions.intersection(.readWrite)
    guard !permissions.isEmpty else {
      throw IOMMUError(.invalidArgument, "a mapping must be readable, writable or both")
    }
    return try child.map(
      parentIOVA: parentIOVA, length: length, permissions: permissions, placement: placement)
  }

  /// What an address space is nested on, and what becomes of changes there; nil where it nests
  /// on none.
  /// - Throws: `ENOENT`.
  public func nesting(
    of ioas: ObjectID
  ) throws(IOMMUError) -> (parent: ObjectID, parentChanges: ParentChanges)? {
    try addressSpace(ioas).link.map { ($0.parent.id, $0.changes) }
  }

  /// Makes an address space nested on another, which its owner destroys. As by id.
  /// - Throws: `ENOENT` where `parent` belongs to another context (MODEL A1).
  public func makeAddressSpace(
    nestedOn parent: borrowing IOAS, parentChanges: ParentChanges,
    attributes: AddressSpaceAttributes = AddressSpaceAttributes()
  ) throws(IOMMUError) -> IOAS {
    guard parent.context === self else {
      throw IOMMUError(
        .noSuchFileOrDirectory,
        "the address space to nest on, \(parent.id), belongs to another context; a nested space "
          + "has a parent of its own context")
    }
    let id = try allocateIOAS(
      nestedOn: parent.id, parentChanges: parentChanges, attributes: attributes)
    return IOAS(context: self, space: try addressSpace(id))
  }
}

extension IOAS {
  /// Maps a range of its parent's IOVA into a nested address space. All or nothing; as
  /// `Context.map(parentIOVA:length:into:permissions:at:)`. Thread-safe.
  @discardableResult
  public func map(
    parentIOVA: IOVA, length: UInt64, permissions: Permissions = .readWrite,
    at placement: Placement = .anywhere
  ) throws(IOMMUError) -> IOVA {
    try context.map(
      parentIOVA: parentIOVA, length: length, into: space, permissions: permissions,
      at: placement)
  }
}
