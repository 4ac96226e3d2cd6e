// SPDX-License-Identifier: Apache-2.0
//
// The mock IOMMU's slices for guests: they look after the devices' caches, two hardware queues
// that nothing reads, and two pages that a program maps.

import IOMMU
import PageTables
import SystemPackage

/// Linux: `struct mock_viommu`. Thread-safe.
public final class MockVirtualIOMMU: VirtualIOMMU {
  /// `IOMMU_VIOMMU_TYPE_SELFTEST`.
  static let type: UInt32 = 0xdead_beef
  /// `IOMMU_VEVENTQ_TYPE_SELFTEST`.
  private static let eventType: UInt32 = 0xbeef_beef
  /// `IOMMU_HW_QUEUE_TYPE_SELFTEST`.
  private static let queueType: UInt32 = 0xdead_beef
  /// `IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST`.
  private static let invalidateType: UInt32 = 0xdead_beef
  /// `IOMMU_TEST_INVALIDATE_FLAG_ALL`.
  private static let invalidatesAll: UInt32 = 1
  /// `IOMMU_TEST_HW_QUEUE_MAX`.
  private static let queues = 2
  /// Of the area that a program maps, in bytes.
  private static let areaLength: UInt64 = 8192

  private let driver: MockIOMMU
  private let parent: MockDomain
  private let events: VirtualEvents
  public let areas: [MmapArea]

  private struct State: Sendable {
    /// By the guest's names.
    var devices: [UInt64: RequesterID] = [:]
    var queues = [MockHardwareQueue?](repeating: nil, count: MockVirtualIOMMU.queues)
  }

  private let state = RankedMutex(.mockVirtualIOMMU, State())

  /// - Parameter data: `struct iommu_viommu_selftest`. Its first word is written to its second
  ///   and to the area whose offset and length it is told then; without data there is no area.
  /// - Throws: `EINVAL` for a wrong length, `EFAULT`, `ENOMEM`.
  init(
    driver: MockIOMMU, parent: MockDomain, data: UserData?, resources: VirtualIOMMUResources
  ) throws(IOMMUError) {
    self.driver = driver
    self.parent = parent
    events = resources.events
    areas =
      try data.map { (data) throws(IOMMUError) in
        [try Self.answer(data, areas: resources.areas)]
      } ?? []
  }

  private static func answer(
    _ data: UserData, areas: MmapAreas
  ) throws(IOMMUError) -> MmapArea {
    let word: UInt32 = try data.bytes(type: type, minimum: 8, known: 24).number(at: 0)
    let area = try areas.make(length: areaLength)
    area[word: 0] = word
    do throws(IOMMUError) {
      try data.respond(
        [word, word].littleEndianBytes + [area.offset, area.length].littleEndianBytes,
        type: type, minimum: 8)
    } catch {
      areas.remove(area)
      throw error
    }
    return area
  }

  public func makeNestedDomain(
    attributes: PagingAttributes, data: UserData
  ) throws(IOMMUError) -> any NestedDomain {
    try MockNestedDomain(data, in: self)
  }

  // MARK: Devices

  public func addDevice(_ device: RequesterID, virtualID: UInt64) throws(IOMMUError) {
    state.withLock { $0.devices[virtualID] = device }
  }

  public func removeDevice(_ device: RequesterID, virtualID: UInt64) {
    state.withLock { $0.devices[virtualID] = nil }
  }

  /// What the guest calls a device.
  ///
  /// Linux: `iommufd_viommu_get_vdev_id`.
  /// - Throws: `ENOENT` where it has no name for it.
  func virtualID(of device: RequesterID) throws(IOMMUError) -> UInt64 {
    let found = state.withLock { $0.devices.first { $0.value == device }?.key }
    guard let found else {
      throw IOMMUError(
        .noSuchFileOrDirectory,
        "the guest of the virtual IOMMU has no name for the mock device: allocate a virtual "
          + "device first")
    }
    return found
  }

  /// Reports `struct iommu_viommu_event_selftest`.
  func report(_ virtualID: UInt64) throws(IOMMUError) {
    try events.report(
      UInt32(truncatingIfNeeded: virtualID).littleEndianBytes, type: Self.eventType)
  }

  // MARK: Invalidation

  public func invalidate(
    _ requests: UserDataArray
  ) -> (handled: UInt32, failure: IOMMUError?) {
    guard requests.type == Self.invalidateType else {
      return (
        0,
        IOMMUError(
          .invalidArgument,
          "the mock virtual IOMMU takes invalidations of type \(hex(Self.invalidateType)), not "
            + hex(requests.type))
      )
    }
    var handled: UInt32 = 0
    do throws(IOMMUError) {
      // All of them are read before the first is looked at.
      var entries: [[UInt8]] = []
      for index in 0..<requests.count {
        try entries.append(
          requests.bytes(index, type: Self.invalidateType, upTo: 12))
      }
      for entry in entries {
        try invalidate(entry, handled)
        handled += 1
      }
    } catch {
      return (handled, error)
    }
    return (handled, nil)
  }

  /// One `struct iommu_viommu_invalidate_selftest`: flags, device and slot.
  private func invalidate(_ entry: [UInt8], _ index: UInt32) throws(IOMMUError) {
    let (flags, virtualID, slot): (UInt32, UInt32, UInt32) = (
      entry.number(at: 0), entry.number(at: 4), entry.number(at: 8)
    )
    guard flags & ~Self.invalidatesAll == 0 else {
      throw IOMMUError(
        .operationNotSupported, "entry \(index) has flags \(hex(flags)); only 1 is known")
    }
    guard slot < UInt32(MockIOMMU.cacheSlots) else {
      throw IOMMUError(
        .invalidArgument,
        "entry \(index) names slot \(slot); there are \(MockIOMMU.cacheSlots)")
    }
    // Under the lock: the guest's name stays the device's.
    let isKnown = state.withLock { state in
      guard let device = state.devices[UInt64(virtualID)] else { return false }
      driver.clearCache(of: device, slot: flags & Self.invalidatesAll != 0 ? nil : Int(slot))
      return true
    }
    guard isKnown else {
      throw IOMMUError(
        .invalidArgument, "entry \(index) names device \(hex(virtualID)), which is not there")
    }
  }

  // MARK: Hardware queues

  public func supportsHardwareQueue(type: UInt32) -> Bool { type == Self.queueType }

  /// - Throws: `EINVAL` for an index past the last, `EEXIST` for one that is in use, `EIO` where
  ///   the one below is not; `EFAULT` where the page table has other memory at `base`.
  public func makeHardwareQueue(
    _ request: HardwareQueueRequest
  ) throws(IOMMUError) -> any HardwareQueue {
    guard request.index < UInt32(Self.queues) else {
      throw IOMMUError(
        .invalidArgument,
        "the mock virtual IOMMU has \(Self.queues) queues, none with index \(request.index)")
    }
    let index = Int(request.index)
    return try state.withLock { (state) throws(IOMMUError) in
      guard state.queues[index] == nil else {
        throw IOMMUError(.fileExists, "hardware queue \(index) is in use")
      }
      guard index == 0 || state.queues[index - 1] != nil else {
        throw IOMMUError(
          .ioError,
          "hardware queue \(index) needs hardware queue \(index - 1), which is not there")
      }
      guard parent.translate(request.base) == request.physical else {
        throw IOMMUError(
          .badAddress,
          "the page table has other memory at IOVA \(request.base) than \(request.physical)")
      }
      let queue = MockHardwareQueue(
        owner: self, index: index, predecessor: index == 0 ? nil : state.queues[index - 1])
      state.queues[index] = queue
      return queue
    }
  }

  fileprivate func forget(_ index: Int) { state.withLock { $0.queues[index] = nil } }
}

/// Linux: `struct mock_hw_queue`. Thread-safe.
final class MockHardwareQueue: HardwareQueue {
  private let owner: MockVirtualIOMMU
  private let index: Int
  let predecessor: (any HardwareQueue)?

  fileprivate init(owner: MockVirtualIOMMU, index: Int, predecessor: (any HardwareQueue)?) {
    self.owner = owner
    self.index = index
    self.predecessor = predecessor
  }

  func destroy() { owner.forget(index) }
}
