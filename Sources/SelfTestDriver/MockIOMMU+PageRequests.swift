// SPDX-License-Identifier: Apache-2.0
//
// Page requests of mock devices (MODEL H1): made on command, counted, and counted again when they
// are answered.

import IOMMU

extension MockIOMMU {
  /// A page table in use, as page requests meet it.
  struct RequestRoute: Sendable {
    let isNested: Bool
    let port: PageRequestPort?

    /// Nil for contexts without a page table.
    init?(_ context: DMAContext, _ port: PageRequestPort?) {
      switch context {
      case .host, .blocked, .shared: return nil
      case .paging: isNested = false
      case .nested: isNested = true
      }
      self.port = port
    }
  }

  /// What became of the groups of page requests that mock devices made.
  public struct PageRequestCounts: Hashable, Sendable {
    /// Groups that were complete.
    public var groups = 0
    /// Answers to them.
    public var succeeded = 0
    public var invalid = 0

    /// Groups that nobody has answered yet: zero once their devices are detached.
    public var outstanding: Int { groups - succeeded - invalid }
  }

  /// A device asks for a page. Linux: `iommufd_test_trigger_iopf`.
  /// - Parameter device: A device of this IOMMU.
  public func requestPage(_ request: PageRequest, by device: PhysicalDevice) {
    if request.isLast { pageRequests.withLock { $0.groups += 1 } }
    let routes = requestRoutes(of: device.requester)
    var route = routes[request.pasid]
    // The user's table is one for all PASIDs that are not attached (Linux: `user_pasid_table`).
    if route == nil, let own = routes[nil], own.isNested { route = own }
    let port = route?.port
    let answer = port.map { $0.report(request) } ?? (request.isLast ? .invalid : nil)
    if let answer { count(answer) }
  }

  public func respond(to device: RequesterID, with response: PageResponse) {
    count(response.code)
  }

  private func count(_ code: PageResponse.Code) {
    pageRequests.withLock { counts in
      switch code {
      case .success: counts.succeeded += 1
      case .invalid: counts.invalid += 1
      }
    }
  }

  /// Groups of page requests and their answers since the driver was made.
  public var pageRequestCounts: PageRequestCounts { pageRequests.withLock { $0 } }
}
