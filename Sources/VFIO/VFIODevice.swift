// SPDX-License-Identifier: Apache-2.0
//
// A device that VFIO offers to users, and its group: who has them open, by which of the two
// kinds of node, and the one user who is bound. MODEL C4, C6. Facts: Linux 6.12,
// drivers/vfio/{device_cdev,vfio_main,group}.c.
//
// Locks: IOMMU/LockOrder.swift. A device model's own comes between `PCIFunction.control` and
// `InterruptVectors.state`.

import IOMMU
import SoftwareIOMMU
import Synchronization
import SystemPackage

/// An IOMMU group as VFIO offers it: open by the group's node, or by device nodes, never both.
///
/// Linux: `struct vfio_group`. Thread-safe.
public final class VFIOGroup: Sendable {
  public let group: DeviceGroup

  private struct State: Sendable {
    var isOpen = false
    /// Device files of the group that are bound through device nodes.
    var boundDevices = 0
  }

  private let state = RankedMutex(.vfioGroup, State())

  public init(group: DeviceGroup) { self.group = group }

  /// Opens the group's node.
  /// - Throws: `EBUSY` where it is open already, or a device of it is bound by its own node.
  public func open() throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      guard state.boundDevices == 0 else {
        throw IOMMUError(
          .resourceBusy,
          "a device of group \(group.id) is in use through /dev/vfio/devices, not the group")
      }
      guard !state.isOpen else {
        throw IOMMUError(.resourceBusy, "/dev/vfio/\(group.id) is open already; it opens once")
      }
      state.isOpen = true
    }
  }

  public func close() { state.withLock { $0.isOpen = false } }

  /// Keeps the group's node from being opened while a device file is bound.
  func block() throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      guard !state.isOpen else {
        throw IOMMUError(
          .resourceBusy,
          "group \(group.id) is open through /dev/vfio/\(group.id); one way at a time")
      }
      state.boundDevices += 1
    }
  }

  func unblock() { state.withLock { $0.boundDevices -= 1 } }

  /// Whether a user could take the group now: nobody owns it, and no host driver in it does
  /// DMA. Linux: `VFIO_GROUP_FLAGS_VIABLE` without a container.
  public var isViable: Bool { group.isViable }
}

/// A PCI function bound to vfio-pci. Linux: `struct vfio_device`. Thread-safe.
public final class VFIODevice: Sendable {
  /// The N of `/dev/vfio/devices/vfioN`.
  public let index: UInt32
  public let function: PCIFunction
  public let group: VFIOGroup

  struct State: ~Copyable, Sendable {
    /// Nil while no file is bound.
    var binding: Binding?
    /// The file that is bound.
    var user: ObjectIdentifier?
  }

  /// Held over bind, attach, detach and close, as Linux holds its `dev_set->lock`: they are
  /// one step each to everybody else. Above all locks of the IOMMU layer.
  let state = RankedMutex(.vfioDevice, State())

  public init(index: UInt32, function: PCIFunction, group: VFIOGroup) {
    self.index = index
    self.function = function
    self.group = group
    function.bus?.add(self)
  }

  /// Opens the device's node. No access is granted before `DeviceSession.bind`.
  public func open() -> DeviceSession { DeviceSession(device: self) }

  /// Whether a user is bound.
  public var isBound: Bool { state.withLock { $0.user != nil } }
}

/// One open of a device's node. Linux: `struct vfio_device_file`. Thread-safe.
public final class DeviceSession: Sendable {
  public let device: VFIODevice
  private let granted = Atomic(false)
  private let keeper = Guarded(MemoryKeeper())

  /// Who keeps the memory BARs, and where in its file.
  private struct MemoryKeeper: Sendable {
    var backing: any DeviceMemoryBacking = LocalDeviceMemoryBacking()
    var offset: @Sendable (_ bar: Int) -> UInt64 = { _ in 0 }
  }

  init(device: VFIODevice) { self.device = device }

  /// Says who keeps the device's memory once it is bound through this file; this process alone
  /// where nobody says anything.
  /// - Parameter offset: Where in the file a BAR lies, in bytes.
  public func keepMemory(
    in backing: any DeviceMemoryBacking, offset: @escaping @Sendable (_ bar: Int) -> UInt64
  ) {
    keeper.withLock { $0 = MemoryKeeper(backing: backing, offset: offset) }
  }

  /// What the device's memory BARs show to this user.
  private func makeMemories() throws(IOMMUError) -> [Int: any DeviceMemory] {
    let keeper = self.keeper.withLock { $0 }
    var memories: [Int: any DeviceMemory] = [:]
    for bar in device.function.bars where bar.isMemory {
      memories[bar.index] = try keeper.backing.makeMemory(
        at: keeper.offset(bar.index), length: bar.size)
    }
    return memories
  }

  /// Whether the device may be used through this file (MODEL C4).
  public var hasAccess: Bool { granted.load(ordering: .acquiring) }

  /// - Throws: `EINVAL` before the bind.
  public func checkAccess() throws(IOMMUError) {
    guard hasAccess else {
      throw IOMMUError(
        .invalidArgument,
        "\(device.function.name) gives no access before VFIO_DEVICE_BIND_IOMMUFD")
    }
  }

  /// Binds the device to a context: its group is blocked from then on, and the device is
  /// reset and ready for its user.
  ///
  /// Linux: `VFIO_DEVICE_BIND_IOMMUFD`. MODEL C1, C2.
  /// - Parameters:
  ///   - findContext: Looks the context up. Called after the checks that come before it on
  ///     Linux, with the device's lock held, as there.
  ///   - publish: Tells the user the device's id; where it throws, the bind is undone.
  /// - Throws: `EBUSY` where the group is open by its own node; `EINVAL` where this file or
  ///   another one is bound; what the context's bind throws.
  public func bind(
    findContext: () throws(IOMMUError) -> Context,
    publish: (ObjectID) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    try device.group.block()
    do throws(IOMMUError) {
      try device.lockedWithBus { (state) throws(IOMMUError) in
        guard !hasAccess else { throw alreadyBound("this file has") }
        let context = try findContext()
        guard state.user == nil else { throw alreadyBound("another open of its node has") }
        let memories = try makeMemories()
        let binding = try context.register(device.function.device)
        device.function.enable(memories: memories)
        do throws(IOMMUError) {
          try publish(binding.id)
        } catch {
          device.function.disable()
          throw error
        }
        state.binding = consume binding
        state.user = ObjectIdentifier(self)
        granted.store(true, ordering: .releasing)
      }
    } catch {
      device.group.unblock()
      throw error
    }
  }

  private func alreadyBound(_ who: String) -> IOMMUError {
    IOMMUError(
      .invalidArgument, "\(who) bound \(device.function.name) already; it is bound once")
  }

  /// Attaches the device to an address space or a page table, or replaces what it is attached
  /// to in one step. Linux: `VFIO_DEVICE_ATTACH_IOMMUFD_PT`. MODEL D1.
  /// - Parameters:
  ///   - pasid: Whose DMA; nil for what the device does without a PASID.
  ///   - publish: Tells the user the page table; where it throws, the device is detached, as
  ///     on Linux.
  public func attach(
    pasid: PASID? = nil, to target: ObjectID, publish: (ObjectID) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    try checkAccess()
    try device.state.withLock { (state) throws(IOMMUError) in
      let table =
        if let pasid {
          try state.binding?.group.attachOrReplace(pasid, to: target)
        } else {
          try state.binding?.group.attach(to: target)
        }
      guard let table else { return }
      do throws(IOMMUError) {
        try publish(table)
      } catch {
        Self.detach(pasid, from: &state.binding)
        throw error
      }
    }
  }

  /// Sends the device, or one of its PASIDs, back to blocked.
  /// Linux: `VFIO_DEVICE_DETACH_IOMMUFD_PT`.
  public func detach(pasid: PASID? = nil) throws(IOMMUError) {
    try checkAccess()
    device.state.withLock { state in Self.detach(pasid, from: &state.binding) }
  }

  private static func detach(_ pasid: PASID?, from binding: inout Binding?) {
    if let pasid { binding?.group.detach(pasid) } else { binding?.group.detach() }
  }

  /// The last reference to the file is gone: interrupts end, the device is reset and unbound.
  /// Nothing of it goes on after the return.
  public func close() {
    guard granted.exchange(false, ordering: .acquiringAndReleasing) else { return }
    device.lockedWithBus { state in
      device.function.disable()
      state.binding = nil
      state.user = nil
    }
    device.group.unblock()
  }
}
