// SPDX-License-Identifier: Apache-2.0
//
// Memory that its exporter can take back while devices use it (Linux: a DMA-buf that iommufd
// maps; `iopt_alloc_dmabuf_pages`, `iopt_revoke_notify`).

import PageTables
import SystemPackage

/// A buffer that somebody exports and may take back. Mapped with `Context.map(_:offset:…)`.
///
/// Taking it back empties every mapping of it: the areas stay and still have to be unmapped, but
/// DMA to them faults. A mapping that was emptied stays so when the buffer is given again; only
/// new ones reach it. Its memory is never accounted, and accessors do not reach it. Thread-safe.
public final class RevocableMemory: MemorySource {
  /// What is exported.
  public let memory: LocalMemory

  private struct State: Sendable {
    var isRevoked = false
    var mapped: [Mapped] = []
  }

  private struct Mapped: Sendable { weak var pages: Pages? }

  /// Held while page tables are emptied: a second call waits until no DMA uses the buffer.
  private let state = RankedMutex(.revocation, State())

  /// - Parameter byteCount: Rounded up to 4 KiB; not zero.
  /// - Throws: `EINVAL`, `ENOMEM`.
  public init(byteCount: UInt64) throws(IOMMUError) {
    memory = try LocalMemory(byteCount: byteCount)
  }

  /// In bytes, a multiple of 4 KiB.
  public var byteCount: UInt64 { memory.byteCount }

  public var isRevoked: Bool { state.withLock { $0.isRevoked } }

  /// Takes the buffer back. When it returns, no DMA on any thread reaches it (MODEL G2).
  public func revoke() {
    state.withLock { state in
      state.isRevoked = true
      for mapped in state.mapped { mapped.pages?.revoke() }
      state.mapped = []
    }
  }

  /// Gives the buffer again, to mappings that are made from now on.
  public func restore() { state.withLock { $0.isRevoked = false } }

  /// Notes a mapping, so that it can be emptied.
  /// - Throws: `ENODEV` while the buffer is taken back.
  func adopt(_ pages: Pages) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      guard !state.isRevoked else {
        throw IOMMUError(.noSuchDevice, "the buffer was taken back by who exported it")
      }
      state.mapped.removeAll { $0.pages == nil }
      state.mapped.append(Mapped(pages: pages))
    }
  }

  public func pin(
    address: UInt64, length: UInt64, writable: Bool,
    place: (consuming PinnedRun) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    try memory.pin(address: address, length: length, writable: writable, place: place)
  }
}

extension Context {
  /// Maps a part of a buffer. All or nothing.
  ///
  /// Linux: `IOMMU_IOAS_MAP_FILE` of a DMA-buf.
  /// - Parameters: `offset` in the buffer and `length` in bytes.
  /// - Returns: The IOVA.
  /// - Throws: As `map`; `EINVAL` where the buffer ends before the part does, `ENODEV` while it
  ///   is taken back.
  @discardableResult
  public func map(
    _ buffer: RevocableMemory, offset: UInt64, length: UInt64, into ioas: ObjectID,
    permissions: Permissions = .readWrite, at placement: Placement = .anywhere
  ) throws(IOMMUError) -> IOVA {
    try map(
      buffer, offset: offset, length: length, into: reference(to: ioas),
      permissions: permissions, at: placement)
  }

  /// As `map` by id.
  package func map(
    _ buffer: RevocableMemory, offset: UInt64, length: UInt64, into ioas: IOASReference,
    permissions: Permissions, at placement: Placement
  ) throws(IOMMUError) -> IOVA {
    guard length > 0 else {
      throw IOMMUError(.invalidArgument, "a mapping of no bytes cannot be made")
    }
    let (last, overflow) = offset.addingReportingOverflow(length - 1)
    guard !overflow else {
      throw IOMMUError(.overflow, "offset \(hex(offset)) + \(hex(length)) bytes is too large")
    }
    guard last < buffer.byteCount else {
      throw IOMMUError(
        .invalidArgument,
        "bytes \(hex(offset)) to \(hex(last)) lie outside a buffer of \(hex(buffer.byteCount)) "
          + "bytes")
    }
    let pages = try Pages(
      source: buffer, start: offset, length: length, isWritable: permissions.contains(.write),
      kind: .buffer)
    try buffer.adopt(pages)
    return try ioas.space.map(
      pages, start: offset, length: length, permissions: permissions, placement: placement)
  }
}

extension Pages {
  /// Notes an address space that maps the memory, so that it can be taken back there.
  func addMapper(_ space: AddressSpace) {
    pins.withLock { pins in
      pins.mappers.removeAll { $0.space == nil || $0.space === space }
      pins.mappers.append(Mapper(space: space))
    }
  }

  struct Mapper: Sendable { weak var space: AddressSpace? }

  /// Empties all mappings of the memory and lets go of it. Before a page table is emptied of it
  /// nothing can add it any more, so none is missed; what was placed stays until all are.
  fileprivate func revoke() {
    let spaces = pins.withLock { pins in
      pins.isRevoked = true
      return pins.mappers.compactMap(\.space)
    }
    for space in spaces { space.empty(pages: self) }
    guard let memory = spaces.first?.memory else { return }
    pins.withLock { pins in
      if let parts = pins.parts {
        for piece in parts.pieces { release(piece.placed, piece.range, in: memory) }
      } else if pins.users > 0 {
        release(pins.placed, pins.range, in: memory)
      }
      pins.users = 0
      pins.placed = .nowhere
      pins.parts = nil
    }
  }
}

extension AddressSpace {
  /// Takes what maps some memory out of every page table; the areas stay.
  fileprivate func empty(pages: Pages) {
    state.withLock { state in
      try? state.areas.visit { area in
        guard area.pages === pages else { return }
        for domain in state.domains { domain.unmap(IOVA(area.first), length: area.length) }
      }
    }
  }
}
