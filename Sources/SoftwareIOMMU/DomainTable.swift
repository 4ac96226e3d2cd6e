// SPDX-License-Identifier: Apache-2.0
//
// A domain's page table with the ports that go through it, under one lock. Generic over the
// format: the compiler makes one copy of this file's code for each.

import IOMMU
import PageTables

/// What is the same for a domain while it exists.
struct DomainKind: Sendable {
  /// Name of the IOMMU that made it, for the event log.
  let iommu: String
  let configuration: SoftwareIOMMU.Configuration
  /// Which physical space its leaves point into.
  let memory: PhysicalMemory
  /// Whether it can tell what was written: by dirty bits, or by protection where its IOMMU has
  /// none.
  let tracksDirty: Bool
  /// Whether its leaves force DMA to snoop.
  let forcesSnoop: Bool
  /// Whether users' tables may nest on it.
  let isNestParent: Bool

  /// Whether it takes the right to write away to see who writes.
  var protects: Bool { tracksDirty && !configuration.tracksDirty }
}

/// What the lock of a domain guards.
struct DomainState<Format: PageTableFormat>: ~Copyable, Sendable {
  var table: PageTable<Format>
  var gather = TableGather()
  /// Each attachment once: a switch from a domain to itself attaches a port twice for a
  /// moment.
  var channels: [PortChannel] = []
  /// Those of users' tables on top of it. Where they lead by this table, only they know: they
  /// forget everything.
  var nested: [NestedPort] = []
  /// Of a table that keeps track of what is written without dirty bits.
  var protection: WriteProtection?

  /// Waits until no port can use what was gathered, then frees its table pages.
  /// - Returns: The range that was invalidated; nil where there was none.
  @inline(__always)
  mutating func flush() -> IOVARange? {
    if gather.isEmpty { return nil }
    let range = IOVARange(first: gather.first, last: gather.last)
    if channels.count == 1, nested.isEmpty {
      channels[0].invalidate(range)
    } else {
      for channel in channels { channel.post(range) }
      for port in nested { port.channel.post(.all) }
      for channel in channels { channel.wait() }
      for port in nested { port.channel.wait() }
    }
    table.free(&gather)
    return range
  }
}

/// The workings of a domain. Thread-safe; the lock is held while ports are waited for, and
/// ports never take it.
final class DomainTable<Format: EngineFormat>: Sendable {
  let kind: DomainKind
  let geometry: DomainGeometry
  let root: PageTableRoot<Format>
  private let attributes: LeafAttributes
  private let events: EventLog
  private let state: RankedMutex<DomainState<Format>>

  init(_ kind: DomainKind, events: EventLog) {
    let configuration = kind.configuration
    let table = PageTable<Format>(
      levels: Format.levels(configuration), addressBits: Format.addressBits(configuration),
      maximumPages: configuration.maximumTablePages,
      keepsDirty: kind.tracksDirty && !kind.protects)
    self.kind = kind
    self.events = events
    geometry = DomainGeometry(
      aperture: 0...Self.last(of: table.root, configuration), pageSizes: table.pageSizes,
      enforcesSnoop: kind.forcesSnoop)
    root = table.root
    attributes = kind.forcesSnoop ? .forceSnoop : []
    state = RankedMutex(
      .domain,
      DomainState(table: table, protection: kind.protects ? WriteProtection() : nil))
  }

  /// The last address to map. The upper half of a canonical table is left alone, as Linux does.
  private static func last(
    of root: PageTableRoot<Format>, _ configuration: SoftwareIOMMU.Configuration
  ) -> UInt64 {
    guard root.last == .max, Format.addressExtension == .sign else { return root.last }
    let bits = min(Format.addressBits(levels: root.levels), configuration.addressBits)
    return UInt64.max >> UInt64(65 - bits)
  }

  func map(
    _ iova: IOVA, to physical: PhysicalAddress, length: UInt64, permissions: Permissions
  ) throws(IOMMUError) {
    // As VT-d's driver: an entry that allows nothing is not there.
    guard !permissions.isDisjoint(with: .readWrite) else {
      throw IOMMUError(
        .invalidArgument, "this IOMMU's page tables have no entries that allow no access")
    }
    let attributes = attributes
    try FailurePoint.pass(.tableMemory)
    do throws(MapFailure) {
      try state.withLock { state throws(MapFailure) in
        let granted =
          state.protection?.map(
            DomainState<Format>.pages(iova.rawValue, length: length), permissions)
          ?? permissions
        do throws(MapFailure) {
          try state.table.map(
            iova, to: physical, length: length, permissions: granted,
            attributes: attributes, gather: &state.gather)
        } catch {
          // Taken out again; but a port may have used it.
          state.protection?.unmap(DomainState<Format>.pages(iova.rawValue, length: length))
          _ = state.flush()
          throw error
        }
      }
    } catch {
      throw Self.error(error, iova, length)
    }
  }

  func unmap(_ iova: IOVA, length: UInt64) {
    let range = state.withLock { state in
      state.table.unmap(iova, length: length, gather: &state.gather)
      state.protection?.unmap(DomainState<Format>.pages(iova.rawValue, length: length))
      return state.flush()
    }
    if let range { note(range) }
  }

  private func note(_ range: IOVARange) {
    events.append(
      .invalidate(
        iommu: kind.iommu, iova: IOVA(range.first),
        length: range.last &- range.first &+ 1))
  }

  /// As `DirtyTrackingDomain`. Every port forgets all of the table: translations from before
  /// know nothing of dirty bits.
  func setDirtyTracking(_ enabled: Bool) {
    let range = state.withLock { state in
      state.setProtection(enabled)
      state.table.setMarking(enabled)
      if enabled {
        state.table.readDirty(
          first: 0, last: root.last, clear: true, gather: &state.gather, { _, _ in })
      }
      state.gather.first = 0
      state.gather.last = root.last
      return state.flush()
    }
    if let range { note(range) }
  }

  /// As `DirtyTrackingDomain`. The flush makes the report whole: it waits for whoever wrote
  /// through a translation whose dirty bit was just cleared.
  func readDirty(
    _ range: ClosedRange<UInt64>, clear: Bool,
    _ report: (_ first: UInt64, _ length: UInt64) -> Void
  ) {
    let flushed = state.withLock { state -> IOVARange? in
      state.readWritten(range, clear: clear, report)
      guard root.isMarking else { return state.flush() }
      state.table.readDirty(
        first: range.lowerBound, last: range.upperBound, clear: clear, gather: &state.gather,
        report)
      return state.flush()
    }
    if let flushed { note(flushed) }
  }

  /// As `SoftwareDomain.recover`.
  func recover(_ iova: UInt64, _ access: Permissions) -> Bool {
    access.contains(.write) && state.withLock { $0.letWrite(iova) }
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

  func attachNested(_ port: NestedPort) { state.withLock { $0.nested.append(port) } }

  func detachNested(_ channel: PortChannel, of table: ObjectIdentifier) {
    state.withLock { state in
      if let index = state.nested.firstIndex(where: {
        $0.channel === channel && $0.table == table
      }) {
        state.nested.remove(at: index)
      }
    }
  }

  /// Makes ports of users' tables on top of this one forget, and says so in the event log. When
  /// it returns, those that are chosen use nothing of it any more (MODEL G2).
  /// - Returns: Whether all devices with ATS confirmed in time.
  @discardableResult
  func forget(
    _ forgotten: NestedForgetting,
    where isChosen: (NestedPort) -> Bool = { _ in true }
  ) -> Bool {
    let isConfirmed = state.withLock { state -> Bool in
      for port in state.nested where isChosen(port) { forgotten.post(to: port.channel) }
      var isConfirmed = true
      for port in state.nested where isChosen(port) && !port.channel.wait() {
        isConfirmed = false
      }
      return isConfirmed
    }
    note(forgotten.range)
    return isConfirmed
  }

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
      return IOMMUError(
        .noMemory,
        "\(what): the table may take no more memory; map larger or better aligned areas")
    }
  }
}
