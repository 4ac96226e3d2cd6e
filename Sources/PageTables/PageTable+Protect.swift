// SPDX-License-Identifier: Apache-2.0
//
// Changing what live leaves allow: protection by itself, and the means to find what is written
// where hardware keeps no dirty bits (MODEL I1).

extension PageTable {
  /// Gives every leaf that has a byte in `first ... last` other permissions, and keeps all else
  /// about it; marks that walks set meanwhile too.
  ///
  /// A leaf that lies only partly in the range changes whole. Where the format says "dirty" by
  /// the right to write (Arm), taking it away makes a leaf clean: read what is dirty before.
  /// - Parameters:
  ///   - first, last: In bytes, both inclusive.
  ///   - permissions: As in `map`; reading or writing.
  ///   - gather: Takes up what caches have to forget before rights that were taken away are
  ///     gone.
  /// - Throws: `.noPermissions`; then nothing has changed.
  @inlinable
  public mutating func protect(
    first: UInt64, last: UInt64, permissions: Permissions, gather: inout TableGather
  ) throws(MapFailure) {
    guard !permissions.isDisjoint(with: .readWrite) else { throw .noPermissions }
    guard let range = root.table.clip(first, last) else { return }
    Self.protect(
      root.table, root.page, level: root.levels, first: range.lowerBound,
      last: range.upperBound, permissions: permissions, gather: &gather)
  }

  /// One table, and those under it, between two offsets that it translates, both inclusive.
  /// Recurses as deep as there are levels.
  @inlinable
  static func protect(
    _ table: TableRoot<Format>, _ page: TablePage<Format>, level: Int, first: UInt64,
    last: UInt64, permissions: Permissions, gather: inout TableGather
  ) {
    let shift = UInt64(Format.shift(level: level))
    var index = table.index(first, level: level)
    let lastIndex = table.index(last, level: level)
    let base = first >> shift &- UInt64(index)
    while index <= lastIndex {
      let entry = page.load(index)
      let start = (base &+ UInt64(index)) << shift
      if entry == 0 {
        index &+= 1
      } else if Format.isLeaf(entry, level: level) {
        let leafShift = Format.leafShift(entry, level: level)
        let count = 1 << (leafShift &- Int(shift))
        index &= ~(count &- 1)
        for part in index..<index &+ count {
          change(page, part, level: level, permissions, table.configuration)
        }
        let size: UInt64 = 1 << UInt64(leafShift)
        let leaf = table.extended(start & ~(size &- 1))
        gather.note(first: leaf, last: leaf &+ (size &- 1))
        index &+= count
      } else {
        protect(
          table, TablePage(address: Format.address(entry, table.configuration)),
          level: level &- 1, first: max(first, start),
          last: min(last, start | ((1 << shift) &- 1)), permissions: permissions,
          gather: &gather)
        index &+= 1
      }
    }
  }

  @inlinable
  static func change(
    _ page: TablePage<Format>, _ index: Int, level: Int, _ permissions: Permissions,
    _ configuration: Format.Configuration
  ) {
    var entry = page.load(index)
    while true {
      let changed = Format.protected(
        entry, level: level, permissions: permissions, configuration)
      let found = page.exchange(entry, for: changed, at: index)
      if found == entry { return }
      entry = found
    }
  }
}
