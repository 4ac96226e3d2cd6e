// SPDX-License-Identifier: Apache-2.0
//
// The builder: adds translations with the largest leaves that fit, and never over one that
// is there.

extension PageTable {
  /// Maps `iova ..< iova + length` to `physical` and up.
  ///
  /// Each leaf is as large as the alignment of both addresses and the rest of the length
  /// allow. Walks see each leaf at once and whole, but not the range at once. On failure
  /// whatever was added is taken out again; `gather` then holds it, and the caller
  /// invalidates and frees as after an unmap (a walk may have used it).
  /// - Parameters:
  ///   - length: In bytes. All three are multiples of the format's granule.
  ///   - attributes: Properties of the leaves besides their permissions.
  ///   - gather: Unchanged on success.
  /// - Throws: What is wrong with the range, what is in the way, or that memory ran out.
  @inlinable
  public mutating func map(
    _ iova: IOVA, to physical: PhysicalAddress, length: UInt64, permissions: Permissions,
    attributes: LeafAttributes = [], gather: inout TableGather
  ) throws(MapFailure) {
    let first = iova.rawValue
    let granule: UInt64 = 1 << UInt64(Format.granuleShift)
    guard (first | physical.rawValue | length) & (granule &- 1) == 0, length != 0 else {
      throw .misaligned
    }
    let (last, overflow) = first.addingReportingOverflow(length &- 1)
    guard !overflow, let offset = root.table.offset(first),
      let lastOffset = root.table.offset(last), lastOffset &- offset == length &- 1
    else { throw .addressWidth }
    let limit: UInt64 = 1 << UInt64(Format.physicalBits(root.configuration))
    guard physical.rawValue < limit, length <= limit &- physical.rawValue else {
      throw .physicalWidth
    }
    guard !permissions.isDisjoint(with: .readWrite) else { throw .noPermissions }

    var done = offset
    do throws(MapFailure) {
      try fill(
        &done, to: physical.rawValue, length: length, permissions: permissions,
        attributes: attributes)
    } catch {
      if done != offset { unmap(iova, length: done &- offset, gather: &gather) }
      throw error
    }
  }

  /// Adds leaves from an offset on and moves it past each that is in place.
  @inlinable
  mutating func fill(
    _ address: inout UInt64, to physical: UInt64, length: UInt64, permissions: Permissions,
    attributes: LeafAttributes
  ) throws(MapFailure) {
    let root = root.table
    var physical = physical
    var rest = length
    var shift = leafShift(address | physical, rest)
    while true {
      let level = Format.level(leafShift: shift)
      let page = try table(at: level, for: address)
      var index = root.index(address, level: level)
      let end = root.entryCount(level: level)
      // Leaves that lie in the same table page follow without a new descent.
      repeat {
        let count = 1 << (shift &- Format.shift(level: level))
        for entry in index..<index &+ count where page.load(entry) != 0 {
          throw .occupied(IOVA(root.extended(address)))
        }
        var leaf = Format.leafEntry(
          physical, shift: shift, level: level, permissions: permissions,
          attributes: attributes, root.configuration)
        for entry in index..<index &+ count {
          page.store(leaf, at: entry)
          leaf &+= Format.leafStep(shift: shift, level: level)
        }
        page.live &+= count
        index &+= count
        let size: UInt64 = 1 << UInt64(shift)
        address &+= size
        physical &+= size
        rest &-= size
        if rest == 0 { return }
        shift = leafShift(address | physical, rest)
      } while index < end && Format.level(leafShift: shift) == level
    }
  }

  /// log2 of the largest leaf that fits: no larger than the length or the addresses' common
  /// alignment. Both are at least a granule.
  @inlinable @inline(__always)
  func leafShift(_ addresses: UInt64, _ length: UInt64) -> Int {
    let aligned = (addresses & (0 &- addresses)) &* 2 &- 1
    let short = UInt64.max >> UInt64(truncatingIfNeeded: length.leadingZeroBitCount)
    return 63 &- (pageSizes.rawValue & aligned & short).leadingZeroBitCount
  }

  /// The table of a level on the way to an offset, made where it is missing.
  ///
  /// Memory is asked for before the first page is linked, so a failure leaves no empty table.
  @inlinable
  mutating func table(
    at level: Int, for address: UInt64
  ) throws(MapFailure) -> TablePage<Format> {
    let root = root.table
    var current = root.levels
    var page = TablePage<Format>(address: root.address)
    while current > level {
      let index = root.index(address, level: current)
      let entry = page.load(index)
      if entry == 0 {
        guard hasPages(current &- level) else { throw .outOfMemory }
        let fresh = takePage()
        page.store(Format.tableEntry(fresh.address, level: current), at: index)
        page.live &+= 1
        page = fresh
      } else if Format.isLeaf(entry, level: current) {
        throw .occupied(IOVA(root.extended(address)))
      } else {
        page = TablePage(address: Format.address(entry, root.configuration))
      }
      current &-= 1
    }
    return page
  }
}
