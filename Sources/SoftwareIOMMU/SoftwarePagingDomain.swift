// SPDX-License-Identifier: Apache-2.0
//
// A page table of the software IOMMU, and the ports that go through it: what the engine maps
// and unmaps.

import IOMMU
import PageTables
import Synchronization

/// What the driver needs of a domain of any format.
protocol SoftwareDomain: PagingDomain {
  var format: SoftwareIOMMU.Configuration.Format { get }
  var addressBits: Int { get }
  /// Which physical space its leaves point into.
  var memory: PhysicalMemory { get }
  /// What a port of this domain goes through.
  var portContext: PortContext { get }
  /// From now on unmaps wait for this port too.
  func attach(_ channel: PortChannel)
  /// The port has left the domain: unmaps wait for it no longer.
  func detach(_ channel: PortChannel)
}

/// Says which port context a format's table makes.
protocol SoftwareFormat: PageTableFormat {
  static func portContext(_ root: PageTableRoot<Self>) -> PortContext
}

extension IntelSecondStage: SoftwareFormat {
  static func portContext(_ root: PageTableRoot<Self>) -> PortContext { .intel(root) }
}

extension AMDv1: SoftwareFormat {
  static func portContext(_ root: PageTableRoot<Self>) -> PortContext { .amd(root) }
}

/// One kernel-managed page table. Thread-safe; the lock is held while ports are waited for,
/// and ports never take it.
final class SoftwarePagingDomain<Format: SoftwareFormat>: SoftwareDomain {
  /// Name of the IOMMU that made it, for the event log.
  let iommu: String
  let format: SoftwareIOMMU.Configuration.Format
  let addressBits: Int
  let geometry: DomainGeometry
  let memory: PhysicalMemory
  let portContext: PortContext
  private let attributes: LeafAttributes
  private let events: EventLog
  private let state: Mutex<State>

  private struct State: ~Copyable, Sendable {
    var table: PageTable<Format>
    var gather = TableGather()
    /// A port twice: it counts its attachments, so that a switch from a domain to itself
    /// leaves it attached.
    var channels: [PortChannel] = []
  }

  init(
    iommu: String, configuration: SoftwareIOMMU.Configuration, memory: PhysicalMemory,
    events: EventLog
  ) {
    self.iommu = iommu
    self.memory = memory
    self.events = events
    format = configuration.format
    addressBits = configuration.addressBits
    attributes = configuration.snoopControl ? .forceSnoop : []
    let table = PageTable<Format>(
      levels: configuration.levels, addressBits: configuration.addressBits,
      maximumPages: configuration.maximumTablePages)
    geometry = DomainGeometry(
      aperture: 0...table.root.last, pageSizes: table.pageSizes,
      enforcesSnoop: configuration.snoopControl)
    portContext = Format.portContext(table.root)
    state = Mutex(State(table: table))
  }

  func map(
    _ iova: IOVA, to physical: PhysicalAddress, length: UInt64, permissions: Permissions
  ) throws(IOMMUError) {
    try state.withLock { state throws(IOMMUError) in
      do throws(MapFailure) {
        try state.table.map(
          iova, to: physical, length: length, permissions: permissions,
          attributes: attributes, gather: &state.gather)
      } catch {
        flush(&state)
        throw Self.error(error, iova, length)
      }
    }
  }

  func unmap(_ iova: IOVA, length: UInt64) {
    state.withLock { state in
      state.table.unmap(iova, length: length, gather: &state.gather)
      flush(&state)
    }
  }

  /// Waits until no port can use what was gathered, then frees its table pages.
  private func flush(_ state: inout State) {
    if state.gather.isEmpty { return }
    let range = IOVARange(first: state.gather.first, last: state.gather.last)
    for channel in state.channels { channel.post(range) }
    for channel in state.channels { channel.wait() }
    state.table.free(&state.gather)
    events.append(
      .invalidate(
        iommu: iommu, iova: IOVA(range.first), length: range.last &- range.first &+ 1))
  }

  func translate(_ iova: IOVA) -> PhysicalAddress? {
    state.withLock { state in
      do throws(WalkFault) { return try state.table.walk(iova).physical } catch { return nil }
    }
  }

  func attach(_ channel: PortChannel) { state.withLock { $0.channels.append(channel) } }

  func detach(_ channel: PortChannel) {
    state.withLock { state in
      if let index = state.channels.firstIndex(where: { $0 === channel }) {
        state.channels.remove(at: index)
      }
    }
  }

  /// Table pages in use and bytes held for them.
  var footprint: (pages: Int, bytes: Int) {
    state.withLock { ($0.table.pageCount, $0.table.footprint) }
  }

  private static func error(
    _ failure: MapFailure, _ iova: IOVA, _ length: UInt64
  ) -> IOMMUError {
    let what = "the page table cannot map \(hex(length)) bytes at \(iova)"
    switch failure {
    case .misaligned:
      return IOMMUError(.invalidArgument, "\(what): not a positive multiple of 4 KiB")
    case .addressWidth:
      return IOMMUError(.invalidArgument, "\(what): past the last address it translates")
    case .physicalWidth:
      return IOMMUError(.invalidArgument, "\(what): past the last physical address")
    case .noPermissions:
      return IOMMUError(.invalidArgument, "\(what): neither readable nor writable")
    case .occupied(let address):
      return IOMMUError(.addressInUse, "\(what): \(address) is mapped already")
    case .outOfMemory:
      return IOMMUError(.noMemory, "\(what): its memory limit is reached")
    }
  }
}
