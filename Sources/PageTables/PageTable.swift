// SPDX-License-Identifier: Apache-2.0
//
// One page table of any format: what it owns, its limits, and the list of table pages that
// an unmap leaves to be freed. `PageTable+Map`, `+Unmap` and `+Walk` hold the algorithms.

/// A radix page table with the bits of `Format`.
///
/// One thread at a time changes it; any number of threads walk it meanwhile through `root`
/// (MODEL G2: whoever unmaps then waits for them, and only then gives the gathered pages to
/// `free`). Not a class: its owner decides where it lives and what guards it.
public struct PageTable<Format: PageTableFormat>: ~Copyable, Sendable {
  /// Where walks begin. Constant while the table exists; must not be used after it.
  public let root: PageTableRoot<Format>
  /// Sizes that leaves may have.
  public let pageSizes: PageSizes
  @usableFromInline let pool: TablePool
  /// A few pages of zeros at hand, linked as in a gather list, so that mapping and unmapping
  /// one page in turn does not go to the pool for its tables.
  @usableFromInline var spare: UInt64 = 0
  @usableFromInline var spareCount = 0
  @inlinable static var spareLimit: Int { 8 }

  /// Makes an empty table.
  ///
  /// - Parameters:
  ///   - levels: How many, clamped to `Format.levelRange`.
  ///   - addressBits: Addresses of more bits fault; nil or more than the levels translate
  ///     means what the levels translate.
  ///   - maximumPages: The most table pages that may be in use, the root included: at least 1.
  ///   - keepsDirty: Whether walks can be told to set accessed and dirty bits.
  public init(
    levels: Int, addressBits: Int? = nil, maximumPages: Int = .max, keepsDirty: Bool = false
  ) {
    let range = Format.levelRange
    let levels = min(max(levels, range.lowerBound), range.upperBound)
    let limit = Format.addressBits(levels: levels)
    let bits = min(max(addressBits ?? limit, 12), limit)
    pool = TablePool(limit: max(1, maximumPages))
    pageSizes = Format.pageSizes(levels: levels)
    root = PageTableRoot(
      page: pool.take(), levels: levels, last: bits == 64 ? .max : (1 << UInt64(bits)) - 1,
      keepsDirty: keepsDirty)
  }

  /// Table pages in use, the root included. In pages of 4 KiB.
  public var pageCount: Int { pool.used - spareCount }

  /// Memory held for table pages, in bytes: what is in use and what is kept for reuse.
  public var footprint: Int { pool.footprint }

  /// Takes back pages that were unmapped, and empties the list. No walk that began before
  /// the unmap may still be going on.
  @inlinable
  public mutating func free(_ gather: inout TableGather) {
    var address = gather.head
    gather = TableGather()
    while address != 0 {
      let page = TablePage(address: address)
      address = page.next
      page.next = spare
      spare = page.address
      spareCount &+= 1
    }
    if spareCount > Self.spareLimit { returnSpares() }
  }

  /// After a large unmap nothing is kept at hand: a page there would keep its chunk alive.
  @inlinable
  mutating func returnSpares() {
    while spareCount > 0 { pool.put(takePage()) }
  }

  /// Whether so many more pages may be in use.
  @inlinable
  func hasPages(_ count: Int) -> Bool {
    count <= spareCount || pool.has(count &- spareCount)
  }

  /// A page of zero entries. The caller has asked `hasPages`.
  @inlinable
  mutating func takePage() -> TablePage {
    if spareCount == 0 { return pool.take() }
    let page = TablePage(address: spare)
    spare = page.next
    page.next = 0
    spareCount &-= 1
    return page
  }
}

/// Where the walks of one table begin. Trivial to copy: the DMA path holds it by value.
@frozen
public struct PageTableRoot<Format: PageTableFormat>: Sendable {
  public let page: TablePage
  public let levels: Int
  /// Last address that the table translates, inclusive.
  public let last: UInt64
  /// Whether walks set accessed and dirty bits while `isMarking` says so.
  public let keepsDirty: Bool

  @usableFromInline
  init(page: TablePage, levels: Int, last: UInt64, keepsDirty: Bool) {
    self.page = page
    self.levels = levels
    self.last = last
    self.keepsDirty = keepsDirty
  }
}

/// What an unmap took out: the range to invalidate, and table pages to free after that.
///
/// Linux: `struct iommu_iotlb_gather`. Several unmaps may gather into one list. Dropping a
/// list leaks its pages until the table itself goes.
@frozen
public struct TableGather: Sendable {
  /// First and last unmapped address, both inclusive; `first > last` while there is none.
  public var first: UInt64 = .max
  public var last: UInt64 = 0
  @usableFromInline var head: UInt64 = 0

  @inlinable public init() {}

  /// Whether nothing was unmapped.
  @inlinable public var isEmpty: Bool { first > last }

  @inlinable
  mutating func note(first: UInt64, last: UInt64) {
    if first < self.first { self.first = first }
    if last > self.last { self.last = last }
  }

  @inlinable
  mutating func add(_ page: TablePage) {
    page.next = head
    head = page.address
  }
}
