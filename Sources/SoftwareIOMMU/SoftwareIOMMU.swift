// SPDX-License-Identifier: Apache-2.0
//
// The IOMMU in software, as a driver of the engine: which context each requester's DMA goes
// through, and the port that a device model does its DMA on.

import IOMMU
import PageTables
import Synchronization

/// One IOMMU of the machine. Thread-safe.
///
/// A requester that no context was set for faults. Locks: `switching`, then a domain's, then
/// a port's mailbox; ports take none but their own mailbox's and those of the logs.
public final class SoftwareIOMMU: IOMMUDriver {
  public let name: String
  public let configuration: Configuration
  /// The interrupts of the devices behind this IOMMU.
  public let interrupts: InterruptRemapper
  /// DMA that was aborted.
  public let faults: FaultLog
  /// What this IOMMU's hardware records of it, until somebody reads it.
  public let eventQueue: EventQueue
  let memory: PhysicalMemory
  let events: EventLog

  /// Whose DMA a context is for.
  struct Source: Hashable, Sendable {
    var requester: RequesterID
    var pasid: PASID?

    /// Requests of the same device without a PASID.
    var device: Source { Source(requester: requester, pasid: nil) }
  }

  let requesters: Requesters

  /// - Parameters:
  ///   - name: As `/sys/class/iommu` shows it: `dmar0`.
  ///   - memory: The physical space that page tables point into.
  ///   - events: Where faults, interrupts, invalidations and switches are noted.
  public init(
    name: String, configuration: Configuration = Configuration(), memory: PhysicalMemory,
    events: EventLog
  ) {
    self.name = name
    self.configuration = configuration
    self.memory = memory
    self.events = events
    interrupts = InterruptRemapper(events: events)
    eventQueue = EventQueue(configuration)
    faults = FaultLog(events: events, queue: eventQueue)
    requesters = Requesters(
      pageRequests: PageRequestQueue(
        iommu: name, capacity: configuration.pageRequestQueueLength, events: events))
  }

  deinit { requesters.close() }

  public func capabilities(for device: RequesterID) -> IOMMUCapabilities {
    IOMMUCapabilities(
      dirtyTracking: configuration.tracksDirty || configuration.tracksDirtyInSoftware,
      snoopControl: configuration.snoopControl,
      cacheCoherency: true,
      isolatedInterrupts: true, pasidBits: configuration.pasidBits,
      lacksATS: !requesters.features(of: device).translationCache)
  }

  public func reservedRegions(for device: RequesterID) -> [ReservedRegion] {
    configuration.reservedRegions
  }

  public func hardwareInformation(for device: RequesterID) -> HardwareInformation {
    configuration.hardwareInformation
  }

  public func setContext(
    of device: RequesterID, pasid: PASID?, to context: DMAContext
  ) throws(IOMMUError) {
    try setContext(of: device, pasid: pasid, to: context, requests: nil)
  }

  public func setContext(
    of device: RequesterID, pasid: PASID?, to context: DMAContext, requests: PageRequestPort?
  ) throws(IOMMUError) {
    if requests != nil { try checkPageRequests(of: device) }
    if let pasid,
      pasid.rawValue >> UInt32(configuration.pasidBits) != 0
        || configuration.pasidBits == 0
    {
      throw IOMMUError(
        .invalidArgument,
        "\(name) takes PASIDs of \(configuration.pasidBits) bits, not \(pasid.rawValue)")
    }
    let source = Source(requester: device, pasid: pasid)
    switch context {
    case .host, .blocked: break
    case .paging(let domain): try fit(domain, to: device)
    case .nested(let domain): try fit(domain, to: device, pasid: pasid)
    case .shared(let domain): try fit(domain, to: device)
    }
    let conflict = requesters.withLock { requesters in
      let conflict = requesters.conflict(source, with: context)
      if conflict == nil { requesters.set(source, to: context, requests: requests) }
      return conflict
    }
    if let conflict { throw refusal(of: conflict, device) }
    requesters.pageRequests.contextChanged(of: device)
    events.append(.context(device, describe(context, pasid, of: device)))
  }

  public func forgetPASID(_ pasid: PASID, of device: RequesterID) {
    let source = Source(requester: device, pasid: pasid)
    requesters.withLock { $0.forget(source) }
    requesters.pageRequests.contextChanged(of: device)
    faults.forget(source)
  }

  /// The port through which a device does its DMA: one device thread at a time uses it. While
  /// anybody has it, the same one each time.
  ///
  /// - Parameter pasid: For requests with a PASID, which have a context of their own.
  public func port(for requester: RequesterID, pasid: PASID? = nil) -> DMAPort {
    let source = Source(requester: requester, pasid: pasid)
    let hasATS = requesters.features(of: requester).translationCache
    return requesters.withLock { requesters in
      requesters.port(source) {
        DMAPort(
          source: source, memory: memory, interrupts: interrupts, faults: faults,
          requesters: self.requesters,
          device: hasATS
            ? DeviceCache(
              name: "\(requester), behind \(name),", timeout: configuration.invalidationTimeout,
              events: events) : nil)
      }
    }
  }

  /// How much is kept of requesters and PASIDs; bounded by those in use.
  package var kept: (contexts: Int, ports: Int) {
    requesters.withLock { ($0.contextCount, $0.portCount) }
  }

  public func makeSharedDomain(
    for device: RequesterID, process: any ProcessAddressSpace
  ) throws(IOMMUError) -> any SharedDomain {
    guard configuration.pasidBits > 0 else {
      throw IOMMUError(
        .notSupportedOnSocket,
        "\(name) has no PASIDs, so it cannot walk the page table of \(process.name): first-stage "
          + "tables are found through a PASID table (the machine file's pasid-bits)")
    }
    return ProcessTable(process: process, enforcesSnoop: configuration.snoopControl)
  }

  private func fit(
    _ domain: any SharedDomain, to device: RequesterID
  ) throws(IOMMUError) {
    guard domain is ProcessTable, configuration.pasidBits > 0 else {
      throw IOMMUError(
        .invalidArgument,
        "\(device) is behind \(name), which cannot walk this page table of "
          + domain.process.name)
    }
  }

  func fit(_ domain: any PagingDomain, to device: RequesterID) throws(IOMMUError) {
    guard let own = domain as? any SoftwareDomain else {
      throw IOMMUError(
        .invalidArgument, "\(device) is behind \(name), and the page table is another driver's")
    }
    guard own.kind.memory === memory,
      own.kind.configuration.architecture == configuration.architecture,
      own.kind.configuration.addressBits <= configuration.addressBits
    else {
      throw IOMMUError(
        .invalidArgument,
        "\(device) is behind \(name), which cannot walk this page table: its format, "
          + "address width or machine is another")
    }
    guard !own.kind.tracksDirty || own.kind.protects || configuration.tracksDirty else {
      throw IOMMUError(
        .invalidArgument,
        "\(device) is behind \(name), which does not track dirty pages, as this page table "
          + "was made to")
    }
  }

  private func describe(
    _ context: DMAContext, _ pasid: PASID?, of device: RequesterID
  ) -> String {
    let what =
      switch context {
      case .host: "host"
      case .blocked: "blocked"
      case .paging: "paging"
      case .nested: "nested"
      case .shared(let domain): domain.process.name
      }
    return pasid.map { "\(events.sources.holder(of: $0, at: device)): \(what)" } ?? what
  }
}
