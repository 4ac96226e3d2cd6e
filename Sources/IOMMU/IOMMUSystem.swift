// SPDX-License-Identifier: Apache-2.0
//
// One machine as the engine sees it: physical space, and the groups of its devices.

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
  /// All physical PASIDs (MODEL E1).
  let pasids: PASIDSpaces

  private struct State: Sendable {
    var groups: [UInt32: DeviceGroup] = [:]
    var contexts = 0
  }

  // Outside the lock order: never held while anything else is called.
  private let state = Guarded(State())

  public init(memory: PhysicalMemory = PhysicalMemory(), events: EventLog = EventLog()) {
    self.memory = memory
    self.events = events
    pasids = PASIDSpaces(sources: events.sources)
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
  /// - Parameters:
  ///   - address: Its own address, where a bridge above it puts `requester` in the place of
  ///     that. Devices of one requester id share its entry in the IOMMU, so they are of one
  ///     group and one sub-group, and have no PASIDs.
  ///   - requester: What its DMA carries.
  ///   - subgroup: Devices of a group with different numbers are told apart by their IOMMU,
  ///     which routes them one by one, though they are not isolated from each other (MODEL D3).
  ///     The group is owned as a whole all the same.
  ///   - canSkipSnoop: Whether its DMA can bypass the CPU's caches (MODEL F1).
  ///   - kind: What it is as far as PASIDs go (MODEL E2); nil is kind 5 where its IOMMU has
  ///     PASIDs, and else kind 1.
  /// - Throws: `EINVAL` for a kind that is a slice's or needs PASIDs that the IOMMU does not
  ///   have, and where a device of another group or sub-group has the requester id; `EBUSY` for
  ///   a host driver that does DMA in a group that a context owns; what the driver throws for a
  ///   requester that it does not know.
  public func addDevice(
    name: String, address: RequesterID? = nil, requester: RequesterID,
    driver: any IOMMUDriver, group: DeviceGroup, subgroup: Int = 0,
    hostDriver: HostDriver = .none, canSkipSnoop: Bool = false, kind: DeviceKind? = nil
  ) throws(IOMMUError) -> PhysicalDevice {
    let address = address ?? requester
    let bits =
      address == requester ? driver.capabilities(for: requester).pasidBits : 0
    let kind = kind ?? DeviceKind(pasidBits: bits)
    guard !kind.isMediated else {
      throw IOMMUError(.invalidArgument, "\(name) is a whole device, not \(kind)")
    }
    guard bits > 0 || !kind.hasVirtualPASIDs else {
      throw IOMMUError(
        .invalidArgument,
        "\(name) cannot be \(kind): \(driver.name), its IOMMU, has no PASIDs")
    }
    let device = PhysicalDevice(
      name: name, address: address, requester: requester, driver: driver, group: group,
      canSkipSnoop: canSkipSnoop, kind: kind, spaces: pasids)
    for other in groups where other !== group {
      guard let twin = other.devices.first(where: { $0.physical.isAlias(of: device) }),
        twin.defaultPASID == nil
      else { continue }
      throw IOMMUError(
        .invalidArgument,
        "\(driver.name) cannot tell \(name) from \(twin.name) of IOMMU group \(other.id): the "
          + "DMA of both carries \(requester), so they are of one group")
    }
    try group.add(device, subgroup: subgroup, hostDriver: hostDriver)
    return device
  }

  /// Adds a slice of a device, in a group of its own, blocked (MODEL C1, D2 kind 2).
  /// - Parameters:
  ///   - name: As sentences and sysfs name it: its UUID.
  ///   - defaultPASID: What its DMA carries beside the parent's requester id; not 0. Nil takes
  ///     a free one of the parent's.
  ///   - kind: Kind 3, 6 or 8 of MODEL E2: whether its user has PASIDs too, and work queues.
  ///   - group: Number of its group; nil takes the lowest free one.
  /// - Throws: `EINVAL` for a PASID that the parent's IOMMU cannot tell apart, and for a kind
  ///   that is no slice's; `EBUSY` where another slice of the parent has the PASID; `ENOSPC`
  ///   where none is free; `EEXIST` where the group's number is taken.
  public func addMediatedDevice(
    name: String, parent: PhysicalDevice, defaultPASID: PASID? = nil,
    kind: DeviceKind = .mediated, group number: UInt32? = nil
  ) throws(IOMMUError) -> MediatedDevice {
    guard kind.isMediated, kind != .softwareMediated else {
      throw IOMMUError(
        .invalidArgument, "\(name) is a slice of \(parent.name), which cannot be \(kind)")
    }
    let pasid: PASID
    if let defaultPASID {
      try pasids.claim(defaultPASID, on: parent, for: name)
      pasid = defaultPASID
    } else {
      pasid = try pasids.allocate(on: parent, for: name)
    }
    let holder = DMASources.Holder(name: name, virtual: nil)
    events.sources.enter(holder, parent.requester, pasid)
    do throws(IOMMUError) {
      let group: DeviceGroup
      if let number { group = try addGroup(number) } else { group = addGroup() }
      let device = MediatedDevice(
        name: name, parent: parent, defaultPASID: pasid, kind: kind, group: group)
      do throws(IOMMUError) {
        try group.add(device, subgroup: 0, hostDriver: .none)
      } catch {
        try removeGroup(group)
        throw error
      }
      return device
    } catch {
      events.sources.leave(holder, parent.requester, pasid)
      pasids.free(pasid, on: parent)
      throw error
    }
  }

  /// Takes a slice away. Its PASID stays blocked until another slice has it.
  /// - Throws: `EBUSY` while a context owns it.
  public func removeMediatedDevice(_ device: MediatedDevice) throws(IOMMUError) {
    try device.group.remove(device)
    try removeGroup(device.group)
    guard let pasid = device.defaultPASID else { return }
    device.parent.driver.forgetPASID(pasid, of: device.parent.requester)
    events.sources.leave(
      DMASources.Holder(name: device.name, virtual: nil), device.parent.requester, pasid)
    pasids.free(pasid, on: device.parent)
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
