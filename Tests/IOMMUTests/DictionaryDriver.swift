// SPDX-License-Identifier: Apache-2.0
//
// An IOMMU driver that is slow and obvious: a dictionary of pages. What the engine tells a
// driver can be read from it.

import IOMMU
import PageTables
import SystemPackage

final class DictionaryDomain: PagingDomain {
  struct Page: Equatable {
    var physical: UInt64
    var permissions: Permissions
  }
  let geometry: DomainGeometry
  let pages = Guarded<[UInt64: Page]>([:])
  /// Map calls that still succeed.
  let failAfter = Guarded<Int?>(nil)

  init(geometry: DomainGeometry) { self.geometry = geometry }

  func map(
    _ iova: IOVA, to physical: PhysicalAddress, length: UInt64, permissions: Permissions
  ) throws(IOMMUError) {
    let fails = failAfter.withLock { count in
      guard let left = count else { return false }
      count = left - 1
      return left == 0
    }
    if fails { throw IOMMUError(.noMemory, "told to fail") }
    pages.withLock { pages in
      for offset in stride(from: 0, to: length, by: 4096) {
        precondition(pages[iova.rawValue + offset] == nil, "the engine mapped a page twice")
        pages[iova.rawValue + offset] = Page(
          physical: physical.rawValue + offset, permissions: permissions)
      }
    }
  }

  func unmap(_ iova: IOVA, length: UInt64) {
    pages.withLock { pages in
      for offset in stride(from: 0, to: length, by: 4096) {
        pages[iova.rawValue + offset] = nil
      }
    }
  }

  func translate(_ iova: IOVA) -> PhysicalAddress? {
    pages.withLock { pages in
      pages[iova.rawValue & ~4095].map { PhysicalAddress($0.physical + iova.rawValue & 4095) }
    }
  }

  var count: Int { pages.withLock { $0.count } }
}

final class DictionaryDriver: IOMMUDriver {
  let name = "dictionary"
  let settings: IOMMUCapabilities
  let geometry: DomainGeometry
  let reserved: [ReservedRegion]

  enum Seen: Equatable {
    case host, blocked
    case domain(ObjectIdentifier)
  }
  /// Every context that each requester was put into, in order.
  let history = Guarded<[RequesterID: [Seen]]>([:])
  /// The same of each PASID, whatever device has it.
  let pasidHistory = Guarded<[PASID: [Seen]]>([:])
  let domains = Guarded<[DictionaryDomain]>([])
  let refuses = Guarded<Set<RequesterID>>([])

  init(
    capabilities: IOMMUCapabilities = IOMMUCapabilities(),
    aperture: ClosedRange<UInt64> = 0...((1 << 48) - 1),
    reserved: [ReservedRegion] = []
  ) {
    settings = capabilities
    geometry = DomainGeometry(
      aperture: aperture, pageSizes: .size4KiB, enforcesSnoop: capabilities.snoopControl)
    self.reserved = reserved
  }

  func capabilities(for device: RequesterID) -> IOMMUCapabilities { settings }
  func reservedRegions(for device: RequesterID) -> [ReservedRegion] { reserved }
  func hardwareInformation(for device: RequesterID) -> HardwareInformation {
    HardwareInformation(type: 1, data: [1, 2, 3, 4])
  }

  func makePagingDomain(
    for device: RequesterID, attributes: PagingAttributes, data: UserData?
  ) throws(IOMMUError) -> any PagingDomain {
    var geometry = geometry
    if attributes.contains(.allowsNoSnoop) { geometry.enforcesSnoop = false }
    let domain = DictionaryDomain(geometry: geometry)
    domains.withLock { $0.append(domain) }
    return domain
  }

  func setContext(
    of device: RequesterID, pasid: PASID?, to context: DMAContext
  ) throws(IOMMUError) {
    if case .paging = context, refuses.withLock({ $0.contains(device) }) {
      throw IOMMUError(.invalidArgument, "told to refuse")
    }
    let seen: Seen =
      switch context {
      case .host: .host
      case .blocked: .blocked
      case .paging(let domain): .domain(ObjectIdentifier(domain))
      case .nested(let domain): .domain(ObjectIdentifier(domain))
      case .shared(let domain): .domain(ObjectIdentifier(domain))
      }
    if let pasid {
      pasidHistory.withLock { $0[pasid, default: []].append(seen) }
    } else {
      history.withLock { $0[device, default: []].append(seen) }
    }
  }

  func history(of pasid: UInt32) -> [Seen] {
    pasidHistory.withLock { $0[PASID(rawValue: pasid)] ?? [] }
  }

  func history(of device: PhysicalDevice) -> [Seen] {
    history.withLock { $0[device.requester] ?? [] }
  }
}

/// A machine with a dictionary IOMMU.
struct TestMachine {
  let system = IOMMUSystem()
  let driver: DictionaryDriver

  init(driver: DictionaryDriver = DictionaryDriver()) { self.driver = driver }

  func device(
    _ slot: UInt8, group: DeviceGroup? = nil, subgroup: Int = 0,
    hostDriver: HostDriver = .none, canSkipSnoop: Bool = false
  ) throws -> PhysicalDevice {
    let requester = RequesterID(bus: 0, device: slot, function: 0)
    return try system.addDevice(
      name: "\(requester)", requester: requester, driver: driver,
      group: group ?? system.addGroup(), subgroup: subgroup, hostDriver: hostDriver,
      canSkipSnoop: canSkipSnoop)
  }
}

/// The errno that a call throws; nil where it succeeds.
func errno(of body: () throws -> Void) -> Errno? {
  do {
    try body()
    return nil
  } catch {
    return (error as? IOMMUError)?.errno
  }
}
