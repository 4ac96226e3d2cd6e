// SPDX-License-Identifier: Apache-2.0
//
// One machine as the engine sees it: physical space, groups and the devices in them.

import Synchronization
import SystemPackage

/// The IOMMUs, groups and devices of one machine. Thread-safe.
///
/// Whoever builds a machine adds its groups and devices; contexts then bind them.
public final class IOMMUSystem: Sendable {
  /// What page-table leaves point at.
  public let memory: PhysicalMemory
  /// What happens inside, for traces.
  public let events: EventLog

  private struct State: Sendable {
    var groups: [UInt32: DeviceGroup] = [:]
    var contexts = 0
  }

  // Outside the lock order: never held while anything else is called.
  private let state = Guarded(State())

  public init(memory: PhysicalMemory = PhysicalMemory(), events: EventLog = EventLog()) {
    self.memory = memory
    self.events = events
  }

  /// Groups and devices hold each other; the machine's end is theirs. No context is left: it
  /// would hold the machine.
  deinit {
    for group in state.withLock({ $0.groups.values.map { $0 } }) { group.dissolve() }
  }

  /// Adds a group: devices that cannot be isolated from each other.
  /// - Parameter id: As `/sys/kernel/iommu_groups` numbers it.
  /// - Throws: `EEXIST` where the number is taken.
  public func addGroup(_ id: UInt32) throws(IOMMUError) -> DeviceGroup {
    let group = state.withLock { state -> DeviceGroup? in
      guard state.groups[id] == nil else { return nil }
      let group = DeviceGroup(id: id)
      state.groups[id] = group
      return group
    }
    guard let group else {
      throw IOMMUError(.fileExists, "the machine already has an IOMMU group \(id)")
    }
    return group
  }

  /// Adds a group under the lowest free number.
  public func addGroup() -> DeviceGroup {
    state.withLock { state in
      var id: UInt32 = 0
      while state.groups[id] != nil { id += 1 }
      let group = DeviceGroup(id: id)
      state.groups[id] = group
      return group
    }
  }

  /// Takes an empty group out.
  /// - Throws: `EBUSY` while a device is in it.
  public func removeGroup(_ group: DeviceGroup) throws(IOMMUError) {
    guard group.devices.isEmpty else {
      throw IOMMUError(.resourceBusy, "IOMMU group \(group.id) still has devices")
    }
    state.withLock { state in _ = state.groups.removeValue(forKey: group.id) }
  }

  /// Adds a device behind an IOMMU. Its DMA goes nowhere until somebody owns its group.
  /// - Throws: What the driver throws for a requester that it does not know.
  public func addDevice(
    name: String, requester: RequesterID, driver: any IOMMUDriver, group: DeviceGroup,
    hostDriver: HostDriver = .none
  ) throws(IOMMUError) -> PhysicalDevice {
    let device = PhysicalDevice(
      name: name, requester: requester, driver: driver, group: group, hostDriver: hostDriver)
    try group.add(device)
    return device
  }

  /// Lowest number first.
  public var groups: [DeviceGroup] {
    state.withLock { $0.groups.values.sorted { $0.id < $1.id } }
  }

  /// Contexts that are open or kept open by bound devices: zero once everything is closed.
  public var contextCount: Int { state.withLock { $0.contexts } }

  func contextOpened() { state.withLock { $0.contexts += 1 } }
  func contextClosed() { state.withLock { $0.contexts -= 1 } }
}

/// The host's driver of a device, as far as isolation cares (MODEL C3).
public enum HostDriver: Hashable, Sendable {
  case none
  /// Known not to start DMA by itself: vfio-pci, pcieport.
  case safe(String)
  /// Uses DMA: its group cannot be given away while it is bound.
  case dma(String)
}

/// A device behind an IOMMU, named by its requester id. Thread-safe.
public final class PhysicalDevice: Sendable {
  /// As sentences and sysfs name it: `0000:e0:04.0`.
  public let name: String
  public let requester: RequesterID
  public let driver: any IOMMUDriver
  /// The group lives as long as its machine.
  public let group: DeviceGroup
  public let hostDriver: HostDriver

  init(
    name: String, requester: RequesterID, driver: any IOMMUDriver, group: DeviceGroup,
    hostDriver: HostDriver
  ) {
    self.name = name
    self.requester = requester
    self.driver = driver
    self.group = group
    self.hostDriver = hostDriver
  }

  /// What its IOMMU can do for it (MODEL B8).
  public var capabilities: IOMMUCapabilities { driver.capabilities(for: requester) }

  /// Takes the device out of its group: it was removed from the machine.
  /// - Throws: `EBUSY` while its group is owned by a context.
  public func remove() throws(IOMMUError) { try group.remove(self) }
}
