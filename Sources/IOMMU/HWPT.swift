// SPDX-License-Identifier: Apache-2.0
//
// A page table as an object of a context (Linux: `iommufd_hw_pagetable`).

/// A page table of a context: one that the engine fills from an address space, one of the user's
/// that is nested on such a table, or a process's own.
final class HWPT: Sendable {
  let id: ObjectID
  /// What the table mirrors; of a nested one, what its parent mirrors. A process's own table has
  /// an empty one to itself: it mirrors nothing, and only what is reserved is noted there.
  let addressSpace: AddressSpace
  let kind: Kind
  /// The driver that made the domain: only its devices can use it.
  let driver: any IOMMUDriver
  let attributes: PagingAttributes
  /// Made by an attach to the address space, and gone with the last device; never chosen for
  /// a table that the user asked for.
  let isAutomatic: Bool
  /// Where the page requests of attached devices go; nil where they are refused.
  let faultQueue: FaultQueue?
  /// Of a nested table: the virtual IOMMU that it was made in, if it was.
  let virtualIOMMU: VirtualIOMMUObject?
  /// Of a nested table that an attach made: the space that the user's table is the table of.
  let userSpace: AddressSpace?

  enum Kind: Sendable {
    /// Linux: `iommufd_hwpt_paging`.
    case paging(any PagingDomain)
    /// Linux: `iommufd_hwpt_nested`.
    case nested(any NestedDomain, parent: HWPT)
    /// MODEL B3.
    case shared(any SharedDomain)
  }

  init(
    id: ObjectID, addressSpace: AddressSpace, kind: Kind, driver: any IOMMUDriver,
    attributes: PagingAttributes, isAutomatic: Bool = false, faultQueue: FaultQueue? = nil,
    virtualIOMMU: VirtualIOMMUObject? = nil, userSpace: AddressSpace? = nil
  ) {
    self.id = id
    self.addressSpace = addressSpace
    self.kind = kind
    self.driver = driver
    self.attributes = attributes
    self.isAutomatic = isAutomatic
    self.faultQueue = faultQueue
    self.virtualIOMMU = virtualIOMMU
    self.userSpace = userSpace
  }

  /// The space that devices on the table are attached to, as their user sees it.
  var space: AddressSpace { userSpace ?? addressSpace }

  /// What a device that is attached to the table goes through.
  var context: DMAContext {
    switch kind {
    case .paging(let domain): .paging(domain)
    case .nested(let domain, _): .nested(domain)
    case .shared(let domain): .shared(domain)
    }
  }

  /// The domain that the engine fills: the table's own, or its parent's. Nil where it fills none.
  var paging: (any PagingDomain)? {
    switch kind {
    case .paging(let domain): domain
    case .nested(_, let parent): parent.paging
    case .shared: nil
    }
  }

  /// Whether DMA through it snoops the CPU's caches whatever the device says (MODEL F1).
  var enforcesSnoop: Bool {
    switch kind {
    case .paging(let domain): domain.geometry.enforcesSnoop
    case .nested(_, let parent): parent.enforcesSnoop
    case .shared(let domain): domain.enforcesSnoop
    }
  }

  var isNested: Bool {
    if case .nested = kind { true } else { false }
  }
}
