// SPDX-License-Identifier: Apache-2.0
//
// Virtual IOMMUs of drivers that can do little: what the engine answers for them, and what it
// takes back where a driver refuses.

import IOMMU
import PageTables
import Synchronization
import SystemPackage
import Testing

@Suite struct VirtualDriverTests {
  /// A virtual IOMMU of one kind, with nothing of its own but a say on devices.
  private final class Bare: VirtualIOMMU {
    let refusal: Guarded<IOMMUError?> = Guarded(nil)
    let devices = Guarded<[UInt64]>([])
    private let destroyed = Atomic(false)
    var isDestroyed: Bool { destroyed.load(ordering: .sequentiallyConsistent) }

    func addDevice(_ device: RequesterID, virtualID: UInt64) throws(IOMMUError) {
      if let refusal = refusal.withLock({ $0 }) { throw refusal }
      devices.withLock { $0.append(virtualID) }
    }

    func removeDevice(_ device: RequesterID, virtualID: UInt64) {
      devices.withLock { devices in devices.removeAll { $0 == virtualID } }
    }

    func destroy() { destroyed.store(true, ordering: .sequentiallyConsistent) }
  }

  /// A driver with virtual IOMMUs of type 7.
  private final class Driver: IOMMUDriver {
    let name = "bare"
    let made = Guarded<[Bare]>([])
    let events = Guarded<VirtualEvents?>(nil)

    func capabilities(for device: RequesterID) -> IOMMUCapabilities { IOMMUCapabilities() }
    func reservedRegions(for device: RequesterID) -> [ReservedRegion] { [] }
    func hardwareInformation(for device: RequesterID) -> HardwareInformation {
      HardwareInformation(type: 1, data: [])
    }
    func makePagingDomain(
      for device: RequesterID, attributes: PagingAttributes, data: UserData?
    ) throws(IOMMUError) -> any PagingDomain {
      DictionaryDomain(
        geometry: DomainGeometry(
          aperture: 0...0xffff_ffff, pageSizes: .size4KiB, enforcesSnoop: false))
    }
    func supportsVirtualIOMMU(type: UInt32, for device: RequesterID) -> Bool { type == 7 }
    func makeVirtualIOMMU(
      type: UInt32, for device: RequesterID, parent: any PagingDomain, data: UserData?,
      resources: VirtualIOMMUResources
    ) throws(IOMMUError) -> any VirtualIOMMU {
      let bare = Bare()
      made.withLock { $0.append(bare) }
      events.withLock { $0 = resources.events }
      return bare
    }
    func setContext(
      of device: RequesterID, pasid: PASID?, to context: DMAContext
    ) throws(IOMMUError) {}
  }

  private let system = IOMMUSystem()
  private let driver = Driver()

  private func device(_ slot: UInt8) throws -> PhysicalDevice {
    try system.addDevice(
      name: "device \(slot)", requester: RequesterID(bus: 0, device: slot, function: 0),
      driver: driver, group: system.addGroup())
  }

  @Test("L: an IOMMU that is not divided for guests refuses before it looks at the table")
  func undivided() throws {
    let machine = TestMachine()
    let context = Context(system: machine.system)
    let binding = try context.register(machine.device(1))
    let none = ObjectID(999)
    func make(_ type: UInt32, for device: ObjectID) -> Errno? {
      errno { _ = try context.allocateVirtualIOMMU(type: type, for: device, on: none) }
    }
    let notSupported = Errno(rawValue: 95)
    #expect(make(1, for: binding.id) == notSupported)
    #expect(make(0, for: none) == notSupported)
    #expect(make(1, for: none) == .noSuchFileOrDirectory)
  }

  @Test("L: a virtual IOMMU without tables, invalidations and queues refuses them")
  func bare() throws {
    let context = Context(system: system)
    let binding = try context.register(device(1))
    let ioas = try context.allocateIOAS()
    let parent = try context.allocateHWPT(
      for: binding.id, from: ioas, attributes: .nestParent)
    let viommu = try context.allocateVirtualIOMMU(type: 7, for: binding.id, on: parent)
    let data = UserData(type: 1, length: 4, memory: UserBytes([0, 0, 0, 0]))
    let notSupported = Errno(rawValue: 95)
    #expect(
      errno { _ = try context.allocateHWPT(for: binding.id, from: viommu, data: data) }
        == notSupported)
    let (handled, failure) = try context.invalidate(
      viommu, UserDataArray(type: 1, entryLength: 4, count: 1, memory: UserBytes([0, 0, 0, 0])))
    #expect(handled == 0 && failure?.errno == notSupported)
    #expect(
      errno {
        _ = try context.allocateHardwareQueue(
          in: viommu, type: 1, index: 0, base: IOVA(0), length: 1)
      } == notSupported)
    let events = driver.events.withLock { $0 }
    #expect(errno { try events?.report([1], type: 3) } == notSupported)
    #expect(errno { try events?.report([], type: 3) } == .invalidArgument)
  }

  @Test("L: a driver that refuses a device leaves no name; one that goes is told of its end")
  func refusedDevice() throws {
    let context = Context(system: system)
    var binding: DeviceHolder? = DeviceHolder(try context.register(device(1)))
    let id = try #require(binding?.id)
    let ioas = try context.allocateIOAS()
    let parent = try context.allocateHWPT(for: id, from: ioas, attributes: .nestParent)
    let viommu = try context.allocateVirtualIOMMU(type: 7, for: id, on: parent)
    let bare = try #require(driver.made.withLock { $0.last })
    let count = context.objectCount
    bare.refusal.withLock { $0 = IOMMUError(.noSpace, "told to refuse") }
    #expect(
      errno { _ = try context.allocateVirtualDevice(id, in: viommu, virtualID: 5) } == .noSpace)
    #expect(context.objectCount == count)
    bare.refusal.withLock { $0 = nil }
    let named = try context.allocateVirtualDevice(id, in: viommu, virtualID: 5)
    #expect(bare.devices.withLock { $0 } == [5])
    withExtendedLifetime(binding) {}
    binding = nil
    #expect(bare.devices.withLock { $0 }.isEmpty)
    #expect(errno { try context.destroy(named) } == .noSuchFileOrDirectory)
    #expect(!bare.isDestroyed)
    context.close()
    #expect(bare.isDestroyed)
    #expect(context.objectCount == 0 && system.contextCount == 0)
  }

  @Test("L: ids that only were in use are not given out again, however many there are")
  func tombstones() throws {
    let context = Context(system: system)
    let keeper = try context.register(device(1))
    let ioas = try context.allocateIOAS()
    let parent = try context.allocateHWPT(for: keeper.id, from: ioas, attributes: .nestParent)
    let viommu = try context.allocateVirtualIOMMU(type: 7, for: keeper.id, on: parent)
    let other = try device(2)
    var buried: Set<ObjectID> = []
    for round in 0..<20 as Range<UInt64> {
      let binding = try context.register(other)
      #expect(!buried.contains(binding.id))
      let named = try context.allocateVirtualDevice(
        binding.id, in: viommu, virtualID: round)
      #expect(buried.insert(named).inserted)
      _ = consume binding
    }
    #expect(context.objectCount == 4)
    context.close()
  }
}
