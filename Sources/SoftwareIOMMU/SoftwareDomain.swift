// SPDX-License-Identifier: Apache-2.0
//
// The page tables of the software IOMMU as the engine sees them: one class for each format, with
// nothing in it. A generic class would not do: calls through a protocol reach its unspecialized
// methods, which take three times as long; what a protocol's extension has is specialized for
// each class.

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
  /// Whether accesses that miss are to be told to the table. Constant.
  var recoversMisses: Bool { get }
  /// An access missed, because the table wanted to know of it. Called with no lock held but the
  /// turn of a port's user, outside of all transactions.
  /// - Returns: Whether the access may be tried again.
  func recover(_ iova: UInt64, _ access: Permissions) -> Bool
  /// The same for a port of a user's table on top of it, which forgets everything at each.
  func attachNested(_ port: NestedPort)
  /// - Parameter table: As `NestedPort` has it.
  func detachNested(_ channel: PortChannel, of table: ObjectIdentifier)
  /// Table pages in use, and bytes held for them.
  var footprint: (pages: Int, bytes: Int) { get }
}

/// A domain with tables of one format.
protocol FormattedDomain: SoftwareDomain {
  associatedtype Format: EngineFormat
  var table: DomainTable<Format> { get }
}

extension FormattedDomain {
  var kind: DomainKind { table.kind }
  var geometry: DomainGeometry { table.geometry }
  var portContext: PortContext { Format.portContext(table.root) }
  var footprint: (pages: Int, bytes: Int) { table.footprint }

  func map(
    _ iova: IOVA, to physical: PhysicalAddress, length: UInt64, permissions: Permissions
  ) throws(IOMMUError) {
    try table.map(iova, to: physical, length: length, permissions: permissions)
  }
  func unmap(_ iova: IOVA, length: UInt64) { table.unmap(iova, length: length) }
  func translate(_ iova: IOVA) -> PhysicalAddress? { table.translate(iova) }
  var recoversMisses: Bool { kind.protects }
  func recover(_ iova: UInt64, _ access: Permissions) -> Bool { table.recover(iova, access) }
  func attach(_ channel: PortChannel) { table.attach(channel) }
  func detach(_ channel: PortChannel) { table.detach(channel) }
  func attachNested(_ port: NestedPort) { table.attachNested(port) }
  func detachNested(_ channel: PortChannel, of table: ObjectIdentifier) {
    self.table.detachNested(channel, of: table)
  }
  func setDirtyTracking(_ enabled: Bool) { table.setDirtyTracking(enabled) }
  func readDirty(
    _ range: ClosedRange<UInt64>, clear: Bool,
    _ report: (_ first: UInt64, _ length: UInt64) -> Void
  ) {
    table.readDirty(range, clear: clear, report)
  }
}

final class IntelFirstStageDomain: FormattedDomain {
  let table: DomainTable<IntelFirstStage>
  init(_ kind: DomainKind, events: EventLog) { table = DomainTable(kind, events: events) }
}

final class IntelSecondStageDomain: FormattedDomain {
  let table: DomainTable<IntelSecondStage>
  init(_ kind: DomainKind, events: EventLog) { table = DomainTable(kind, events: events) }
}

final class AMDv1Domain: FormattedDomain {
  let table: DomainTable<AMDv1>
  init(_ kind: DomainKind, events: EventLog) { table = DomainTable(kind, events: events) }
}

final class AMDv2Domain: FormattedDomain {
  let table: DomainTable<AMDv2>
  init(_ kind: DomainKind, events: EventLog) { table = DomainTable(kind, events: events) }
}

final class ArmStage1Domain: FormattedDomain {
  let table: DomainTable<ArmStage1<Granule4KiB>>
  init(_ kind: DomainKind, events: EventLog) { table = DomainTable(kind, events: events) }
}

final class ArmStage2Domain: FormattedDomain {
  let table: DomainTable<ArmStage2<Granule4KiB>>
  init(_ kind: DomainKind, events: EventLog) { table = DomainTable(kind, events: events) }
}

final class RISCVFirstStageDomain: FormattedDomain {
  let table: DomainTable<RISCVFirstStage>
  init(_ kind: DomainKind, events: EventLog) { table = DomainTable(kind, events: events) }
}

final class RISCVSecondStageDomain: FormattedDomain {
  let table: DomainTable<RISCVSecondStage>
  init(_ kind: DomainKind, events: EventLog) { table = DomainTable(kind, events: events) }
}
