// SPDX-License-Identifier: Apache-2.0
//
// An IOMMU that takes tables of users of whatever formats a test says, walks none, and notes what
// it is asked. All else is the software IOMMU's that it stands in front of.

import IOMMU
import PageTables
import SystemPackage

/// Thread-safe.
public final class UserTableIOMMU: IOMMUDriver {
  /// A table as it was made.
  public final class Table: NestedDomain {
    public let table: UserTable
    public let parent: any PagingDomain
    public let attributes: PagingAttributes
    private let log = Guarded<[(CacheInvalidation, RequesterID?)]>([])

    init(_ table: UserTable, on parent: any PagingDomain, _ attributes: PagingAttributes) {
      self.table = table
      self.parent = parent
      self.attributes = attributes
    }

    /// What was invalidated, in order.
    public var invalidations: [(request: CacheInvalidation, device: RequesterID?)] {
      log.withLock { $0.map { (request: $0.0, device: $0.1) } }
    }

    public func invalidate(
      _ requests: UserDataArray
    ) -> (handled: UInt32, failure: IOMMUError?) { (requests.count, nil) }

    /// - Throws: `EOPNOTSUPP` for device TLBs, which it has none of.
    public func invalidate(
      _ request: CacheInvalidation, of device: RequesterID?
    ) throws(IOMMUError) {
      if request.caches.contains(.deviceTLB) {
        throw IOMMUError(.operationNotSupported, "no device of this IOMMU has ATS")
      }
      log.withLock { $0.append((request, device)) }
    }
  }

  private struct State {
    var parents = 0
    var made: [Table] = []
    var routes: [PASID?: (context: DMAContext, requests: PageRequestPort?)] = [:]
    var responses: [PageResponse] = []
  }

  private let inner: any IOMMUDriver
  private let formats: [UserTable.Support]
  private let state = Guarded(State())

  public init(_ inner: any IOMMUDriver, formats: [UserTable.Support]) {
    self.inner = inner
    self.formats = formats
  }

  public var name: String { inner.name }
  /// Tables made so far.
  public var tables: [Table] { state.withLock { $0.made } }
  /// Nest parents made so far.
  public var parents: Int { state.withLock { $0.parents } }
  /// Answers to page requests.
  public var responses: [PageResponse] { state.withLock { $0.responses } }

  /// The user's table that a PASID goes through; nil for another context.
  public func table(_ pasid: PASID? = nil) -> Table? {
    guard case .nested(let domain)? = state.withLock({ $0.routes[pasid]?.context }) else {
      return nil
    }
    return domain as? Table
  }

  /// The engine's table that a PASID goes through; nil for another context.
  public func paging(_ pasid: PASID? = nil) -> (any PagingDomain)? {
    guard case .paging(let domain)? = state.withLock({ $0.routes[pasid]?.context }) else {
      return nil
    }
    return domain
  }

  /// A device asks for a page.
  /// - Returns: What the port says at once.
  public func report(_ request: PageRequest) -> PageResponse.Code? {
    let routes = state.withLock { state in [state.routes[request.pasid], state.routes[nil]] }
    guard let port = routes.compactMap({ $0?.requests }).first else { return .invalid }
    return port.report(request)
  }

  public func capabilities(for device: RequesterID) -> IOMMUCapabilities {
    inner.capabilities(for: device)
  }

  public func reservedRegions(for device: RequesterID) -> [ReservedRegion] {
    inner.reservedRegions(for: device)
  }

  public func hardwareInformation(for device: RequesterID) -> HardwareInformation {
    inner.hardwareInformation(for: device)
  }

  public func makePagingDomain(
    for device: RequesterID, attributes: PagingAttributes, data: UserData?
  ) throws(IOMMUError) -> any PagingDomain {
    if attributes.contains(.nestParent) { state.withLock { $0.parents += 1 } }
    return try inner.makePagingDomain(for: device, attributes: attributes, data: data)
  }

  public func userTables(for device: RequesterID) -> [UserTable.Support] { formats }

  public func makeUserTable(
    _ table: UserTable, for device: RequesterID, parent: any PagingDomain,
    attributes: PagingAttributes
  ) throws(IOMMUError) -> any NestedDomain {
    let made = Table(table, on: parent, attributes)
    state.withLock { $0.made.append(made) }
    return made
  }

  public func setContext(
    of device: RequesterID, pasid: PASID?, to context: DMAContext
  ) throws(IOMMUError) {
    try setContext(of: device, pasid: pasid, to: context, requests: nil)
  }

  public func setContext(
    of device: RequesterID, pasid: PASID?, to context: DMAContext, requests: PageRequestPort?
  ) throws(IOMMUError) {
    if case .nested = context {
      try inner.setContext(of: device, pasid: pasid, to: .blocked)
    } else {
      try inner.setContext(of: device, pasid: pasid, to: context)
    }
    state.withLock { $0.routes[pasid] = (context, requests) }
  }

  public func respond(to device: RequesterID, with response: PageResponse) {
    state.withLock { $0.responses.append(response) }
  }
}
