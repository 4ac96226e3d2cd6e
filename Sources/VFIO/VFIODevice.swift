// SPDX-License-Identifier: Apache-2.0
//
// A device that VFIO offers to users: who has it open, by which of the two ways, and what they
// may do. MODEL C4, C6. Facts: Linux 6.12, drivers/vfio/{device_cdev,vfio_main,group}.c.
//
// Locks: IOMMU/LockOrder.swift. A device model's own comes between `PCIFunction.control` and
// `InterruptVectors.state`.

import IOMMU
import SoftwareIOMMU
import Synchronization
import SystemPackage

/// A PCI function bound to vfio-pci. Linux: `struct vfio_device`. Thread-safe.
public final class VFIODevice: Sendable {
  /// The N of `/dev/vfio/devices/vfioN`.
  public let index: UInt32
  public let function: PCIFunction
  public let group: VFIOGroup

  struct State: ~Copyable, Sendable {
    /// Nil while no file is bound to a context; a container's binding of what an IOMMU routes is
    /// its own.
    var binding: FunctionBinding?
    /// Sessions that give access: one at the most by the device's node, any number through the
    /// group.
    var openCount = 0
    /// Whether it is open through a container, which counts it.
    var isInContainer = false
    /// Whether it is taken out of the machine.
    var isGone = false
  }

  /// Held over bind, attach, detach, open through the group and close, as Linux holds its
  /// `dev_set->lock`: they are one step each to everybody else. Above all locks of the IOMMU
  /// layer.
  let state = RankedMutex(.vfioDevice, State())

  let registration = Guarded(Registration())

  /// Of a virtual function, the physical one where that is VFIO's too; nil of all others.
  public let physicalFunction: VFIODevice?
  /// Of a physical function, who may use its virtual ones.
  let tokens: TokenKeeper?

  /// - Parameter physicalFunction: As the property.
  public init(
    index: UInt32, function: PCIFunction, group: VFIOGroup, physicalFunction: VFIODevice? = nil
  ) {
    self.index = index
    self.function = function
    self.group = group
    self.physicalFunction = physicalFunction
    tokens = function.sriov == nil ? nil : TokenKeeper()
    function.bus?.add(self)
    group.add(self)
  }

  /// Opens the device's node. No access is granted before `DeviceSession.bind`.
  public func open() -> DeviceSession { DeviceSession(device: self, isThroughGroup: false) }

  /// A file of the device that its group gives. No access is granted before
  /// `DeviceSession.openThroughGroup`.
  public func makeGroupSession() -> DeviceSession {
    DeviceSession(device: self, isThroughGroup: true)
  }

  // MARK: Coming and going

  /// Takes the device from users, as it is about to go: it is opened no more.
  ///
  /// Linux: `vfio_unregister_group_dev`, which waits for the user.
  /// - Throws: `EBUSY` while a user has it.
  package func unregister() throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      guard state.openCount == 0 else {
        throw IOMMUError(
          .resourceBusy, "\(function.name) is in use; its user has to close it first")
      }
      state.isGone = true
    }
  }

  /// It stays after all.
  package func register() { state.withLock { $0.isGone = false } }

  /// - Throws: `ENODEV` where it is taken out of the machine.
  func checkPresence(_ state: borrowing State) throws(IOMMUError) {
    guard !state.isGone else {
      throw IOMMUError(.noSuchDevice, "\(function.name) was taken out of the machine")
    }
  }

  /// Whether a user has access.
  public var isBound: Bool { state.withLock { $0.openCount > 0 } }
}

/// What a carrier keeps of a function's BARs for one user.
struct CarriedPages: Sendable {
  /// What is behind the memory BARs, by number.
  var memories: [Int: any DeviceMemory] = [:]
  var doorbells: (any DoorbellPages)?
}

/// One open of a device, by its node or through its group. Linux: `struct vfio_device_file`.
/// Thread-safe.
public final class DeviceSession: Sendable {
  public let device: VFIODevice
  /// Whether the group gives it: then there is nothing to bind or to attach.
  public let isThroughGroup: Bool
  let granted = Atomic(false)
  /// The VM that the file was given to.
  let machine = Guarded<VirtualMachine?>(nil)
  /// The VM that the group was given to which gave the file.
  let groupMachine = Guarded<VirtualMachine?>(nil)
  private let keeper = Guarded(MemoryKeeper())

  /// Who keeps the memory BARs, and where in its file.
  private struct MemoryKeeper: Sendable {
    var backing: any DeviceMemoryBacking = LocalDeviceMemoryBacking()
    var offset: @Sendable (_ bar: Int) -> UInt64 = { _ in 0 }
  }

  private let isOpen = Atomic(true)

  init(device: VFIODevice, isThroughGroup: Bool) {
    self.device = device
    self.isThroughGroup = isThroughGroup
    device.registration.withLock { $0.openFiles += 1 }
  }

  deinit { leave() }

  /// The device may be taken from vfio-pci as far as this file goes.
  private func leave() {
    guard isOpen.exchange(false, ordering: .acquiringAndReleasing) else { return }
    device.registration.withLock { $0.openFiles -= 1 }
  }

  /// Says who keeps the device's memory once it is bound through this file; this process alone
  /// where nobody says anything.
  /// - Parameter offset: Where in the file a BAR lies, in bytes.
  public func keepMemory(
    in backing: any DeviceMemoryBacking, offset: @escaping @Sendable (_ bar: Int) -> UInt64
  ) {
    keeper.withLock { $0 = MemoryKeeper(backing: backing, offset: offset) }
  }

  /// What the device's BARs show to this user.
  func makePages() throws(IOMMUError) -> CarriedPages {
    let keeper = self.keeper.withLock { $0 }
    var pages = CarriedPages()
    for bar in device.function.bars {
      let start = keeper.offset(bar.index)
      if bar.isMemory {
        pages.memories[bar.index] = try keeper.backing.makeMemory(at: start, length: bar.size)
      } else if let range = bar.doorbells {
        pages.doorbells = try keeper.backing.makeDoorbells(
          at: start + range.lowerBound, length: range.upperBound - range.lowerBound)
      }
    }
    return pages
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
  ///   - cookie: The user's own name for the device; Linux has none.
  ///   - token: Reads the VF token that the user presents; nil is none.
  ///   - findContext: Looks the context up. Called after the checks that come before it on
  ///     Linux, with the device's lock held, as there.
  ///   - publish: Tells the user the device's id; where it throws, the bind is undone.
  /// - Throws: `EBUSY` where the group is open by its own node; `EINVAL` where this file or
  ///   another one is bound; `ENODEV` where the device is gone; `EACCES` and `EINVAL` for its VF
  ///   token; what the context's bind throws.
  public func bind(
    cookie: UInt64? = nil,
    token: () throws(IOMMUError) -> VFToken? = { () throws(IOMMUError) in nil },
    findContext: () throws(IOMMUError) -> Context,
    publish: (ObjectID) throws(IOMMUError) -> Void
  ) throws(IOMMUError) {
    guard !isThroughGroup else {
      throw IOMMUError(
        .invalidArgument,
        "\(device.function.name) was opened through its group, whose container it is in; only "
          + "files of /dev/vfio/devices are bound")
    }
    try device.group.block()
    do throws(IOMMUError) {
      try device.lockedWithBus { (state) throws(IOMMUError) in
        guard !hasAccess else { throw alreadyBound("this file has") }
        try device.checkPresence(state)
        try device.checkToken(token())
        let context = try findContext()
        guard state.openCount == 0 else { throw alreadyBound("another file of it has") }
        let pages = try makePages()
        let binding = try FunctionBinding(device.function, to: context, cookie: cookie)
        device.enable(pages)
        do throws(IOMMUError) {
          try publish(binding.id)
        } catch {
          device.disable()
          throw error
        }
        state.binding = consume binding
        state.openCount = 1
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

  /// Gives the file access by way of the device's group: at once, as its container maps for it.
  /// Asked again, it says whether it would.
  ///
  /// Linux: the second half of `VFIO_GROUP_GET_DEVICE_FD`. MODEL C4, C6. Of what
  /// `VFIODevice.makeGroupSession` made.
  /// - Throws: `EINVAL` where the group is in no container or that has no IOMMU set; of a
  ///   context what binding and attaching throw.
  public func openThroughGroup() throws(IOMMUError) {
    guard isThroughGroup else {
      throw IOMMUError(
        .invalidArgument,
        "this file of \(device.function.name) is its node's, which VFIO_DEVICE_BIND_IOMMUFD binds"
      )
    }
    try device.group.openDevice(self)
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
    try checkAttachable()
    try device.state.withLock { (state) throws(IOMMUError) in
      guard let table = try state.binding?.attach(pasid, to: target) else { return }
      do throws(IOMMUError) {
        try publish(table)
      } catch {
        state.binding?.detach(pasid)
        throw error
      }
    }
  }

  /// Sends the device, or one of its PASIDs, back to blocked.
  /// Linux: `VFIO_DEVICE_DETACH_IOMMUFD_PT`.
  public func detach(pasid: PASID? = nil) throws(IOMMUError) {
    try checkAttachable()
    device.state.withLock { state in state.binding?.detach(pasid) }
  }

  /// - Throws: `EINVAL` before the bind; `ENOTTY` of a file that the group gave.
  private func checkAttachable() throws(IOMMUError) {
    try checkAccess()
    guard !isThroughGroup else {
      throw IOMMUError(
        .inappropriateIOCTLForDevice,
        "\(device.function.name) was opened through its group, and is where its container is")
    }
  }

  /// The last reference to the file is gone: interrupts end, the device is reset and unbound.
  /// Nothing of it goes on after the return.
  public func close() {
    defer { leave() }
    takeBack()
    guard granted.exchange(false, ordering: .acquiringAndReleasing) else { return }
    guard !isThroughGroup else {
      device.group.closeDevice(self)
      return
    }
    device.lockedWithBus { state in
      device.disable()
      state.binding = nil
      state.openCount = 0
    }
    device.group.unblock()
  }
}
