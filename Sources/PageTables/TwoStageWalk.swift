// SPDX-License-Identifier: Apache-2.0
//
// Two stages: a user's table on a parent that it does not own. Every address in the user's
// table, and what it finds, is translated by the parent, so that it reaches only what the
// parent maps (MODEL B2, B5). VT-d 3.8 (nested translation); DDI 0487 D8.2; RISC-V Privileged
// 18.5; AMD 48882, 2.2.6. At most 24 entries are fetched with 4 levels each: 4 × (4 + 1) + 4.

extension TableRoot {
  /// Translates one address by this table and then by its parent, as both roots' switches say.
  ///
  /// - Parameters:
  ///   - parent: The second stage, one of the engine's own tables. It is marked while it is
  ///     told to.
  ///   - memory: What the parent translates to: where this table's entries are, by the
  ///     parent's addresses.
  /// - Returns: As the walk of one stage: the rights of both, the smaller leaf.
  /// - Throws: The first reason on the way: of this table, `stage` is `.first`; of the parent,
  ///   `.second`, with `ipa` and `tableLevel`.
  @inlinable
  public func walk<Second: PageTableFormat>(
    _ iova: IOVA, for access: Access, through parent: PageTableRoot<Second>,
    in memory: some TableMemory
  ) throws(WalkFault) -> Translation {
    var shift: UInt8 = 0
    return try walk(iova, for: access, through: parent, in: memory, firstLeafShift: &shift)
  }

  /// The same for whoever keeps what is found: an invalidation of any address of this table's
  /// leaf is for all that was found through the leaf.
  /// - Parameter firstLeafShift: Becomes log2 of the size of this table's own leaf, in bytes.
  @inlinable @inline(__always)
  public func walk<Second: PageTableFormat>(
    _ iova: IOVA, for access: Access, through parent: PageTableRoot<Second>,
    in memory: some TableMemory, firstLeafShift: inout UInt8
  ) throws(WalkFault) -> Translation {
    if parent.isMarking {
      return try walk(
        iova, for: access,
        SecondStage(
          root: parent.table, tables: HostTableMemory(), memory: memory, marks: true,
          fetchesWrite: Format.fetchesAsWrites(configuration)), &firstLeafShift)
    }
    return try walk(
      iova, for: access,
      SecondStage(
        root: parent.table, tables: HostTableMemory(), memory: memory, marks: false,
        fetchesWrite: Format.fetchesAsWrites(configuration)), &firstLeafShift)
  }

  /// The same where the parent is somebody else's table too.
  /// - Parameter tables: Where the parent's entries are.
  @inlinable
  public func walk<Second: PageTableFormat>(
    _ iova: IOVA, for access: Access, through parent: TableRoot<Second>,
    tables: some TableMemory, in memory: some TableMemory
  ) throws(WalkFault) -> Translation {
    var shift: UInt8 = 0
    return try walk(
      iova, for: access,
      SecondStage(
        root: parent, tables: tables, memory: memory,
        marks: parent.configuration.updatesEntries,
        fetchesWrite: Format.fetchesAsWrites(configuration)), &shift)
  }

  @inlinable @inline(__always)
  func walk<Second, Tables, Memory>(
    _ iova: IOVA, for access: Access, _ second: SecondStage<Second, Tables, Memory>,
    _ firstLeafShift: inout UInt8
  ) throws(WalkFault) -> Translation {
    var found = try walk(iova, for: access, in: second)
    firstLeafShift = found.leafShift
    let physical = try second.translate(found.physical.rawValue, needs: access.needs)
    found.physical = physical.physical
    found.leafShift = min(found.leafShift, physical.leafShift)
    found.rights.formIntersection(physical.rights)
    return found
  }
}

/// The memory that a first stage sees: the second stage's addresses.
@usableFromInline
struct SecondStage<Format: PageTableFormat, Tables: TableMemory, Memory: TableMemory> {
  @usableFromInline let root: TableRoot<Format>
  @usableFromInline let tables: Tables
  @usableFromInline let memory: Memory
  @usableFromInline let marks: Bool
  @usableFromInline let fetchesWrite: Bool

  @inlinable @inline(__always)
  init(
    root: TableRoot<Format>, tables: Tables, memory: Memory, marks: Bool, fetchesWrite: Bool
  ) {
    self.root = root
    self.tables = tables
    self.memory = memory
    self.marks = marks
    self.fetchesWrite = fetchesWrite
  }

  @inlinable
  func translate(_ ipa: UInt64, needs: Rights) throws(WalkFault) -> Translation {
    do throws(WalkFault) {
      return marks
        ? try root.find(ipa, needs: needs, marks: true, in: tables)
        : try root.find(ipa, needs: needs, marks: false, in: tables)
    } catch {
      var fault = error
      fault.stage = .second
      fault.ipa = ipa
      throw fault
    }
  }

  @inlinable @inline(__always)
  func place(_ ipa: UInt64, _ needs: Rights) throws(TableMemoryFault) -> UInt64 {
    do throws(WalkFault) {
      return try translate(ipa, needs: needs).physical.rawValue
    } catch {
      throw .secondStage(error)
    }
  }
}

extension SecondStage: TableMemory {
  @inlinable @inline(__always)
  func load(_ address: UInt64) throws(TableMemoryFault) -> UInt64 {
    try memory.load(fetchesWrite ? writtenPlace(address) : place(address, .userRead))
  }

  /// Where an entry is that is fetched as if it were written: what may only be read is still read,
  /// and what may be written is marked as written.
  @inlinable
  func writtenPlace(_ ipa: UInt64) throws(TableMemoryFault) -> UInt64 {
    do throws(WalkFault) {
      return try translate(ipa, needs: .userAccess).physical.rawValue
    } catch {
      guard error.reason == .permission, error.rights.contains(.userRead) else {
        throw .secondStage(error)
      }
    }
    return try place(ipa, .userRead)
  }

  @inlinable @inline(__always)
  func compareExchange(
    _ address: UInt64, expected: UInt64, desired: UInt64
  ) throws(TableMemoryFault) -> Bool {
    try memory.compareExchange(
      place(address, .userAccess), expected: expected, desired: desired)
  }
}
