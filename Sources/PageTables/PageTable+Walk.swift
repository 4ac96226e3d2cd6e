// SPDX-License-Identifier: Apache-2.0
//
// The walker: what an IOMMU does on an IOTLB miss. No lock, no allocation, no reference
// counting: it runs beside the writer.

extension PageTableRoot {
  /// Number of the entry for an address in a table of a level.
  @inlinable @inline(__always)
  static func index(_ address: UInt64, level: Int) -> Int {
    Int(truncatingIfNeeded: address >> UInt64(Format.shift(level: level))) & 511
  }

  /// Translates one address, whatever the access.
  ///
  /// - Throws: The first reason on the way down; never `.permission`.
  @inlinable @inline(__always)
  public func walk(_ iova: IOVA) throws(WalkFault) -> Translation {
    let address = iova.rawValue
    guard address <= last else { throw .addressWidth }
    var level = levels
    var page = self.page
    var allowed: Permissions = .readWrite
    while true {
      let entry = page.load(Self.index(address, level: level))
      guard Format.isPresent(entry) else { throw .notPresent }
      if Format.hasReservedBits(entry, level: level) { throw .reservedBits }
      allowed.formIntersection(Format.permissions(entry))
      if Format.isLeaf(entry, level: level) {
        let shift = Format.leafShift(entry, level: level)
        let inside = address & ((1 << UInt64(truncatingIfNeeded: shift)) &- 1)
        return Translation(
          physical: PhysicalAddress(Format.leafAddress(entry, level: level) | inside),
          leafShift: UInt8(truncatingIfNeeded: shift), permissions: allowed)
      }
      page = TablePage(address: Format.tableAddress(entry))
      level &-= 1
    }
  }

  /// Translates one address for an access.
  ///
  /// - Throws: The first reason on the way down, or `.permission` where the entries do not
  ///   allow all of `access`.
  @inlinable @inline(__always)
  public func walk(_ iova: IOVA, for access: Permissions) throws(WalkFault) -> Translation {
    let translation = try walk(iova)
    guard translation.permissions.isSuperset(of: access) else { throw .permission }
    return translation
  }
}

extension PageTable {
  /// Translates one address, whatever the access. As `root.walk`.
  @inlinable
  public borrowing func walk(_ iova: IOVA) throws(WalkFault) -> Translation {
    try root.walk(iova)
  }
}
