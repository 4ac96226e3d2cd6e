// SPDX-License-Identifier: Apache-2.0
//
// What a function's configuration space says of translations: ATS, page requests and PASIDs (PCI
// Express Base Specification, revision 6.0, 10.5.1, 10.5.2 and 7.8.8).
//
// As behind Linux: the IOMMU's driver has enabled all three when it found the device, and a user
// of vfio-pci sees the first two, read-only, and not the third, which vfio-pci hides.

/// What a function can do beside DMA, as its capabilities say it.
public struct TranslationCapabilities: Hashable, Sendable {
  /// It keeps translations (ATS).
  public var ats: Bool
  /// Page requests that it may have outstanding (PRI); 0 where it makes none.
  public var outstandingRequests: UInt32
  /// Width of its PASIDs in bits; 0 where it has none.
  public var pasidBits: UInt8

  public init(ats: Bool = false, outstandingRequests: UInt32 = 0, pasidBits: UInt8 = 0) {
    self.ats = ats
    self.outstandingRequests = outstandingRequests
    self.pasidBits = pasidBits
  }
}

/// Offsets of the capabilities, and in them.
private enum Service {
  static let ats = 0x1C0
  static let pageRequests = 0x1D0
  static let pasid = 0x1E0
}

extension PCIConfigSpace.Storage {
  mutating func write(_ services: TranslationCapabilities) {
    if services.ats {
      append(id: 0x000F, at: Service.ats)
      // Page-aligned requests, and invalidations of everything; 32 of them are taken at a time.
      set16(0x0060, at: Service.ats + 4)
      // Enabled, for units of 4 KiB.
      set16(0x8000, at: Service.ats + 6)
    }
    if services.outstandingRequests > 0 {
      append(id: 0x0013, at: Service.pageRequests)
      set16(0x0001, at: Service.pageRequests + 4)
      // Stopped is off; answers carry the PASID of the request.
      set16(0x8000, at: Service.pageRequests + 6)
      set32(services.outstandingRequests, at: Service.pageRequests + 8)
      set32(services.outstandingRequests, at: Service.pageRequests + 12)
    }
  }

  /// Adds what vfio-pci hides.
  mutating func writeHidden(_ services: TranslationCapabilities) {
    guard services.pasidBits > 0 else { return }
    append(id: 0x001B, at: Service.pasid)
    set16(UInt16(services.pasidBits) << 8, at: Service.pasid + 4)
    set16(0x0001, at: Service.pasid + 6)
  }

  /// Appends an extended capability of version 1 to the list, in which none is further than here.
  private mutating func append(id: UInt32, at offset: Int) {
    var last = 0x100
    while case let next = Int(value32(at: last) >> 20), next != 0 { last = next }
    set32(value32(at: last) & 0x000F_FFFF | UInt32(offset) << 20, at: last)
    set32(0x0001_0000 | id, at: offset)
  }
}
