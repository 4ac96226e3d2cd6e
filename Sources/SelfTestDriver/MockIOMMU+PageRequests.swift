// SPDX-License-Identifier: Apache-2.0
//
// Page requests of mock devices (MODEL H1): made on command, counted, and counted again when they
// are answered.

import IOMMU

extension MockIOMMU {
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
    let port = requestPort(of: device.requester, pasid: request.pasid)
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
