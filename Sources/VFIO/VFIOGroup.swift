// SPDX-License-Identifier: Apache-2.0
//
// A group as its node /dev/vfio/N offers it: who has it open, which container it is in, and the
// devices that are open through it (MODEL C3, C6). Facts: Linux 6.12, drivers/vfio/group.c.

import IOMMU
import SystemPackage

/// An IOMMU group as VFIO offers it: open by the group's node, or by device nodes, never both.
///
/// Linux: `struct vfio_group`. Thread-safe.
public final class VFIOGroup: Sendable {
  public let group: DeviceGroup

  /// What maps memory for the group's devices.
  enum Mapper: Sendable {
    case none
    case container(VFIOContainer)
    /// An open of /dev/iommu in a container's place.
    case context(ContextHold)

    var isThere: Bool {
      if case .none = self { false } else { true }
    }
  }

  struct State: Sendable {
    var isOpen = false
    /// VFIO has no device of it any more. Linux: `vfio_group.iommu_group` is null.
    var isRetired = false
    /// The file is gone, but device files of a container hold the group open.
    var isAbandoned = false
    /// Device files of the group that are bound through device nodes.
    var boundDevices = 0
    var mapper = Mapper.none
    /// Devices that are open through the group and its container. Each holds both.
    var containerUsers = 0
    var members: [Member] = []
    /// Whose VM devices are that are opened through the group.
    var machine: VirtualMachine?
    /// The device files that have access through the group.
    var sessions: [WeakSession] = []
  }

  struct WeakSession: Sendable {
    weak let session: DeviceSession?
  }

  /// A device of the group that users can open. The machine has it, and it has the group.
  struct Member: Sendable {
    weak let device: VFIODevice?
  }

  let state = RankedMutex(.vfioGroup, State())

  public init(group: DeviceGroup) { self.group = group }

  func add(_ device: VFIODevice) {
    state.withLock { state in
      state.members.removeAll { $0.device == nil }
      state.members.append(Member(device: device))
    }
  }

  /// The devices that can be opened through the group, in the order in which they came.
  public var devices: [VFIODevice] {
    state.withLock { $0.members.compactMap(\.device) }
  }

  // MARK: The node, and the other way

  /// Opens the group's node.
  /// - Throws: `EBUSY` where it is open already, or a device of it is bound by its own node;
  ///   `ENODEV` once it is retired.
  public func open() throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      try checkNotRetired(state)
      guard state.boundDevices == 0 else {
        throw IOMMUError(
          .resourceBusy,
          "a device of group \(group.id) is in use through /dev/vfio/devices, not the group")
      }
      guard !state.isOpen else {
        throw IOMMUError(
          .resourceBusy,
          state.isAbandoned
            ? "/dev/vfio/\(group.id) is kept open by \(state.containerUsers) device(s) that were "
              + "opened through it; close those"
            : "/dev/vfio/\(group.id) is open already; it opens once")
      }
      state.isOpen = true
    }
  }

  /// The group's file is gone. It leaves its container; but where devices are open in one, the
  /// group stays open until the last of them is closed, as on Linux.
  public func close() {
    state.withLock { state in
      if state.containerUsers > 0 {
        state.isAbandoned = true
      } else {
        shut(&state)
      }
    }
  }

  private func shut(_ state: inout State) {
    leaveContainer(&state)
    state.mapper = .none
    state.machine = nil
    state.isOpen = false
    state.isAbandoned = false
  }

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

  // MARK: Going

  /// The group's last device was taken from VFIO. The group leaves its container, and who has it
  /// open still can do nothing with it; where VFIO gets a device of the group again, that one
  /// comes with another object, which opens beside the old file.
  ///
  /// Linux: `vfio_device_remove_group`. A context in a container's place is kept, as there.
  public func retire() {
    state.withLock { state in
      leaveContainer(&state)
      state.isRetired = true
    }
  }

  /// Takes the group out of its container where no device of it is open, as it is about to go.
  /// Nothing where it is in none, or in a context.
  public func leaveContainer() {
    state.withLock { state in if state.containerUsers == 0 { leaveContainer(&state) } }
  }

  private func leaveContainer(_ state: inout State) {
    guard case .container(let container) = state.mapper else { return }
    container.remove(group)
    state.mapper = .none
  }

  private func checkNotRetired(_ state: borrowing State) throws(IOMMUError) {
    guard !state.isRetired else {
      throw IOMMUError(
        .noSuchDevice,
        "group \(group.id) was taken from VFIO with its last device while /dev/vfio/\(group.id) "
          + "was open; close it, and open it again once vfio-pci has a device of the group")
    }
  }

  // MARK: Containers

  /// What a group can say of itself.
  public struct Status: Equatable, Sendable {
    /// Whether a user could take the group: nobody owns it, and no host driver in it does DMA.
    /// A group in a container is. Linux: `VFIO_GROUP_FLAGS_VIABLE`.
    public var isViable: Bool
    /// Linux: `VFIO_GROUP_FLAGS_CONTAINER_SET`.
    public var hasContainer: Bool
  }

  /// Linux: `VFIO_GROUP_GET_STATUS`.
  /// - Throws: `ENODEV` once the group is retired.
  public var status: Status {
    get throws(IOMMUError) {
      try state.withLock { (state) throws(IOMMUError) in
        try checkNotRetired(state)
        let hasContainer = state.mapper.isThere
        return Status(isViable: hasContainer || group.isViable, hasContainer: hasContainer)
      }
    }
  }

  /// Whether a container owns the group, which a context in its place does not.
  public var isInContainer: Bool {
    state.withLock { state in
      if case .container = state.mapper { true } else { false }
    }
  }

  /// What a group can be put into.
  public enum Container: Sendable {
    case container(VFIOContainer)
    /// An open of /dev/iommu: its compatibility space maps for the devices.
    case context(Context)
  }

  /// Puts the group into a container: who has both may connect them (MODEL A2).
  ///
  /// Linux: `VFIO_GROUP_SET_CONTAINER`. A container owns the group from then on; a context owns
  /// it from the first device that is opened on.
  /// - Parameter container: Nil for a file that is neither kind.
  /// - Throws: `EINVAL` where it is in one; `ENODEV` once it is retired; `EBADFD` for nil; `EPERM`
  ///   where the group is owned or not viable; what attaching it to the container's mappings
  ///   throws.
  public func setContainer(_ container: Container?) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      guard !state.mapper.isThere else {
        throw IOMMUError(
          .invalidArgument,
          "group \(group.id) is in a container already; VFIO_GROUP_UNSET_CONTAINER takes it out"
        )
      }
      try checkNotRetired(state)
      switch container {
      case .container(let container)?:
        try container.add(group)
        state.mapper = .container(container)
      case .context(let context)?:
        let hold = try ContextHold(context)
        try context.ensureCompatibilityIOAS()
        state.mapper = .context(hold)
      case nil:
        throw IOMMUError(
          .badDescriptorState,
          "a group is put into an open /dev/vfio/vfio or /dev/iommu; this is neither")
      }
    }
  }

  /// Takes the group out of its container: back to the host. Of a context, devices that are open
  /// keep it.
  ///
  /// Linux: `VFIO_GROUP_UNSET_CONTAINER`.
  /// - Throws: `EINVAL` where it is in none; `EBUSY` while devices are open in a container.
  public func unsetContainer() throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      switch state.mapper {
      case .none:
        throw noContainer()
      case .container(let container):
        guard state.containerUsers == 0 else {
          throw IOMMUError(
            .resourceBusy,
            "group \(group.id) cannot leave its container while \(state.containerUsers) of its "
              + "devices \(state.containerUsers == 1 ? "is" : "are") in use; unmap what is mapped "
              + "of them and close their descriptors first")
        }
        container.remove(group)
      case .context:
        break
      }
      state.mapper = .none
    }
  }

  private func noContainer() -> IOMMUError {
    IOMMUError(
      .invalidArgument,
      "group \(group.id) is in no container; VFIO_GROUP_SET_CONTAINER puts it into one")
  }

  // MARK: Devices

  /// Finds a device for a file of it.
  ///
  /// Linux: the first half of `VFIO_GROUP_GET_DEVICE_FD`.
  /// - Parameter text: The device's name, and options after a space.
  /// - Throws: `ENODEV` where none has the name; what its options throw.
  public func device(matching text: String) throws(IOMMUError) -> VFIODevice {
    for device in devices where try device.matches(text) { return device }
    throw IOMMUError(
      .noSuchDevice,
      "group \(group.id) offers no device '\(text)'; it has "
        + (devices.isEmpty ? "none" : devices.map(\.function.name).joined(separator: ", ")))
  }

  /// Gives a session access. The first of a device binds or counts, and starts the device.
  func openDevice(_ session: DeviceSession) throws(IOMMUError) {
    try state.withLock { (state) throws(IOMMUError) in
      guard state.mapper.isThere else { throw noContainer() }
      guard !session.hasAccess else { return }
      if let machine = state.machine { try session.join(machine) }
      do throws(IOMMUError) {
        try open(session, in: &state)
      } catch {
        session.leaveMachine()
        throw error
      }
      state.sessions.append(WeakSession(session: session))
      session.granted.store(true, ordering: .releasing)
    }
  }

  private func open(_ session: DeviceSession, in state: inout State) throws(IOMMUError) {
    try session.device.lockedWithBus { (opens) throws(IOMMUError) in
      try session.device.checkPresence(opens)
      if opens.openCount == 0 {
        switch state.mapper {
        case .none: break
        case .container(let container):
          opens.binding = try open(session, in: container)
          opens.isInContainer = true
          state.containerUsers += 1
        case .context(let hold):
          opens.binding = try open(session, in: hold.context)
        }
      }
      opens.openCount += 1
    }
  }

  /// - Returns: The binding of a software device; the others the group has brought along.
  private func open(
    _ session: DeviceSession, in container: VFIOContainer
  ) throws(IOMMUError) -> FunctionBinding? {
    let device = session.device
    try container.requireModel()
    let pages = try session.makePages()
    guard device.function.device == nil else {
      device.enable(pages)
      return nil
    }
    let binding = try container.connect(device.function)
    device.enable(pages)
    return binding
  }

  /// Linux: `vfio_df_iommufd_bind`, then `vfio_iommufd_compat_attach_ioas`.
  private func open(
    _ session: DeviceSession, in context: Context
  ) throws(IOMMUError) -> FunctionBinding {
    let device = session.device
    let pages = try session.makePages()
    let binding = try FunctionBinding(device.function, to: context)
    device.enable(pages)
    do throws(IOMMUError) {
      _ = try binding.attach(nil, to: context.compatibilityIOAS())
    } catch {
      device.disable()
      throw error
    }
    return binding
  }

  /// A file of a device is gone. The last one stops the device, and the last device of a group
  /// whose own file is gone closes that.
  func closeDevice(_ session: DeviceSession) {
    let device = session.device
    state.withLock { state in
      state.sessions.removeAll { $0.session == nil || $0.session === session }
      session.leaveMachine()
      device.lockedWithBus { opens in
        opens.openCount -= 1
        guard opens.openCount == 0 else { return }
        device.disable()
        opens.binding = nil
        if opens.isInContainer { state.containerUsers -= 1 }
        opens.isInContainer = false
      }
      if state.isAbandoned, state.containerUsers == 0 { shut(&state) }
    }
  }
}
