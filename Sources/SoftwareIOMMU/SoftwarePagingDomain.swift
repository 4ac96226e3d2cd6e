// SPDX-License-Identifier: Apache-2.0
//
// A page table of the software IOMMU as the engine sees it: whatever its format, one class.

import IOMMU
import PageTables

/// One kernel-managed page table. Thread-safe.
final class SoftwarePagingDomain: PagingDomain {
  /// Name of the IOMMU that made it, for the event log.
  let iommu: String
  let format: SoftwareIOMMU.Configuration.Format
  let addressBits: Int
  let geometry: DomainGeometry
  /// Which physical space its leaves point into.
  let memory: PhysicalMemory
  private let events: EventLog
  private let table: Table

  // Named by format, so that the calls are to the compiler's copy of the code for it.
  private enum Table: Sendable {
    case intel(DomainTable<IntelSecondStage>)
    case amd(DomainTable<AMDv1>)
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
    let last: UInt64
    let pageSizes: PageSizes
    switch configuration.format {
    case .intelSecondStage:
      let new = DomainTable<IntelSecondStage>(configuration)
      (last, pageSizes) = (new.root.last, new.pageSizes)
      table = .intel(new)
    case .amdV1:
      let new = DomainTable<AMDv1>(configuration)
      (last, pageSizes) = (new.root.last, new.pageSizes)
      table = .amd(new)
    }
    geometry = DomainGeometry(
      aperture: 0...last, pageSizes: pageSizes, enforcesSnoop: configuration.snoopControl)
  }

  /// What a port of this domain goes through.
  var portContext: PortContext {
    switch table {
    case .intel(let table): .intel(table.root)
    case .amd(let table): .amd(table.root)
    }
  }

  func map(
    _ iova: IOVA, to physical: PhysicalAddress, length: UInt64, permissions: Permissions
  ) throws(IOMMUError) {
    do throws(MapFailure) {
      switch table {
      case .intel(let table):
        try table.map(iova, to: physical, length: length, permissions: permissions)
      case .amd(let table):
        try table.map(iova, to: physical, length: length, permissions: permissions)
      }
    } catch {
      throw Self.error(error, iova, length)
    }
  }

  func unmap(_ iova: IOVA, length: UInt64) {
    let range =
      switch table {
      case .intel(let table): table.unmap(iova, length: length)
      case .amd(let table): table.unmap(iova, length: length)
      }
    if let range {
      events.append(
        .invalidate(
          iommu: iommu, iova: IOVA(range.first), length: range.last &- range.first &+ 1))
    }
  }

  func translate(_ iova: IOVA) -> PhysicalAddress? {
    do throws(WalkFault) {
      switch table {
      case .intel(let table): return try table.walk(iova).physical
      case .amd(let table): return try table.walk(iova).physical
      }
    } catch {
      return nil
    }
  }

  /// From now on unmaps wait for this port too.
  func attach(_ channel: PortChannel) {
    switch table {
    case .intel(let table): table.attach(channel)
    case .amd(let table): table.attach(channel)
    }
  }

  /// The port has left the domain: unmaps wait for it no longer.
  func detach(_ channel: PortChannel) {
    switch table {
    case .intel(let table): table.detach(channel)
    case .amd(let table): table.detach(channel)
    }
  }

  /// Table pages in use, and bytes held for them.
  var footprint: (pages: Int, bytes: Int) {
    switch table {
    case .intel(let table): table.footprint
    case .amd(let table): table.footprint
    }
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
