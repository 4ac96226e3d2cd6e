// SPDX-License-Identifier: Apache-2.0
//
// Taking translations out, and unlinking the tables that become empty.

extension PageTable {
  /// Unmaps every leaf that has a byte in `iova ..< iova + length`.
  ///
  /// A leaf that lies only partly in the range goes whole, as on Linux: tables do not split
  /// leaves, and the engine never asks for it. Addresses without a leaf are passed over. The
  /// part of the range past the last address of the table holds nothing.
  /// - Parameters:
  ///   - length: In bytes; with `iova` it may reach past the last address.
  ///   - gather: Takes up what walks may still be using: see `TableGather`.
  /// - Returns: Bytes unmapped; more than `length` where a large leaf stuck out.
  @inlinable
  @discardableResult
  public mutating func unmap(
    _ iova: IOVA, length: UInt64, gather: inout TableGather
  ) -> UInt64 {
    let first = iova.rawValue
    guard length != 0 else { return 0 }
    let (end, overflow) = first.addingReportingOverflow(length &- 1)
    guard let range = root.table.clip(first, overflow ? .max : end) else { return 0 }
    return Self.clear(
      root.table, root.page, level: root.levels, first: range.lowerBound,
      last: range.upperBound, gather: &gather)
  }

  /// Clears the leaves of one table, and of the tables under it, between two offsets that it
  /// translates, both inclusive. Recurses as deep as there are levels.
  @inlinable
  static func clear(
    _ table: TableRoot<Format>, _ page: TablePage<Format>, level: Int, first: UInt64,
    last: UInt64, gather: inout TableGather
  ) -> UInt64 {
    let shift = UInt64(Format.shift(level: level))
    var index = table.index(first, level: level)
    let lastIndex = table.index(last, level: level)
    // Number of this table's first entry among all of the level.
    let base = first >> shift &- UInt64(index)
    var bytes: UInt64 = 0
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
        let start = table.extended((base &+ UInt64(index)) << shift)
        for repeated in index..<index &+ count { page.store(0, at: repeated) }
        page.live &-= count
        index &+= count
        let size: UInt64 = 1 << UInt64(leafShift)
        gather.note(first: start, last: start &+ (size &- 1))
        bytes &+= size
        continue
      }
      let start = (base &+ UInt64(index)) << shift
      let child = TablePage<Format>(address: Format.address(entry, table.configuration))
      bytes &+= clear(
        table, child, level: level &- 1, first: max(first, start),
        last: min(last, start | ((1 << shift) &- 1)), gather: &gather)
      if child.live == 0 {
        page.store(0, at: index)
        page.live &-= 1
        gather.add(child)
      }
      index &+= 1
    }
    return bytes
  }
}
