// SPDX-License-Identifier: Apache-2.0
//
// The calls on address spaces: MODEL B1, Linux's IOAS commands.

import PageTables
import SystemPackage

extension Context {
  /// Makes an empty address space. Linux: `IOMMU_IOAS_ALLOC`.
  /// - Throws: `EINVAL` for attributes that no space can have, `ENOMEM`.
  public func allocateIOAS(
    _ attributes: AddressSpaceAttributes = AddressSpaceAttributes()
  ) throws(IOMMUError) -> ObjectID {
    try attributes.check()
    let system = system
    return try objects.withLock { (objects) throws(IOMMUError) in
      try objects.table.insert { id in
        let space = AddressSpace(
          id: id, memory: system.memory, events: system.events, attributes: attributes)
        return (.ioas(space), id)
      }
    }
  }

  /// Checks an id, for calls that look at it before their other arguments.
  /// - Throws: `ENOENT` where it is not an address space.
  package func requireAddressSpace(_ id: ObjectID) throws(IOMMUError) {
    _ = try addressSpace(id)
  }

  /// Looks an address space up once for all that a call does with it.
  /// - Throws: `ENOENT` where it is not an address space.
  package func reference(to id: ObjectID) throws(IOMMUError) -> IOASReference {
    IOASReference(space: try addressSpace(id))
  }

  /// As `map` by id.
  package func map(
    _ source: consuming any MemorySource, start: UInt64, length: UInt64,
    into ioas: IOASReference, permissions: Permissions, at placement: Placement,
    kind: MappedMemory = .process, account: consuming MemoryAccount? = nil
  ) throws(IOMMUError) -> IOVA {
    try map(
      source, start: start, length: length, into: ioas.space, permissions: permissions,
      at: placement, kind: kind, account: account)
  }

  /// As `unmap` by id.
  @discardableResult
  package func unmap(
    _ range: ClosedRange<UInt64>, from ioas: IOASReference
  ) throws(IOMMUError) -> UInt64 {
    try unmap(range, from: ioas.space)
  }

  /// Maps memory into an address space and every page table made from it.
  ///
  /// Linux: `IOMMU_IOAS_MAP`, `IOMMU_IOAS_MAP_FILE`. All or nothing.
  /// - Parameters:
  ///   - start: First byte, in the source's addresses.
  ///   - length: In bytes; like `start` and the IOVA a multiple of the alignment that
  ///     `mappableRanges` gives.
  ///   - permissions: `.read`, `.write` or both.
  ///   - kind: What the source is.
  ///   - account: What pins of it are charged to (MODEL B6); nil is the context's own, which
  ///     has no limit unless it was made with one.
  /// - Returns: The IOVA.
  /// - Throws: `ENOENT`, `EINVAL`, `EEXIST`, `EOVERFLOW`, `ENOSPC`, `EFAULT`, `ENOMEM`.
  @discardableResult
  public func map(
    _ source: consuming any MemorySource, start: UInt64, length: UInt64, into ioas: ObjectID,
    permissions: Permissions = .readWrite, at placement: Placement = .anywhere,
    kind: MappedMemory = .process, account: consuming MemoryAccount? = nil
  ) throws(IOMMUError) -> IOVA {
    try map(
      source, start: start, length: length, into: addressSpace(ioas),
      permissions: permissions, at: placement, kind: kind, account: account)
  }

  @inline(__always)
  func map(
    _ source: consuming any MemorySource, start: UInt64, length: UInt64,
    into space: AddressSpace, permissions: Permissions, at placement: Placement,
    kind: MappedMemory = .process, account: consuming MemoryAccount? = nil
  ) throws(IOMMUError) -> IOVA {
    guard !permissions.isDisjoint(with: .readWrite) else {
      throw IOMMUError(.invalidArgument, "a mapping must be readable, writable or both")
    }
    return try space.map(
      source, start: start, length: length, permissions: permissions, placement: placement,
      kind: kind, account: account ?? self.account)
  }

  /// Unmaps every area that lies wholly inside `range`.
  ///
  /// Linux: `IOMMU_IOAS_UNMAP`. MODEL B1, G2: when it returns, no DMA on any thread uses what
  /// was mapped.
  /// - Parameter range: Closed, in bytes; all of the space is `0...UInt64.max`.
  /// - Returns: Bytes unmapped.
  /// - Throws: `ENOENT` where an area would be split, or nothing is mapped there (an empty
  ///   space may be unmapped as a whole).
  @discardableResult
  public func unmap(
    _ range: ClosedRange<UInt64>, from ioas: ObjectID
  ) throws(IOMMUError) -> UInt64 {
    try unmap(range, from: addressSpace(ioas))
  }

  @inline(__always)
  func unmap(
    _ range: ClosedRange<UInt64>, from space: AddressSpace
  ) throws(IOMMUError) -> UInt64 {
    let unmapped = try space.unmap(range)
    guard unmapped > 0 || range == 0...UInt64.max else {
      throw IOMMUError(
        .noSuchFileOrDirectory,
        "nothing is mapped at \(hex(range.lowerBound))...\(hex(range.upperBound)) in IOAS \(space.id)"
      )
    }
    return unmapped
  }

  /// Maps in one space what another has mapped, without pinning it again.
  ///
  /// Linux: `IOMMU_IOAS_COPY`. MODEL B6.
  /// - Returns: The IOVA in `destination`.
  @discardableResult
  public func copy(
    from source: ObjectID, _ iova: IOVA, length: UInt64, into destination: ObjectID,
    permissions: Permissions = .readWrite, at placement: Placement = .anywhere
  ) throws(IOMMUError) -> IOVA {
    guard !permissions.isDisjoint(with: .readWrite) else {
      throw IOMMUError(.invalidArgument, "a mapping must be readable, writable or both")
    }
    let pieces = try addressSpace(source).pieces(iova, length: length)
    return try addressSpace(destination).map(
      pieces, length: length, permissions: permissions, placement: placement)
  }

  /// What may be mapped in a space, and the alignment that mappings need, in bytes.
  /// Linux: `IOMMU_IOAS_IOVA_RANGES`.
  public func mappableRanges(
    of ioas: ObjectID
  ) throws(IOMMUError) -> (ranges: [ClosedRange<UInt64>], alignment: UInt64) {
    try addressSpace(ioas).mappableRanges()
  }

  /// Restricts automatic placement; an empty list lifts the restriction.
  /// Linux: `IOMMU_IOAS_ALLOW_IOVAS`.
  /// - Throws: `EADDRINUSE` where a range is reserved, `EINVAL` where two overlap.
  public func allow(
    _ ranges: [ClosedRange<UInt64>], in ioas: ObjectID
  ) throws(IOMMUError) {
    let space = try addressSpace(ioas)
    let sorted = ranges.sorted { $0.lowerBound < $1.lowerBound }
    for (left, right) in zip(sorted, sorted.dropFirst()) where left.overlaps(right) {
      throw Self.overlap(left, right)
    }
    try space.allow(sorted)
  }

  /// Two ranges that a caller allows and that overlap.
  package static func overlap(
    _ left: ClosedRange<UInt64>, _ right: ClosedRange<UInt64>
  ) -> IOMMUError {
    IOMMUError(
      .invalidArgument,
      "allowed ranges \(hex(left.lowerBound))...\(hex(left.upperBound)) and "
        + "\(hex(right.lowerBound))...\(hex(right.upperBound)) overlap")
  }

  /// Whether leaves larger than a host page may be used in a space.
  /// Linux: `IOMMU_OPTION_HUGE_PAGES`.
  public func largePages(in ioas: ObjectID) throws(IOMMUError) -> Bool {
    try addressSpace(ioas).largePages
  }

  /// - Throws: `EINVAL` where page tables already hold mappings.
  public func setLargePages(_ enabled: Bool, in ioas: ObjectID) throws(IOMMUError) {
    try addressSpace(ioas).setLargePages(enabled)
  }

  /// Reserves a range for tests of a client's handling of reserved ranges.
  /// Linux: `IOMMU_TEST_OP_ADD_RESERVED`.
  public func reserve(_ range: ClosedRange<UInt64>, in ioas: ObjectID) throws(IOMMUError) {
    try addressSpace(ioas).reserve([range], for: .test)
  }

  // MARK: The address space of the compatibility calls (Linux: IOMMU_VFIO_IOAS)

  /// - Throws: `ENODEV` where none was chosen.
  public func compatibilityIOAS() throws(IOMMUError) -> ObjectID {
    guard let id = objects.withLock({ $0.compatibilityIOAS }) else {
      throw IOMMUError(.noSuchDevice, "no IOAS was chosen for the VFIO compatibility calls")
    }
    return id
  }

  /// - Parameter ioas: Nil takes the choice back.
  /// - Throws: `ENOENT` where the id is not an IOAS.
  public func setCompatibilityIOAS(_ ioas: ObjectID?) throws(IOMMUError) {
    if let ioas { _ = try addressSpace(ioas) }
    objects.withLock { $0.compatibilityIOAS = ioas }
  }
}

/// An address space that a call has looked up; a destroyed one answers `ENOENT` to calls.
package struct IOASReference: Sendable {
  let space: AddressSpace
  package var id: ObjectID { space.id }
}
