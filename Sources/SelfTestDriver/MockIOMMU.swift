// SPDX-License-Identifier: Apache-2.0
//
// The mock driver of the kernel's self-tests, behind the same protocol as the software IOMMU.
// No DMA goes through it: what the engine does to its tables is what is tested.

import IOMMU
import PageTables
import Synchronization
import SystemPackage

/// An IOMMU without hardware (Linux: `drivers/iommu/iommufd/selftest.c`). Thread-safe.
///
/// It makes its own devices, each alone in a group.
public final class MockIOMMU: IOMMUDriver {
  public let name = "iommufd_selftest_iommu.0"
  /// The machine that the devices are added to.
  public let system: IOMMUSystem

  /// What a mock device can or cannot do. `MOCK_FLAGS_DEVICE_…`
  public struct DeviceFlags: OptionSet, Hashable, Sendable {
    public var rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    public static let noDirtyTracking = DeviceFlags(rawValue: 1)
    /// Linux 6.12; later kernels choose huge pages by the table's data.
    public static let hugePages = DeviceFlags(rawValue: 2)
    public static let pasid = DeviceFlags(rawValue: 4)
    static let all: DeviceFlags = [.noDirtyTracking, .hugePages, .pasid]
  }

  private struct Device {
    let flags: DeviceFlags
    /// Whether the next switch of `refusedPASID` fails.
    var refusesPASID = false
    /// What page requests meet, by PASID; nothing where it is blocked.
    var routes: [PASID?: RequestRoute] = [:]
    /// What a virtual IOMMU invalidates. `IOMMU_TEST_DEV_CACHE_DEFAULT`, `MOCK_DEV_CACHE_NUM`.
    var cache: [UInt32] = Array(repeating: 0xba_ddad, count: MockIOMMU.cacheSlots)
    /// The virtual IOMMU whose nested table its DMA goes through, and its name there.
    var place: (owner: MockVirtualIOMMU, virtualID: UInt64)?
  }

  /// `MOCK_DEV_CACHE_NUM`.
  static let cacheSlots = 4

  private let devices = RankedMutex<[UInt16: Device]>(.mockDevices, [:])
  let pageRequests = RankedMutex(.pageRequests, PageRequestCounts())

  /// `IOMMU_TEST_PASID_RESERVED`: every second switch of this PASID to a page table fails, so
  /// that going back can be tested.
  public static let refusedPASID = PASID(rawValue: 1024)
  /// `MOCK_PASID_WIDTH`, in bits.
  private static let pasidBits: UInt8 = 20

  /// Requester ids of mock devices: a segment that no machine has.
  private static let segment: UInt32 = 0xffff_0000

  public init(system: IOMMUSystem) { self.system = system }

  // MARK: Devices

  /// Makes a device in a group of its own.
  /// - Throws: `EINVAL` for unknown flags, `ENOSPC` where 65,536 devices are there.
  func makeDevice(_ flags: DeviceFlags) throws(IOMMUError) -> PhysicalDevice {
    guard DeviceFlags.all.isSuperset(of: flags) else {
      throw IOMMUError(.invalidArgument, "mock devices have no flags \(hex(flags.rawValue))")
    }
    try FailurePoint.pass(.driverObject)
    let index = devices.withLock { devices -> UInt16? in
      guard let index = (0...UInt16.max).first(where: { devices[$0] == nil }) else {
        return nil
      }
      devices[index] = Device(flags: flags)
      return index
    }
    guard let index else { throw IOMMUError(.noSpace, "there are 65,536 mock devices already") }
    let group = system.addGroup()
    do throws(IOMMUError) {
      return try system.addDevice(
        name: "iommufd_mock\(index)",
        requester: RequesterID(rawValue: Self.segment | UInt32(index)), driver: self,
        group: group)
    } catch {
      forget(index)
      try? system.removeGroup(group)
      throw error
    }
  }

  /// Takes a device that nobody has bound out of the machine.
  func removeDevice(_ device: PhysicalDevice) {
    do throws(IOMMUError) {
      try device.remove()
      try system.removeGroup(device.group)
    } catch {
      assertionFailure("\(device.name): \(error)")
    }
    forget(UInt16(truncatingIfNeeded: device.requester.rawValue))
  }

  private func forget(_ index: UInt16) {
    devices.withLock { devices in _ = devices.removeValue(forKey: index) }
  }

  private func flags(of device: RequesterID) -> DeviceFlags {
    devices.withLock { $0[UInt16(truncatingIfNeeded: device.rawValue)]?.flags ?? [] }
  }

  /// What a slot of a device's cache holds; nil where there is no such slot or device.
  public func cache(of device: RequesterID, slot: UInt32) -> UInt32? {
    devices.withLock { devices in
      guard let cache = devices[UInt16(truncatingIfNeeded: device.rawValue)]?.cache,
        slot < UInt32(cache.count)
      else { return nil }
      return cache[Int(slot)]
    }
  }

  /// Empties a slot of a device's cache, or all of them where it is nil.
  func clearCache(of device: RequesterID, slot: Int?) {
    devices.withLock { devices in
      let index = UInt16(truncatingIfNeeded: device.rawValue)
      for slot in slot.map({ $0..<$0 + 1 }) ?? 0..<Self.cacheSlots {
        devices[index]?.cache[slot] = 0
      }
    }
  }

  /// Reports an event of a device to the guest that it works for.
  ///
  /// Linux: `IOMMU_TEST_OP_TRIGGER_VEVENT`.
  /// - Throws: `ENOENT` where its DMA does not go through a virtual IOMMU, or its name there is
  ///   0; `EOPNOTSUPP` where the guest has no event queue.
  public func reportEvent(of device: RequesterID) throws(IOMMUError) {
    let place = devices.withLock { $0[UInt16(truncatingIfNeeded: device.rawValue)]?.place }
    guard let place, place.virtualID != 0 else {
      throw IOMMUError(
        .noSuchFileOrDirectory,
        "the mock device is not attached to a nested page table of a virtual IOMMU, or its "
          + "virtual id is 0")
    }
    try place.owner.report(place.virtualID)
  }

  /// Mock devices that exist: zero once every context is closed.
  public var deviceCount: Int { devices.withLock { $0.count } }

  // MARK: IOMMUDriver

  public func capabilities(for device: RequesterID) -> IOMMUCapabilities {
    let flags = flags(of: device)
    return IOMMUCapabilities(
      dirtyTracking: !flags.contains(.noDirtyTracking), snoopControl: false,
      pasidBits: flags.contains(.pasid) ? Self.pasidBits : 0)
  }

  public func reservedRegions(for device: RequesterID) -> [ReservedRegion] { [] }

  /// `struct iommu_test_hw_info`: no flags, and a register value.
  public func hardwareInformation(for device: RequesterID) -> HardwareInformation {
    HardwareInformation(type: 0xfeed_beef, data: [0, 0, 0, 0, 0xef, 0xbe, 0xad, 0xde])
  }

  public func makePagingDomain(
    for device: RequesterID, attributes: PagingAttributes, data: UserData?
  ) throws(IOMMUError) -> any PagingDomain {
    let known: PagingAttributes = [.nestParent, .dirtyTracking, .pasid]
    guard known.isSuperset(of: attributes) else {
      throw IOMMUError(
        .operationNotSupported,
        "the mock IOMMU has no tables with attributes \(hex(attributes.rawValue))")
    }
    return MockDomain(
      hugePages: try hasHugePages(data) || flags(of: device).contains(.hugePages),
      tracksDirty: attributes.contains(.dirtyTracking))
  }

  /// What `struct iommu_hwpt_selftest` asks of a table that the engine fills.
  private func hasHugePages(_ data: UserData?) throws(IOMMUError) -> Bool {
    guard let data else { return false }
    guard data.type == MockNestedDomain.dataType else {
      throw IOMMUError(
        .operationNotSupported,
        "the mock IOMMU knows data of type \(hex(MockNestedDomain.dataType)), not "
          + "\(hex(data.type))")
    }
    // The oldest length ends before the type.
    let bytes = try data.bytes(type: MockNestedDomain.dataType, minimum: 4, known: 8)
    // MOCK_IOMMUPT_DEFAULT and MOCK_IOMMUPT_HUGE.
    switch bytes.number(at: 4, as: UInt32.self) {
    case 0: return false
    case 1: return true
    case let other:
      throw IOMMUError(
        .operationNotSupported, "the mock IOMMU has no page table of type \(other)")
    }
  }

  public func checkNesting(ofData type: UInt32, for device: RequesterID) throws(IOMMUError) {}

  public func makeNestedDomain(
    for device: RequesterID, parent: any PagingDomain, attributes: PagingAttributes,
    data: UserData
  ) throws(IOMMUError) -> any NestedDomain {
    let domain = try MockNestedDomain(data)
    (parent as? MockDomain)?.noteNesting(dataLength: data.length)
    return domain
  }

  public func supportsVirtualIOMMU(type: UInt32, for device: RequesterID) -> Bool {
    type == MockVirtualIOMMU.type
  }

  public func makeVirtualIOMMU(
    type: UInt32, for device: RequesterID, parent: any PagingDomain, data: UserData?,
    resources: VirtualIOMMUResources
  ) throws(IOMMUError) -> any VirtualIOMMU {
    guard let parent = parent as? MockDomain else { throw notOurs }
    return try MockVirtualIOMMU(driver: self, parent: parent, data: data, resources: resources)
  }

  public func setContext(
    of device: RequesterID, pasid: PASID?, to context: DMAContext
  ) throws(IOMMUError) {
    if let pasid { try check(pasid, of: device, for: context) }
    try check(context, for: device)
    // As the kernel's mock driver: only DMA without a PASID has a place in a virtual IOMMU.
    if pasid == nil { try move(device, to: context) }
  }

  /// Notes which virtual IOMMU a device works for.
  /// - Throws: `ENOENT` where the guest has no name for it.
  private func move(_ device: RequesterID, to context: DMAContext) throws(IOMMUError) {
    var place: (owner: MockVirtualIOMMU, virtualID: UInt64)?
    if case .nested(let domain) = context,
      let owner = (domain as? MockNestedDomain)?.virtualIOMMU
    {
      place = (owner, try owner.virtualID(of: device))
    }
    devices.withLock { devices in
      let index = UInt16(truncatingIfNeeded: device.rawValue)
      // The name stays the one of the first table in the same virtual IOMMU.
      guard devices[index]?.place?.owner !== place?.owner else { return }
      devices[index]?.place = place
    }
  }

  private func check(_ context: DMAContext, for device: RequesterID) throws(IOMMUError) {
    switch context {
    case .host, .blocked: return
    case .paging(let domain):
      guard let domain = domain as? MockDomain else { throw notOurs }
      guard !domain.tracksDirty || !flags(of: device).contains(.noDirtyTracking) else {
        throw IOMMUError(
          .invalidArgument,
          "the page table tracks dirty pages, which the mock device cannot do")
      }
    case .nested(let domain):
      guard domain is MockNestedDomain else { throw notOurs }
    case .shared: throw notOurs
    }
  }

  public func setContext(
    of device: RequesterID, pasid: PASID?, to context: DMAContext, requests: PageRequestPort?
  ) throws(IOMMUError) {
    try setContext(of: device, pasid: pasid, to: context)
    let route = RequestRoute(context, requests)
    devices.withLock { devices in
      devices[UInt16(truncatingIfNeeded: device.rawValue)]?.routes[pasid] = route
    }
  }

  /// What the page requests of a device meet, by PASID.
  func requestRoutes(of device: RequesterID) -> [PASID?: RequestRoute] {
    devices.withLock { $0[UInt16(truncatingIfNeeded: device.rawValue)]?.routes ?? [:] }
  }

  private var notOurs: IOMMUError {
    IOMMUError(.invalidArgument, "the page table is not the mock IOMMU's")
  }

  private func check(
    _ pasid: PASID, of device: RequesterID, for context: DMAContext
  ) throws(IOMMUError) {
    let bits = capabilities(for: device).pasidBits
    guard bits > 0, pasid.rawValue >> UInt32(bits) == 0 else {
      throw IOMMUError(
        .invalidArgument,
        "the mock device takes PASIDs of \(bits) bits, not \(pasid.rawValue)")
    }
    guard pasid == Self.refusedPASID else { return }
    let index = UInt16(truncatingIfNeeded: device.rawValue)
    let refuses = devices.withLock { devices -> Bool in
      guard let refuses = devices[index]?.refusesPASID else { return false }
      if case .blocked = context {
        devices[index]?.refusesPASID = false
        return false
      }
      devices[index]?.refusesPASID = !refuses
      return refuses
    }
    if refuses {
      throw IOMMUError(.noMemory, "PASID \(pasid.rawValue) is refused every second time")
    }
  }
}
