// SPDX-License-Identifier: Apache-2.0
//
// What a machine file says of a device that keeps translations (ATS) and asks for pages (PRI), and
// what is made of it (MODEL H1).

import IOMMU
import SoftwareIOMMU
import VFIO
import Yams

/// What a device can do beside DMA.
public struct TranslationServices: Hashable, Sendable {
  /// It keeps translations itself, and says when it has forgotten them (PCI Express: ATS).
  public var ats: Bool
  /// It asks for pages that are missing (PCI Express: PRI).
  public var pageRequests: Bool
  /// Pages that it asks for at once at most, where an access lacks several.
  public var pagesPerGroup: Int

  public init(ats: Bool = false, pageRequests: Bool = false, pagesPerGroup: Int = 1) {
    self.ats = ats || pageRequests
    self.pageRequests = pageRequests
    self.pagesPerGroup = pagesPerGroup
  }

  /// As the IOMMU is told.
  var features: SoftwareIOMMU.DeviceFeatures {
    SoftwareIOMMU.DeviceFeatures(
      translationCache: ats, pageRequests: pageRequests, pagesPerGroup: pagesPerGroup)
  }

  /// As its configuration space says it.
  func capabilities(of device: PhysicalDevice) -> TranslationCapabilities {
    guard !device.isBehindAlias else { return TranslationCapabilities() }
    return TranslationCapabilities(
      ats: ats,
      outstandingRequests: pageRequests ? UInt32(clamping: features.outstandingRequests) : 0,
      pasidBits: device.kind == .physicalWithoutPASIDs ? 0 : device.capabilities.pasidBits)
  }
}

extension MachineParser {
  /// The keys of a device that are read here.
  static let serviceKeys = ["ats", "page-requests", "pages-per-group"]

  /// What a device can do beside DMA, checked against what is around it.
  func services(
    _ fields: MachineReader.Fields, driver: DeviceDescription.HostDriver?,
    behind iommu: IOMMUDescription?
  ) -> TranslationServices {
    let ats = fields["ats"].flatMap(reader.flag)
    let requests = fields["page-requests"].flatMap(reader.flag) ?? false
    let pages = fields["pages-per-group"].flatMap {
      reader.number($0, "a number of pages", in: 1...32)
    }
    if let iommu, !iommu.pageRequests, ats == true || requests,
      let node = fields["page-requests"] ?? fields["ats"]
    {
      reader.report(
        node,
        "found a device with \(requests ? "page-requests" : "ats") behind \(iommu.name), which "
          + "takes none: give the IOMMU 'page-requests: true' too")
    }
    if requests, let node = fields["page-requests"] {
      if ats == false {
        reader.report(
          fields["ats"] ?? node,
          "found a device without ats that has page-requests, expected ats: true: who asks for a "
            + "page asks for its translation first")
      }
      if let driver, driver.isMediating {
        reader.report(
          node,
          "found page-requests of a device with host-driver \(driver.rawValue), whose slices would "
            + "wait for each other's pages, expected a device that is not shared out")
      }
    }
    if !requests, let pages, pages > 1, let node = fields["pages-per-group"] {
      reader.report(
        node,
        "found pages-per-group of a device that asks for none, expected page-requests: true")
    }
    return TranslationServices(
      ats: ats ?? requests, pageRequests: requests, pagesPerGroup: Int(pages ?? 1))
  }
}
