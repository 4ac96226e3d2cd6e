// SPDX-License-Identifier: Apache-2.0
//
// What a device can do beside DMA: translate ahead (PCI Express: ATS) and ask for pages (PRI).

import IOMMU

extension SoftwareIOMMU {
  /// What one device behind an IOMMU can do. Constant while it exists.
  public struct DeviceFeatures: Hashable, Sendable {
    /// It keeps translations itself (PCI Express: address translation services).
    public var translationCache: Bool
    /// It asks for pages that are missing (PCI Express: page request interface), which takes a
    /// translation cache.
    public var pageRequests: Bool
    /// Pages that it may have asked for at once: what is not answered yet (PRI: outstanding page
    /// request allocation), 1 to 512.
    public var outstandingRequests: Int
    /// Pages that one group of requests has at most, 1 to 32: those from the missing one on that
    /// the same access lacks.
    public var pagesPerGroup: Int

    public init(
      translationCache: Bool = false, pageRequests: Bool = false, outstandingRequests: Int = 32,
      pagesPerGroup: Int = 1
    ) {
      self.translationCache = translationCache || pageRequests
      self.pageRequests = pageRequests
      self.outstandingRequests = min(max(outstandingRequests, 1), 512)
      self.pagesPerGroup = min(max(pagesPerGroup, 1), 32, self.outstandingRequests)
    }

    /// Neither.
    public static let none = DeviceFeatures()
  }

  /// Says what a device can do. Before anything else is asked of it.
  public func setFeatures(_ features: DeviceFeatures, of device: RequesterID) {
    requesters.setFeatures(features, of: device)
  }
}
