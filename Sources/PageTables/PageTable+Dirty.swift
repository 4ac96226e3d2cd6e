// SPDX-License-Identifier: Apache-2.0
//
// Accessed and dirty bits (MODEL I1): walks set them, whoever asks what was written reads and
// clears them. VT-d 3.7 and 9.8; AMD 48882, 2.2.3.1 and 2.2.3.2.
//
// Walks set bits with a compare-and-exchange of the entry that they translated by. So an
// entry that was unmapped or replaced meanwhile stays as it is, and the walk looks again. A
// cached translation may be used for writing only once its dirty bit is set; whoever clears
// bits therefore has the gathered range forgotten by all caches before using what was read.

extension PageTableRoot {
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
    let address = iova.rawValue
    guard address <= last else { throw .addressWidth }
    var level = levels
    var page = self.page
    var allowed: Permissions = .readWrite
    while true {
      let index = Self.index(address, level: level)
      var entry = page.load(index)
      while true {
        guard Format.isPresent(entry) else { throw .notPresent }
        if Format.hasReservedBits(entry, level: level) { throw .reservedBits }
        let isLeaf = Format.isLeaf(entry, level: level)
        var marks = isLeaf || Format.marksTables ? Format.accessedBit : 0
        if isLeaf {
          guard allowed.intersection(Format.permissions(entry)).isSuperset(of: access) else {
            throw .permission
          }
          if access.contains(.write) { marks |= Format.dirtyBit }
        }
        if entry & marks == marks { break }
        let found = page.exchange(entry, for: entry | marks, at: index)
        if found == entry {
          entry |= marks
          break
        }
        entry = found
      }
      allowed.formIntersection(Format.permissions(entry))
      if Format.isLeaf(entry, level: level) {
        if entry & Format.dirtyBit == 0 { allowed.remove(.write) }
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
}

extension PageTable {
  /// Starts or stops marking. What is marked already stays so; walks that began before may
  /// still go the old way, and so may what they left in caches.
  @inlinable
  public mutating func setMarking(_ enabled: Bool) {
    if root.keepsDirty { root.page.isMarking = enabled }
  }

  /// Reports the dirty leaves that have a byte in `first ... last`, in ascending order.
  ///
  /// Any thread may walk meanwhile. A leaf is clean or dirty as a whole, whatever part of it
  /// is asked for, and so it is cleared.
  /// - Parameters:
  ///   - first, last: In bytes, both inclusive; the part past the table's last address holds
  ///     nothing.
  ///   - clear: Whether the leaves are clean afterwards. Then `gather` takes up what caches
  ///     have to forget before the report is believed to be whole.
  ///   - report: Takes first IOVA and length of a leaf, in bytes.
  @inlinable
  public mutating func readDirty(
    first: UInt64, last: UInt64, clear: Bool, gather: inout TableGather,
    _ report: (_ first: UInt64, _ length: UInt64) -> Void
  ) {
    guard first <= last, first <= root.last else { return }
    Self.readDirty(
      root.page, level: root.levels, first: first, last: min(last, root.last), clear: clear,
      gather: &gather, report)
  }

  /// One table, and those under it, between two addresses that it translates, both inclusive.
  /// Recurses as deep as there are levels.
  @inlinable
  static func readDirty(
    _ page: TablePage, level: Int, first: UInt64, last: UInt64, clear: Bool,
    gather: inout TableGather, _ report: (_ first: UInt64, _ length: UInt64) -> Void
  ) {
    let shift = UInt64(Format.shift(level: level))
    let base = first & ~(level >= 6 ? .max : (1 << (shift &+ 9)) &- 1)
    var index = PageTableRoot<Format>.index(first, level: level)
    let lastIndex = PageTableRoot<Format>.index(last, level: level)
    while index <= lastIndex {
      let entry = page.load(index)
      guard entry != 0 else {
        index &+= 1
        continue
      }
      if Format.isLeaf(entry, level: level) {
        let leafShift = Format.leafShift(entry, level: level)
        let count = 1 << (leafShift &- Int(shift))
        index &= ~(count &- 1)
        if isDirty(page, index..<index &+ count, clear: clear) {
          let start = base | UInt64(index) << shift
          let size: UInt64 = 1 << UInt64(leafShift)
          if clear { gather.note(first: start, last: start &+ (size &- 1)) }
          report(start, size)
        }
        index &+= count
        continue
      }
      let start = base | UInt64(index) << shift
      readDirty(
        TablePage(address: Format.tableAddress(entry)), level: level &- 1,
        first: max(first, start), last: min(last, start | ((1 << shift) &- 1)), clear: clear,
        gather: &gather, report)
      index &+= 1
    }
  }

  /// Whether one of the entries that make up a leaf is dirty.
  @inlinable
  static func isDirty(_ page: TablePage, _ entries: Range<Int>, clear: Bool) -> Bool {
    var dirty = false
    for index in entries where page.load(index) & Format.dirtyBit != 0 {
      dirty = true
      if !clear { break }
      page.remove(Format.dirtyBit, at: index)
    }
    return dirty
  }
}
