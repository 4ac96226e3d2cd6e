// SPDX-License-Identifier: Apache-2.0
//
// What the ports of one IOMMU share with it: the requester table, and whom a port asks where an
// access has missed (MODEL H1).

import IOMMU

/// What can be done about an access that missed: first the one, then the other; else it is aborted.
struct MissResolution: Sendable {
  /// It wants to know of the access, and may let it through the next time.
  var table: (any SoftwareDomain)?
  /// Whom the device asks for pages.
  var answerer: PageAnswerer?
  var features = SoftwareIOMMU.DeviceFeatures.none
}

/// The requester table of one IOMMU, and its page requests. Thread-safe.
///
/// Ports keep it, and it keeps ports: who made it closes it.
final class Requesters: Sendable {
  private let table = RankedMutex(.requesters, RequesterTable())
  let pageRequests: PageRequestQueue

  init(pageRequests: PageRequestQueue) { self.pageRequests = pageRequests }

  /// Held through a whole switch, waiting for the port included.
  func withLock<Result, Failure: Error>(
    _ body: (inout sending RequesterTable) throws(Failure) -> sending Result
  ) throws(Failure) -> sending Result {
    try table.withLock(body)
  }

  /// Forgets everything. Ports that somebody still has stay as they are.
  func close() {
    let old = table.withLock { table in
      defer { table = RequesterTable() }
      return table
    }
    _ = old
    pageRequests.stop()
  }

  func setFeatures(_ features: SoftwareIOMMU.DeviceFeatures, of device: RequesterID) {
    table.withLock { $0.features[device] = features }
  }

  func features(of device: RequesterID) -> SoftwareIOMMU.DeviceFeatures {
    table.withLock { $0.features[device] ?? .none }
  }

  /// What can be done about an access of a source. Called with no lock held but the turn of the
  /// port's user, outside of all transactions: a switch waits for those.
  func resolve(_ source: SoftwareIOMMU.Source) -> MissResolution {
    table.withLock { $0.resolve(source) }
  }
}
