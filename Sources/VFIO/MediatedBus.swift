// SPDX-License-Identifier: Apache-2.0
//
// Mediated devices come and go at run time (MODEL D2, J2): a parent's types, create and remove.
// Facts: Linux 6.12, drivers/vfio/mdev/{mdev_core,mdev_sysfs}.c.

import IOMMU
import SystemPackage

/// A device whose driver makes slices of it. Linux: `struct mdev_parent`.
public final class MediatedParent: Sendable {
  public let device: PhysicalDevice
  public let driver: any MediatingDriver

  init(device: PhysicalDevice, driver: any MediatingDriver) {
    self.device = device
    self.driver = driver
  }

  public var types: [MediatedType] { driver.types }

  /// As sysfs names a type: `ioat-mdev-pasid`.
  public func identifier(of type: MediatedType) -> String { "\(driver.name)-\(type.name)" }
}

/// A mediated device that users can open. Linux: `struct mdev_device`.
public final class MediatedInstance: Sendable {
  public let uuid: UUID
  public let parent: MediatedParent
  public let type: MediatedType
  public let device: VFIODevice

  init(uuid: UUID, parent: MediatedParent, type: MediatedType, device: VFIODevice) {
    self.uuid = uuid
    self.parent = parent
    self.type = type
    self.device = device
  }
}

/// The mediated devices of a machine, and the devices that they are slices of. Thread-safe.
///
/// A name is a machine's, not a parent's: no two mediated devices share one.
public final class MediatedBus: Sendable {
  private enum Entry: Sendable {
    /// It is being made or taken away.
    case changing
    case live(MediatedInstance)
  }

  private struct State: Sendable {
    var parents: [MediatedParent] = []
    var entries: [UUID: Entry] = [:]
  }

  // Nothing is called under it.
  private let state = Guarded(State())
  private let indices: DeviceIndices

  /// - Parameter indices: Where the numbers of `/dev/vfio/devices/vfioN` come from.
  public init(indices: DeviceIndices) { self.indices = indices }

  /// Linux: `mdev_register_parent`.
  /// - Throws: `EEXIST` where the device is one already.
  @discardableResult
  public func register(
    _ device: PhysicalDevice, driver: any MediatingDriver
  ) throws(IOMMUError) -> MediatedParent {
    let parent = MediatedParent(device: device, driver: driver)
    let isNew = state.withLock { state -> Bool in
      guard !state.parents.contains(where: { $0.device === device }) else { return false }
      state.parents.append(parent)
      return true
    }
    guard isNew else {
      throw IOMMUError(.fileExists, "\(device.name) has a mediating driver already")
    }
    return parent
  }

  /// Takes a parent away, and its mediated devices before it.
  ///
  /// Linux: `mdev_unregister_parent`, which waits for users; here they are asked to let go.
  /// - Throws: `EBUSY` while one of its mediated devices is in use; those that were not are gone.
  public func unregister(_ parent: MediatedParent) throws(IOMMUError) {
    // First, so that no more are made.
    let wasThere = state.withLock { state -> Bool in
      let count = state.parents.count
      state.parents.removeAll { $0 === parent }
      return state.parents.count < count
    }
    guard wasThere else { return }
    do throws(IOMMUError) {
      for instance in instances where instance.parent === parent { try remove(instance.uuid) }
    } catch {
      state.withLock { $0.parents.append(parent) }
      throw error
    }
  }

  public var parents: [MediatedParent] { state.withLock { $0.parents } }

  /// By name.
  public var instances: [MediatedInstance] {
    state.withLock { state in
      state.entries.values.compactMap { entry in
        if case .live(let instance) = entry { instance } else { nil }
      }
    }.sorted { "\($0.uuid)" < "\($1.uuid)" }
  }

  /// Makes a mediated device. It can be opened and bound when this returns.
  ///
  /// Linux: a write to `create`, `mdev_device_create`.
  /// - Parameter type: A name of the parent's types, without the driver's.
  /// - Throws: `EEXIST` where the name is taken; `EUSERS` where the parent has none left; `ENODEV`
  ///   where the parent went away; `EINVAL` for a type that it does not have.
  public func create(
    _ type: String, on parent: MediatedParent, uuid: UUID
  ) throws(IOMMUError) -> MediatedInstance {
    guard let type = parent.types.first(where: { $0.name == type }) else {
      throw IOMMUError(
        .invalidArgument,
        "\(parent.device.name) has no mediated type '\(type)'; it has "
          + parent.types.map(\.name).joined(separator: ", "))
    }
    let isNew = state.withLock { state -> Bool in
      guard state.entries[uuid] == nil else { return false }
      state.entries[uuid] = .changing
      return true
    }
    guard isNew else {
      throw IOMMUError(.fileExists, "there is a mediated device \(uuid) already")
    }
    do throws(IOMMUError) {
      let instance = try make(type, on: parent, uuid: uuid)
      let isWanted = state.withLock { state -> Bool in
        guard state.parents.contains(where: { $0 === parent }) else { return false }
        state.entries[uuid] = .live(instance)
        return true
      }
      if !isWanted {
        try parent.driver.removeSlice(uuid)
        indices.free(instance.device.index)
        throw IOMMUError(
          .noSuchDevice, "\(parent.device.name) was taken from its mediating driver")
      }
      return instance
    } catch {
      state.withLock { $0.entries[uuid] = nil }
      throw error
    }
  }

  private func make(
    _ type: MediatedType, on parent: MediatedParent, uuid: UUID
  ) throws(IOMMUError) -> MediatedInstance {
    guard parent.driver.availableInstances(of: type) > 0 else {
      throw IOMMUError(
        .tooManyUsers,
        "\(parent.device.name) has no \(parent.identifier(of: type)) left; remove one of its "
          + "mediated devices")
    }
    let slice = try parent.driver.makeSlice(of: type, uuid: uuid)
    return MediatedInstance(
      uuid: uuid, parent: parent, type: type,
      device: VFIODevice(
        index: indices.take(), function: slice.function, group: VFIOGroup(group: slice.group)))
  }

  /// Takes a mediated device away.
  ///
  /// Linux: a write to `remove`, `mdev_device_remove`; which asks the user to let go, and waits
  /// until it has. Here the user is asked too, and who removes is told to come again.
  /// - Throws: `EBUSY` while somebody uses it: then its user's request event was signalled;
  ///   `ENODEV` where it is not there; `EAGAIN` where it is being made or taken away.
  public func remove(_ uuid: UUID) throws(IOMMUError) {
    let entry = state.withLock { state -> Entry? in
      guard let entry = state.entries[uuid] else { return nil }
      state.entries[uuid] = .changing
      return entry
    }
    switch entry {
    case nil:
      throw IOMMUError(.noSuchDevice, "there is no mediated device \(uuid)")
    case .changing?:
      throw IOMMUError(
        .resourceTemporarilyUnavailable,
        "the mediated device \(uuid) is being made or removed by somebody else")
    case .live(let instance)?:
      do throws(IOMMUError) {
        try takeAway(instance)
      } catch {
        state.withLock { $0.entries[uuid] = .live(instance) }
        throw error
      }
      indices.free(instance.device.index)
      state.withLock { $0.entries[uuid] = nil }
    }
  }

  private func takeAway(_ instance: MediatedInstance) throws(IOMMUError) {
    do throws(IOMMUError) {
      try instance.device.unregister()
      do throws(IOMMUError) {
        // A container does not use the device; who has it open does.
        instance.device.group.leaveContainer()
        try instance.parent.driver.removeSlice(instance.uuid)
        instance.device.group.retire()
      } catch {
        instance.device.register()
        throw error
      }
    } catch {
      guard error.errno == .resourceBusy else { throw error }
      instance.device.function.interrupts.requestRelease()
      throw IOMMUError(
        .resourceBusy,
        "\(instance.uuid) is in use; its user was asked to close it (VFIO_PCI_REQ_IRQ_INDEX)")
    }
  }
}
