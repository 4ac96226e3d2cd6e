// SPDX-License-Identifier: Apache-2.0
//
// An address space as a Swift program holds it: one owner, and destroyed with it. The same
// calls as by id on `Context`, for whom ids are not the point.

import PageTables

/// An address space that belongs to one owner (Linux: an IOAS; MODEL B1).
///
/// Goes when it goes out of scope; while a device is still attached to it, it stays with its
/// context until that is closed. Thread-safe.
public struct IOAS: ~Copyable, Sendable {
  public let context: Context
  /// Names the space in its context, for the calls that take ids.
  public let id: ObjectID
  /// What the id names, for as long as this owner lives: its calls need not look it up.
  let space: AddressSpace

  init(context: Context, space: AddressSpace) {
    self.context = context
    self.space = space
    id = space.id
  }

  deinit {
    // EBUSY: a device still uses it. The context frees it then.
    try? context.destroy(id)
  }

  /// Maps memory. All or nothing; the memory is kept alive while it is mapped.
  /// - Parameters:
  ///   - range: Bytes of the source; nil is all of a `LocalMemory`.
  ///   - permissions: `.read`, `.write` or both.
  /// - Returns: The IOVA.
  /// - Throws: As `Context.map`.
  @discardableResult
  public func map(
    _ source: any MemorySource, _ range: Range<UInt64>, permissions: Permissions = .readWrite,
    at placement: Placement = .anywhere
  ) throws(IOMMUError) -> IOVA {
    try context.map(
      source, start: range.lowerBound, length: range.upperBound - range.lowerBound,
      into: space, permissions: permissions, at: placement)
  }

  /// Maps all of a piece of memory. As `map(_:_:permissions:at:)`.
  @discardableResult
  public func map(
    _ memory: LocalMemory, permissions: Permissions = .readWrite,
    at placement: Placement = .anywhere
  ) throws(IOMMUError) -> IOVA {
    try map(memory, 0..<memory.byteCount, permissions: permissions, at: placement)
  }

  /// Unmaps every mapping that lies wholly inside `length` bytes from `iova`. When it returns,
  /// no DMA on any thread uses them (MODEL G2).
  /// - Returns: Bytes unmapped.
  /// - Throws: As `Context.unmap`; `EOVERFLOW` past the last address, `EINVAL` for no bytes.
  @discardableResult
  public func unmap(_ iova: IOVA, length: UInt64) throws(IOMMUError) -> UInt64 {
    guard length > 0 else {
      throw IOMMUError(.invalidArgument, "an unmap of no bytes at \(iova)")
    }
    let (last, overflow) = iova.rawValue.addingReportingOverflow(length - 1)
    guard !overflow else {
      throw IOMMUError(.overflow, "\(iova) + \(hex(length)) bytes passes the last address")
    }
    return try context.unmap(iova.rawValue...last, from: space)
  }

  /// Unmaps everything.
  /// - Returns: Bytes unmapped.
  @discardableResult
  public func unmapAll() throws(IOMMUError) -> UInt64 {
    try context.unmap(0...UInt64.max, from: id)
  }

  /// What may be mapped, and the alignment that mappings need, in bytes.
  public var mappableRanges: (ranges: [ClosedRange<UInt64>], alignment: UInt64) {
    get throws(IOMMUError) { try context.mappableRanges(of: id) }
  }
}

extension Context {
  /// Makes an address space that its owner destroys. As `allocateIOAS(_:)`.
  public func makeAddressSpace(
    _ attributes: AddressSpaceAttributes = AddressSpaceAttributes()
  ) throws(IOMMUError) -> IOAS {
    IOAS(context: self, space: try addressSpace(allocateIOAS(attributes)))
  }
}

extension SecurityContext {
  /// Attaches the group to a space, or moves it there in one step. As `attach(to:)` by id.
  @discardableResult
  public func attach(
    to space: borrowing IOAS, snoop hint: SnoopHint = .none
  ) throws(IOMMUError) -> ObjectID {
    guard space.context === context else {
      throw IOMMUError(
        .noSuchFileOrDirectory,
        "\(object.name) is bound to another context than the address space belongs to")
    }
    return try attach(to: space.id, snoop: hint)
  }
}
