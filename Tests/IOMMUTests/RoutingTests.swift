// SPDX-License-Identifier: Apache-2.0
//
// MODEL A3, D1 to D3: one entry of an IOMMU is one user's. PASIDs of a slice and of its parent,
// and devices behind a bridge that carry its requester id.

import IOMMU
import SystemPackage
import Testing

@Suite("Routing") struct RoutingTests {
  let machine = TestMachine(
    driver: DictionaryDriver(capabilities: IOMMUCapabilities(pasidBits: 8)))

  private func table(_ context: Context, _ device: ObjectID) throws -> ObjectID {
    try context.allocateHWPT(for: device, from: context.allocateIOAS(), attributes: .pasid)
  }

  private func slice(_ name: String, of parent: PhysicalDevice, _ pasid: UInt32) throws
    -> MediatedDevice
  {
    try machine.system.addMediatedDevice(
      name: name, parent: parent, defaultPASID: PASID(rawValue: pasid))
  }

  @Test("A3: who has bound the parent cannot attach a slice's PASID, nor be robbed of one")
  func hijack() throws {
    let parent = try machine.device(1)
    _ = try slice("one", of: parent, 5)
    let context = Context(system: machine.system)
    let binding = try context.register(parent)
    let before = machine.driver.history(of: 5)
    #expect {
      try binding.group.attach(PASID(rawValue: 5), to: table(context, binding.id))
    } throws: { error in
      let error = error as? IOMMUError
      return error?.errno == .resourceBusy && error?.reason.contains("one") == true
    }
    #expect(machine.driver.history(of: 5) == before)
    try binding.group.attach(PASID(rawValue: 6), to: table(context, binding.id))
    #expect(errno { _ = try slice("two", of: parent, 6) } == .resourceBusy)
    #expect(machine.driver.history(of: 6).count == 1)
  }

  // MARK: Bridge aliases

  private func behindBridge(
    _ function: UInt8, group: DeviceGroup, subgroup: Int = 0, bridge: UInt8 = 0
  ) throws -> PhysicalDevice {
    let address = RequesterID(bus: 2, device: function, function: 0)
    return try machine.system.addDevice(
      name: "\(address)", address: address,
      requester: RequesterID(bus: 2, device: bridge, function: 0), driver: machine.driver,
      group: group, subgroup: subgroup)
  }

  @Test("D3: devices behind a bridge that carry its requester id are of one group, as one")
  func aliases() throws {
    let group = machine.system.addGroup()
    let devices = try (1...2).map { try behindBridge($0, group: group) }
    #expect(devices.allSatisfy { $0.isBehindAlias && $0.requester.device == 0 })
    #expect(
      errno { _ = try behindBridge(3, group: machine.system.addGroup()) } == .invalidArgument)
    #expect(errno { _ = try behindBridge(3, group: group, subgroup: 1) } == .invalidArgument)
    #expect(group.devices.count == 2)
    let context = Context(system: machine.system)
    let binding = try context.register(devices[0])
    #expect(
      errno { try binding.alone().attach(to: context.allocateIOAS()) } == .invalidArgument)
    try binding.group.attach(to: context.allocateIOAS())
    let seen = try #require(machine.driver.history(of: devices[0]).last)
    #expect(machine.driver.history(of: devices[1]).last == seen, "they have one entry")
    // One that joins does not interrupt its neighbours' DMA, not even for a moment.
    let before = machine.driver.history(of: devices[0]).count
    _ = try behindBridge(3, group: group)
    #expect(machine.driver.history(of: devices[0]).dropFirst(before).allSatisfy { $0 == seen })
  }

  @Test("E1: a device behind such a bridge has no PASIDs, and no slices")
  func aliasPASIDs() throws {
    let device = try behindBridge(1, group: machine.system.addGroup())
    #expect(device.capabilities.pasidBits == 0)
    #expect(errno { _ = try slice("one", of: device, 5) } == .invalidArgument)
    let context = Context(system: machine.system)
    let binding = try context.register(device)
    #expect {
      try binding.group.attach(PASID(rawValue: 5), to: table(context, binding.id))
    } throws: { error in
      let error = error as? IOMMUError
      return error?.errno == .invalidArgument && error?.reason.contains("bridge") == true
    }
    let other = Context(system: machine.system)
    #expect(errno { try share(binding, with: other) } == .invalidArgument)
  }

  private func share(_ binding: borrowing Binding, with other: Context) throws {
    _ = try binding.share(with: other).id
  }
}
