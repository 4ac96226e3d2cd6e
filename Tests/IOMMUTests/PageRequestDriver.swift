// SPDX-License-Identifier: Apache-2.0
//
// An IOMMU driver with page requests, and a device behind it that counts its answers.

import IOMMU
import PageTables
import SystemPackage
import Testing

/// The dictionary driver with page requests. Devices make them through `request`.
final class PageRequestDriver: IOMMUDriver {
  let name = "page-request"
  private let tables = DictionaryDriver(
    capabilities: IOMMUCapabilities(pasidBits: 20), reserved: [])

  private struct Source: Hashable {
    var requester: RequesterID
    var pasid: PASID?
  }
  private let ports = Guarded<[Source: PageRequestPort]>([:])
  private let answers = Guarded<[RequesterID: [PageResponse]]>([:])
  let refuses = Guarded(false)

  func capabilities(for device: RequesterID) -> IOMMUCapabilities {
    tables.capabilities(for: device)
  }
  func reservedRegions(for device: RequesterID) -> [ReservedRegion] {
    [ReservedRegion(0xfee0_0000...0xfeef_ffff, kind: .msi)]
  }
  func hardwareInformation(for device: RequesterID) -> HardwareInformation {
    tables.hardwareInformation(for: device)
  }
  func makePagingDomain(
    for device: RequesterID, attributes: PagingAttributes, data: UserData?
  ) throws(IOMMUError) -> any PagingDomain {
    try tables.makePagingDomain(for: device, attributes: attributes, data: data)
  }
  func setContext(
    of device: RequesterID, pasid: PASID?, to context: DMAContext
  ) throws(IOMMUError) {
    try tables.setContext(of: device, pasid: pasid, to: context)
  }

  func setContext(
    of device: RequesterID, pasid: PASID?, to context: DMAContext, requests: PageRequestPort?
  ) throws(IOMMUError) {
    if case .paging = context, refuses.withLock({ $0 }) {
      throw IOMMUError(.invalidArgument, "told to refuse")
    }
    try setContext(of: device, pasid: pasid, to: context)
    ports.withLock { $0[Source(requester: device, pasid: pasid)] = requests }
  }

  func respond(to device: RequesterID, with response: PageResponse) {
    answers.withLock { $0[device, default: []].append(response) }
  }

  func port(of device: PhysicalDevice, pasid: PASID? = nil) -> PageRequestPort? {
    ports.withLock { $0[Source(requester: device.requester, pasid: pasid)] }
  }

  /// What the device does where a page is missing.
  func request(_ request: PageRequest, by device: PhysicalDevice) {
    // The port is taken first and used later, as a device would: a detach may come between.
    let port = port(of: device, pasid: request.pasid)
    let code = port.map { $0.report(request) } ?? (request.isLast ? .invalid : nil)
    if let code {
      respond(
        to: device.requester,
        with: PageResponse(pasid: request.pasid, group: request.group, code: code))
    }
  }

  /// The answers since the last time that somebody asked.
  func takeAnswers(to device: PhysicalDevice) -> [PageResponse] {
    answers.withLock { $0.removeValue(forKey: device.requester) ?? [] }
  }
}

/// A context with a device behind that driver, an address space and a fault queue.
struct FaultRig {
  let system = IOMMUSystem()
  let driver = PageRequestDriver()
  let context: Context
  let space: ObjectID
  let queue: FaultQueue

  init() throws {
    context = Context(system: system)
    space = try context.allocateIOAS()
    queue = try context.makeFaultQueue()
  }

  func device(_ slot: UInt8, group: DeviceGroup? = nil) throws -> PhysicalDevice {
    let requester = RequesterID(bus: 0, device: slot, function: 0)
    return try system.addDevice(
      name: "\(requester)", requester: requester, driver: driver,
      group: group ?? system.addGroup())
  }

  func table(for device: DeviceHolder, queue: FaultQueue?) throws -> ObjectID {
    try context.allocateHWPT(
      for: device.id, from: space, attributes: .pasid, faultQueue: queue?.id)
  }

  func request(
    _ group: UInt32, at address: UInt64 = 0x1000, pasid: UInt32? = nil, isLast: Bool = true,
    by device: PhysicalDevice
  ) {
    driver.request(
      PageRequest(
        pasid: pasid.map(PASID.init(rawValue:)), group: group, access: .write,
        address: IOVA(address), isLast: isLast), by: device)
  }

  /// Everything that is in the queue.
  func read(_ queue: FaultQueue? = nil) throws -> [FaultQueue.Delivery] {
    var all: [FaultQueue.Delivery] = []
    while case .delivered = try (queue ?? self.queue).read(
      atMost: 100, { all.append($0) })
    {}
    return all
  }

  func answers(to device: PhysicalDevice) -> [String] {
    driver.takeAnswers(to: device).map { "\($0.group) \($0.code)" }
  }
}
