// SPDX-License-Identifier: Apache-2.0
//
// An address space (Linux: IOAS, `struct io_pagetable`): IOVA ranges to memory, kept in step
// with every page table that is made from it. This file holds the state and the mapping of
// memory; unmapping, copying, ranges and page tables are in the files beside it.

import PageTables
import SystemPackage

/// How the IOVA of a mapping is found.
public enum Placement: Hashable, Sendable {
  /// At this address or not at all. Linux: `IOMMU_IOAS_MAP_FIXED_IOVA`.
  case fixed(IOVA)
  /// Wherever there is room, aligned as the memory is as far as 2 MiB.
  case anywhere
}

/// Linux: `IOMMU_IOAS_…`. Created by a `Context`; MODEL B1. Thread-safe.
final class AddressSpace: Sendable {
  let id: ObjectID
  let memory: PhysicalMemory
  let events: EventLog
  let attributes: AddressSpaceAttributes
  /// Where it is nested in software; nil for a space that maps memory itself.
  let link: ParentLink?

  /// Small: a lock that is taken copies it.
  struct State: Sendable {
    var areas = AreaMap()
    var reserved: [Reserved] = []
    /// What the user allowed for automatic placement, in order; empty allows everything.
    var allowed: [ClosedRange<UInt64>] = []
    /// The page tables that mirror this space.
    var domains: [any PagingDomain] = []
    /// Every mapping's IOVA, length and offset in its page are multiples of this, in bytes.
    var alignment: UInt64 = 1
    var largePages = true
    /// What maps and unmaps have to heed; for most spaces nothing.
    var specials: Specials = []
    /// A slot is being moved to where it partly is, and stays pinned meanwhile.
    var holdsMovedSlot = false
    /// What accessors have pinned, and how many of them may pin.
    var accessPins: [AccessPin.Key: AccessPin] = [:]
    var pinningAccessors = 0
    /// How many of the pins keep what is under them mapped.
    var lockedPins = 0
    /// Of a space that follows: which VM.
    var followed: FollowedMachine?
    /// The spaces that are nested on this one.
    var children: [AddressSpace] = []
    /// Of a nested space, what the user has mapped.
    var mappings = NestedMappings()
  }

  struct Specials: OptionSet {
    let rawValue: UInt8
    /// A call that was under way finds nothing.
    static let destroyed = Specials(rawValue: 1)
    /// A VM's memory slots say what is mapped, and no calls.
    static let following = Specials(rawValue: 2)
    /// What it maps is its parent's.
    static let nested = Specials(rawValue: 4)
    static let hasChildren = Specials(rawValue: 8)
    /// Memory is pinned and accounted here, for the spaces nested on it; no DMA goes through it.
    static let dummyRoot = Specials(rawValue: 16)
    /// A table of the user's says what is mapped, and no calls.
    static let userTable = Specials(rawValue: 32)
  }

  /// Linux: `iopt_reserved`. `owner` names who asked, so that its ranges go with it.
  struct Reserved: Sendable {
    let range: ClosedRange<UInt64>
    let owner: Owner

    enum Owner: Hashable, Sendable {
      /// A `BindableDevice`.
      case device(ObjectIdentifier)
      case domain(ObjectIdentifier)
      /// The space itself: past the width that it was made with.
      case width
      case test
    }
  }

  let state: RankedMutex<State>

  init(
    id: ObjectID, memory: PhysicalMemory, events: EventLog,
    attributes: AddressSpaceAttributes = AddressSpaceAttributes(), link: ParentLink? = nil
  ) {
    self.id = id
    self.memory = memory
    self.events = events
    self.attributes = attributes
    self.link = link
    state = RankedMutex(
      .addressSpace(depth: link?.depth ?? 0),
      State(
        reserved: Self.reservations(for: attributes), specials: link == nil ? [] : .nested))
  }

  /// A part of some memory that goes into the map as one area.
  struct Piece {
    let pages: Pages
    /// Offset of the first byte in `pages`, and length, in bytes.
    let start: UInt64
    let length: UInt64
  }

  /// Maps memory.
  ///
  /// Linux: `IOMMU_IOAS_MAP`, `IOMMU_IOAS_MAP_FILE`. MODEL B1. All or nothing.
  /// - Parameters: `start` and `length` in bytes, in the source's addresses.
  /// - Returns: Where it was mapped.
  /// - Throws: `EEXIST` over a live mapping, `EINVAL` on a reserved range or off the
  ///   alignment, `EOVERFLOW`, `ENOSPC` where nothing is free, `EFAULT` where a page table
  ///   needs memory that is not there, `ENOMEM` where `account` may pin no more.
  func map(
    _ source: consuming any MemorySource, start: UInt64, length: UInt64,
    permissions: Permissions, placement: Placement, kind: MappedMemory = .process,
    account: consuming MemoryAccount? = nil
  ) throws(IOMMUError) -> IOVA {
    let pages = try Pages(
      source: source, start: start, length: length,
      isWritable: permissions.contains(.write), kind: kind, account: account)
    return try map(
      consume pages, start: start, length: length, permissions: permissions,
      placement: placement)
  }

  /// Maps memory that nothing maps yet. As `map` of a source.
  @inline(__always)
  func map(
    _ pages: consuming Pages, start: UInt64, length: UInt64, permissions: Permissions,
    placement: Placement
  ) throws(IOMMUError) -> IOVA {
    let offset = start - pages.address
    // Taken by the closure, which else would count one more reference.
    var taken: Pages? = consume pages
    return try state.withLock { (state) throws(IOMMUError) in
      let placement =
        state.specials.isEmpty ? placement : try checkMap(placement, of: start, in: state)
      try checkLength(length, in: state)
      let iova = try place(
        placement, length: length, hint: start, in: state)
      try checkPiece(offset: offset, in: state)
      if let pages = taken.take() {
        let area = Area(
          first: iova, last: iova + (length - 1), pages: consume pages, start: offset,
          permissions: permissions)
        try insert(consume area, in: &state)
        if !state.specials.isEmpty { try showNew(at: iova, in: &state) }
      }
      return IOVA(iova)
    }
  }

  func check(_ state: borrowing State) throws(IOMMUError) {
    guard !state.specials.contains(.destroyed) else {
      throw IOMMUError(.noSuchFileOrDirectory, "IOAS \(id) was destroyed meanwhile")
    }
  }

  func checkLength(_ length: UInt64, in state: borrowing State) throws(IOMMUError) {
    guard length & (state.alignment - 1) == 0, length != 0 else {
      throw IOMMUError(
        .invalidArgument,
        "length \(hex(length)) is not a multiple of IOAS \(id)'s alignment, "
          + "\(hex(state.alignment)) bytes")
    }
  }

  /// Linux checks the memory's own alignment after the IOVA's.
  func checkPiece(offset: UInt64, in state: borrowing State) throws(IOMMUError) {
    guard offset & (Pages.hostPage - 1) & (state.alignment - 1) == 0 else {
      throw IOMMUError(
        .invalidArgument,
        "memory at offset \(hex(offset & (Pages.hostPage - 1))) in its page is not aligned to "
          + "IOAS \(id)'s \(hex(state.alignment)) bytes")
    }
  }

  /// The IOVA for a mapping of `length` bytes.
  func place(
    _ placement: Placement, length: UInt64, hint: UInt64, in state: borrowing State
  ) throws(IOMMUError) -> UInt64 {
    switch placement {
    case .fixed(let iova):
      try checkFree(iova.rawValue, length: length, in: state)
      return iova.rawValue
    case .anywhere:
      return try findFree(length: length, hint: hint, in: state)
    }
  }

  /// Adds an area and fills it into every page table; on failure nothing has changed.
  func insert(_ area: consuming Area, in state: inout State) throws(IOMMUError) {
    try enter(area, in: state)
    let (iova, length, permissions) = (IOVA(area.first), area.length, area.permissions)
    events.append(.map(ioas: id, iova: iova, length: length, permissions: permissions))
    state.areas.insert(consume area)
  }

  /// The part of adding an area that can fail: its entries in the page tables.
  @inline(__always)
  func enter(_ area: borrowing Area, in state: borrowing State) throws(IOMMUError) {
    try FailurePoint.pass(.area)
    if area.pages.kind == .buffer { area.pages.addMapper(self) }
    if !state.domains.isEmpty { try fillDomains(area, in: state) }
  }

  /// Fills an area into every page table, or none.
  private func fillDomains(_ area: borrowing Area, in state: borrowing State) throws(IOMMUError)
  {
    var filled = 0
    do throws(IOMMUError) {
      for domain in state.domains {
        try fill(area, into: domain, largePages: state.largePages)
        filled += 1
      }
    } catch {
      for domain in state.domains[..<filled] { unfill(area, from: domain) }
      throw error
    }
  }

  /// Pins an area's memory and enters it into a page table.
  func fill(_ area: borrowing Area, into domain: any PagingDomain, largePages: Bool)
    throws(IOMMUError)
  {
    let placed = try area.pages.pin(start: area.start, length: area.length, in: memory)
    let (first, permissions) = (area.first, area.permissions)
    var done: UInt64 = 0
    do throws(IOMMUError) {
      try placed.forEachSegment(start: area.start, length: area.length) {
        (offset, physical, length) throws(IOMMUError) in
        let iova = IOVA(first + offset)
        if length > Interruption.step {
          try mapLong(
            iova, to: physical, length: length, permissions: permissions, domain: domain,
            largePages: largePages)
        } else if largePages {
          try domain.map(iova, to: physical, length: length, permissions: permissions)
        } else {
          try mapSmall(
            iova, to: physical, length: length, permissions: permissions, domain: domain)
        }
        done = offset + length
      }
    } catch {
      if done > 0 { domain.unmap(IOVA(first), length: done) }
      area.pages.unpin(start: area.start, length: area.length, in: memory)
      throw error
    }
  }

  func unfill(_ area: borrowing Area, from domain: any PagingDomain) {
    domain.unmap(IOVA(area.first), length: area.length)
    area.pages.unpin(start: area.start, length: area.length, in: memory)
  }
}
