// SPDX-License-Identifier: Apache-2.0
//
// Walks of the engine's own tables: the walker over this process's memory.

extension PageTableRoot {
  /// Translates one address, whatever the access.
  ///
  /// - Throws: The first reason on the way down; never `.permission`.
  @inlinable @inline(__always)
  public func walk(_ iova: IOVA) throws(WalkFault) -> Translation {
    try table.find(iova.rawValue, needs: .none, marks: false, in: HostTableMemory())
  }

  /// Translates one address for an access.
  ///
  /// - Throws: The first reason on the way down, or `.permission` where the entries do not
  ///   allow all of `access`.
  @inlinable @inline(__always)
  public func walk(_ iova: IOVA, for access: Permissions) throws(WalkFault) -> Translation {
    try walk(iova, for: Access(access))
  }

  /// The same for an access that may be privileged.
  @inlinable @inline(__always)
  public func walk(_ iova: IOVA, for access: Access) throws(WalkFault) -> Translation {
    try table.find(iova.rawValue, needs: access.needs, marks: false, in: HostTableMemory())
  }

  /// Whether walks set accessed and dirty bits now. False where the table keeps none.
  @inlinable @inline(__always)
  public var isMarking: Bool { keepsDirty && page.isMarking }

  /// Translates one address for an access, and marks what is used as hardware does.
  ///
  /// - Returns: A translation that lacks `.write` while its leaf is not dirty: it may be kept,
  ///   and has to be walked again for the first write.
  /// - Throws: The first reason on the way down, or `.permission` where the entries do not
  ///   allow all of `access`; then the leaf is not marked.
  @inlinable
  public func walk(_ iova: IOVA, marking access: Permissions) throws(WalkFault) -> Translation {
    try walk(iova, marking: Access(access))
  }

  /// The same for an access that may be privileged.
  @inlinable
  public func walk(_ iova: IOVA, marking access: Access) throws(WalkFault) -> Translation {
    try table.find(iova.rawValue, needs: access.needs, marks: true, in: HostTableMemory())
  }
}

extension PageTable {
  /// Translates one address, whatever the access. As `root.walk`.
  @inlinable
  public borrowing func walk(_ iova: IOVA) throws(WalkFault) -> Translation {
    try root.walk(iova)
  }
}
