// SPDX-License-Identifier: Apache-2.0
//
// A page table as an object of a context (Linux: `iommufd_hwpt_paging`), and a bound device
// (`iommufd_device`).

/// A kernel-managed page table: a domain of an IOMMU that mirrors an address space.
final class HWPT: Sendable {
  let id: ObjectID
  let addressSpace: AddressSpace
  let domain: any PagingDomain
  /// The driver that made the domain: only its devices can use it.
  let driver: any IOMMUDriver
  let attributes: PagingAttributes
  /// Made by an attach to the address space, and gone with the last device; never chosen for
  /// a table that the user asked for.
  let isAutomatic: Bool

  init(
    id: ObjectID, addressSpace: AddressSpace, domain: any PagingDomain, driver: any IOMMUDriver,
    attributes: PagingAttributes, isAutomatic: Bool
  ) {
    self.id = id
    self.addressSpace = addressSpace
    self.domain = domain
    self.driver = driver
    self.attributes = attributes
    self.isAutomatic = isAutomatic
  }
}

/// A device that is bound to a context. MODEL C1: the record has the context (whose table it
/// is in), the physical device and the cookie.
final class DeviceObject: Sendable {
  let id: ObjectID
  let device: PhysicalDevice
  let cookie: UInt64

  init(id: ObjectID, device: PhysicalDevice, cookie: UInt64) {
    self.id = id
    self.device = device
    self.cookie = cookie
  }
}
