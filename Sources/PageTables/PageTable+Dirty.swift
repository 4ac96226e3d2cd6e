// SPDX-License-Identifier: Apache-2.0
//
// Accessed and dirty bits (MODEL I1): walks set them, whoever asks what was written reads and
// clears them.
//
// Walks set bits with a compare-and-exchange of the entry that they translated by. So an
// entry that was unmapped or replaced meanwhile stays as it is, and the walk looks again. A
// cached translation may be used for writing only once its dirty bit is set; whoever clears
// bits therefore has the gathered range forgotten by all caches before using what was read.

extension PageTable {
  /// Starts or stops marking. What is marked already stays so; walks that began before may
  /// still go the old way, and so may what they left in caches.
  @inlinable
  public mutating func setMarking(_ enabled: Bool) {
    if root.keepsDirty { root.page.isMarking = enabled }
  }

  /// Reports the dirty leaves that have a byte in `first ... last`, in ascending order.
  ///
  /// None in a table that was not made to keep dirty bits. Any thread may walk meanwhile. A leaf is clean or dirty as a whole, whatever part of it
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
    guard root.keepsDirty, let range = root.table.clip(first, last) else { return }
    Self.readDirty(
      root.table, root.page, level: root.levels, first: range.lowerBound,
      last: range.upperBound, clear: clear, gather: &gather, report)
  }

  /// One table, and those under it, between two offsets that it translates, both inclusive.
  /// Recurses as deep as there are levels.
  @inlinable
  static func readDirty(
    _ table: TableRoot<Format>, _ page: TablePage<Format>, level: Int, first: UInt64,
    last: UInt64, clear: Bool, gather: inout TableGather,
    _ report: (_ first: UInt64, _ length: UInt64) -> Void
  ) {
    let shift = UInt64(Format.shift(level: level))
    var index = table.index(first, level: level)
    let lastIndex = table.index(last, level: level)
    let base = first >> shift &- UInt64(index)
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
          let start = table.extended((base &+ UInt64(index)) << shift)
          let size: UInt64 = 1 << UInt64(leafShift)
          if clear { gather.note(first: start, last: start &+ (size &- 1)) }
          report(start, size)
        }
        index &+= count
        continue
      }
      let start = (base &+ UInt64(index)) << shift
      readDirty(
        table, TablePage(address: Format.address(entry, table.configuration)),
        level: level &- 1, first: max(first, start),
        last: min(last, start | ((1 << shift) &- 1)), clear: clear, gather: &gather, report)
      index &+= 1
    }
  }

  /// Whether one of the entries that make up a leaf is dirty.
  @inlinable
  static func isDirty(
    _ page: TablePage<Format>, _ entries: Range<Int>, clear: Bool
  ) -> Bool {
    var dirty = false
    for index in entries {
      var entry = page.load(index)
      guard Format.isDirty(entry) else { continue }
      dirty = true
      if !clear { break }
      // Whatever else a walk changes in it meanwhile.
      while true {
        let found = page.exchange(entry, for: Format.cleaned(entry), at: index)
        if found == entry { break }
        entry = found
      }
    }
    return dirty
  }
}
