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
  /// Granules that the root takes.
  public let rootPages: Int
  /// A few pages of zeros at hand, linked as in a gather list, so that mapping and unmapping
  /// one page in turn does not go to the pool for its tables.
  @usableFromInline var spare: UInt64 = 0
  @usableFromInline var spareCount = 0
  @inlinable static var spareLimit: Int { 8 }

  /// Makes an empty table.
  ///
  /// - Parameters:
  ///   - levels: How many, clamped to `Format.levelRange`.
  ///   - addressBits: Addresses of more bits fault; nil means what the levels translate, and
  ///     so does any other number in a canonical format. Clamped to what the levels can.
  ///   - extending: How addresses are extended, where roots of the format differ in that.
  ///   - maximumPages: The most table pages that may be in use, the root included: at least 1.
  ///   - keepsDirty: Whether walks can be told to set accessed and dirty bits.
  ///   - configuration: The switches that walks go by.
  public init(
    levels: Int, addressBits: Int? = nil, extending: AddressExtension? = nil,
    maximumPages: Int = .max, keepsDirty: Bool = false,
    configuration: Format.Configuration = .init()
  ) {
    let range = Format.levelRange
    let levels = min(max(levels, range.lowerBound), range.upperBound)
    let extending =
      Format.choosesExtension ? extending ?? Format.addressExtension : Format.addressExtension
    var bits = Format.addressBits(levels: levels)
    if let addressBits, extending != .sign {
      let least =
        Format.hasFixedRoot ? Format.granuleShift : Format.shift(level: levels) + 1
      bits = min(max(addressBits, least), Format.maximumAddressBits(levels: levels))
    }
    var configuration = configuration
    if keepsDirty { configuration.keepDirty() }
    let rootPages =
      Format.hasFixedRoot
      ? 1 << Format.extraRootBits
      : 1 << max(0, bits - Format.shift(level: levels) - Format.indexBits)
    pool = TablePool(
      granuleShift: Format.granuleShift, limit: max(rootPages, maximumPages))
    pageSizes = Format.pageSizes(levels: levels)
    self.rootPages = rootPages
    root = PageTableRoot(
      table: TableRoot(
        checked: pool.take(run: rootPages), levels: levels, bits: bits, extending: extending,
        configuration: configuration),
      keepsDirty: keepsDirty && Format.tracksDirty(configuration))
  }

  /// Table pages in use, the root included. In granules of the format.
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
      let page = TablePage<Format>(address: address)
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
    while spareCount > 0 { pool.put(takePage().address) }
  }

  /// Whether so many more pages may be in use.
  @inlinable
  func hasPages(_ count: Int) -> Bool {
    count <= spareCount || pool.has(count &- spareCount)
  }

  /// A page of zero entries. The caller has asked `hasPages`.
  @inlinable
  mutating func takePage() -> TablePage<Format> {
    if spareCount == 0 { return TablePage(address: pool.take()) }
    let page = TablePage<Format>(address: spare)
    spare = page.next
    page.next = 0
    spareCount &-= 1
    return page
  }
}

/// Where the walks of one table of the engine's own begin. Trivial to copy: the DMA path holds
/// it by value.
@frozen
public struct PageTableRoot<Format: PageTableFormat>: Sendable {
  /// Not public: its address is one of this process, and walks believe it.
  @usableFromInline let table: TableRoot<Format>
  /// Whether walks set accessed and dirty bits while `isMarking` says so.
  public let keepsDirty: Bool

  @usableFromInline
  init(table: TableRoot<Format>, keepsDirty: Bool) {
    self.table = table
    self.keepsDirty = keepsDirty
  }

  @inlinable public var levels: Int { table.levels }
  /// First address that the table translates.
  @inlinable public var first: UInt64 { table.first }
  /// Last address that the table translates, inclusive.
  @inlinable public var last: UInt64 { table.last }
  @inlinable public var configuration: Format.Configuration { table.configuration }

  @inlinable @inline(__always)
  var page: TablePage<Format> { TablePage(address: table.address) }
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
  mutating func add<Format: PageTableFormat>(_ page: TablePage<Format>) {
    page.next = head
    head = page.address
  }
}
