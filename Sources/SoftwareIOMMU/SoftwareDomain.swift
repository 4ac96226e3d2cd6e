// SPDX-License-Identifier: Apache-2.0
//
// The page tables of the software IOMMU as the engine sees them: one class for each format.
// They only pass calls on. A generic class would not do: calls through a protocol reach its
// unspecialized methods, which take three times as long.

import IOMMU
import PageTables

/// What the driver needs of a domain of any format.
protocol SoftwareDomain: DirtyTrackingDomain {
  /// Which IOMMUs can walk it.
  var kind: DomainKind { get }
  /// What a port of this domain goes through.
  var portContext: PortContext { get }
  /// From now on unmaps wait for this port too.
  func attach(_ channel: PortChannel)
  /// The port has left the domain: unmaps wait for it no longer.
  func detach(_ channel: PortChannel)
  /// Table pages in use, and bytes held for them.
  var footprint: (pages: Int, bytes: Int) { get }
}

/// A domain with Intel's second-stage tables.
final class IntelDomain: SoftwareDomain {
  private let table: DomainTable<IntelSecondStage>

  init(_ kind: DomainKind, events: EventLog) { table = DomainTable(kind, events: events) }

  var kind: DomainKind { table.kind }
  var geometry: DomainGeometry { table.geometry }
  var portContext: PortContext { .intel(table.root) }
  var footprint: (pages: Int, bytes: Int) { table.footprint }

  func map(
    _ iova: IOVA, to physical: PhysicalAddress, length: UInt64, permissions: Permissions
  ) throws(IOMMUError) {
    try table.map(iova, to: physical, length: length, permissions: permissions)
  }
  func unmap(_ iova: IOVA, length: UInt64) { table.unmap(iova, length: length) }
  func translate(_ iova: IOVA) -> PhysicalAddress? { table.translate(iova) }
  func attach(_ channel: PortChannel) { table.attach(channel) }
  func detach(_ channel: PortChannel) { table.detach(channel) }
  func setDirtyTracking(_ enabled: Bool) { table.setDirtyTracking(enabled) }
  func readDirty(
    _ range: ClosedRange<UInt64>, clear: Bool,
    _ report: (_ first: UInt64, _ length: UInt64) -> Void
  ) {
    table.readDirty(range, clear: clear, report)
  }
}

/// A domain with AMD's host tables.
final class AMDDomain: SoftwareDomain {
  private let table: DomainTable<AMDv1>

  init(_ kind: DomainKind, events: EventLog) { table = DomainTable(kind, events: events) }

  var kind: DomainKind { table.kind }
  var geometry: DomainGeometry { table.geometry }
  var portContext: PortContext { .amd(table.root) }
  var footprint: (pages: Int, bytes: Int) { table.footprint }

  func map(
    _ iova: IOVA, to physical: PhysicalAddress, length: UInt64, permissions: Permissions
  ) throws(IOMMUError) {
    try table.map(iova, to: physical, length: length, permissions: permissions)
  }
  func unmap(_ iova: IOVA, length: UInt64) { table.unmap(iova, length: length) }
  func translate(_ iova: IOVA) -> PhysicalAddress? { table.translate(iova) }
  func attach(_ channel: PortChannel) { table.attach(channel) }
  func detach(_ channel: PortChannel) { table.detach(channel) }
  func setDirtyTracking(_ enabled: Bool) { table.setDirtyTracking(enabled) }
  func readDirty(
    _ range: ClosedRange<UInt64>, clear: Bool,
    _ report: (_ first: UInt64, _ length: UInt64) -> Void
  ) {
    table.readDirty(range, clear: clear, report)
  }
}
