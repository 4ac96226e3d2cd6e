// SPDX-License-Identifier: Apache-2.0
//
// A domain's page table with the ports that go through it, under one lock. Generic over the
// format: the compiler makes one copy of this file's code for each.

import IOMMU
import PageTables
import Synchronization

/// What the lock of a domain guards.
struct DomainState<Format: PageTableFormat>: ~Copyable, Sendable {
  var table: PageTable<Format>
  var gather = TableGather()
  /// In each attachment once: a switch from a domain to itself attaches a port twice for a
  /// moment.
  var channels: [PortChannel] = []
}

/// The changing part of a domain. Thread-safe; the lock is held while ports are waited for,
/// and ports never take it.
final class DomainTable<Format: PageTableFormat>: Sendable {
  let root: PageTableRoot<Format>
  let pageSizes: PageSizes
  private let attributes: LeafAttributes
  private let state: Guarded<DomainState<Format>>

  init(_ configuration: SoftwareIOMMU.Configuration) {
    let table = PageTable<Format>(
      levels: configuration.levels, addressBits: configuration.addressBits,
      maximumPages: configuration.maximumTablePages)
    root = table.root
    pageSizes = table.pageSizes
    attributes = configuration.snoopControl ? .forceSnoop : []
    state = Guarded(DomainState(table: table))
  }

  /// Adds translations. A refused map has been taken out again when this returns.
  func map(
    _ iova: IOVA, to physical: PhysicalAddress, length: UInt64, permissions: Permissions
  ) throws(MapFailure) {
    try state.withLock { state throws(MapFailure) in
      do throws(MapFailure) {
        try state.table.map(
          iova, to: physical, length: length, permissions: permissions,
          attributes: attributes, gather: &state.gather)
      } catch {
        _ = Self.flush(&state)
        throw error
      }
    }
  }

  /// Takes translations out, and waits until no port can use them.
  /// - Returns: The range that was invalidated; nil where nothing was mapped.
  func unmap(_ iova: IOVA, length: UInt64) -> IOVARange? {
    state.withLock { state in
      state.table.unmap(iova, length: length, gather: &state.gather)
      return Self.flush(&state)
    }
  }

  /// Waits until no port can use what was gathered, then frees its table pages.
  @inline(__always)
  private static func flush(_ state: inout DomainState<Format>) -> IOVARange? {
    if state.gather.isEmpty { return nil }
    let range = IOVARange(first: state.gather.first, last: state.gather.last)
    for index in 0..<state.channels.count { state.channels[index].post(range) }
    for index in 0..<state.channels.count { state.channels[index].wait() }
    state.table.free(&state.gather)
    return range
  }

  func walk(_ iova: IOVA) throws(WalkFault) -> Translation {
    try state.withLock { state throws(WalkFault) in try state.table.walk(iova) }
  }

  /// From now on unmaps wait for this port too.
  func attach(_ channel: PortChannel) { state.withLock { $0.channels.append(channel) } }

  /// The port has left the table: unmaps wait for it no longer.
  func detach(_ channel: PortChannel) {
    state.withLock { state in
      if let index = state.channels.firstIndex(where: { $0 === channel }) {
        state.channels.remove(at: index)
      }
    }
  }

  /// Table pages in use, and bytes held for them.
  var footprint: (pages: Int, bytes: Int) {
    state.withLock { ($0.table.pageCount, $0.table.footprint) }
  }
}
