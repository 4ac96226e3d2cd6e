// SPDX-License-Identifier: Apache-2.0
//
// What an IOMMU driver is to the engine: capabilities, page tables, and the switch that says
// which table a requester's DMA goes through. The engine knows drivers by these protocols
// only: the software IOMMU and the self-test driver are two of them.

import PageTables
import SystemPackage

/// Drives one IOMMU (Linux: `struct iommu_ops`).
///
/// Thread-safe. Called with engine locks held (see LockOrder), so it never calls the engine.
public protocol IOMMUDriver: AnyObject, Sendable {
  /// As `/sys/class/iommu` shows it: `dmar0`.
  var name: String { get }

  /// What this IOMMU can do for a device behind it. Constant while the device exists.
  func capabilities(for device: RequesterID) -> IOMMUCapabilities

  /// Ranges of IOVA that no address space with this device may map, such as the MSI window.
  func reservedRegions(for device: RequesterID) -> [ReservedRegion]

  /// Vendor data of GET_HW_INFO in the layout that its type has on Linux (little-endian).
  func hardwareInformation(for device: RequesterID) -> HardwareInformation

  /// Makes an empty page table that the engine fills (Linux: `domain_alloc_paging_flags`).
  /// - Parameter data: What the user asks for in the driver's own words.
  /// - Throws: `EOPNOTSUPP` for attributes or data that this IOMMU does not have.
  func makePagingDomain(
    for device: RequesterID, attributes: PagingAttributes, data: UserData?
  ) throws(IOMMUError) -> any PagingDomain

  /// Whether tables of users nest on a page table alone, without a virtual IOMMU (Linux: whether
  /// there is `domain_alloc_nested`). Asked before the parent is looked at.
  /// - Parameter type: `IOMMU_HWPT_DATA_…`.
  /// - Throws: `EOPNOTSUPP` where none does, or none of this type.
  func checkNesting(ofData type: UInt32, for device: RequesterID) throws(IOMMUError)

  /// Makes a page table that the user owns, nested on one of the engine's (Linux:
  /// `domain_alloc_nested`). MODEL B2. After `checkNesting`.
  /// - Parameters:
  ///   - parent: A domain of this driver that was made to be a nest parent. It outlives the
  ///     nested one.
  ///   - attributes: `.pasid` or none.
  ///   - data: Where the table is and how it is to be read.
  /// - Throws: `EOPNOTSUPP` for what this IOMMU does not have; `EINVAL` for data it cannot use.
  func makeNestedDomain(
    for device: RequesterID, parent: any PagingDomain, attributes: PagingAttributes,
    data: UserData
  ) throws(IOMMUError) -> any NestedDomain

  /// Which tables of users this IOMMU walks for a device (MODEL B8), each format once. Constant
  /// while the device exists.
  func userTables(for device: RequesterID) -> [UserTable.Support]

  /// As `makeNestedDomain`, of a table that the proposal's calls describe. MODEL B2, B9.
  /// - Parameters:
  ///   - table: Of a format and a width that `userTables` has.
  ///   - parent: As there.
  /// - Throws: `EOPNOTSUPP` for what this IOMMU does not have.
  func makeUserTable(
    _ table: UserTable, for device: RequesterID, parent: any PagingDomain,
    attributes: PagingAttributes
  ) throws(IOMMUError) -> any NestedDomain

  /// Makes a page table of a process's own address space (Linux: `domain_alloc_sva`). MODEL B3.
  /// - Throws: `EOPNOTSUPP` where this IOMMU cannot walk the page table of a CPU.
  func makeSharedDomain(
    for device: RequesterID, process: any ProcessAddressSpace
  ) throws(IOMMUError) -> any SharedDomain

  /// Whether this IOMMU can be divided for guests in this way (Linux: `get_viommu_size`).
  /// - Parameter type: `IOMMU_VIOMMU_TYPE_…`.
  func supportsVirtualIOMMU(type: UInt32, for device: RequesterID) -> Bool

  /// Makes a slice of the IOMMU for a guest (Linux: `viommu_init`).
  /// - Parameters:
  ///   - type: One that `supportsVirtualIOMMU` knows.
  ///   - parent: A domain of this driver that was made to be a nest parent. It outlives the
  ///     slice.
  ///   - data: What the user asks for in the driver's own words, and where the driver answers.
  /// - Throws: `EINVAL` for data it cannot use; then nothing is left in `resources`.
  func makeVirtualIOMMU(
    type: UInt32, for device: RequesterID, parent: any PagingDomain, data: UserData?,
    resources: VirtualIOMMUResources
  ) throws(IOMMUError) -> any VirtualIOMMU

  /// Sends the DMA of one requester through `context` from now on, in one step.
  ///
  /// When it returns, no DMA of this requester on any thread uses the old context (MODEL
  /// C2, D1): there is no moment in which another context than the old or the new is seen.
  /// - Throws: `EINVAL` where a domain does not fit the device (another driver's, too wide).
  ///   Then the old context stays.
  func setContext(
    of device: RequesterID, pasid: PASID?, to context: DMAContext
  ) throws(IOMMUError)

  /// As `setContext(of:pasid:to:)`, and the page requests of that DMA go to `requests` from then
  /// on; where it is nil, the driver answers them `.invalid`. MODEL H1.
  /// - Throws: `ENODEV` where the device or its IOMMU has no page requests, too.
  func setContext(
    of device: RequesterID, pasid: PASID?, to context: DMAContext, requests: PageRequestPort?
  ) throws(IOMMUError)

  /// A slice of a device is gone that had a PASID: the PASID is blocked until a context is set for
  /// it again, and nothing need be kept of it.
  func forgetPASID(_ pasid: PASID, of device: RequesterID)

  /// Answers a group of page requests that a port took. MODEL H1, H3.
  ///
  /// Called once for each, from any thread, after `PageRequestPort.report` or during it.
  func respond(to device: RequesterID, with response: PageResponse)
}

/// What a requester's DMA may reach (MODEL "security context").
public enum DMAContext: Sendable {
  /// The host's own: identity over host memory. Devices that nobody owns are here.
  case host
  /// Nothing at all: every DMA faults, and no interrupt is raised.
  case blocked
  case paging(any PagingDomain)
  /// A user's table on top of the engine's.
  case nested(any NestedDomain)
  /// A process's own address space.
  case shared(any SharedDomain)
}

extension IOMMUDriver {
  /// As `makePagingDomain(for:attributes:data:)`, without data.
  public func makePagingDomain(
    for device: RequesterID, attributes: PagingAttributes
  ) throws(IOMMUError) -> any PagingDomain {
    try makePagingDomain(for: device, attributes: attributes, data: nil)
  }

  /// An IOMMU without page requests.
  public func setContext(
    of device: RequesterID, pasid: PASID?, to context: DMAContext, requests: PageRequestPort?
  ) throws(IOMMUError) {
    guard requests == nil else {
      throw IOMMUError(
        .noSuchDevice,
        "\(name), the IOMMU of \(device), makes no page requests, whatever its registers say: "
          + "attach the device to a page table without a fault queue")
    }
    try setContext(of: device, pasid: pasid, to: context)
  }

  /// An IOMMU that keeps little of each.
  public func forgetPASID(_ pasid: PASID, of device: RequesterID) {}

  /// An IOMMU without page requests.
  public func respond(to device: RequesterID, with response: PageResponse) {}

  /// An IOMMU that is not divided for guests.
  public func supportsVirtualIOMMU(type: UInt32, for device: RequesterID) -> Bool { false }

  /// An IOMMU that is not divided for guests.
  public func makeVirtualIOMMU(
    type: UInt32, for device: RequesterID, parent: any PagingDomain, data: UserData?,
    resources: VirtualIOMMUResources
  ) throws(IOMMUError) -> any VirtualIOMMU {
    throw IOMMUError(.operationNotSupported, "\(name) is not divided for guests")
  }

  /// An IOMMU that cannot walk the page table of a CPU.
  public func makeSharedDomain(
    for device: RequesterID, process: any ProcessAddressSpace
  ) throws(IOMMUError) -> any SharedDomain {
    throw IOMMUError(
      .operationNotSupported, "\(name) cannot walk the page table of \(process.name)")
  }

  /// An IOMMU without user-managed tables.
  public func checkNesting(ofData type: UInt32, for device: RequesterID) throws(IOMMUError) {
    throw IOMMUError(
      .operationNotSupported, "\(name) has no page tables that the user manages")
  }

  /// An IOMMU without user-managed tables.
  public func makeNestedDomain(
    for device: RequesterID, parent: any PagingDomain, attributes: PagingAttributes,
    data: UserData
  ) throws(IOMMUError) -> any NestedDomain {
    throw IOMMUError(
      .operationNotSupported, "\(name) has no page tables that the user manages")
  }
}

/// A page table that the user owns and changes (Linux: a nested `iommu_domain`; MODEL B2).
/// Thread-safe.
public protocol NestedDomain: AnyObject, Sendable {
  /// Makes the IOMMU forget what it cached of the user's table, entry after entry. When it
  /// returns, no DMA on any thread uses what the handled entries named (MODEL G1, G2).
  /// - Parameter requests: Of the driver's own kind; may be empty, which only checks the type.
  /// - Returns: How many entries were handled, and why it stopped before the last.
  func invalidate(_ requests: UserDataArray) -> (handled: UInt32, failure: IOMMUError?)

  /// The same, of a table that `makeUserTable` made.
  /// - Parameter device: Whose translations, and whose entries of a PASID table; nil for all
  ///   devices that the table is attached to.
  /// - Throws: `EOPNOTSUPP` for what there is no such cache of.
  func invalidate(_ request: CacheInvalidation, of device: RequesterID?) throws(IOMMUError)
}

/// A page table that the engine builds from an address space (Linux: a paging
/// `iommu_domain`).
///
/// Mapping calls on one domain are serialized by the engine; DMA walks the table meanwhile.
public protocol PagingDomain: AnyObject, Sendable {
  var geometry: DomainGeometry { get }

  /// Adds translations. Nothing in the range is mapped yet.
  /// - Parameters: `iova`, `physical` and `length` in bytes, multiples of the smallest page.
  /// - Throws: `ENOMEM`, or `EINVAL` for an address past the geometry. What was added before
  ///   the failure has been taken out again.
  func map(
    _ iova: IOVA, to physical: PhysicalAddress, length: UInt64, permissions: Permissions
  ) throws(IOMMUError)

  /// Removes translations and returns once no DMA on any thread can use them (MODEL G2).
  ///
  /// Pages that are not mapped are passed over. Table memory that became empty is freed after
  /// the invalidation.
  func unmap(_ iova: IOVA, length: UInt64)

  /// The translation of one address, as DMA would see it; nil where nothing is mapped.
  /// Linux: `iommu_iova_to_phys`.
  func translate(_ iova: IOVA) -> PhysicalAddress?

  /// What a user is told who asks to invalidate this table, which the engine fills: `EINVAL`.
  var refusalToInvalidate: Errno { get }
}

extension PagingDomain {
  public var refusalToInvalidate: Errno { .invalidArgument }
}

/// What a domain can map.
public struct DomainGeometry: Hashable, Sendable {
  /// First and last mappable IOVA, both inclusive, in bytes.
  public var aperture: ClosedRange<UInt64>
  public var pageSizes: PageSizes
  /// Whether translations keep access from bypassing the CPU's caches (snoop control).
  public var enforcesSnoop: Bool

  public init(aperture: ClosedRange<UInt64>, pageSizes: PageSizes, enforcesSnoop: Bool) {
    self.aperture = aperture
    self.pageSizes = pageSizes
    self.enforcesSnoop = enforcesSnoop
  }
}

/// Given when a paging domain is made (MODEL B7).
public struct PagingAttributes: OptionSet, Hashable, Sendable {
  public var rawValue: UInt32

  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// Can be the parent of user-managed tables. `IOMMU_HWPT_ALLOC_NEST_PARENT`.
  public static let nestParent = PagingAttributes(rawValue: 1)
  /// Keeps dirty bits. `IOMMU_HWPT_ALLOC_DIRTY_TRACKING`.
  public static let dirtyTracking = PagingAttributes(rawValue: 2)
  /// Can be attached to a PASID. `IOMMU_HWPT_ALLOC_PASID`.
  public static let pasid = PagingAttributes(rawValue: 8)
  /// Does not force DMA to snoop, though the IOMMU could (MODEL F1). Not a flag of Linux: the
  /// engine asks for it on behalf of a space with `SnoopPolicy.notEnforced`.
  public static let allowsNoSnoop = PagingAttributes(rawValue: 1 << 16)
}

/// What an IOMMU can do for one device (MODEL B8).
public struct IOMMUCapabilities: Hashable, Sendable {
  /// Keeps dirty bits. `IOMMU_HW_CAP_DIRTY_TRACKING`.
  public var dirtyTracking: Bool
  /// Can force DMA to snoop. Linux: `IOMMU_CAP_ENFORCE_CACHE_COHERENCY`.
  public var snoopControl: Bool
  /// DMA is coherent with the CPU's caches. Linux: `IOMMU_CAP_CACHE_COHERENCY`; without it a
  /// device cannot be bound.
  public var cacheCoherency: Bool
  /// Interrupts are isolated per requester. Linux: MSI isolation.
  public var isolatedInterrupts: Bool
  /// Width of the PASIDs that this device may use with this IOMMU, in bits; 0 is none.
  public var pasidBits: UInt8
  /// The device is known to cache no translations. `IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED`.
  public var lacksATS: Bool

  public init(
    dirtyTracking: Bool = false, snoopControl: Bool = true, cacheCoherency: Bool = true,
    isolatedInterrupts: Bool = true, pasidBits: UInt8 = 0, lacksATS: Bool = false
  ) {
    self.dirtyTracking = dirtyTracking
    self.snoopControl = snoopControl
    self.cacheCoherency = cacheCoherency
    self.isolatedInterrupts = isolatedInterrupts
    self.pasidBits = pasidBits
    self.lacksATS = lacksATS
  }
}

/// IOVA that must not be mapped (Linux: `struct iommu_resv_region`).
public struct ReservedRegion: Hashable, Sendable {
  /// Both ends inclusive, in bytes.
  public var range: ClosedRange<UInt64>
  public var kind: Kind

  public enum Kind: String, Hashable, Sendable {
    /// As `/sys/kernel/iommu_groups/N/reserved_regions` names them.
    case reserved, msi, direct
  }

  public init(_ range: ClosedRange<UInt64>, kind: Kind) {
    self.range = range
    self.kind = kind
  }
}

/// What GET_HW_INFO says of an IOMMU.
public struct HardwareInformation: Hashable, Sendable {
  /// `IOMMU_HW_INFO_TYPE_…`: 1 VT-d, 2 SMMUv3, 4 AMD.
  public var type: UInt32
  /// The structure of that type, as bytes.
  public var data: [UInt8]

  public init(type: UInt32, data: [UInt8]) {
    self.type = type
    self.data = data
  }
}
