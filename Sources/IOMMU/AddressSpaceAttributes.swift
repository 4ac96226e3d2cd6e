// SPDX-License-Identifier: Apache-2.0
//
// What an address space is from the start (MODEL B7): an attach that does not fit is refused.

/// Attributes that are given when a space is made and never change.
public struct AddressSpaceAttributes: Hashable, Sendable {
  /// Whether its page tables force DMA to snoop the CPU's caches (MODEL F1).
  public var snoop: SnoopPolicy
  /// Width of its addresses, in bits, 12 to 64: nothing can be mapped beyond, and an IOMMU that
  /// translates fewer does not fit. Nil takes whatever its page tables have.
  public var addressBits: Int?
  /// Whether the page tables that an attach to the space makes can be attached to PASIDs too,
  /// where the IOMMU has any. Linux makes them without.
  public var allowsPASIDs: Bool

  public init(
    snoop: SnoopPolicy = .automatic, addressBits: Int? = nil, allowsPASIDs: Bool = false
  ) {
    self.snoop = snoop
    self.addressBits = addressBits
    self.allowsPASIDs = allowsPASIDs
  }

  /// - Throws: `EINVAL`.
  func check() throws(IOMMUError) {
    if let addressBits, !(12...64).contains(addressBits) {
      throw IOMMUError(
        .invalidArgument, "addresses of a space have 12 to 64 bits, not \(addressBits)")
    }
  }

  /// The last address, where there is a limit.
  var lastAddress: UInt64? { addressBits.map { UInt64.max >> UInt64(64 - $0) } }
}

extension AddressSpace {
  /// The addresses beyond the width that was asked for.
  static func reservations(for attributes: AddressSpaceAttributes) -> [Reserved] {
    guard let last = attributes.lastAddress, last < .max else { return [] }
    return [Reserved(range: last + 1...UInt64.max, owner: .width)]
  }

  /// - Throws: `EINVAL` where the table translates fewer addresses than the space promises.
  func checkWidth(of domain: any PagingDomain) throws(IOMMUError) {
    guard let last = attributes.lastAddress, domain.geometry.aperture.upperBound < last else {
      return
    }
    throw IOMMUError(
      .invalidArgument,
      "IOAS \(id) was made with addresses of \(attributes.addressBits ?? 64) bits; the IOMMU "
        + "translates up to \(hex(domain.geometry.aperture.upperBound)) only")
  }
}
