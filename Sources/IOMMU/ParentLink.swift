// SPDX-License-Identifier: Apache-2.0
//
// What ties a nested address space to its parent (MODEL B5): chosen when the child is made and
// never changed, so that no cycle can form; and the order in which the locks of a tree are taken.

import SystemPackage

/// What becomes of a change to an address space on which another is nested in software. Chosen
/// when the child is made; in neither case does the child reach memory that its parent does not
/// map any more.
public enum ParentChanges: Hashable, Sendable {
  /// The parent may not unmap what the child refers to (`EBUSY`), and the child may refer only
  /// to what the parent maps.
  case refused
  /// An unmap of the parent takes the memory from the child too, before it returns; a map gives
  /// the child the memory that it refers to. Where the parent maps nothing, the child's DMA
  /// faults.
  case carriedThrough
}

/// A child's way up.
final class ParentLink: Sendable {
  let parent: AddressSpace
  /// The space at the top of the tree, which nests on none.
  let root: AddressSpace
  /// 1 for the children of a root.
  let depth: Int
  let changes: ParentChanges

  /// Levels below a root: each has a rank in the lock order.
  static let maximumDepth = 7

  /// - Throws: `EINVAL` where the tree is too deep.
  init(parent: AddressSpace, changes: ParentChanges) throws(IOMMUError) {
    depth = (parent.link?.depth ?? 0) + 1
    guard depth <= Self.maximumDepth else {
      throw IOMMUError(
        .invalidArgument,
        "IOAS \(parent.id) is nested \(Self.maximumDepth) levels deep already, the most there can "
          + "be; nest on one of its parents")
    }
    self.parent = parent
    self.changes = changes
    root = parent.link?.root ?? parent
  }
}

extension AddressSpace {
  /// Runs a change with the locks that it needs: the root's, which makes changes in one tree wait
  /// for each other, then the space's own. Those of its children follow.
  func withTree<Result>(
    _ body: (inout State) throws(IOMMUError) -> Result
  ) throws(IOMMUError) -> Result {
    guard let link else {
      return try state.withLock { (state) throws(IOMMUError) in try body(&state) }
    }
    return try link.root.state.withLock { (_) throws(IOMMUError) in
      try state.withLock { (state) throws(IOMMUError) in try body(&state) }
    }
  }

  /// As `withTree`, with what the parent has mapped.
  func withParent<Result>(
    _ link: ParentLink,
    _ body: (_ parent: AreaMap, inout State) throws(IOMMUError) -> Result
  ) throws(IOMMUError) -> Result {
    try link.parent.withTree { (parent) throws(IOMMUError) in
      try link.parent.check(parent)
      return try state.withLock { (state) throws(IOMMUError) in
        try body(parent.areas, &state)
      }
    }
  }

  /// Takes a space in that was made to nest on this one. It has mapped nothing yet.
  func adopt(_ child: AddressSpace) {
    // Nothing in it throws.
    try? withTree { state in
      state.children.append(child)
      state.specials.insert(.hasChildren)
    }
  }

  /// Lets go of a child that has unmapped everything.
  func release(_ child: AddressSpace) {
    try? withTree { state in
      state.children.removeAll { $0 === child }
      if state.children.isEmpty { state.specials.remove(.hasChildren) }
    }
  }
}
