// SPDX-License-Identifier: Apache-2.0
//
// Page requests as the engine sees them (MODEL H1): which devices have them, and the answers.

import IOMMU

extension SoftwareIOMMU {
  /// What became of the page requests of the devices behind this IOMMU.
  public var pageRequestCounts: PageRequestCounts { requesters.pageRequests.counts }

  public func respond(to device: RequesterID, with response: PageResponse) {
    requesters.pageRequests.answer(
      device, response.group, response.code == .success ? .success : .invalid)
  }

  /// - Throws: `ENODEV`, as Linux's drivers do where the IOMMU or the device makes none.
  func checkPageRequests(of device: RequesterID) throws(IOMMUError) {
    guard configuration.pageRequests else {
      throw IOMMUError(
        .noSuchDevice,
        "\(name), the IOMMU of \(device), takes no page requests (the machine file's "
          + "page-requests): attach the device to a page table without a fault queue")
    }
    guard requesters.features(of: device).pageRequests else {
      throw IOMMUError(
        .noSuchDevice,
        "\(device) makes no page requests (its page-requests in the machine file): attach it to "
          + "a page table without a fault queue")
    }
  }
}
